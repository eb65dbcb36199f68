"""The front in a cluster: beside Serve on the head, with Serve's own proxy on loopback behind it."""

import os
import socket
import time
import urllib.error
import urllib.request
from contextlib import contextmanager

import psutil
import pytest

from dipp_ray.errors import UserError
from dipp_ray.serving.core.queue import QueueSection
from dipp_ray.serving.deploy import fronting
from dipp_ray.serving.deploy.config import HttpSection, ServiceConfig
from dipp_ray.serving.deploy.lifecycle import await_rewards, deploy_rewards, stop_rewards
from dipp_ray.serving.deploy.listening import start_http
from dipp_ray.serving.http.tokens import digest

TOKEN = "0123456789abcdef"
MODELS = [{"name": "bright", "model": "tiny_models:Brightness", "role": {"cpus": 0.1}}]


@pytest.fixture
def free(ray_session):
    """Serve is not there, before and after; a free port."""
    from ray import serve

    serve.shutdown()
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    yield port
    serve.shutdown()
    fronting.close_front()


def status(port, path="/healthz", body=None, token=None):
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", body, headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            return reply.status
    except urllib.error.HTTPError as error:
        return error.code


@contextmanager
def open_call(port, token):
    """A call whose body never comes."""
    with socket.create_connection(("127.0.0.1", port)) as caller:
        head = f"POST /v1/score HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\nContent-Length: 9\r\n"
        caller.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode())
        yield


def until(condition):
    ends = time.monotonic() + 60
    while not condition() and time.monotonic() < ends:
        time.sleep(0.01)
    assert condition()


def test_serve_begins_with_a_front_that_knows_the_tokens_and_stays(free, tmp_path, monkeypatch):
    from ray import serve
    from ray.serve.context import _get_global_client

    (tmp_path / "tokens").write_text(f"ann:{TOKEN}\n")
    http = HttpSection(port=free, tokens=str(tmp_path / "tokens"))
    config = ServiceConfig.model_validate(
        {"name": "fronted", "models": MODELS, "queue": {"calls": 1}, "http": http.model_dump()}
    )
    assert start_http(http)
    behind = _get_global_client().http_config
    assert behind.host == "127.0.0.1" and behind.port != free and len(serve.status().proxies) == 1
    deploy_rewards(config, "/")
    await_rewards("fronted", 180, print)
    assert status(free) == 200 and status(free, "/v1/models") == 401 and status(free, "/v1/models", token=TOKEN) == 200
    with open_call(free, TOKEN):
        until(lambda: status(free, "/v1/score", b"x", TOKEN) == 429)
    assert start_http(http)  # it is found again
    with pytest.raises(UserError, match=f"listens on 127.0.0.1:{free} in this cluster already"):
        start_http(HttpSection(port=behind.port))
    stop_rewards("fronted")
    assert status(free) == 404  # what Serve says where nothing is deployed


def test_a_front_that_is_killed_comes_back_as_it_was(free):
    import ray

    http = HttpSection(port=free)
    with socket.create_server(fronting.open_front(http)) as behind:  # takes calls, and answers none
        behind.settimeout(60)
        fronting.tell_front({digest(TOKEN): "ann"}, QueueSection(calls=1))
        front = ray.get_actor(fronting.NAME, namespace=fronting.NAMESPACE)
        lost = psutil.Process(ray.get(front.__ray_call__.remote(lambda _: os.getpid())))
        lost.kill()
        lost.wait(60)  # until then it takes calls, and answers where it listens
        assert fronting.front_address() == ("127.0.0.1", free)  # asked again until it is there
        with open_call(free, TOKEN):
            taken, _ = behind.accept()
            assert status(free, "/v1/score", b"x", TOKEN) == 429  # by the front, before anything comes here
            taken.close()
    fronting.close_front()  # the next one is another service's
    assert fronting._internal_kv_get(fronting.KNOWN, namespace=fronting.NAMESPACE) is None


def test_a_front_that_finds_its_port_taken_listens_once_it_is_free(monkeypatch):
    monkeypatch.setattr(fronting, "AGAIN_S", 0.01)
    monkeypatch.setattr(fronting, "_internal_kv_get", lambda *_, **__: None)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        front = fronting.FrontActor(("127.0.0.1", port), ("127.0.0.1", 1))
        assert front.place()[1] is not None
    until(lambda: front.place()[1] is None)
    assert status(port) == 502  # nothing is behind it


def test_a_port_that_is_taken_is_one_sentence_and_nothing_stays(free):
    from ray.serve.context import _get_global_client

    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=rf"127\.0\.0\.1:{port} is taken already: set http\.port$"):
            start_http(HttpSection(port=port))
    with pytest.raises(UserError, match=r"cannot be listened on .*set http\.port or http\.host"):
        start_http(HttpSection(host="192.0.2.1", port=free))
    assert _get_global_client(raise_if_no_controller_running=False) is None


@pytest.mark.slow
def test_serve_that_was_started_elsewhere_has_no_front(free):
    from ray import serve

    serve.start(http_options={"host": "127.0.0.1", "port": free}, logging_config={"log_level": "WARNING"})
    assert not start_http(HttpSection(port=free))
