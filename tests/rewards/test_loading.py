import subprocess
import sys
from pathlib import Path

import pytest

from dipp_ray.errors import UserError
from dipp_ray.rewards.clip import ClipReward, ClipScore
from dipp_ray.rewards.jpeg import JpegReward
from dipp_ray.rewards.loading import MODELS, WITHOUT_FOLDER, check_term, is_differentiable, load_reward, reward_class
from dipp_ray.rewards.terms import RewardTerm
from tiny_models import Brightness, save_clip


def term(model, folder=None):
    server = {"url": "http://127.0.0.1:1"} if model == "server" else None
    return RewardTerm(name="r", model=model, folder=folder and str(folder), server=server)


@pytest.mark.parametrize("name", MODELS)
def test_every_name_is_a_class_that_says_what_it_is(name, tmp_path):
    kind = reward_class(term(name))
    assert callable(kind.reward)
    assert is_differentiable(kind) == (name not in ("jpeg", "server"))
    if name in WITHOUT_FOLDER:
        check_term(term(name))
        with pytest.raises(UserError, match="reads no folder"):
            check_term(term(name, tmp_path))
    else:
        with pytest.raises(UserError, match=f"model {name} needs the folder"):
            check_term(term(name))
        with pytest.raises(UserError, match=r"missing in|no CLIP model"):  # an empty folder, before anything loads
            check_term(term(name, tmp_path))


@pytest.mark.parametrize("page", ["own_models.md", "rewards.md"])
def test_every_name_is_in_the_docs(page):
    text = (Path(__file__).parents[2] / "docs" / page).read_text()
    assert [name for name in MODELS if f"`{name}`" not in text] == []


def test_names_load_their_class(tmp_path):
    save_clip(tmp_path)
    assert type(load_reward(term("jpeg"))) is JpegReward
    assert type(load_reward(term("clip", tmp_path))) is type(load_reward(term("pickscore", tmp_path))) is ClipReward
    assert type(load_reward(term("clip-score", tmp_path))) is ClipScore


def test_a_model_that_does_not_say_is_differentiable():
    assert is_differentiable(Brightness())


def test_a_class_without_the_method_is_refused_before_it_is_made(tmp_path, monkeypatch):
    (tmp_path / "methods.py").write_text(
        "class Without:\n    def score(self, images, prompts): ...\n"
        "class Loads:\n    load = staticmethod(lambda: Without())\n"
        "def make(): return Without()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"methods:Without has no method reward\(images, prompts\): add it"):
        check_term(term("methods:Without"))
    for made in ("methods:Loads", "methods:make"):
        check_term(term(made))
        with pytest.raises(UserError, match="has no method reward"):
            load_reward(term(made))


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(
        UserError,
        match=r"'hps' is neither package.module:Class nor one of imagereward, .*jpeg, server: did you mean hpsv3",
    ):
        check_term(term("hps"))
    with pytest.raises(UserError, match=r"nor one of imagereward, .*jpeg, server$"):
        check_term(term("mine"))


@pytest.mark.parametrize(("code", "said"), [("def (", "SyntaxError"), ("x = 1 / 0", "ZeroDivisionError")])
def test_a_module_that_does_not_import_is_one_sentence(tmp_path, monkeypatch, code, said):
    name = f"broken_{said.lower()}"
    (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=rf"'r': {name} does not import \({said}"):
        check_term(term(f"{name}:X"))


def test_importing_the_registry_imports_no_model():
    code = "import sys, dipp_ray.rewards.loading; assert 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
