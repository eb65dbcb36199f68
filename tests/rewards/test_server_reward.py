"""A reward by a server that only scores: what is sent, what is tried again, and that no score is made up."""

import base64
import io
import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from PIL import Image

from dipp_ray.config import RunConfig
from dipp_ray.errors import CallError, RewardUnavailableError, UserError
from dipp_ray.rewards import server as module
from dipp_ray.rewards.loading import check_term, load_reward
from dipp_ray.rewards.server import ServerReward
from dipp_ray.rewards.terms import RewardTerm, ServerSection
from dipp_ray.settings import validate
from dipp_ray.training.checks import check
from settings import tiny_config
from tiny import pixart_pipeline, prompt_file

PROMPTS = ["a cat", "a dög", "", "a cat"]


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(module, "FIRST_PAUSE_S", 1e-3)


def brightness(call):
    """Mean of each picture in [0, 1], as a server would compute it of the file, plus the length of its prompt."""
    pictures = [Image.open(io.BytesIO(base64.b64decode(one, validate=True))) for one in call["images"]]
    assert all(one.format == "PNG" and one.mode == "RGB" for one in pictures)
    means = [np.asarray(one).mean() / 255 for one in pictures]
    return {"scores": [mean + len(prompt) for mean, prompt in zip(means, call["prompts"], strict=True)]}


@contextmanager
def serving(*answers):
    """A server that gives each answer once and the last one for ever. An answer: what to make of the call's JSON, bytes
    of a body, or a status."""
    calls = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            calls.append((self.path, self.headers["Content-Type"], json.loads(body)))
            answer = answers[min(len(calls), len(answers)) - 1]
            if answer == "hang up":
                self.connection.close()
                return
            if isinstance(answer, int):
                self.send_response(answer)
                self.end_headers()
                self.wfile.write(b"so it is")
                return
            said = answer if isinstance(answer, bytes) else json.dumps(answer(calls[-1][2])).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/score", calls
    finally:
        server.shutdown()
        server.server_close()
        thread.join(20)


def term(url, **server):
    settings = {"url": url, "deadline_s": 30.0} | server
    return RewardTerm(name="judge", model="server", held_out=True, server=settings)


def images(count=4):
    return torch.rand(count, 3, 8, 6, generator=torch.Generator().manual_seed(0))


def test_scores_are_the_servers_of_the_pictures_in_8_bits():
    with serving(brightness) as (url, calls):
        made = load_reward(term(url, rows=3))
        found = made.reward(images(), PROMPTS)
        rounded = (images() * 255).round() / 255
        expected = rounded.mean((1, 2, 3)) + torch.tensor([5.0, 5.0, 0.0, 5.0])
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
        assert [len(call["images"]) for _, _, call in calls] == [3, 1] and calls[0][:2] == (
            "/score",
            "application/json",
        )
        assert not made.differentiable and made.elsewhere
        beyond = made.reward(torch.tensor([-1.0, 2.0]).view(2, 1, 1, 1).expand(2, 3, 4, 4), PROMPTS[:2])
        assert beyond.tolist() == pytest.approx([5.0, 6.0])  # as a file shows it
        assert made.reward(images(1).double(), ["a"]).dtype == torch.float64


def test_the_field_of_the_answer_is_a_setting():
    def named(call):
        return {"scores": "elsewhere", "rewards": brightness(call)["scores"]}

    with serving(named, lambda call: brightness(call)["scores"]) as (url, _):
        by_name = ServerReward(ServerSection(url=url, field="rewards")).reward(images(), PROMPTS)
        alone = ServerReward(ServerSection(url=url, field=None)).reward(images(), PROMPTS)
        assert torch.equal(by_name, alone)


@pytest.mark.parametrize("fault", [503, 500, 429, 408, "hang up"])
def test_what_may_pass_is_tried_again(fault):
    with serving(fault, fault, brightness) as (url, calls):
        assert load_reward(term(url)).reward(images(), PROMPTS).shape == (4,)
        assert len(calls) == 3


def test_a_refused_call_is_not_tried_again():
    with serving(400) as (url, calls):
        with pytest.raises(CallError, match="refused the call: 400 so it is"):
            load_reward(term(url)).reward(images(), PROMPTS)
        assert len(calls) == 1


def test_past_the_deadline_it_raises():
    with serving(503) as (url, calls), pytest.raises(RewardUnavailableError, match=r"no answer within 0\.5 s .*503"):
        load_reward(term(url, deadline_s=0.5)).reward(images(), PROMPTS)
    assert len(calls) > 1
    with pytest.raises(RewardUnavailableError, match=r"no answer within 0\.1 s"):
        load_reward(term(url, deadline_s=0.1)).reward(images(), PROMPTS)  # nobody is there any more


def test_a_server_that_never_ends_is_left_at_the_deadline():
    stop = threading.Event()

    def never(call):
        stop.wait(20)
        return brightness(call)

    began = time.monotonic()
    with serving(never) as (url, _):
        with pytest.raises(RewardUnavailableError, match=r"no answer within 0\.2 s"):
            load_reward(term(url, deadline_s=0.2)).reward(images(), PROMPTS)
        assert time.monotonic() - began < 10
        stop.set()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"<html>", "answered no JSON"),
        (b'{"scores": [1, 2, 3]}', "no list of 4 finite numbers"),
        (b'{"scores": [1, 2, 3, null]}', "'scores' of the answer is no list of 4 finite numbers"),
        (b'{"scores": [1, 2, 3, NaN]}', "no list of 4 finite numbers"),
        (b'{"scores": [1, 2, 3, true]}', "no list of 4 finite numbers"),
        (b'{"score": [1, 2, 3, 4]}', "no list of 4 finite numbers: correct server.field"),
        (b"[1, 2, 3, 4]", "no list of 4 finite numbers"),
    ],
)
def test_an_answer_that_is_none_raises_and_is_never_zero(answer, message):
    with serving(answer) as (url, _), pytest.raises(RewardUnavailableError, match=message):
        load_reward(term(url)).reward(images(), PROMPTS)


def test_images_that_are_not_finite_are_not_sent():
    with serving(brightness) as (url, calls):
        with pytest.raises(CallError, match="not finite"):
            load_reward(term(url)).reward(images() / 0, PROMPTS)
        assert calls == []


def test_a_term_says_where_its_server_is():
    for given in ({"model": "server"}, {"model": "clip", "folder": "/x", "server": {"url": "http://a"}}):
        with pytest.raises(ValueError, match=r"model: server and server\.url go together"):
            RewardTerm(name="judge", **given)
    with pytest.raises(ValueError, match="pattern"):
        RewardTerm(name="judge", model="server", server={"url": "a:8000"})
    check_term(term("http://127.0.0.1:1"))


def test_a_trained_term_of_it_is_refused_by_check(tmp_path):
    config = tiny_config(tmp_path / "runs", pixart_pipeline(tmp_path / "pipeline"), prompt_file(tmp_path / "p.parquet"))
    data = config.model_dump(mode="json")
    data["reward"]["terms"].append({"name": "judge", "model": "server", "server": {"url": "http://127.0.0.1:1"}})
    with pytest.raises(UserError, match=r"^reward 'judge': model server has no gradient: set its held_out=true$"):
        check(validate(data, RunConfig, "test"))
    data["reward"]["terms"][-1]["held_out"] = True
    check(validate(data, RunConfig, "test"))
