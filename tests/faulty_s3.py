"""An S3 API on loopback (moto's server) behind a proxy that answers some requests with the faults of a real network."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import botocore.retries.standard
import pytest
import s3fs
from moto.server import ThreadedMotoServer

from dipp_ray.storage.remote import file_system

SLOW_S = 3.0
BODY = "<?xml version='1.0'?><Error><Code>{code}</Code><Message>for a moment</Message></Error>"
# What may happen to a request; `lost`: it is done, and its answer never comes.
FAULTS = ("500", "503", "throttled", "reset", "lost", "cut", "slow")
ANSWERS = {
    "500": (500, "InternalError"),
    "503": (503, "SlowDown"),
    "throttled": (400, "RequestLimitExceeded"),
    "refused": (403, "AccessDenied"),  # no fault of a moment
}


class FaultyS3:
    """fault(number, method, path) says what happens to the request of that number: of FAULTS or ANSWERS, or None."""

    def __init__(self):
        self.moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self.moto.start()
        behind = self.moto.get_host_and_port()
        self.requests: list[str] = []
        self.fault = lambda number, method, path: None
        outer, turn = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def handle_any(self):
                with turn:
                    number = len(outer.requests)
                    outer.requests.append(f"{self.command} {self.path}")
                kind = outer.fault(number, self.command, self.path)
                body = self._body()
                if kind == "throttled" and self.command == "HEAD":
                    kind = "503"  # an answer without a body has nowhere to say the code
                if kind in ANSWERS:
                    status, code = ANSWERS[kind]
                    return self._send(status, [("Content-Type", "application/xml")], BODY.format(code=code).encode())
                if kind == "reset":
                    return self._reset()
                inner = HTTPConnection(*behind)
                inner.request(self.command, self.path, body, dict(self.headers))
                answer = inner.getresponse()
                content = answer.read()
                inner.close()
                if kind == "lost":
                    return self._reset()
                if kind == "slow":
                    time.sleep(SLOW_S)
                self._send(answer.status, answer.getheaders(), content, cut=kind == "cut")

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any

            def _body(self):
                if self.headers.get("Expect") == "100-continue":
                    self.send_response_only(100)
                    self.end_headers()
                if self.headers.get("Transfer-Encoding") != "chunked":
                    return self.rfile.read(int(self.headers.get("Content-Length") or 0))
                parts = []
                while size := int(self.rfile.readline().split(b";")[0], 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                del self.headers["Transfer-Encoding"]
                return b"".join(parts)

            def _send(self, status, headers, content, cut=False):
                try:
                    self.send_response_only(status)
                    length = None
                    for name, value in headers:
                        if name.lower() == "content-length":
                            length = value
                        elif name.lower() not in ("transfer-encoding", "connection"):
                            self.send_header(name, value)
                    head = self.command == "HEAD"
                    self.send_header("Content-Length", length if head and length else str(len(content)))
                    self.end_headers()
                    if not head:
                        self.wfile.write(content[: len(content) // 2] if cut else content)
                    if cut:
                        self._reset()
                except OSError:  # the client has had enough
                    self.close_connection = True

            def _reset(self):
                self.wfile.flush()
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_):
                pass

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    @contextmanager
    def faults(self, fault) -> Iterator[None]:
        self.requests.clear()
        self.fault = fault
        try:
            yield
        finally:
            self.fault = lambda *_: None

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.moto.stop()


@contextmanager
def environment(monkeypatch: pytest.MonkeyPatch, url: str) -> Iterator[None]:
    """The standard environment of a store at `url`, with waits between attempts that a test can afford."""
    for name, value in {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(botocore.retries.standard.ExponentialBackoff, "delay_amount", lambda *_: 0.01)
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        yield
    finally:
        s3fs.S3FileSystem.clear_instance_cache()


def uploads(bucket: str) -> list[str]:
    """The keys of all multipart uploads in s3://BUCKET that were begun and not ended."""
    fs, root = file_system(bucket)
    return [upload["Key"] for upload in fs.call_s3("list_multipart_uploads", Bucket=root).get("Uploads", [])]


def leave_upload(bucket: str, key: str) -> None:
    """Begin an upload, as a writer does that is killed after the first part."""
    fs, root = file_system(bucket)
    upload = fs.call_s3("create_multipart_upload", Bucket=root, Key=key)["UploadId"]
    fs.call_s3("upload_part", Bucket=root, Key=key, UploadId=upload, PartNumber=1, Body=b"half")


@pytest.fixture(scope="package")
def s3():
    server = FaultyS3()
    yield server
    server.close()


@pytest.fixture
def bucket(s3, monkeypatch, request):
    """s3://NAME of a bucket of its own."""
    with environment(monkeypatch, s3.url):
        fs, _ = file_system("s3://any")
        name = f"b{abs(hash(request.node.nodeid)) % 10**12}"
        fs.call_s3("create_bucket", Bucket=name)
        yield f"s3://{name}"
