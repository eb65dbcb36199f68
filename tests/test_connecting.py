"""Joining Ray: tokens are kept from others, and shown to a cluster that asks for one."""

import os
import stat
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from dipp_ray import connecting
from dipp_ray.errors import UserError

NICENESS = "RAY_worker_niceness"


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_a_token_is_made_for_its_owner_alone(home):
    before = os.umask(0)
    try:
        connecting.keep_token()
    finally:
        os.umask(before)
    path = home / ".ray" / "auth_token"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and len(path.read_text()) == 64
    assert [*path.parent.iterdir()] == [path]
    made = path.read_text()
    path.chmod(0o644)  # as Ray itself leaves it
    connecting.keep_token()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and path.read_text() == made


def test_a_token_is_never_open_to_others(home, monkeypatch):
    seen, link = [], os.link

    def linked(aside, path):
        seen.append(stat.S_IMODE(aside.stat().st_mode))
        link(aside, path)

    monkeypatch.setattr(os, "link", linked)
    connecting.keep_token()
    assert seen == [0o600]


def test_two_starts_at_once_have_one_token(home):
    with ThreadPoolExecutor(8) as pool:
        [*pool.map(lambda _: connecting.keep_token(), range(8))]
    assert len((home / ".ray" / "auth_token").read_text()) == 64


@pytest.mark.parametrize("name", ["RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"])
def test_none_is_made_beside_one_that_is_given(home, monkeypatch, name):
    monkeypatch.setenv(name, "given")
    connecting.keep_token()
    assert not (home / ".ray").exists()


class Cluster(grpc.GenericRpcHandler):
    """Answers as Ray's GCS does: with a token of its own, nobody who shows none."""

    def __init__(self, token):
        self.token = token

    def service(self, details):
        def answer(request, context):
            if self.token:
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken")
            return b""

        return grpc.unary_unary_rpc_method_handler(answer) if details.method == connecting.QUESTION else None


@pytest.fixture
def cluster():
    servers = []

    def start(token):
        server = grpc.server(ThreadPoolExecutor(1), handlers=[Cluster(token)])
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        servers.append(server)
        return f"127.0.0.1:{port}"

    yield start
    for server in servers:
        server.stop(None)


def test_a_cluster_with_a_token_is_joined_or_the_sentence_says_how(home, cluster, monkeypatch):
    import ray._private.authentication.authentication_token_setup as rays

    there = []
    monkeypatch.setattr(rays, "maybe_enable_token_auth_if_token_available", lambda warn_if_disabled: bool(there))
    locked = cluster(token=True)
    with pytest.raises(UserError, match=rf"asks for a token: set RAY_AUTH_MODE=token, and leave .*{home}/.ray"):
        connecting.bring_token(locked)
    there.append("a token")
    connecting.bring_token(locked)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with pytest.raises(UserError, match=r"asks for a token: set RAY_AUTH_MODE=token, or unset it"):
        connecting.bring_token(locked)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    connecting.bring_token("127.0.0.1:1")  # nothing is asked


@pytest.mark.parametrize("mode", ["token", None])
def test_the_token_that_a_cluster_is_shown_is_closed_to_others(home, cluster, monkeypatch, mode):
    """Plain `ray start --head` makes one that all may read."""
    import ray._private.authentication.authentication_token_setup as rays

    monkeypatch.setattr(rays, "maybe_enable_token_auth_if_token_available", lambda warn_if_disabled: True)
    if mode:
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
    path = connecting.token_file()
    path.parent.mkdir()
    path.write_text("0" * 64)
    path.chmod(0o644)
    connecting.bring_token(cluster(token=True))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_token_file_of_somebody_else_or_on_a_fixed_disk_stays_as_it_is(home, monkeypatch):
    path = connecting.token_file()
    connecting.close_token()  # none is there
    path.parent.mkdir()
    path.write_text("0" * 64)
    path.chmod(0o644)
    owner = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    connecting.close_token()
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    monkeypatch.setattr(os, "getuid", lambda: owner)

    def refused(*_, **__):
        raise PermissionError

    monkeypatch.setattr(type(path), "chmod", refused)
    connecting.close_token()


def test_a_cluster_without_a_token_is_shown_none(home, cluster, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    connecting.bring_token(cluster(token=False))
    connecting.bring_token("127.0.0.1:1")  # what is no cluster is for Ray to say


@pytest.mark.parametrize(
    ("variables", "folder"),
    [({}, "/tmp"), ({"TMPDIR": "/scratch/"}, "/scratch"), ({"TMPDIR": "/scratch", "RAY_TMPDIR": "/r"}, "/r")],
)
def test_logs_are_named_where_they_are(monkeypatch, capsys, variables, folder):
    import ray

    monkeypatch.delenv("RAY_TMPDIR", raising=False), monkeypatch.delenv("TMPDIR", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    def init(**options):
        raise RuntimeError("the raylet did not start\nand a paragraph")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(
        UserError, match=rf"the raylet did not start; its logs are in {folder}/ray/session_latest/logs$"
    ):
        connecting.connect()


@pytest.mark.parametrize(("given", "read"), [(None, "0"), ("7", "7")])
def test_roles_are_no_background_work_unless_that_is_asked_for(home, monkeypatch, given, read):
    """A Ray that is started here gives its workers no niceness of its own: see also test_lost_command.py."""
    import ray

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv(NICENESS, given or "")
    if given is None:
        monkeypatch.delenv(NICENESS)
    found = []
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **options: found.append(os.environ[NICENESS]))
    connecting.connect()
    assert found == [read]


def test_a_folder_that_is_too_long_for_sockets_is_said_with_the_remedy(home, monkeypatch):
    import ray

    def init(**options):
        raise OSError("AF_UNIX path length cannot exceed 107 bytes: /tmp/a/long/one\nand more")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(
        UserError, match=r"^the folder of RAY_TMPDIR or TMPDIR is too long .*: set RAY_TMPDIR to a short"
    ):
        connecting.connect()


def test_auto_where_no_cluster_runs_is_one_sentence(home, monkeypatch):
    import ray

    def init(**options):
        raise ConnectionError("Could not find any running Ray instance. Please specify the one to connect to")

    monkeypatch.setenv("RAY_ADDRESS", "auto")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(UserError) as caught:
        connecting.connect()
    assert str(caught.value) == "RAY_ADDRESS=auto: no Ray cluster runs on this machine: start one, or unset it"
