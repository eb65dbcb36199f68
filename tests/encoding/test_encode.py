"""`dipp-ray encode`: what it writes is what the encoders give, whole, once, and goes on where it was interrupted."""

import json
import shutil
from contextlib import contextmanager

import pyarrow.parquet
import pytest
import torch
import yaml

from dipp_ray import cli, verbs
from dipp_ray.data.embeddings import JOB, NULL, NULL_ROW, RECORD, Embeddings, Rows, sizes_in
from dipp_ray.data.prompts import Prompts, read_prompts
from dipp_ray.encoding.command import encode
from dipp_ray.encoding.encoder import Encoder
from dipp_ray.errors import UserError
from dipp_ray.models.pipeline import frame_of
from dipp_ray.models.text import TextEncoder
from encoded_prompts import encoded, here
from settings import tiny_config
from tiny import PROMPTS, pixart_pipeline, prompt_file, sd_pipeline
from tiny_families import PIPELINES, save_family

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encode")
    return folder, pixart_pipeline(folder / "pipeline"), prompt_file(folder / "prompts.parquet")


@pytest.fixture(scope="module")
def whole(world):
    return encoded(tiny_config(*world), world[0] / "whole")


def same(ours, theirs):
    for a, b in zip(ours.parts, theirs.parts, strict=True):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            assert a.dtype == b.dtype and torch.equal(a, b)


@pytest.mark.parametrize("rows", [(0,), (3, 0, 3), (4, 1), tuple(range(5))])
def test_a_batch_is_that_of_the_encoder_to_the_bit(world, whole, rows):
    text = TextEncoder(world[1], CPU)
    found = Embeddings(str(whole))
    same(found.at(rows), text([PROMPTS[row] for row in rows]))
    same(found.of(Rows(rows, ahead=(1, 2))), text([PROMPTS[row] for row in rows]))
    same(found.of(NULL), text([""]))


@pytest.mark.parametrize("name", [name for name in PIPELINES if name != "auraflow"])
def test_every_familys_embeddings_come_back_to_the_bit(tmp_path, name):
    folder = save_family(name, tmp_path / "pipeline")
    prompts = prompt_file(tmp_path / "prompts.parquet")
    config = tiny_config(tmp_path, folder, prompts, "model.resolution=[32, 32]")
    frame = frame_of(config.model)
    found, text = Embeddings(str(encoded(config, tmp_path / "out", rows=3))), TextEncoder(folder, CPU, frame=frame)
    same(found.at([4, 0, 2]), text([PROMPTS[4], PROMPTS[0], PROMPTS[2]]))
    same(found.null, text([""]))
    longest = text.frame.longest
    assert longest is None or max(text.row(prompt).tokens.shape[1] for prompt in PROMPTS) <= longest


@pytest.mark.parametrize(("dtype", "kept"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_the_stored_dtype_is_the_nearest_number(world, tmp_path, dtype, kept):
    found = Embeddings(str(encoded(tiny_config(*world), tmp_path / "out", dtype))).at([1, 2])
    exact = TextEncoder(world[1], CPU)([PROMPTS[1], PROMPTS[2]])
    assert found.tokens.dtype == kept and torch.equal(found.tokens, exact.tokens.to(kept))
    assert torch.equal(found.mask, exact.mask)


def test_shards_are_plain_parquet_with_their_prompts(whole):
    assert sorted(sizes_in(str(whole)) - {".lock": 0}.keys()) == sorted(
        [RECORD, NULL_ROW, "shard-000000.parquet", "shard-000001.parquet", "shard-000002.parquet"]
    )
    table = pyarrow.parquet.read_table(whole / "shard-000001.parquet")
    assert table.column("prompt").to_pylist() == PROMPTS[2:4]
    assert list(read_prompts(str(whole), "prompt")) == PROMPTS
    assert list(Prompts(Embeddings(str(whole)).texts())) == PROMPTS
    record = json.loads((whole / RECORD).read_text())
    assert (record["count"], record["groups"], record["width"], record["mask"]) == (5, [5], 16, "int64")


class Dies(Exception):
    pass


@contextmanager
def dying(config, after):
    """Encoders that write so many files, and then are lost."""
    encoder, written = Encoder(config, CPU), []

    def write(*asked):
        if len(written) == after:
            raise Dies
        written.append(asked)
        Encoder.write(encoder, *asked)

    encoder.write = write
    yield [encoder]


def test_it_goes_on_with_what_is_missing(world, whole, tmp_path):
    out, config = tmp_path / "out", tiny_config(*world)
    with pytest.raises(Dies):
        encoded(config, out, encoders=lambda config: dying(config, 2))
    assert (out / JOB).exists() and not (out / RECORD).exists()
    with pytest.raises(UserError, match="is not finished: the same `dipp-ray encode` command goes on"):
        Embeddings(str(out))
    written = {path: path.stat().st_mtime_ns for path in out.glob("*.parquet")}
    assert len(written) == 2
    encoded(config, out)
    assert all(path.stat().st_mtime_ns == at for path, at in written.items())
    assert not (out / JOB).exists()
    for path in whole.glob("*.parquet"):
        assert path.read_bytes() == (out / path.name).read_bytes()
    assert (out / RECORD).read_text() == (whole / RECORD).read_text()
    encoded(config, out, encoders=None)  # all is done: nobody is asked


def test_encode_remembers_nothing_and_hands_prompts_over_together(world, tmp_path):
    config, asked = tiny_config(*world, "run.deterministic=false"), []

    @contextmanager
    def watched(config):
        encoder = Encoder(config, CPU)
        rows = encoder.text.rows
        encoder.text.rows = lambda texts: asked.append(len(texts)) or rows(texts)
        yield [encoder]
        assert len(encoder.text._known) == 1

    encoded(config, tmp_path / "out", rows=3, encoders=watched)
    assert asked[-2:] == [3, 2]


def test_half_a_shard_is_never_taken_for_one(world, tmp_path):
    out, config = tmp_path / "out", tiny_config(*world)

    @contextmanager
    def broken(config):
        encoder = Encoder(config, CPU)
        rows = encoder.text.rows

        def fails(texts):
            if PROMPTS[2] in texts:
                raise Dies
            return rows(texts)

        encoder.text.rows = fails
        yield [encoder]

    with pytest.raises(Dies):
        encoded(config, out, rows=3, encoders=broken)
    assert not list(out.glob("shard-*")) and not list(out.glob(".shard-*"))
    assert Embeddings(str(encoded(config, out, rows=3))).at([2]).tokens.shape[0] == 1


def fault(config, out, **changes):
    with pytest.raises(UserError) as error:
        encoded(config, out, **changes, encoders=None)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("finished", [True, False])
def test_a_folder_of_other_embeddings_is_refused(world, whole, tmp_path, finished):
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    if not finished:
        (out / RECORD).rename(out / JOB)
        job = json.loads((out / JOB).read_text())
        del job["sizes"]
        (out / JOB).write_text(json.dumps(job))
    (tmp_path / "other.txt").write_text("\n".join([*PROMPTS[1:], PROMPTS[0]]))
    other = tiny_config(world[0], world[1], tmp_path / "other.txt")
    assert "holds embeddings of other prompts: choose another folder" in fault(other, out)
    assert "stored in fp32" in fault(tiny_config(*world), out, dtype="bf16")
    assert "in shards of 2 rows" in fault(tiny_config(*world), out, rows=4)
    assert "by another encoder" in fault(tiny_config(*world, "roles.text.dtype=bf16"), out)
    encoder = pixart_pipeline(tmp_path / "another", seed=1)
    assert "by another encoder" in fault(tiny_config(world[0], encoder, world[2]), out)


def test_a_folder_with_other_files_is_refused(world, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    assert "holds other files (notes.txt): choose an empty folder" in fault(tiny_config(*world), tmp_path)


def test_numbers_that_do_not_fit_are_refused(world, tmp_path):
    @contextmanager
    def large(config):
        encoder = Encoder(config, CPU)
        encoder.text.remember = 2**20
        encoder.text.row("a bold two").tokens.mul_(1e6)
        yield [encoder]

    config = tiny_config(*world)
    with pytest.raises(UserError, match="'a bold two' is too large for fp16: choose --dtype bf16 or fp32"):
        encoded(config, tmp_path / "fp16", "fp16", encoders=large)
    encoded(config, tmp_path / "bf16", "bf16", encoders=large)


def test_several_encoders_share_the_shards(world, whole, tmp_path):
    seen = []

    class Named:
        def __init__(self, config, name):
            self.encoder, self.name = Encoder(config, CPU), name
            self.layout = self.encoder.layout

        def write(self, encoding, folder, name, texts):
            seen.append((self.name, name))
            self.encoder.write(encoding, folder, name, texts)

    @contextmanager
    def two(config):
        yield [Named(config, "a"), Named(config, "b")]

    out = encoded(tiny_config(*world), tmp_path / "out", encoders=two)
    shards = sorted(name for _, name in seen if name != NULL_ROW)
    assert shards == [f"shard-00000{i}.parquet" for i in range(3)] and {who for who, _ in seen} == {"a", "b"}
    assert all((out / name).read_bytes() == (whole / name).read_bytes() for name in shards)


@pytest.mark.slow
def test_the_command_in_actors(ray_session, world, whole, tmp_path, capsys, monkeypatch):
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump(tiny_config(*world).model_dump(mode="json")))
    monkeypatch.setattr(verbs, "connect", lambda: None)
    out = tmp_path / "out"
    arguments = ["encode", str(config), str(out), "--dtype", "fp32", "--rows", "2"]
    assert cli.main(arguments) == 0
    said = capsys.readouterr().out
    assert "5 prompts in 3 shards" in said
    for path in whole.glob("*.parquet"):
        assert path.read_bytes() == (out / path.name).read_bytes()
    assert cli.main(arguments) == 0 and "all 5 prompts are encoded already" in capsys.readouterr().out


def test_a_missing_encoder_is_one_sentence(world, tmp_path):
    shutil.copytree(world[1], tmp_path / "pipeline")
    (tmp_path / "pipeline" / "text_encoder" / "model.safetensors").unlink()
    with pytest.raises(UserError, match="holds no weights"):
        encode(tiny_config(world[0], tmp_path / "pipeline", world[2]), str(tmp_path / "out"), here, print)


def test_stable_diffusion_has_no_mask(tmp_path):
    folder, prompts = sd_pipeline(tmp_path / "pipeline"), prompt_file(tmp_path / "prompts.parquet")
    found = Embeddings(str(encoded(tiny_config(tmp_path, folder, prompts), tmp_path / "out")))
    assert found.record.mask is None and found.record.length == 16 and found.at([0, 1]).mask is None
