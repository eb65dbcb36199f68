"""Where a run's embeddings come from: a folder that fits it, or a text encoder in the run, and what that costs."""

import torch

from dipp_ray.config import RunConfig
from dipp_ray.data.embeddings import NULL_ROW, RECORD, Embeddings, sizes_in
from dipp_ray.data.prompt_files import open_texts
from dipp_ray.data.prompts import Prompts
from dipp_ray.errors import UserError
from dipp_ray.models.families import Family
from dipp_ray.models.text_identity import difference_of, text_identity


def check_embeddings(config: RunConfig, frame: Family) -> None:
    """Raise UserError unless the folder of data.embeddings is whole, of these prompts, and of the teacher's encoders.

    Every prompt is read for that, and no embeddings but those of the first prompt and of the null prompt.
    """
    folder, data = config.data.embeddings, config.data
    assert folder is not None
    embeddings = Embeddings(folder)
    record = embeddings.record
    if differs := difference_of(record.encoder, text_identity(frame, config.roles.text.dtype)):
        raise UserError(
            f"data.embeddings={folder} were made {differs}: encode the prompts anew with this configuration, or leave "
            "data.embeddings out"
        )
    there = sizes_in(folder)
    for name in [*record.shards, NULL_ROW]:
        if there.get(name) != record.sizes.get(name):
            what = (
                "is missing" if name not in there else f"has {there[name]:,} bytes, not {record.sizes.get(name, 0):,}"
            )
            raise UserError(
                f"data.embeddings={folder}: {name} {what}: copy it again, or remove {RECORD} and {name} and encode anew"
            )
    if data.prompts not in (folder, [folder]):
        given = Prompts(open_texts(data.prompts, data.column, "data.prompts"))
        if (len(given), given.digest()) != (record.count, record.sha256):
            raise UserError(
                f"data.embeddings={folder} are of {record.count:,} other prompts than the {len(given):,} of "
                f"data.prompts={data.prompts}: encode those, or set data.prompts to {folder} too"
            )
    for embeds in (embeddings.null, embeddings.at([0])):
        _check_shape(folder, frame, embeds)


def _check_shape(folder: str, frame: Family, embeds) -> None:
    """Raise UserError where embeddings are wider or longer than what the teacher's network reads."""
    reads = {frame.text_width_of(key) for key in frame.text_widths()} - {None}
    length, width = embeds.tokens.shape[1:]
    if (reads and width not in reads) or (frame.longest is not None and length > frame.longest):
        raise UserError(
            f"data.embeddings={folder} has prompts of {length} x {width} numbers, but {frame.folder} reads at most "
            f"{frame.longest} tokens of {' or '.join(map(str, sorted(reads, key=str)))}: encode the prompts anew"
        )


def text_line(config: RunConfig, frame: Family) -> str:
    """Where the embeddings of a step come from, and how many bytes of them it reads or sends."""
    samples = config.data.batch_size * config.objective.score_updates
    if config.data.embeddings is not None:
        record = Embeddings(config.data.embeddings).record
        each = sum(record.sizes.values()) / (record.count + 1)
        return (
            f"text: embeddings in {record.dtype} from {config.data.embeddings}, {_bytes(each)} a prompt, "
            f"{_bytes(each * samples)} a step for each role that reads them; no text encoder is loaded"
        )
    at_most = largest_embeds(frame)
    if at_most is None:
        return "text: prompts are encoded as they come, in one role; `dipp-ray encode` does it once, before training"
    return (
        f"text: prompts are encoded as they come, in one role: up to {_bytes(at_most)} a prompt, "
        f"{_bytes(at_most * samples)} of embeddings a step, which generator, score model and teacher each fetch; "
        "`dipp-ray encode` does it once, before training, and no text encoder is loaded then"
    )


def largest_embeds(frame: Family) -> int | None:
    """Bytes of one prompt's embeddings as they travel, in fp32, at most; None where the family does not say."""
    widths = frame.text_widths()
    numbers = {key: frame.text_width_of(key) for key in widths}
    tokens = next(iter(numbers.values()), None)  # the first is the tokens', another the pooled embeddings'
    if frame.longest is None or tokens is None:
        return None
    pooled = sum(width or 0 for width in list(numbers.values())[1:])
    return torch.float32.itemsize * (frame.longest * (tokens + 1) + pooled)


def _bytes(number: float) -> str:
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if number >= unit:
            return f"{number / unit:.3g} {name}"
    return f"{number:.0f} bytes"
