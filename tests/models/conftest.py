"""Folders of tiny families that are made once, when they are first asked for, and changed by nobody."""

import pytest
from start_worlds import SIZES, UNASKED

from settings import tiny_config
from tiny import prompt_file
from tiny_families import save_family


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """The folder of a family, made when it is first asked for."""
    base = tmp_path_factory.mktemp("families")

    def folder_of(name):
        return base / name if (base / name).exists() else save_family(name, base / name)

    return folder_of


@pytest.fixture(scope="session")
def pairs(tmp_path_factory):
    """(teacher, another one of its architecture) by family, made when it is first asked for."""
    made, place = {}, tmp_path_factory.mktemp("starts")

    def pair(name):
        if name not in made:
            made[name] = (save_family(name, place / name), save_family(name, place / f"{name}-other", seed=1))
        return made[name]

    return pair


@pytest.fixture
def config(pairs, tmp_path):
    def of(family, generator, *overrides):
        size = f"model.resolution={list(SIZES.get(family, (16, 16)))}"
        given = [f"model.generator={generator}"] if generator else []
        prompts = prompt_file(tmp_path / "p.parquet")
        return tiny_config(tmp_path / "runs", pairs(family)[0], prompts, *UNASKED, size, *given, *overrides)

    return of
