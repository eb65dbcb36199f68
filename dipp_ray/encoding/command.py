"""`dipp-ray encode`: the embeddings of all prompts, shard by shard, by as many encoders as there are."""

import json
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol

from fsspec.implementations.local import LocalFileSystem

from dipp_ray.config import RunConfig
from dipp_ray.data.embeddings import JOB, NULL_ROW, RECORD, Encoding, Record, StoredDtype, sizes_in
from dipp_ray.data.prompts import Prompts, prompts_of
from dipp_ray.encoding.encoder import FULL
from dipp_ray.errors import UserError
from dipp_ray.models.components import check_components
from dipp_ray.models.pipeline import frame_of
from dipp_ray.models.text_identity import text_identity
from dipp_ray.reporting.pace import Ticker
from dipp_ray.storage.aside import made_folder
from dipp_ray.storage.files import remove_file, write_file
from dipp_ray.storage.locks import alone
from dipp_ray.storage.remote import abort_uploads, asked, file_system, require_store

GROUP_BYTES = 2**18  # of a row group: what is read for one prompt, unless that is larger by itself
SHARD_ROWS = 512

Say = Callable[[str], None]


class Encodes(Protocol):
    """An `Encoder`, in whichever process."""

    def layout(self, prompt: str, dtype: str) -> dict[str, Any]: ...
    def write(self, encoding: Encoding, folder: str, name: str, texts: Sequence[str]) -> None: ...


def encode(
    config: RunConfig,
    folder: str,
    encoders: Callable[[RunConfig], AbstractContextManager[Sequence[Encodes]]],
    say: Say,
    dtype: StoredDtype = "bf16",
    rows: int = SHARD_ROWS,
) -> None:
    """Encode the run's prompts into `folder`, local or s3://, `rows` a shard; what is there already is left as it is.

    encoders: starts those that share the work, once everything has been looked at. Raises UserError for bad input, and
    for a folder that holds something else. Interrupted or killed at any moment, the same call goes on with the shards
    that are missing.
    """
    folder = folder if "://" in folder else str(Path(folder).resolve())
    require_store(folder, "out")
    config = config.model_copy(update={"data": config.data.model_copy(update={"embeddings": None})})
    frame = frame_of(config.model)
    check_components(frame)
    prompts = prompts_of(config)
    wanted = {
        "encoder": text_identity(frame, config.roles.text.dtype),
        "count": len(prompts),
        "sha256": prompts.digest(),
        "groups": list(prompts.groups.counts),
        "dtype": dtype,
        "rows": rows,
    }
    with _only_one(folder):
        if _is_finished(folder, wanted):
            say(f"{folder}: all {len(prompts):,} prompts are encoded already")
            return
        begun = _begun(folder, wanted)
        _abort_left(folder)
        with encoders(config) as started:
            encoding = begun or _laid_out(started[0], folder, prompts, wanted)
            try:
                _encode(started, encoding, folder, prompts, say)
            except KeyboardInterrupt:
                raise KeyboardInterrupt("the same command goes on with the shards that are missing") from None
        _finish(folder, encoding, say)


def _only_one(folder: str) -> AbstractContextManager:
    """Hold a local folder. In a store two commands would write the same objects twice, and nothing wrong; where the
    second aborts an upload of the first, that one ends."""
    fs, root = file_system(folder)
    if not isinstance(fs, LocalFileSystem):
        return nullcontext()
    made_folder(Path(root), "choose another folder for the embeddings")
    return alone(Path(root, ".lock"), f"{folder}: another process encodes into this folder: wait for it")


def _abort_left(folder: str) -> None:
    """Abort the uploads of killed encoders: those of an earlier command, or of actors that were lost in this one."""
    fs, root = file_system(folder)
    with asked(folder):
        abort_uploads(fs, root, lambda name: "/" not in name)


def _is_finished(folder: str, wanted: dict) -> bool:
    return RECORD in sizes_in(folder) and _same(folder, RECORD, wanted)


def _begun(folder: str, wanted: dict) -> Encoding | None:
    """What was begun in this folder; None where it is empty."""
    names = {name for name in sizes_in(folder) if not name.startswith(".")}
    if JOB in names:
        _same(folder, JOB, wanted)
        return Encoding.model_validate(_json(folder, JOB))
    if names:
        raise UserError(f"{folder} holds other files ({min(names)}): choose an empty folder for the embeddings")
    return None


def _same(folder: str, name: str, wanted: dict) -> bool:
    """True. Raises UserError where the folder's embeddings are others than those asked for."""
    before = _json(folder, name)
    for key, what in (
        ("sha256", "of other prompts"),
        ("count", "of other prompts"),
        ("groups", "of a prompt file in other row groups"),
        ("encoder", "by another encoder, or of another length or precision"),
        ("dtype", f"stored in {before.get('dtype')}"),
        ("rows", f"in shards of {before.get('rows')} rows"),
    ):
        if before.get(key) != wanted[key]:
            raise UserError(f"{folder} holds embeddings {what}: choose another folder, or remove it first")
    return True


def _json(folder: str, name: str) -> dict:
    fs, root = file_system(folder)
    try:
        with asked(folder):
            found = json.loads(fs.cat_file(f"{root}/{name}"))
        assert isinstance(found, dict)
        return found
    except (ValueError, AssertionError):
        raise UserError(f"{folder}: its {name} is damaged: remove the folder, and encode anew") from None


def _write_json(folder: str, name: str, encoding: Encoding) -> None:
    fs, root = file_system(folder)
    with asked(folder):
        write_file(fs, f"{root}/{name}", [encoding.model_dump_json(indent=1).encode()], FULL)


def _laid_out(encoder: Encodes, folder: str, prompts: Prompts, wanted: dict) -> Encoding:
    """Parts and sizes, as the first prompt's embeddings have them; written down before the first shard."""
    layout = encoder.layout(prompts.at([0])[0], wanted["dtype"])
    group = max(1, min(wanted["rows"], GROUP_BYTES // layout.pop("bytes")))
    encoding = Encoding.model_validate({**wanted, **layout, "group": group})
    _write_json(folder, JOB, encoding)
    return encoding


def _encode(encoders: Sequence[Encodes], encoding: Encoding, folder: str, prompts: Prompts, say: Say) -> None:
    """Every missing file, each by whichever encoder is free."""
    there = sizes_in(folder)
    if NULL_ROW not in there:
        encoders[0].write(encoding, folder, NULL_ROW, [""])
    missing = [shard for shard, name in enumerate(encoding.shards) if name not in there]
    if len(missing) < len(encoding.shards):
        say(f"{folder}: {len(encoding.shards) - len(missing)} of {len(encoding.shards)} shards are there already")
    ticker = Ticker(say, "encoded prompts", sum(len(encoding.rows_of(shard)) for shard in missing))
    left, free, done = missing[::-1], list(encoders), 0
    out: dict[Future, tuple[int, Encodes]] = {}
    pool = ThreadPoolExecutor(len(encoders), thread_name_prefix="encode")  # each thread waits for one encoder
    try:
        while left or out:
            while left and free:
                shard, encoder = left.pop(), free.pop()
                texts = prompts.at(encoding.rows_of(shard))
                out[pool.submit(encoder.write, encoding, folder, encoding.shards[shard], texts)] = shard, encoder
            for ended in wait(out, return_when=FIRST_COMPLETED).done:
                shard, encoder = out.pop(ended)
                ended.result()
                free.append(encoder)
                done += len(encoding.rows_of(shard))
                ticker.tick(done)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _finish(folder: str, encoding: Encoding, say: Say) -> None:
    """The record, once every file is seen to be there; what was begun is over then."""
    sizes = sizes_in(folder)
    missing = [name for name in [*encoding.shards, NULL_ROW] if name not in sizes]
    if missing:
        raise UserError(
            f"{folder}: {missing[0]} was written, but is not seen from here: give a folder that all nodes share, or s3://"
        )
    written = {name: sizes[name] for name in [*encoding.shards, NULL_ROW]}
    _write_json(folder, RECORD, Record.model_validate({**encoding.model_dump(), "sizes": written}))
    fs, root = file_system(folder)
    with asked(folder):
        remove_file(fs, f"{root}/{JOB}")
    _abort_left(folder)
    gigabytes = sum(written.values()) / 1e9
    say(f"{folder}: {encoding.count:,} prompts in {len(encoding.shards)} shards, {gigabytes:.3g} GB, {encoding.dtype}")
