"""What the trained state takes: counted against the tensors that there really are."""

import pytest

from dipp_ray.models.pipeline import frame_of, load_denoiser
from dipp_ray.training.footprint import footprint_lines, footprints, held
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
    copied = "until it is written, the nodes of the ranks hold as much in memory"
    assert disk == f"a checkpoint takes {state:.1f} MB, and up to 5 lie there at a time; {copied}"
    assert memory.startswith(f"state in memory takes {2 * state:.1f} MB on nodes without ranks")
