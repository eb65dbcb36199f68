"""Where the service is called by HTTP: at a front of ours, or where Ray Serve listens already."""

import socket

from ray import serve
from ray.serve.context import _get_global_client

from dipp_ray.errors import UserError
from dipp_ray.serving.deploy.config import HttpSection
from dipp_ray.serving.deploy.fronting import close_front, front_address, open_front, refused
from dipp_ray.serving.deploy.lifecycle import start_serve

ROUTE = "/"


def start_http(http: HttpSection) -> bool:
    """Start a front on the head node, and Serve with its HTTP proxy on loopback behind it, where Serve does not run.

    Returns whether a front is there: Serve that was started elsewhere has none, and its proxy bounds no headers.
    Raises UserError where the port cannot be had, or where Serve runs and is called elsewhere.
    """
    client = _get_global_client(raise_if_no_controller_running=False)  # Serve tells it nowhere else
    if client is None:
        host, port = open_front(http)
        try:
            start_serve(proxy_location="HeadOnly", http_options={"host": host, "port": port})
        except BaseException:
            close_front()
            raise
        return True
    if not serve.status().proxies:
        raise UserError(
            "Ray Serve runs in this cluster without HTTP, which only its start can change: call the service by "
            "handle (reward.app), or end Serve with `serve shutdown` when nobody uses it"
        )
    front = front_address()
    host, port = front or (client.http_config.host, client.http_config.port)
    if (host, port) != (http.host, http.port):
        raise UserError(
            f"Ray Serve listens on {host}:{port} in this cluster already, which only its start can change: "
            f"set http.host={host} and http.port={port}"
        )
    return front is not None


def require_port(http: HttpSection) -> None:
    """Raise UserError where no program can listen on the host and port."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in http.host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((http.host, http.port))
    except OSError as error:
        raise refused(http, error) from None
