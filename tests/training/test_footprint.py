"""What the trained state takes: counted against the tensors that there really are."""

from contextlib import nullcontext

import pytest
import yaml

from dipp_ray import cli
from dipp_ray.errors import UserError
from dipp_ray.models.activations import Passes
from dipp_ray.models.components import text_parameters
from dipp_ray.models.pipeline import frame_of, load_denoiser, read_frame
from dipp_ray.training import machine, passes, sharing
from dipp_ray.training import train as training
from dipp_ray.training.footprint import count, footprint_lines, footprints, gigabytes, held
from dipp_ray.training.plan import Node, plan, requests
from dipp_ray.training.sharing import sharing_lines, text_beside_trainer
from dipp_ray.training.sizes import Sizes
from settings import tiny_config
from tiny import pixart_pipeline, prompt_file

ONE = Sizes(1, 1, 1)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("footprint")
    return folder, pixart_pipeline(folder / "pipeline"), prompt_file(folder / "prompts.parquet")


def found(world, *overrides, sizes=ONE):
    config = tiny_config(*world, *overrides)
    return footprints(config, frame_of(config.model), sizes)


def test_all_parameters_of_the_network_are_counted(world):
    generator, score = found(world)
    parameters = sum(p.numel() for p in load_denoiser(world[1], "fp32").network.parameters())
    assert generator.parameters == generator.trained == score.trained == parameters
    assert generator.rank == {"weights": 4 * parameters, "gradients": 4 * parameters, "moments": 8 * parameters,
                              "average": 4 * parameters}  # fmt: skip
    assert score.rank["average"] == 0
    assert (generator.state, score.state) == (16 * parameters, 12 * parameters)


def test_sharding_divides_what_each_stage_shards(world):
    parameters = found(world)[0].parameters
    overrides = [f"roles.generator={{workers: 2, zero_stage: {stage}}}" for stage in (1, 2, 3)]
    one, two, three = (found(world, override, sizes=Sizes(2, 1, 1))[0].rank for override in overrides)
    assert one == {"weights": 6 * parameters, "gradients": 4 * parameters, "moments": 4 * parameters,
                   "average": 2 * parameters}  # fmt: skip
    assert two == one | {"gradients": 2 * parameters}
    assert three == two | {"weights": 4 * parameters}


def test_what_lies_in_the_nodes_memory_is_said_apart(world):
    parameters = found(world)[0].parameters
    for offload, weights in (("optimizer", 2), ("weights", 0)):
        role = f"roles.generator={{workers: 2, zero_stage: 3, offload: {offload}}}"
        one = found(world, role, sizes=Sizes(2, 1, 1))[0]
        assert one.rank == {"weights": weights * parameters, "gradients": 2 * parameters}
        assert one.node == {"weights": (4 - weights) * parameters, "moments": 4 * parameters, "average": 2 * parameters}
        config = tiny_config(*world, role)
        line, score, *_ = footprint_lines(config, frame_of(config.model), Sizes(2, 1, 1))
        away = gigabytes((18 - weights) * parameters)  # with half of the 16 bytes a parameter that a checkpoint has
        assert f"gradients {gigabytes(2 * parameters)}, activations" in line
        assert f"); its node's memory {away} (weights {gigabytes((4 - weights) * parameters)}, moments" in line
        copy = gigabytes(12 * parameters)
        assert f"; its node's memory {copy} (a checkpoint until it is written {copy})" in score


ONE_GPU = [Node("n", "n", {"CPU": 8, "GPU": 1})]
HALVES = "roles={generator: {gpus: 0.5}, score: {gpus: 0.25}, teacher: {gpus: 0.125}, text: {gpus: 0.125}}"


def shared(world, nodes, *overrides):
    """(what the processes hold by role, the lines of GPUs that they share, what is said of the text encoders)."""
    config = tiny_config(*world, *overrides)
    planned = plan(requests(config, ONE), nodes)
    processes = held(config, frame_of(config.model), ONE)
    sizes = {one.role: one.bytes for one in processes}
    return (
        sizes,
        sharing_lines(config, planned, processes),
        text_beside_trainer(config, planned),
    )


def test_what_shares_a_gpu_is_added_up(world):
    sizes, lines, _ = shared(world, ONE_GPU, HALVES)
    on = sum(sizes[role] for role in ("generator", "score", "teacher", "text"))
    assert lines == [f"a GPU of n, shared by generator, score, text and teacher: {gigabytes(on)} together"]
    assert (
        shared(world, [Node("n", "n", {"CPU": 8, "GPU": 4})], "roles.generator.gpus=1", "roles.score.gpus=1")[1] == []
    )


def test_the_processes_of_the_rewards_are_told_apart(world):
    terms = "reward.terms=[{name: ink, model: 'settings:InkReward'}, {name: two, model: 'settings:InkReward'}]"
    once = "reward.decode_once=true"
    sizes, lines, _ = shared(world, ONE_GPU, terms, once, "reward.replicas=2", "roles.reward.gpus=0.125")
    of = 2 * sum(size for role, size in sizes.items() if role.startswith("reward"))
    who = "2 x reward 'ink', 2 x reward 'two' and 2 x reward's VAE"
    assert lines == [f"a GPU of n, shared by {who}: {gigabytes(of)} together"]


def test_equal_gpus_of_a_node_are_one_line(world):
    roles = "roles={generator: {workers: 2, gpus: 1}, score: {workers: 2}, teacher: {workers: 4, gpus: 0.5}}"
    config = tiny_config(*world, roles)
    sizes = Sizes(2, 2, 4)
    processes = held(config, frame_of(config.model), sizes)
    teacher = next(one for one in processes if one.role == "teacher")
    planned = plan(requests(config, sizes), [Node("n", "n", {"CPU": 8, "GPU": 4})])
    (line,) = sharing_lines(config, planned, processes)
    assert line == f"each of 2 GPUs of n, shared by 2 x teacher: {gigabytes(2 * teacher.bytes)} together"


def test_text_encoders_on_a_trainers_gpu_are_warned_of(world):
    *_, said = shared(world, ONE_GPU, HALVES)
    size = count(text_parameters(read_frame(world[1])))
    assert said.startswith(
        f"warning: the text encoders, {size} parameters, may come to lie on a GPU of n that generator 0 and score 0"
    )
    assert "roles.text.gpus=0" in said and "dipp-ray encode" in said
    for others in ("roles.text.gpus=0", "roles.text.gpus=1"):
        assert shared(world, [Node("n", "n", {"CPU": 8, "GPU": 2})], HALVES, others)[2] is None


def test_large_text_encoders_never_sit_on_a_trainers_gpu(world, monkeypatch):
    size = text_parameters(read_frame(world[1]))
    monkeypatch.setattr(sharing, "LARGE", size + 1)
    assert shared(world, ONE_GPU, HALVES)[2].startswith("warning: ")
    monkeypatch.setattr(sharing, "LARGE", size)
    with pytest.raises(UserError, match=r"^the text encoders, .*: set roles\.text\.gpus=0, send them else"):
        shared(world, ONE_GPU, HALVES)
    assert shared(world, ONE_GPU, HALVES, "roles.text.gpus=0")[2] is None
    two = [Node("n", "n", {"CPU": 8, "GPU": 2})]  # on either of which Ray may put them
    with pytest.raises(UserError, match=r"may come to lie on a GPU of n that score 0 has a part of"):
        shared(world, two, "roles={generator: {gpus: 1}, score: {gpus: 0.5}, text: {gpus: 0.25}}")
    assert shared(world, two, "roles={generator: {gpus: 1}, score: {gpus: 0.5}, text: {gpus: 1}}")[2] is None


def test_the_bound_is_between_the_encoders_of_sdxl_and_gemma():
    assert 0.82e9 < sharing.LARGE < 2.6e9


def test_a_cpus_copies_are_counted_on_cpus_alone(world, monkeypatch):
    of = lambda on_cpu: Passes(0, 7000 if on_cpu else 5000)  # noqa: E731
    monkeypatch.setattr(passes, "decoder_passes", lambda *given: of(given[4]))
    monkeypatch.setattr(passes, "denoiser_passes", lambda *given: of(given[7]))

    def told(*overrides):
        config = tiny_config(*world, *overrides)
        found = {one.role: one.parts for one in held(config, frame_of(config.model), ONE)}
        return {role: parts.get("activations", parts.get("the VAE's activations")) for role, parts in found.items()}

    roles = ("generator", "score", "teacher", "text", "reward")
    assert set(told().values()) == {7000}
    for role in roles:
        on_gpu = [name for name, size in told(f"roles.{role}.gpus=0.1").items() if size == 5000]
        assert on_gpu == ["reward 'ink'" if role == "reward" else role]


def test_check_and_train_say_it(world, tmp_path, monkeypatch, capsys):
    def nothing_more(*arguments):
        raise UserError("no cluster here")

    config, said = tiny_config(tmp_path, *world[1:], HALVES), []
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(machine, "this_machine", lambda: ONE_GPU[0])
    assert cli.main(["check", str(tmp_path / "run.yaml")]) == 0
    out = capsys.readouterr().out
    assert "warning: the text encoders, " in out
    assert "a GPU of n, shared by generator, score, text and teacher: " in out
    for name, value in {
        "watched_head": lambda *_: nullcontext(), "cluster_nodes": lambda: ONE_GPU, "can_grow": lambda: False,
        "print_table": lambda table: None, "reserve": nothing_more,
    }.items():  # fmt: skip
        monkeypatch.setattr(training, name, value)
    with pytest.raises(UserError, match="no cluster here"):
        training.train(config, said.append)
    assert any("warning: the text encoders, " in one for one in said)


def test_of_an_adapter_the_trained_part_alone_has_gradients_and_state(world):
    generator, score = found(world, "adapters.generator={rank: 2}")
    network = load_denoiser(world[1], "fp32").network
    assert generator.trained < generator.parameters / 2 and score.trained == score.parameters
    assert generator.parameters == sum(p.numel() for p in network.parameters()) + generator.trained
    assert generator.rank["gradients"] == 4 * generator.trained
    assert generator.rank["weights"] == 4 * generator.parameters


def test_a_vae_that_decodes_for_all_rewards_is_counted_once(world):
    terms = "reward.terms=[{name: ink, model: 'settings:InkReward'}, {name: two, model: 'settings:InkReward'}]"
    own, once = (
        {one.role: one for one in held(config, frame_of(config.model), ONE)}
        for config in (tiny_config(*world, terms, f"reward.decode_once={which}") for which in ("false", "true"))
    )
    shared = once.pop("reward's VAE")
    assert own.keys() == once.keys()
    for name in ("reward 'ink'", "reward 'two'"):
        assert own[name].parts == once[name].parts | shared.parts and once[name].parts.keys() == {"weights"}
    for which in ("false", "true"):
        config = tiny_config(*world, terms, f"reward.decode_once={which}")
        lines = footprint_lines(config, frame_of(config.model), ONE)
        assert any("each of 2 reward terms has a VAE of its own" in line for line in lines) == (which == "false")


def test_it_is_told_with_the_disk_and_the_memory_elsewhere(world):
    config = tiny_config(*world, "checkpoint.memory_every=5", "checkpoint.keep=3")
    generator, score, reward, text, teacher, latents, disk, memory = footprint_lines(
        config, frame_of(config.model), ONE
    )
    state = 28 * found(world)[0].trained / 1e6
    assert generator.startswith("generator: ") and "all trained; each of 1 at ZeRO 0 holds" in score
    assert teacher.startswith("teacher: ") and "in fp32; each of 1 holds" in teacher and "activations" in teacher
    assert reward.startswith("reward 'ink': ") and text.startswith("text: it holds")
    assert latents == "latents: 0.3 kB a sample; 8.2 kB a step go from role to role"
    assert disk == f"a checkpoint takes {state:.1f} MB, and up to 5 lie there at a time"
    assert memory.startswith(f"state in memory takes {2 * state:.1f} MB on nodes without ranks")
