"""One replica without Ray: what it takes for its health."""

import asyncio

import numpy as np
import pytest

from dipp_ray.config import RoleSection
from dipp_ray.errors import UserError
from dipp_ray.serving.core.replica import ModelReplica

IMAGES = np.random.default_rng(0).random((2, 3, 8, 8), dtype=np.float32)


def replica(model):
    return ModelReplica(
        {"name": "it", "model": f"tiny_models:{model}", "folder": None}, None, False, RoleSection(), False, 600
    )


def ask(made, prompts):
    return made.answer(IMAGES, prompts, "images", True, 60.0)


def test_one_that_has_never_answered_and_failed_is_ill():
    async def run():
        made = replica("Raises")
        await made.check_health()  # nothing is known yet
        with pytest.raises(RuntimeError, match="out of order"):
            await ask(made, ["a", "b"])
        with pytest.raises(RuntimeError, match="has answered nothing yet: out of order"):
            await made.check_health()

    asyncio.run(run())


def test_a_call_that_it_refuses_does_not_make_it_ill():
    async def run():
        made = replica("Picky")
        with pytest.raises(ValueError, match="refuse is no prompt"):
            await ask(made, ["a", "refuse"])
        await made.check_health()
        await ask(made, ["a", "b"])
        await made.check_health()

    asyncio.run(run())


class Unmade:
    """Raises when it is made."""

    def __init__(self):
        raise ValueError("two\n  lines")

    def reward(self, images, prompts): ...


class Unwilling(Unmade):
    def __init__(self):
        raise UserError("there is no such file: correct it")


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ("Unmade", r"^reward 'it': test_replica:Unmade cannot be made \(ValueError: two lines\): correct it$"),
        ("Unwilling", "^reward 'it': there is no such file: correct it$"),
    ],
)
def test_a_class_that_raises_when_it_is_made_names_its_model(made, message):
    with pytest.raises(UserError, match=message):
        ModelReplica(
            {"name": "it", "model": f"test_replica:{made}", "folder": None}, None, False, RoleSection(), False, 600
        )
