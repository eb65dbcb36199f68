"""The JSON schemas of the configurations, and the tables of settings that are made from them.

    python -m dipp_ray.schema docs        # writes docs/schema/*.json, docs/settings.md and docs/generators.md anew

Editors complete and check a YAML file by the schema that its first line names. A schema knows each key, type, bound and
meaning, but not the rules between several keys: those are the configuration's own.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from dipp_ray.config import RunConfig
from dipp_ray.preferences.config import FitConfig
from dipp_ray.serving.deploy.config import ServiceConfig
from dipp_ray.settings import Section

CONFIGURATIONS: dict[str, tuple[type[Section], str]] = {
    "run": (RunConfig, "A run: `dipp-ray train`"),
    "service": (ServiceConfig, "A reward service: `dipp-ray serve-rewards`"),
    "fit": (FitConfig, "Fitting a reward model: `dipp-ray fit-reward`"),
}
BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
EMPTY: dict[Any, Any] = {"array": [], "object": {}}  # what a schema leaves out: the default of a list or a mapping


class _Schema(GenerateJsonSchema):
    def field_title_should_be_set(self, schema) -> bool:
        return False  # "Divisor Floor" tells no more than divisor_floor


def json_schema(name: str) -> str:
    """The schema of one of CONFIGURATIONS, as JSON text."""
    model, _ = CONFIGURATIONS[name]
    schema = {"$schema": _Schema.schema_dialect} | model.model_json_schema(schema_generator=_Schema)
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def settings_page() -> str:
    """Every setting of every configuration in Markdown: a table a section."""
    lines = [
        "# Settings",
        "",
        "Made by `make schema` from the code, where each setting is defined once; do not edit. A file is YAML; any key",
        "is changed on the command line by `section.key=value`. `[]` after a name: each entry of that list,",
        "`[0]` on the command line the first.",
    ]
    for name, (_, title) in CONFIGURATIONS.items():
        schema = json.loads(json_schema(name))
        lines += ["", f"## {title}", "", f"Schema: [schema/{name}.json](schema/{name}.json)"]
        tables: dict[str, list[str]] = {}  # sections of the same content share one
        for path, body in _sections(schema, schema["$defs"], {}, ""):
            tables.setdefault(body, []).append(f"`{path}`" if path else "Top level")
        for body, paths in tables.items():
            lines += ["", f"### {', '.join(paths)}", "", body]
    return "\n".join(lines) + "\n"


def _sections(section: dict, definitions: dict, defaults: dict, path: str) -> Iterator[tuple[str, str]]:
    """(path, Markdown) of a section and of those in it; `defaults` are what its parent gives in place of its own."""
    rows, below = [], []
    for key, setting in section["properties"].items():
        default = defaults.get(key, setting.get("default", EMPTY.get(setting.get("type"))))
        whole, entry = setting.get("$ref"), setting.get("items", {}).get("$ref")
        if whole:
            below.append((whole, default or {}, f"{path}{key}"))
            continue
        if entry:
            below.append((entry, {}, f"{path}{key}[]"))
        given = "required" if key in section.get("required", ()) else f"`{json.dumps(default, ensure_ascii=False)}`"
        rows.append(f"| `{key}` | {_kind(setting)} | {given} | {setting.get('description', '')} |")
    if rows:
        about = section.get("description", "")
        table = "\n".join(["| key | type | default | meaning |", "|---|---|---|---|", *rows])
        yield path.removesuffix("."), f"{about}\n\n{table}" if about and path else table
    for reference, default, where in below:
        yield from _sections(definitions[reference.rsplit("/", 1)[-1]], definitions, default, f"{where}.")


def _kind(setting: dict[str, Any]) -> str:
    """A setting's type in words, with its bounds."""
    if "enum" in setting:
        return ", ".join(f"`{value}`" for value in setting["enum"])
    if "anyOf" in setting:
        return " or ".join(_kind(one) for one in setting["anyOf"])
    if "prefixItems" in setting:
        return f"[{', '.join(_kind(one) for one in setting['prefixItems'])}]"
    if "$ref" in setting:
        return "section"
    if setting["type"] == "array":
        return "list" if "$ref" in setting["items"] else f"list of {_kind(setting['items'])}"
    if setting["type"] == "object":
        return f"mapping to {_kind(setting['additionalProperties'])}"
    bounds = [f"{sign} {setting[bound]}" for bound, sign in BOUNDS.items() if bound in setting]
    return " ".join([setting["type"], " and ".join(bounds)]).strip()


def documents() -> dict[str, str]:
    """What is generated, by its path below docs/."""
    from dipp_ray.models.published import table_page  # with the families, and torch, which no schema needs

    pages = {"settings.md": settings_page(), "generators.md": table_page()}
    return {f"schema/{name}.json": json_schema(name) for name in CONFIGURATIONS} | pages


def write_documents(folder: Path) -> None:
    for name, text in documents().items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


if __name__ == "__main__":
    write_documents(Path(sys.argv[1]))
