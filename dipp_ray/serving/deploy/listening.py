"""Where Ray Serve listens for HTTP."""

import errno
import socket

from ray import serve
from ray.serve.context import _get_global_client

from dipp_ray.errors import UserError
from dipp_ray.serving.deploy.config import HttpSection
from dipp_ray.serving.deploy.lifecycle import start_serve

ROUTE = "/"


def start_http(http: HttpSection) -> None:
    """Start Serve with its HTTP proxy where it does not run yet.

    Raises UserError where the port cannot be had, or where Serve runs and listens elsewhere.
    """
    client = _get_global_client(raise_if_no_controller_running=False)  # Serve tells it nowhere else
    if client is None:
        require_port(http)
        start_serve(http_options={"host": http.host, "port": http.port})
        return
    if not serve.status().proxies:
        raise UserError(
            "Ray Serve runs in this cluster without HTTP, which only its start can change: call the service by "
            "handle (reward.app), or end Serve with `serve shutdown` when nobody uses it"
        )
    there = client.http_config
    if (there.host, there.port) != (http.host, http.port):
        raise UserError(
            f"Ray Serve listens on {there.host}:{there.port} in this cluster already, which only its start can change: "
            f"set http.host={there.host} and http.port={there.port}"
        )


def require_port(http: HttpSection) -> None:
    """Raise UserError where no program can listen on the host and port."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in http.host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((http.host, http.port))
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        reason = "is taken already" if taken else f"cannot be listened on ({error.strerror})"
        raise UserError(f"{http.host}:{http.port} {reason}: set http.port{'' if taken else ' or http.host'}") from None
