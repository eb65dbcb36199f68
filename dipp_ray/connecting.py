"""How a command joins Ray: the cluster of RAY_ADDRESS, or one on this machine, by Ray's token alone."""

import os
import secrets
import socket
import sys
from contextlib import suppress
from pathlib import Path

from dipp_ray.errors import UserError
from dipp_ray.import_path import refuse_shadows
from dipp_ray.reporting.waiting import waiting

CONNECT_S = 10.0
AUTH_MODES = ("token", "disabled")
# Any question serves: whether it is refused for want of a token is the answer.
QUESTION = "/ray.rpc.NodeInfoGcsService/GetClusterId"


def connect() -> None:
    """Join the cluster of RAY_ADDRESS (as a Ray job does), or start one on this machine. Raises UserError."""
    # Ray listens on every interface even for a cluster of one machine. Unless RAY_AUTH_MODE says otherwise a cluster
    # that is started here has a token (~/.ray/auth_token), without which nobody else can run code here.
    import ray
    from ray.exceptions import RayError

    if ray.is_initialized():
        return
    require_sane_ray()
    address = os.environ.get("RAY_ADDRESS", "local")
    local = address == "local"
    print("starting Ray on this machine" if local else f"joining the Ray cluster at {address}")
    if local:
        # Serve's controller would look at every replica ten times a second, for 3% of a core
        os.environ.setdefault("RAY_SERVE_CONTROL_LOOP_INTERVAL_S", "0.5")
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in cli.main, for programs that come another way
        # Ray's own is 15: beside two busy programs a role would get a thirtieth of a core.
        os.environ.setdefault("RAY_worker_niceness", "0")
        if os.environ.get("RAY_AUTH_MODE", "token") == "token":
            keep_token()
    try:
        if not local:
            require_listener(address)
            bring_token(address)
        with waiting("Ray"):
            ray.init(address=address, log_to_driver=False, include_dashboard=False if local else None)
    except (RayError, RuntimeError, ValueError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        if "AF_UNIX path" in reason:
            raise UserError(
                "the folder of RAY_TMPDIR or TMPDIR is too long for the sockets that Ray puts there: set RAY_TMPDIR to "
                "a short one, such as /tmp/r"
            ) from None
        if local:
            raise UserError(f"Ray did not start: {reason}; its logs are in {logs_folder()}") from error
        if reason.startswith("Could not find any running Ray instance"):
            nowhere = f"RAY_ADDRESS={address}: no Ray cluster runs on this machine: start one, or unset it"
            raise UserError(nowhere) from None
        raise UserError(f"RAY_ADDRESS={address}: {reason}: correct it, or start that cluster") from error


def require_sane_ray() -> None:
    """Raise UserError for what would make Ray start otherwise than meant: a RAY_AUTH_MODE that it does not know turns
    authentication off without a word, and files called like modules end its processes."""
    mode = os.environ.get("RAY_AUTH_MODE", "token")
    if mode not in AUTH_MODES:
        raise UserError(f"RAY_AUTH_MODE={mode}: write {' or '.join(AUTH_MODES)}, or unset it for a token of Ray's own")
    refuse_shadows({os.getcwd(), os.path.dirname(os.path.realpath(sys.argv[0]))})


def require_listener(address: str) -> None:
    """Raise OSError where nothing listens at `host:port`: Ray itself would try for a minute and more. Raise UserError
    for what is none."""
    if not address.strip():
        raise UserError(f"RAY_ADDRESS={address}: it is empty, which means any cluster: unset it, or write host:port")
    if address.startswith(("http://", "https://")):
        raise UserError(
            f"RAY_ADDRESS={address}: that is where a dashboard takes jobs: write host:port of the cluster, such as "
            "10.0.0.5:6379"
        )
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdecimal():
        with socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S):
            pass


def bring_token(address: str) -> None:
    """Show this user's token to a cluster at `host:port` that asks for one, as that of plain `ray start --head` does
    where there is a token. Raises UserError where RAY_AUTH_MODE forbids that, or there is none: Ray itself would try
    for a while, and say no more than that it failed. The token that is shown is closed to others."""
    mode = os.environ.get("RAY_AUTH_MODE")
    if mode == "token":
        close_token()
        return
    if not asks_for_token(address):
        return
    if mode is not None:
        raise UserError(f"RAY_ADDRESS={address}: that cluster asks for a token: set RAY_AUTH_MODE=token, or unset it")
    from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available

    if not maybe_enable_token_auth_if_token_available(warn_if_disabled=False):
        raise UserError(
            f"RAY_ADDRESS={address}: that cluster asks for a token: set RAY_AUTH_MODE=token, and leave the token in "
            f"{token_file()} or RAY_AUTH_TOKEN"
        )
    close_token()


def asks_for_token(address: str) -> bool:
    """Whether a cluster at `host:port` answers nobody without a token; False where that cannot be told."""
    import grpc

    with grpc.insecure_channel(address) as channel:
        try:
            channel.unary_unary(QUESTION)(b"", timeout=CONNECT_S)
        except grpc.RpcError as error:
            return error.code() == grpc.StatusCode.UNAUTHENTICATED
    return False


def token_file() -> Path:
    """Where Ray keeps a user's token, and looks for it unless RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH is set."""
    return Path.home() / ".ray" / "auth_token"


def keep_token() -> None:
    """Make the token that Ray would make, readable by its owner alone; one that others may read is closed to them."""
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return
    path = token_file()
    with suppress(OSError):  # Ray says what is wrong with the place
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            aside = path.with_name(f".{path.name}.{os.getpid()}")
            try:
                with open(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
                    file.write(secrets.token_hex(32))
                with suppress(FileExistsError):  # another start was faster: its token counts
                    os.link(aside, path)
            finally:
                aside.unlink(missing_ok=True)
    close_token()


def close_token() -> None:
    """Let nobody else read this user's token file: plain `ray start --head` and Ray's own command leave it open."""
    path = token_file()
    with suppress(OSError):  # there is none, or its place cannot be changed: it is as good a token as before
        found = path.stat()
        if found.st_uid == os.getuid() and found.st_mode & 0o077:
            path.chmod(0o600)


def logs_folder() -> str:
    """Where a Ray that is started with these variables leaves its logs."""
    folder = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    return f"{folder.rstrip('/')}/ray/session_latest/logs"
