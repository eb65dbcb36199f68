"""A remote reward in somebody's own training script: the service's gradient joins the caller's graph."""

import asyncio
import copy
import pickle
import re
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import uvicorn
from http_calls import BRIGHT, made

from dipp_ray.client import RemoteReward
from dipp_ray.errors import CallError, NonFiniteError, RewardUnavailableError, UserError
from dipp_ray.models.latents import LatentDecoder
from dipp_ray.serving.core.scoring import Scorer
from dipp_ray.serving.http.app import build_http
from tiny_models import PROMPTS, save_pipeline

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
    with pytest.raises(UserError, match=r"^url: '[^']*' is no URL"):
        RemoteReward("127.0.0.1:8000")


def test_it_blocks_inside_a_running_loop_too(reward):
    async def notebook():
        return reward(images(), PROMPTS[:3])

    assert asyncio.run(notebook()).shape == (3,)


def test_latents_are_decoded_there_and_their_gradient_comes_back(tmp_path):
    decoder = LatentDecoder.from_folder(save_pipeline(tmp_path / "vae"))
    x = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))  # two calls
    with Server(BRIGHT, vae=str(tmp_path / "vae")) as running:
        remote = RemoteReward(running.url, space="latents")
        given = x.clone().requires_grad_()
        scores = remote(given, (PROMPTS * 2)[:6])
        scores.sum().backward()
        with pytest.raises(CallError, match="no VAE of this service has a name"):
            RemoteReward(running.url, space="latents", vae="sd")(x[:1], PROMPTS[:1])
        local = Scorer(running.service.reward_terms, decoder, ROWS).score(x, (PROMPTS * 2)[:6], "latents", True)
    assert torch.equal(scores.detach(), local.reward) and torch.equal(given.grad, local.gradient)
    assert given.grad.abs().sum() > 0


def test_latents_are_decoded_by_the_vae_that_is_named(tmp_path):
    folders = [save_pipeline(tmp_path / name, seed) for seed, name in enumerate(("one", "two"))]
    vaes = [{"name": name, "folder": folder} for name, folder in zip(("one", "two"), folders, strict=True)]
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with Server(BRIGHT, vaes=vaes) as running:
        terms = running.service.reward_terms
        for name, folder in zip(("one", "two"), folders, strict=True):
            given = x.clone().requires_grad_()
            scores = RemoteReward(running.url, space="latents", vae=name)(given, PROMPTS[:3])
            scores.sum().backward()
            local = Scorer(terms, LatentDecoder.from_folder(folder), 8).score(x, PROMPTS[:3], "latents", True)
            assert torch.equal(scores.detach(), local.reward) and torch.equal(given.grad, local.gradient)
        with pytest.raises(CallError, match="say by vae which of them"):
            RemoteReward(running.url, space="latents")(x, PROMPTS[:3])
        with pytest.raises(CallError, match="vae is 'three'"):
            RemoteReward(running.url, space="latents", vae="three")(x, PROMPTS[:3])


def run_alone(program, server):
    """What a program of its own prints; on stderr it prints nothing."""
    url = server.url.replace("127.0.0.1", "localhost")  # a name, which is looked up in a thread of its own
    found = subprocess.run([sys.executable, "-c", program, url], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stderr) == (0, "")
    return found.stdout


BLOCKED = """
import sys
for name in ("ray", "deepspeed", "diffusers", "transformers"):
    sys.modules[name] = None
import torch
from dipp_ray.client import RemoteReward
reward = RemoteReward(sys.argv[1])
x = torch.full((2, 3, 8, 8), 0.5, requires_grad=True)
scores = reward(x, ["a cat", "a dog"])
scores.sum().backward()
print(scores.tolist(), x.grad.sum().item(), reward.describe().models[0].name)
reward.close()
"""


def test_it_needs_neither_ray_nor_diffusers(server):
    scores, gradient, name = run_alone(BLOCKED, server).rsplit(" ", 2)
    assert scores == "[2.5, 2.5]" and float(gradient) == pytest.approx(10.0, rel=1e-5) and name.strip() == "bright"


UNCLOSED = """
import sys, torch
from dipp_ray.client import RemoteReward
dropped, kept = RemoteReward(sys.argv[1]), RemoteReward(sys.argv[1])
for reward in (dropped, kept):
    reward(torch.rand(2, 3, 8, 8), ["a cat", "a dog"])
del dropped
"""


def test_a_program_that_closes_nothing_ends_without_a_word(server):
    assert run_alone(UNCLOSED, server) == ""


def test_what_is_dropped_or_closed_leaves_no_thread(server):
    for drop in (lambda remote: remote.close(), lambda remote: (remote.close(), remote.close()), lambda remote: None):
        remote = RemoteReward(server.url)
        remote(images(1), PROMPTS[:1])
        thread, loop = remote._loop._thread, remote._loop._loop
        drop(remote)
        del remote
        thread.join(20)
        assert not thread.is_alive() and loop.is_closed()


@pytest.mark.parametrize(
    ("rows", "prompts", "reason"),
    [
        (0, [], "0 images but 0 prompts: give one prompt a row, and a row at least"),
        (2, ["a"], "2 images but 1 prompts"),
        (3, "abc", "prompts is one text: give a list of them, one a row"),
        (2, ["a", 3], "prompts holds a value of type int: give texts, one a row"),
    ],
)
def test_what_is_no_call_is_told_and_never_sent(rows, prompts, reason):
    remote = RemoteReward("http://127.0.0.1:9")  # nobody is there
    with pytest.raises(CallError, match=reason):
        remote(images(3)[:rows], prompts)
    remote.close()


def test_it_is_not_copied_and_needs_an_address():
    remote = RemoteReward("http://127.0.0.1:9")
    for how in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="a RemoteReward holds connections and cannot be copied or pickled"):
            how(remote)
    remote.close()
    with pytest.raises(UserError, match=r"^url is empty: write http://HOST:PORT"):
        RemoteReward([])


def test_a_call_that_another_thread_closes_says_so():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        remote = RemoteReward(f"http://127.0.0.1:{silent.getsockname()[1]}")
        with ThreadPoolExecutor(1) as others:
            asking = others.submit(remote, images(1), PROMPTS[:1])
            silent.accept()
            remote.close()
            with pytest.raises(RuntimeError, match="this RemoteReward is closed: make another"):
                asking.result(60)


def test_what_is_closed_says_so(server):
    remote = RemoteReward(server.url)
    remote(images(1), PROMPTS[:1])
    remote.close()
    with pytest.raises(RuntimeError, match="this RemoteReward is closed: make another"):
        remote(images(1), PROMPTS[:1])
    unused = RemoteReward(server.url)
    unused.close()
    with pytest.raises(RuntimeError, match="this RemoteReward is closed: make another"):
        unused.describe()


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
