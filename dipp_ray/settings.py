"""What every configuration shares: typed sections, read from YAML, changed by `section.key=value`, checked strictly.

Unknown keys are refused with the nearest right one.
"""

import difflib
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dipp_ray.errors import UserError

Positive = Annotated[float, Field(gt=0)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)


Settings = TypeVar("Settings", bound=Section)


def load_settings(path: str | Path, overrides: list[str] | None, model: type[Settings]) -> Settings:
    """Read `path` (YAML), apply `section.key=value` overrides, validate. Raises UserError with one sentence."""
    path = Path(path)
    try:
        data = yaml.safe_load(path.read_text())
    except OSError as error:
        raise UserError(f"configuration {path}: {error.strerror or error}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"configuration {path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise UserError(f"configuration {path} holds no sections: expected lines such as 'run:'")
    for override in overrides or []:
        apply_override(data, override)
    return validate(data, model, str(path))


def apply_override(data: dict, override: str) -> None:
    """Set one `section.key=value` in the nested mapping `data`; the value is read as YAML."""
    key, separator, value = override.partition("=")
    if not separator or not key:
        raise UserError(f"'{override}' is no setting: write section.key=value")
    *sections, last = key.split(".")
    for section in sections:
        data = data.setdefault(section, {})
        if not isinstance(data, dict):
            raise UserError(f"'{override}': '{section}' is a value, not a section")
    try:
        data[last] = yaml.safe_load(value)
    except yaml.YAMLError:
        raise UserError(f"'{override}': the value is not YAML; quote it") from None


def validate(data: dict[str, Any], model: type[Settings], source: str) -> Settings:
    """The typed configuration of `data`. Raises UserError that names the first fault and the nearest right key."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise UserError(f"{source}: {_unknown_key(where, model)}") from None
        message = first["msg"].removeprefix("Value error, ")
        given = "" if first["type"] in ("missing", "value_error") else f" (given: {first['input']!r})"
        raise UserError(f"{source}: {f'{where}: ' if where else ''}{message}{given}") from None


def _unknown_key(where: str, model: type[Section]) -> str:
    where = ".".join(part for part in where.split(".") if not part.isdigit())  # list elements share their keys
    leaf, section = where.rsplit(".", 1)[-1], where.rpartition(".")[0]
    leaves = [key for key in _keys(model) if key != section]
    near = [key for key in leaves if key.rsplit(".", 1)[-1] == leaf]
    near = near or difflib.get_close_matches(where, leaves, n=1, cutoff=0.7)
    near = near or [key for key in leaves if difflib.get_close_matches(leaf, [key.rsplit(".", 1)[-1]], n=1)]
    return f"unknown key '{leaf}' in {section or 'the top level'}" + (
        f": did you mean {near[0]}?" if near else ": remove it"
    )


def _keys(model: type[Section], prefix: str = ""):
    """Every key of the configuration with its sections; those of a list's elements follow the list's name."""
    for name, field in model.model_fields.items():
        yield prefix + name
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from _keys(kind, f"{prefix}{name}.")
