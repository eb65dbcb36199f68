"""The way to a reward service by HTTP, from anywhere; to several that serve the same, in turns."""

import asyncio
import io
import itertools
import os
import re
import time
from pathlib import Path
from typing import NamedTuple, get_args

import aiohttp
import numpy as np
from pydantic import ValidationError

from dipp_ray.errors import CallError, UserError
from dipp_ray.serving.client.transport import FAULT_ATTEMPTS, TransportError, another_version, ills
from dipp_ray.serving.contract.calls import HEALTH_S, Question
from dipp_ray.serving.contract.failures import WireError
from dipp_ray.serving.contract.records import (
    REPLY,
    REQUEST,
    SAFETENSORS,
    ErrorReply,
    HealthRecord,
    ReplyRecord,
    ScoreOptions,
    ServiceRecord,
    WireDtype,
)
from dipp_ray.serving.contract.wire import from_half, pack, unpack

TOKEN = "DIPP_RAY_REWARD_TOKEN"
RETRIED = {408, 429}  # and 5xx
CONNECTIONS = 64
MOST_HEADER = 2**24  # of a reply, bytes
CONNECT_S = 10.0
ANSWER_S = HEALTH_S + 5.0  # a service whose model gives no sign of life is alive, and says so
SILENCE_S = 10.0  # after so long without an answer a service is asked whether it is alive
AWAY_S = 60.0  # so long one that gave no sign of life is left alone, where there are others
SERVE_PAGE = b"/-/routes"  # stands in what Ray Serve answers where no application listens
INCIDENTAL = {"name": "", "version": ""}  # may differ between services that serve the same


class Named(NamedTuple):
    """What a person calls that which is handed to HttpTransport, for its sentences."""

    urls: str
    token: str


OF_RUN = Named("reward.urls", "reward.token")
OF_CALLER = Named("url", "token")


class HttpTransport:
    """Calls by HTTP to one service, or to several that serve the same; the next one where one does not answer.

    urls: such as http://10.0.0.5:8000. token: this caller's bearer token. dtype: of x and of the gradient on the wire;
    fp16 halves the traffic, to fp16's rounding. named: how a person knows these. One pool of connections for all calls.
    """

    def __init__(self, urls: list[str], token: str | None, dtype: WireDtype, named: Named):
        if not urls:
            raise UserError(f"{named.urls} is empty: write http://HOST:PORT or https://HOST")
        for url in urls:
            if not re.match(r"^https?://[^/\s]+", url):
                raise UserError(f"{named.urls}: '{url}' is no URL: write http://HOST:PORT or https://HOST")
        self._named = named
        self._urls = [url.rstrip("/") for url in urls]
        self._next = itertools.cycle(range(len(urls)))
        self._away: dict[str, float] = {}  # until when a URL is left alone
        self._dtype = dtype
        self._headers = {"Authorization": f"Bearer {token.strip()}"} if token else {}
        if dtype not in get_args(WireDtype):
            raise UserError(f"dtype '{dtype}' of the wire: write {' or '.join(get_args(WireDtype))}")
        self._session: aiohttp.ClientSession | None = None

    async def score(
        self, x: np.ndarray, prompts: list[str], question: Question, trainer: str, expires_s: float
    ) -> dict:
        options = ScoreOptions(
            prompts=list(prompts),
            space=question.space,
            vae=question.vae,
            gradient=question.gradient,
            held_out=question.held_out,
            reply_dtype=self._dtype,
            deadline_s=min(expires_s, 86400.0),
            trainer=trainer,
        )
        kind = np.float16 if self._dtype == "fp16" else np.float32
        sent = x if x.dtype == np.uint8 else x.astype(kind, copy=False)
        body = await self._living(self._choose(), "/v1/score", pack({"x": sent}, REQUEST, options))
        try:
            tensors, metadata = unpack(body, MOST_HEADER)
            record = ReplyRecord.model_validate_json(metadata[REPLY])
            slope = tensors.get("gradient")
            if slope is not None and "gradient_scale" in tensors:
                slope = from_half(slope, tensors["gradient_scale"])
        except (WireError, ValidationError, KeyError) as error:
            raise TransportError(f"its answer is damaged ({error})") from error
        scores = {name.removeprefix("scores/"): value for name, value in tensors.items() if name.startswith("scores/")}
        return {"reward": tensors.get("reward"), "scores": scores, "gradient": slope, **record.model_dump()}

    async def describe(self) -> ServiceRecord:
        """Of all that answer, which must serve the same; TransportError where none does."""
        asked = [self._bounded(url, "/v1/models") for url in self._urls]
        answers = dict(zip(self._urls, await asyncio.gather(*asked, return_exceptions=True), strict=True))
        found: dict[str, ServiceRecord] = {}
        last: TransportError | None = None
        for url, answer in answers.items():
            if isinstance(answer, TransportError):
                last = answer
                continue
            if isinstance(answer, BaseException):
                raise answer
            try:
                found[url] = ServiceRecord.model_validate_json(answer)
            except ValidationError as error:
                raise another_version(url, error, self._named.urls) from None
        if not found and last is not None:
            raise last
        first, *others = found
        for url in others:
            if found[url].model_copy(update=INCIDENTAL) != found[first].model_copy(update=INCIDENTAL):
                raise UserError(
                    f"{self._named.urls}: {first} and {url} do not serve the same: bring them to one configuration"
                )
        return found[first]

    async def require_health(self) -> None:
        await self._bounded(self._choose(), "/healthz")

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _choose(self) -> str:
        """The next URL in turn; those that lately gave no sign of life only where no other is left."""
        now = time.monotonic()
        turn = [self._urls[next(self._next)] for _ in self._urls]
        next(self._next)  # so that the turn moves on
        return next((url for url in turn if self._away.get(url, 0.0) < now), turn[0])

    async def _living(self, url: str, path: str, body: bytes) -> bytes:
        """The answer of a service that works on it for however long, and TransportError from one that is gone."""
        task = asyncio.ensure_future(self._request("POST", url, path, body))
        try:
            while not (await asyncio.wait([task], timeout=SILENCE_S))[0]:
                try:
                    await self._bounded(url, "/healthz")
                except TransportError as error:
                    if error.answered:
                        continue  # ill, and alive
                    self._away[url] = time.monotonic() + AWAY_S
                    raise
            return task.result()
        except TransportError as error:
            if not error.answered:
                self._away[url] = time.monotonic() + AWAY_S
            raise
        finally:
            task.cancel()

    async def _bounded(self, url: str, path: str) -> bytes:
        try:
            async with asyncio.timeout(ANSWER_S):
                return await self._request("GET", url, path, None)
        except TimeoutError:
            raise TransportError(f"{url}: no answer within {ANSWER_S:g} s") from None

    async def _request(self, method: str, url: str, path: str, body: bytes | None) -> bytes:
        """The body of a 200."""
        if self._session is None:  # here, where an event loop runs
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=CONNECTIONS),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S),
                headers=self._headers,
            )
        kind = {"Content-Type": SAFETENSORS} if body is not None else {}
        content = io.BytesIO(body) if body is not None else None  # sent piece by piece, so that the loop goes on
        try:
            async with self._session.request(method, url + path, data=content, headers=kind) as response:
                reply = await response.read()
        except (aiohttp.ClientError, OSError) as error:
            reason = getattr(error, "strerror", None) or error or type(error).__name__
            raise TransportError(f"{url}: {reason}") from error
        if response.status == 200:
            return reply
        message = _message(reply, response.reason)
        if response.status in RETRIED or response.status >= 500:
            pause = response.headers.get("Retry-After", "0")
            most = FAULT_ATTEMPTS if response.status == 500 else None
            raise TransportError(
                f"{url}: {response.status} {message}", float(pause) if pause.isdigit() else 0.0, most, answered=True
            )
        if response.status in (401, 403):
            raise UserError(f"{url}: {message} (this caller's is read from {TOKEN}, or from {self._named.token})")
        if response.status == 404 and SERVE_PAGE in reply:  # it runs, and the application comes or goes
            raise TransportError(f"{url}: no reward service there now", answered=True)
        if response.status == 404:
            raise UserError(f"{url}{path} is not there: correct {self._named.urls}, it is no reward service")
        raise CallError(f"{url}: {message}")


def read_token(path: str | None) -> str | None:
    """This caller's bearer token: of the file, or of DIPP_RAY_REWARD_TOKEN; None for none. Raises UserError."""
    if path is None:
        return os.environ.get(TOKEN) or None
    try:
        return Path(path).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"reward.token: {path}: {getattr(error, 'strerror', None) or 'it is not text'}") from None


def _message(content: bytes, otherwise: str | None) -> str:
    try:
        return ErrorReply.model_validate_json(content).error.message
    except ValidationError:
        pass
    try:
        return ills(HealthRecord.model_validate_json(content))
    except ValidationError:
        return otherwise or "no reason given"
