"""The models of a pipeline folder: checked from their headers, loaded whole or not at all."""

import inspect
import logging
import math
from collections.abc import Collection, Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline

from dipp_ray.errors import UserError
from dipp_ray.models.families import Family
from dipp_ray.models.hollow import Hollow
from dipp_ray.models.stored import Stored, stored
from dipp_ray.models.weights import WeightFiles, find_weights, refuse_pointer
from dipp_ray.storage.weight_names import is_weights

LIBRARIES = {"diffusers": diffusers, "transformers": transformers}
# Of a refused model so many names are said.
NAMED = 3


def models_of(frame: Family) -> dict[str, tuple[str, str]]:
    """Library and class of each component with weights, by name. Raises UserError for a component without a folder."""
    return {
        name: (library, kind)
        for name, (library, kind) in _needed(frame).items()
        if library in LIBRARIES and _is_model(_class(frame.folder, library, kind))
    }


def _needed(frame: Family) -> dict[str, tuple[str, str]]:
    """Library and class of each component without which the pipeline does not work, by name."""
    found = {}
    for name, entry in frame.index.items():
        if not isinstance(entry, list) or name in frame.absent or name in frame.dispensable:
            continue
        if not (frame.folder / name).is_dir():
            raise UserError(f"{frame.folder}: its model_index.json names {name}, but there is no such folder: fetch it")
        found[name] = (entry[0], entry[1])
    return found


def _class(folder: Path, library: str, kind: str) -> Any:
    found = getattr(LIBRARIES[library], kind, None)
    if found is None:
        raise UserError(f"{folder}: it wants {kind} of {library}, which the installed one does not have: upgrade it")
    return found


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, diffusers.ModelMixin | transformers.PreTrainedModel)


def check_components(frame: Family) -> None:
    """Raise UserError unless all components that the pipeline needs are there, each model's files are whole and hold
    exactly its weights, by their names and shapes, and each tokenizer loads."""
    _refuse_unnamed(frame)
    require_files(frame)
    models = models_of(frame)
    for name, (library, kind) in _needed(frame).items():
        folder = frame.folder / name
        if name in models:
            check_model(folder, library, kind)
        elif _is_tokenizer(library, kind):
            try:
                with silent(library):
                    _class(folder, library, kind).from_pretrained(folder, local_files_only=True)
            except Exception as error:  # whatever its parsers raise
                raise UserError(f"the {kind} in {folder} does not load ({_short(error)}): fetch its files") from None


def require_files(frame: Family) -> None:
    """Raise UserError unless each component that the pipeline needs has its folder and whole files, by their headers;
    of tokenizers, the vocabulary, without which transformers makes one of no words and says nothing."""
    models = models_of(frame)
    for name, (library, kind) in _needed(frame).items():
        folder = frame.folder / name
        for path in folder.iterdir():
            if path.is_file() and not is_weights(path.name):  # of which only those that are read must be here
                refuse_pointer(path)
        if name in models:
            find_weights(folder, library).header()
        elif _is_tokenizer(library, kind):
            _require_vocabulary(_class(folder, library, kind), folder)


def _is_tokenizer(library: str, kind: str) -> bool:
    return library == "transformers" and "Tokenizer" in kind


def _require_vocabulary(kind: Any, folder: Path) -> None:
    own = [name for name in (kind.vocab_files_names or {}).values() if name != "tokenizer.json"]
    has_own = all((folder / name).is_file() for name in own) if own else not kind.vocab_files_names
    if has_own or (folder / "tokenizer.json").is_file() or any(folder.glob("*.model")):
        return
    others = f" (or {' and '.join(own)})" if own else ""
    raise UserError(f"{folder} is incomplete: tokenizer.json{others} is missing: fetch it")


def _refuse_unnamed(frame: Family) -> None:
    """Raise UserError for a component that the pipeline's class asks for and its folder does not name."""
    parameters = inspect.signature(_class(frame.folder, "diffusers", frame.pipeline_class).__init__).parameters
    asked = [name for name, said in parameters.items() if name != "self" and said.default is said.empty]
    for name in asked:
        if name in (*frame.dispensable, *frame.optional):
            continue
        entry = frame.index.get(name)
        if not isinstance(entry, list) or entry[1] is None:
            raise UserError(
                f"{frame.folder}: its model_index.json names no {name}, which a {frame.pipeline_class} needs: take a "
                "whole pipeline"
            )


def check_model(folder: Path, library: str, kind: str) -> None:
    """The same of one model, from its config.json and the headers of its files."""
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} is incomplete: config.json is missing")
    held = {name: tensor.shape for name, tensor in find_weights(folder, library).header().items()}
    ask = differences if library == "diffusers" else _transformers_differences
    try:
        found = ask(_class(folder, library, kind), folder, held)
    except (ValueError, TypeError, KeyError, RuntimeError) as error:
        raise UserError(f"{folder}: a {kind} cannot be made of it ({_short(error)})") from None
    refuse(folder, *found)


def differences(kind: Any, folder: Path, held: dict[str, tuple]) -> tuple[list, list, list]:
    """Names that are missing, unexpected, and of another shape, as `from_pretrained` of diffusers would find them.

    kind: a class of diffusers. folder: that of its config.json. held: shapes by name.
    """
    return _compared(_empty(kind, folder), held)


def _compared(model: Any, held: Mapping[str, tuple]) -> tuple[list, list, list]:
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if set(held) != set(expected):
        held = dict(held)
        model._fix_state_dict_keys_on_load(held)  # names of attention blocks before they were renamed
    ignored = model._keys_to_ignore_on_load_unexpected or []
    unexpected = [name for name in held if name not in expected and not any(word in name for word in ignored)]
    other = [name for name in held if name in expected and held[name] != expected[name]]
    return [name for name in expected if name not in held], unexpected, other


def _empty(kind: Any, folder: Path) -> Any:
    with torch.device("meta"):
        return kind.from_config(kind.load_config(folder))


def empty_model(frame: Family) -> Any:
    """The network of a folder on the meta device: its modules, without their weights."""
    return _empty(_class(frame.folder, "diffusers", frame.network_class), frame.folder / frame.network_part)


def _transformers_differences(kind: Any, folder: Path, held: dict[str, tuple]) -> tuple[list, list, list]:
    """The same. The library itself is asked, which knows the names of old and what is tied: its loader is given
    tensors of these shapes that take no memory."""
    nothing = {name: torch.zeros(()).expand(shape) for name, shape in held.items()}
    config = kind.config_class.from_pretrained(folder, local_files_only=True)
    with silent("transformers"):
        _, said = kind.from_pretrained(
            None, config=config, state_dict=nothing, output_loading_info=True, ignore_mismatched_sizes=True
        )
    return sorted(said["missing_keys"]), sorted(said["unexpected_keys"]), _names(said["mismatched_keys"])


def _names(mismatched: Iterable) -> list[str]:
    return sorted(entry if isinstance(entry, str) else entry[0] for entry in mismatched)


def refuse(path: Path, missing: list[str], unexpected: list[str], other: list[str]) -> None:
    for what, names in (("lack", missing), ("hold an unexpected", unexpected), ("hold in another shape", other)):
        if names:
            more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
            raise UserError(
                f"{path}: its weights {what} {', '.join(names[:NAMED])}{more}: they are not what its config.json "
                "describes; take the files that belong together"
            )


def hollow_model(kind: Any, folder: Path, tensors: Mapping[str, Stored], path: Path, dtype: torch.dtype) -> Hollow:
    """A model of diffusers without its weights, to be filled from `tensors`, those of `path`.

    kind: its class. folder: that of its config.json. Raises UserError where a weight is missing or left over.
    """
    if dtype != torch.float32 and kind._keep_in_fp32_modules:
        raise UserError(
            f"{folder}: a {kind.__name__} keeps some of its weights in fp32: set the dtype of its role to fp32"
        )
    hollow = Hollow(kind, kind.load_config(folder), tensors, dtype)
    refuse(path, *_compared(hollow.model, {name: one.shape for name, one in hollow.stored.items()}))
    return hollow


def open_model(folder: Path, kind: str, dtype: torch.dtype = torch.float32) -> Hollow:
    """A model of diffusers that is to be filled from its folder. Raises UserError as `load_model`."""
    tensors = stored(find_weights(folder, "diffusers"))
    try:
        hollow = hollow_model(_class(folder, "diffusers", kind), folder, tensors, folder, dtype)
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"the {kind} in {folder} does not load: {_short(error)}") from error
    hollow.model.register_to_config(_name_or_path=folder)
    return hollow


def load_model(folder: Path, library: str, kind: str, dtype: torch.dtype) -> Any:
    """A model with its weights in `dtype`, in eval mode.

    Raises UserError where it does not load, or a weight is missing or left over.
    """
    if library == "diffusers":
        hollow = open_model(folder, kind, dtype)
        hollow.fill(lambda _: dtype)
        return hollow.model
    files = find_weights(folder, library)
    try:
        with silent(library):
            model, said = _class(folder, library, kind).from_pretrained(
                folder, torch_dtype=dtype, use_safetensors=files.safe, variant=files.variant, local_files_only=True,
                output_loading_info=True,
            )  # fmt: skip
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"the {kind} in {folder} does not load: {_short(error)}") from error
    refuse(folder, sorted(said["missing_keys"]), sorted(said["unexpected_keys"]), _names(said["mismatched_keys"]))
    return model.eval()


def load_components(
    frame: Family, dtype: torch.dtype, without: Collection[str] = (), given: Mapping[str, Any] | None = None
) -> DiffusionPipeline:
    """The folder's pipeline in diffusers, each model loaded by itself, and none of those in `without`.

    given: models that take the place of the folder's, by name. They must be there when the pipeline is made, which
    looks at them. What the family can do without stays away, such as a safety checker.
    """
    given = given or {}
    nothing = dict.fromkeys([*without, *(name for name in frame.dispensable if name in frame.index)])
    models = {
        name: load_model(frame.folder / name, library, kind, dtype)
        for name, (library, kind) in models_of(frame).items()
        if name not in nothing and name not in given
    }
    try:
        with silent("diffusers"):  # that the safety checker is away
            return DiffusionPipeline.from_pretrained(
                frame.folder, **frame.absent | nothing | models | dict(given), local_files_only=True
            )
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"{frame.folder} does not load as a diffusers pipeline: {_short(error)}") from None


def text_parameters(frame: Family) -> int:
    """Parameters of the folder's text encoders, from the headers of their files."""
    return sum(
        math.prod(tensor.shape)
        for name, (library, _) in models_of(frame).items()
        if name not in (frame.network_part, "vae")
        for tensor in find_weights(frame.folder / name, library).header().values()
    )


def is_plain(files: WeightFiles) -> bool:
    """Whether plain diffusers loads these files in fp32 without being told more than the folder."""
    return files.safe and files.variant is None and all(t.dtype == "F32" for t in files.header().values())


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


@contextmanager
def silent(library: str):
    """Without the library's own report of what it loaded, nor its bar: what is wrong is said by us."""
    logger, bars = logging.getLogger(library), LIBRARIES[library].utils.logging
    level, shown = logger.level, bars.is_progress_bar_enabled()
    logger.setLevel(logging.CRITICAL)  # diffusers logs what it raises as an error too, in many lines
    bars.disable_progress_bar()
    try:
        yield
    finally:
        logger.setLevel(level)
        if shown:
            bars.enable_progress_bar()
