"""A remote reward in somebody's own training script: the service's gradient joins the caller's graph."""

import asyncio
import re
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
import uvicorn
from http_calls import BRIGHT, made

from dipp_ray.client import RemoteReward
from dipp_ray.errors import CallError, NonFiniteError, RewardUnavailableError, UserError
from dipp_ray.serving.core.scoring import Scorer
from dipp_ray.serving.http.app import build_http
from tiny_models import PROMPTS

DOCS = Path(__file__).parents[2] / "docs" / "rewards.md"
ROWS = 4
WATCH = {"name": "watch", "model": "tiny_models:NoGradient", "held_out": True}
OPTIONAL = {"name": "optional", "model": "tiny_models:Raises", "required": False}


class Server:
    """An ingress over models in this process, behind real HTTP on loopback."""

    def __init__(self, *models, **settings):
        self.service = made(models, limits={"rows": ROWS}, deterministic=True, **settings)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        config = uvicorn.Config(build_http(self.service), host="127.0.0.1", port=self.port, log_level="error")
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, daemon=True)

    def __enter__(self):
        self.thread.start()
        while not self.server.started:
            assert self.thread.is_alive()
        self.url = f"http://127.0.0.1:{self.port}"
        return self

    def __exit__(self, *_):
        self.server.should_exit = True
        self.thread.join(20)


@pytest.fixture(scope="module")
def server():
    with Server(BRIGHT, WATCH) as running:
        yield running


@pytest.fixture
def reward(server):
    remote = RemoteReward(server.url)
    yield remote
    remote.close()


def images(count=3, seed=0):
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def test_reward_and_gradient_are_those_of_the_models_in_process_to_the_bit(server, reward):
    x, texts = images(11), (PROMPTS * 3)[:11]  # three calls
    local = Scorer(server.service.reward_terms, None, 8).score(x, texts, "images", True)
    given = x.clone().requires_grad_()
    scores = reward(given, texts)
    upstream = torch.linspace(-1, 1, 11)
    scores.backward(upstream)
    assert scores.dtype == torch.float32 and torch.equal(scores.detach(), local.reward)
    assert torch.equal(given.grad, upstream[:, None, None, None] * local.gradient)
    assert torch.equal(reward.latest.scores["watch"], local.scores["watch"]) and reward.latest.held_out == ("watch",)


def test_the_gradient_flows_on_into_whatever_made_the_images(reward):
    weight = torch.tensor(0.3, requires_grad=True)
    reward(images() * weight, PROMPTS[:3]).sum().backward()
    expected = 5.0 * images().mean((1, 2, 3)).sum()  # bright is 5 times the mean
    assert weight.grad.item() == pytest.approx(expected.item(), rel=1e-5)


def test_without_grad_none_is_asked_for(server, reward):
    with torch.no_grad():
        scores = reward(images().requires_grad_(), PROMPTS[:3])
    assert not scores.requires_grad and not reward(images(), PROMPTS[:3]).requires_grad


def test_a_second_derivative_is_refused(reward):
    x = images().requires_grad_()
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(reward(x, PROMPTS[:3]).sum(), x, create_graph=True)


def test_half_precision_keeps_its_dtype_and_the_wire_may_be_fp16(server):
    remote = RemoteReward(server.url, dtype="fp16", held_out=False)
    x = images().bfloat16().requires_grad_()
    remote(x, PROMPTS[:3]).sum().backward()
    assert x.grad.dtype == torch.bfloat16
    assert x.grad.float().mean().item() == pytest.approx(5 / (3 * 64), rel=1e-2)
    assert remote.latest.held_out == () and "watch" not in remote.latest.scores
    remote.close()


def test_failures_raise_and_are_never_zero(server, reward):
    with pytest.raises(NonFiniteError, match="not finite"):
        reward(images(1), ["nan"])
    with pytest.raises(CallError, match="prompts"):
        reward(images(2), PROMPTS[:1])
    with Server(BRIGHT, OPTIONAL) as other, pytest.raises(RewardUnavailableError, match=r"optional.*gave no answer"):
        RemoteReward(other.url)(images(), PROMPTS[:3])
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        gone = RemoteReward(f"http://127.0.0.1:{nobody.getsockname()[1]}", deadline_s=1.0)
        with pytest.raises(RewardUnavailableError, match="within 1 s"):
            gone(images(), PROMPTS[:3])
    with pytest.raises(UserError, match="is no URL"):
        RemoteReward("127.0.0.1:8000")


def test_it_blocks_inside_a_running_loop_too(reward):
    async def notebook():
        return reward(images(), PROMPTS[:3])

    assert asyncio.run(notebook()).shape == (3,)


BLOCKED = """
import sys
for name in ("ray", "deepspeed", "diffusers", "transformers"):
    sys.modules[name] = None
import dipp_ray.client
"""


def test_it_needs_neither_ray_nor_diffusers():
    subprocess.run([sys.executable, "-c", BLOCKED], check=True)


def test_the_example_of_the_docs_runs_and_raises_the_reward(server, capsys):
    (program,) = (
        block for block in re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.S) if "RemoteReward(" in block
    )
    torch.manual_seed(0)
    names = {}
    exec(compile(program.replace("http://127.0.0.1:8000", server.url), str(DOCS), "exec"), names)
    rewards = names["rewards"]
    assert rewards[-1] > rewards[0] + 0.1
    assert "held out ('watch',)" in capsys.readouterr().out
