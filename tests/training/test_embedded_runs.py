"""A run whose embeddings lie in a file: the trajectory of one that encodes them as they come, and what is refused."""

import json
import shutil

import numpy as np
import pyarrow.parquet
import pytest
import torch

from dipp_ray.data.embeddings import NULL, NULL_ROW, RECORD, Rows
from dipp_ray.data.prompts import prompts_of
from dipp_ray.diffusion.noise import EVALUATION, Draws
from dipp_ray.errors import UserError
from dipp_ray.models.pipeline import frame_of
from dipp_ray.models.text import TextEncoder
from dipp_ray.roles.embeds import EmbedsReader
from dipp_ray.training.checks import check, embeddings_line
from dipp_ray.training.controller import shape_of
from dipp_ray.training.plain import plain_loop
from dipp_ray.training.session import only_session
from dipp_ray.training.text_checks import largest_embeds
from dipp_ray.training.train import train
from encoded_prompts import encoded
from settings import tiny_config
from tiny import PROMPTS, pixart_pipeline, prompt_file, sd_pipeline

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("embedded")
    return folder, pixart_pipeline(folder / "pipeline"), prompt_file(folder / "prompts.parquet")


@pytest.fixture(scope="module")
def stored(world):
    return encoded(tiny_config(*world), world[0] / "embeddings")


@pytest.mark.parametrize(("kind", "order"), [(pixart_pipeline, "epoch"), (sd_pipeline, "replacement")])
def test_the_plain_loop_is_the_same_to_the_bit(tmp_path, kind, order):
    world = tmp_path, kind(tmp_path / "pipeline"), prompt_file(tmp_path / "prompts.parquet")
    config = tiny_config(*world, f"data.order={order}", "objective.score_updates=2", "init.score_warmup_steps=1")
    out = encoded(config, tmp_path / "embeddings")
    plain = plain_loop(config, prompts_of(config))
    expected = [plain.step(step) for step in range(3)]
    for prompts in (world[2], out):  # the file that was encoded, or the folder itself
        from_file = tiny_config(
            tmp_path, world[1], prompts, f"data.embeddings={out}", f"data.order={order}", "objective.score_updates=2",
            "init.score_warmup_steps=1",
        )  # fmt: skip
        read = plain_loop(from_file, prompts_of(from_file))
        assert [read.step(step) for step in range(3)] == expected
        assert all(torch.equal(value, read.average[name]) for name, value in plain.average.items())


def test_the_order_is_that_of_the_file_that_was_encoded(tmp_path, world):
    table = pyarrow.table({"prompt": [f"a {word} {i}" for i in range(20) for word in ("bold", "thin")]})
    pyarrow.parquet.write_table(table, tmp_path / "prompts.parquet", row_group_size=3)
    config = tiny_config(tmp_path, world[1], tmp_path / "prompts.parquet", "data.order=epoch")
    out = encoded(config, tmp_path / "embeddings", rows=7)
    from_file = tiny_config(tmp_path, world[1], out, f"data.embeddings={out}", "data.order=epoch")
    before, after = prompts_of(config), prompts_of(from_file)
    for step in range(12):
        draws = Draws(7, step, 0, range(8))
        assert before.of(draws) == after.of(draws) and before.rows(draws) == after.rows(draws)


def test_a_role_reads_its_rows_and_the_null_prompt_itself(world, stored):
    reader = EmbedsReader(tiny_config(*world, f"data.embeddings={stored}"), CPU)
    text = TextEncoder(world[1], CPU)
    ours, theirs = reader(Rows((3, 1), ahead=(0,))), text([PROMPTS[3], PROMPTS[1]])
    assert torch.equal(ours.tokens, theirs.tokens) and torch.equal(ours.mask, theirs.mask)
    assert torch.equal(reader(NULL).tokens, text([""]).tokens)
    assert torch.equal(EmbedsReader(tiny_config(*world), CPU)(theirs.arrays()).tokens, theirs.tokens)


def test_a_stored_precision_is_what_the_networks_see(world, tmp_path):
    half = encoded(tiny_config(*world), tmp_path / "half", "bf16")
    embeds = EmbedsReader(tiny_config(*world, f"data.embeddings={half}"), CPU)(Rows((0,)))
    exact = TextEncoder(world[1], CPU)([PROMPTS[0]]).tokens
    assert embeds.tokens.dtype == torch.float32 and torch.equal(embeds.tokens, exact.bfloat16().float())


STEPS = 3


def steps_of(config):
    """Measurements, x0 of the moving average on fixed noises, and the actors' tasks, through Ray."""
    prompts = prompts_of(config)
    draws = Draws(7, EVALUATION, 0, range(4))
    with only_session(config, prompts, print) as session:
        controller = session.controller
        controller.together("generator", "start")
        steps = list(controller.steps(0, lambda done: done == STEPS))
        (embeds,) = controller.encoded([prompts.rows(draws)])
        (x0,) = controller.together("generator", "sample_average", [(draws, embeds)])[0]
        (images,) = controller.together("text", "decode", x0)
    assert images.shape[0] == 4
    return [step.metrics for step in steps], x0, {role for step in steps for role in step.busy}


@pytest.mark.slow
def test_the_ray_pipeline_equals_the_plain_loop_without_a_text_task(ray_session, world, stored):
    config = tiny_config(*world, f"data.embeddings={stored}")
    measured, x0, roles = steps_of(config)
    plain = plain_loop(config, prompts_of(config))
    for step in range(STEPS):
        expected = plain.step(step)
        for key in ("score_loss", "score_gap", "divergence_norm"):
            assert measured[step][key] == pytest.approx(expected[key], rel=1e-5)
    plain.generator.network.load_state_dict(plain.average)
    with torch.no_grad():
        *_, expected_x0 = plain.sample(Draws(7, EVALUATION, 0, range(4)), graph=False)
    np.testing.assert_allclose(x0, expected_x0.numpy(), rtol=0, atol=1e-4 * float(expected_x0.abs().max()))
    assert roles == {"generator", "score", "teacher", "reward"}


@pytest.mark.slow
def test_the_ray_pipeline_is_the_same_to_the_bit(ray_session, world, stored):
    here = steps_of(tiny_config(*world))
    there = steps_of(tiny_config(*world, f"data.embeddings={stored}"))
    assert here[0] == there[0] and np.array_equal(here[1], there[1])
    assert here[2] - there[2] == {"text"}


def test_the_list_has_no_text_task(world, stored):
    ranks = {"generator": 1, "score": 1}
    assert shape_of(tiny_config(*world), ranks).encodes
    assert not shape_of(tiny_config(*world, f"data.embeddings={stored}"), ranks).encodes


# -- what is refused before any training -----------------------------------------------------------------------------


@pytest.fixture
def copy(stored, tmp_path):
    return shutil.copytree(stored, tmp_path / "copy")


def fault(world, folder, *overrides, prompts=None):
    config = tiny_config(world[0], world[1], prompts or world[2], f"data.embeddings={folder}", *overrides)
    with pytest.raises(UserError) as error:
        check(config)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_fits_is_taken(world, stored, tmp_path):
    assert len(check(tiny_config(*world, f"data.embeddings={stored}"))) == 5
    assert len(check(tiny_config(world[0], world[1], stored, f"data.embeddings={stored}"))) == 5
    (tmp_path / "same.txt").write_text("\n".join(PROMPTS))
    assert len(check(tiny_config(world[0], world[1], tmp_path / "same.txt", f"data.embeddings={stored}"))) == 5
    moved = shutil.copytree(world[1], tmp_path / "moved")
    assert len(check(tiny_config(world[0], moved, world[2], f"data.embeddings={stored}"))) == 5


def test_embeddings_of_another_encoder_are_refused(world, stored, tmp_path):
    other = shutil.copytree(world[1], tmp_path / "other")
    pixart_pipeline(tmp_path / "donor", seed=1)
    shutil.copytree(tmp_path / "donor" / "text_encoder", other / "text_encoder", dirs_exist_ok=True)
    assert "were made with another text_encoder: encode the prompts anew" in fault((world[0], other, world[2]), stored)
    tokenizer = shutil.copytree(world[1], tmp_path / "tokenizer") / "tokenizer" / "tokenizer_config.json"
    said = json.loads(tokenizer.read_text())
    tokenizer.write_text(json.dumps(said | {"model_max_length": 7}))
    assert "with another tokenizer" in fault((world[0], tmp_path / "tokenizer", world[2]), stored)
    assert "by encoders in fp32, not bf16 (roles.text.dtype)" in fault(world, stored, "roles.text.dtype=bf16")


def test_another_network_on_the_same_encoders_takes_them(world, stored, tmp_path):
    donor = pixart_pipeline(tmp_path / "donor", seed=1)
    shutil.copytree(world[1] / "text_encoder", donor / "text_encoder", dirs_exist_ok=True)
    assert len(check(tiny_config(world[0], donor, world[2], f"data.embeddings={stored}"))) == 5


def test_embeddings_of_another_prompt_file_are_refused(world, stored, tmp_path):
    (tmp_path / "other.txt").write_text("\n".join([*PROMPTS[:4], "a thin zero"]))
    assert "are of 5 other prompts than the 5 of data.prompts=" in fault(world, stored, prompts=tmp_path / "other.txt")
    (tmp_path / "fewer.txt").write_text("\n".join(PROMPTS[:4]))
    assert "than the 4 of data.prompts=" in fault(world, stored, prompts=tmp_path / "fewer.txt")


def rewrite(folder, **changes):
    record = json.loads((folder / RECORD).read_text())
    encoder = record["encoder"] | changes.pop("encoder", {})
    (folder / RECORD).write_text(json.dumps(record | {"encoder": encoder} | changes))


def test_embeddings_of_another_length_are_refused(world, copy):
    rewrite(copy, encoder={"longest": 300})
    assert "were made of prompts of 300 tokens, not 120" in fault(world, copy)
    rewrite(copy, encoder={"longest": 120}, width=8)
    assert "a row's tokens have 64 bytes, which is not what its _encoded.json says" in fault(world, copy)
    rewrite(copy, width=16)
    assert len(check(tiny_config(*world, f"data.embeddings={copy}"))) == 5


def test_a_shard_that_is_missing_or_cut_is_named(world, copy):
    shard = copy / "shard-000001.parquet"
    content = shard.read_bytes()
    shard.write_bytes(content[:-1])
    assert f"shard-000001.parquet has {len(content) - 1:,} bytes, not {len(content):,}" in fault(world, copy)
    shard.unlink()
    assert "shard-000001.parquet is missing: copy it again" in fault(world, copy)
    shard.write_bytes(content)
    (copy / NULL_ROW).unlink()
    assert "_null.parquet is missing" in fault(world, copy)


def test_a_folder_that_holds_no_embeddings(world, copy, tmp_path):
    assert "holds no _encoded.json: give a folder that `dipp-ray encode` wrote" in fault(world, tmp_path / "nowhere")
    (copy / RECORD).write_text("{")
    assert "its _encoded.json is damaged" in fault(world, copy)
    rewritten = json.dumps({"format": 2})
    (copy / RECORD).write_text(rewritten)
    assert "its _encoded.json is damaged" in fault(world, copy)


def test_check_says_what_the_embeddings_weigh(world, stored):
    config = tiny_config(*world, "objective.score_updates=2")
    assert largest_embeds(frame_of(config.model)) == 4 * 120 * (16 + 1)
    line = embeddings_line(config)
    assert "up to 8.16 kB a prompt, 131 kB of embeddings a step" in line and "`dipp-ray encode` does it once" in line
    line = embeddings_line(tiny_config(*world, f"data.embeddings={stored}"))
    assert line.startswith("text: embeddings in fp32 from") and "no text encoder is loaded" in line


@pytest.mark.slow
def test_a_whole_run_looks_saves_and_exports(ray_session, world, tmp_path):
    """Its embeddings are rounded ones, and its prompts are the folder's; the export is compared by the exact ones."""
    half = encoded(tiny_config(*world), tmp_path / "half", "bf16")
    config = tiny_config(tmp_path, world[1], half, f"data.embeddings={half}", "run.steps=2", "data.order=epoch")
    said = []
    folder = train(config, said.append)
    assert (folder / "pipeline" / "model_index.json").exists() and (folder / "samples" / "step_000002.png").exists()
    assert any("its latents differ from the trainer's x0 by" in line for line in said)
