"""What every configuration shares: typed sections, read from YAML, changed by `section.key=value`, checked strictly.

A section is a `Section`, or a frozen dataclass of the mathematics, which pydantic checks by the same rules. Unknown
keys are refused with the nearest right one.
"""

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from dipp_ray import strict_yaml
from dipp_ray.errors import UserError
from dipp_ray.hub.ids import hub_id

LONGEST_KEY = 200
ONE_SLASH = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/(?!/)")
KEY = re.compile(r"[^.\[\]]+(\[\d{1,6}\])*(\.[^.\[\]]+(\[\d{1,6}\])*)*")  # section.list[0].key
STEP = re.compile(r"([^.\[\]]+)|\[(\d+)\]")
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"  # what may be a run's or a service's
UNKNOWN_KEY = ("extra_forbidden", "unexpected_keyword_argument")  # of a Section, of a dataclass
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Steps = tuple[str | int, ...]  # the way to a value: keys of mappings and places in lists
Above = tuple[str, Steps]  # what set a value, for a person, and the way to it


def absolute(path: str) -> str:
    """A path from here made one that means the same in every folder: a cluster may have been started in another. A URL
    stays as it is. Raises ValueError for what would become a folder of an odd name."""
    if ONE_SLASH.match(path):
        raise ValueError(f"{path}: a store's address has two slashes: {path.replace(':/', '://', 1)}")
    if path.startswith("~"):
        raise ValueError(f"{path}: of homes your own alone is known, as ~/: write the whole path")
    return path if "://" in path else str(Path(path).absolute())


def absolute_unless_of_the_hub(given: str) -> str:
    """The same of what may be a hub's id too, which it is where nothing of that name lies here."""
    return given if not Path(given).exists() and hub_id(given, within=True) else absolute(given)


LocalPath = Annotated[str, AfterValidator(absolute)]
ModelPath = Annotated[str, AfterValidator(absolute_unless_of_the_hub)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)


Settings = TypeVar("Settings", bound=Section)


def load_settings(path: str | Path, overrides: list[str] | None, model: type[Settings]) -> Settings:
    """Read `path` (YAML), apply overrides in order, validate. Raises UserError with one sentence.

    An override is `section.key=value`, or another YAML file, whose settings take the place of those before it, key by
    key.
    """
    data = read_sections(Path(path))
    above: list[Above] = []
    for override in overrides or []:
        if "=" not in override and override.endswith((".yaml", ".yml")):
            sections = read_sections(Path(override))
            lay_over(data, sections)
            above += [(override, steps) for steps in _set_in(sections)]
        else:
            above.append((f"'{override}'", apply_override(data, override)))
    return validate(data, model, str(path), above)


def read_sections(path: Path) -> dict:
    """The sections of a YAML file. Raises UserError where it is none."""
    try:
        data = strict_yaml.load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"configuration {path}: {error.strerror or error}: name a YAML file that is there") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UserError(f"configuration {path}, line {line}: its bytes are no UTF-8: save it as that") from None
    except yaml.YAMLError as error:
        raise UserError(f"configuration {path} is not YAML: {_parsers(error)}") from None
    if not isinstance(data, dict):
        raise UserError(f"configuration {path} holds no sections: expected lines such as 'run:'")
    return data


def _parsers(error: yaml.YAMLError) -> str:
    """What the parser says, as half a sentence without the name that it has for a text."""
    return " ".join(str(error).replace('in "<unicode string>", ', "in ").split())


def lay_over(data: dict, above: dict) -> None:
    """Put the nested mapping `above` over `data`, in place: mappings are joined, all else is replaced."""
    for key, value in above.items():
        if isinstance(value, dict) and isinstance(data.get(key), dict):
            lay_over(data[key], value)
        else:
            data[key] = value


def _set_in(value: Any, steps: Steps = ()) -> Iterator[Steps]:
    """The way to each value of a nested mapping."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _set_in(inner, (*steps, key))
    elif steps:
        yield steps


def apply_override(data: dict, override: str) -> Steps:
    """Set one `section.key=value` in the nested mapping `data`; the value is read as YAML. Returns the way to it.

    `list[0]` is an entry of a list that is there: `reward.terms[0].weight=2`.
    """
    key, separator, value = override.partition("=")
    if not separator or not KEY.fullmatch(key):
        raise UserError(f"'{override}' is no setting: write section.key=value")
    steps = tuple(int(index) if index else name for name, index in STEP.findall(key))
    inner: Any = data
    for step, after in pairwise(steps):
        inner = inner.setdefault(step, {}) if isinstance(step, str) else inner[step]
        _require_kind(inner, step, after, override)
    try:
        inner[steps[-1]] = strict_yaml.load(value)
    except yaml.YAMLError as error:
        twice = error.problem if isinstance(error, yaml.constructor.ConstructorError) else None
        reason = twice or f"the value is not YAML: write '{key}=\"{value}\"', with both kinds of quotes"
        raise UserError(f"'{override}': {reason}") from None
    return steps


def _require_kind(found: Any, step: str | int, after: str | int, override: str) -> None:
    """Raise UserError unless what was found at `step` is a section, or a list, of which `after` can be set."""
    if isinstance(after, str):
        if isinstance(found, list):
            raise UserError(f"'{override}': '{step}' is a list: write {step}[0] for its first entry")
        if not isinstance(found, dict):
            raise UserError(f"'{override}': '{step}' is a value, not a section")
    elif not isinstance(found, list):
        raise UserError(f"'{override}': '{step}' is no list that is there: give the whole of it, {step}=[...]")
    elif after >= len(found):
        raise UserError(f"'{override}': '{step}' has {len(found)} entries, counted from 0")


def validate(data: dict[str, Any], model: type[Settings], source: str, above: Sequence[Above] = ()) -> Settings:
    """The typed configuration of `data`. Raises UserError that names the first fault and the nearest right key.

    source: where the data come from. above: what was laid over them, and where, the last one last.
    """
    try:
        return model.model_validate(at_home(data))
    except ValidationError as error:
        first = _first(error)
        given = first["type"] not in ("missing", "value_error", *UNKNOWN_KEY) and first["input"] is not None
        shown = f" (given: {first['input']!r})" if given else ""
        if first["type"] == "string_type" and isinstance(first["input"], (int, float, date)):
            shown += ": YAML reads it as a number, a truth value or a date, so put it in quotes"
        raise UserError(f"{_given_by(first, above) or source}: {fault(error, model)}{shown}") from None


def _given_by(fault: ErrorDetails, above: Sequence[Above]) -> str | None:
    """What set the value at fault last, of what was laid over the data; None: the data themselves."""
    where = tuple(part for part in fault["loc"] if not _is_branch(part))
    for source, steps in reversed(above):
        # Above an unknown key lies what nobody else would have written.
        depth = min(len(where), len(steps)) if fault["type"] in UNKNOWN_KEY else len(steps)
        if where[:depth] == steps[:depth]:
            return source
    return None


def at_home(value: Any) -> Any:
    """The data with `~/` at the start of a text replaced by the home folder, as a shell would."""
    if isinstance(value, dict):
        return {key: at_home(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [at_home(inner) for inner in value]
    return str(Path(value).expanduser()) if isinstance(value, str) and value.startswith("~/") else value


def fault(error: ValidationError, model: type[BaseModel]) -> str:
    """The first fault of data that are no `model`, in one sentence, with the nearest right key for an unknown one."""
    first = _first(error)
    if first["type"] in UNKNOWN_KEY:
        return unknown_key(first["loc"], model)
    where = ".".join(str(part) for part in first["loc"] if not _is_branch(part))
    message = _in_words(first)
    return f"{where}: {message}" if where else message


def _in_words(fault: ErrorDetails) -> str:
    """pydantic's sentence, or one of our own where that speaks of types or patterns."""
    if fault["input"] is None and fault["type"] not in ("missing", "value_error"):
        return "it has no value: write one, or remove the key"
    if fault["type"] == "tuple_type":
        return "write a list of its values, such as [512, 768]"
    if fault["type"] == "string_pattern_mismatch" and fault["ctx"]["pattern"] == NAME:
        return "write letters, digits, '.', '_' and '-' alone, a letter or digit first"
    return fault["msg"].removeprefix("Value error, ")


def _first(error: ValidationError) -> ErrorDetails:
    """The fault to tell: an unknown key before others, for a misspelt one is missing under its right name too."""
    faults = error.errors(include_url=False)
    # A value that may be a number or a section was tried as both: who wrote a section meant that.
    meant = [fault for fault in faults if any(map(_is_branch, fault["loc"])) and "constrained-int" not in fault["loc"]]
    faults = meant if meant and isinstance(faults[0]["input"], dict) else faults
    return next((fault for fault in faults if fault["type"] in UNKNOWN_KEY), faults[0])


def _is_branch(part: str | int) -> bool:
    """Whether it is no key, but pydantic's name of one of several kinds that a value may be."""
    return part in ("constrained-int", "Between") or str(part).startswith("function-after")


def unknown_key(loc: tuple[str | int, ...], model: type[BaseModel]) -> str:
    """The sentence about an unknown key at `loc`, with the nearest right one of `model`."""
    where = ".".join(part for part in loc if isinstance(part, str))  # list elements share their keys
    where = where[:LONGEST_KEY]  # it may come from outside
    leaf, section = where.rsplit(".", 1)[-1], where.rpartition(".")[0]
    near = nearest_keys(where, model, but=section)
    shown = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc[:-1]).removeprefix(".")
    return f"unknown key '{leaf}' in {shown or 'the top level'}" + (
        f": did you mean {_with_entries(near[0], loc)}?" if near else ": remove it"
    )


def _with_entries(key: str, loc: tuple[str | int, ...]) -> str:
    """The key with the entries of lists that `loc` leads through, as the command line takes it."""
    entries: dict[str, str] = {}
    path = ""
    for part in loc:
        if isinstance(part, int):
            entries[path] = entries.get(path, "") + f"[{part}]"
        else:
            path = f"{path}.{part}".removeprefix(".")
    parts = key.split(".")
    return ".".join(part + entries.get(".".join(parts[: i + 1]), "") for i, part in enumerate(parts))


def nearest_keys(where: str, model: type[BaseModel], but: str = "") -> list[str]:
    """The keys of `model` that whoever wrote `where` may have meant, the likeliest first; `but` is none of them."""
    leaf = where.rsplit(".", 1)[-1]
    leaves = [key for key in _keys(model) if key != but]
    near = [key for key in leaves if key.rsplit(".", 1)[-1] == leaf]
    near = near or [key for name, key in getattr(model, "called_elsewhere", {}).items() if name == leaf]
    near = near or difflib.get_close_matches(where, leaves, n=1, cutoff=0.7)
    return near or [key for key in leaves if difflib.get_close_matches(leaf, [key.rsplit(".", 1)[-1]], n=1)]


def _keys(section: type, prefix: str = ""):
    """Every key of the configuration with its sections; those of a list's elements follow the list's name."""
    for name, annotation in _annotations(section).items():
        yield prefix + name
        for kind in (annotation, *get_args(annotation)):
            yield from _keys(kind, f"{prefix}{name}.")


def _annotations(section: Any) -> dict[str, Any]:
    """Each key's type, where `section` is one of settings."""
    if isinstance(section, type) and issubclass(section, BaseModel):
        return {name: field.annotation for name, field in section.model_fields.items()}
    return {field.name: field.type for field in fields(section)} if is_dataclass(section) else {}
