"""The committed schemas and the page of settings are those of the code, and the presets satisfy them."""

import json
import re
from pathlib import Path

import jsonschema
import pytest
import yaml

from dipp_ray import cli
from dipp_ray.schema import CONFIGURATIONS, documents, json_schema

ROOT = Path(__file__).parents[1]
# Laid over others: a configuration in part.
PRESETS = sorted(path for path in (ROOT / "jobs").glob("*.yaml") if path.stem not in ("lora", "elastic"))


@pytest.mark.parametrize("name", documents())
def test_a_generated_document_is_current(name):
    assert (ROOT / "docs" / name).read_text() == documents()[name], "run `make schema`"


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_the_command_prints_the_schema(capsys, name):
    assert cli.main(["schema", name]) == 0
    assert capsys.readouterr().out == json_schema(name)


def test_the_command_prints_a_runs_schema_unless_told_otherwise(capsys):
    assert cli.main(["schema"]) == 0
    assert capsys.readouterr().out == json_schema("run")


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_a_preset_names_its_schema_and_satisfies_it(path):
    first_line = path.read_text().splitlines()[0]
    schema = path.parent / re.fullmatch(r"# yaml-language-server: \$schema=(\S+)", first_line)[1]
    checker = jsonschema.Draft202012Validator(json.loads(schema.read_text()))
    data = yaml.safe_load(path.read_text())
    checker.validate(data)
    assert not checker.is_valid(data | {"no_such_section": {}})


@pytest.mark.parametrize(
    "wrong", [{"weigth": "unit"}, {"weight": "cubed"}, {"divisor_floor": -1}, {"score_timesteps": [0]}]
)
def test_the_schema_refuses_what_the_configuration_refuses(wrong):
    checker = jsonschema.Draft202012Validator(json.loads(json_schema("run")))
    run = {
        "run": {"steps": 1},
        "model": {"teacher": "t", "t_star": 1},
        "data": {"prompts": "p"},
        "generator_optim": {"lr": 1},
        "score_optim": {"lr": 1},
    }
    checker.validate(run)
    assert not checker.is_valid(run | {"objective": wrong})


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_every_setting_has_a_meaning(name):
    schema = json.loads(json_schema(name))
    sections = {name: schema} | schema["$defs"]
    settings = [(where, key, one) for where, section in sections.items() for key, one in section["properties"].items()]
    silent = [f"{where}.{key}" for where, key, one in settings if "$ref" not in one and not one.get("description")]
    assert silent == []
