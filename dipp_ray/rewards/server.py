"""A reward by a server that only scores: flow_grpo's and DDPO's kind, over HTTP with JSON. Held out it may judge."""

import base64
import json
import math
import random
import time
import urllib.error
import urllib.request
from http.client import HTTPException

import torch

from dipp_ray.errors import CallError, RewardUnavailableError
from dipp_ray.rewards.pictures import png_of
from dipp_ray.rewards.preprocess import levels
from dipp_ray.rewards.terms import ServerSection

RETRIED = {408, 425, 429}  # and 5xx
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 5.0
MOST_ANSWER = 2**24  # bytes
SHOWN = 200  # characters of what a server says


class ServerReward:
    """r(x, c) as the server says; there is no gradient. Images are sent as PNG, so to 8 bits a channel.

    One request is

        POST url  {"images": ["base64 of a PNG", ...], "prompts": ["a cat", ...]}

    and its answer a JSON object whose `field` is a list of one number an image, or that list alone. A fault of the way,
    408, 425, 429 and 5xx are tried again until the deadline. Never pickle, which some such servers speak.
    """

    differentiable = False
    elsewhere = True

    def __init__(self, settings: ServerSection):
        self.settings = settings

    def reward(self, images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        """Images [B, 3, H, W] in [0, 1] and B prompts -> rewards [B] in fp32 or better, on the images' device.

        Raises RewardUnavailableError past the deadline and for an answer that is none, CallError where the server
        refuses the request or where images are not finite. No score is ever made up.
        """
        if not torch.isfinite(images).all():
            raise CallError("images that are not finite cannot be sent to a reward server")
        files = [png_of(pixels) for pixels in levels(images)]
        rows, scores = self.settings.rows, []
        for begin in range(0, len(files), rows):
            scores += self._asked(files[begin : begin + rows], prompts[begin : begin + rows])
        return torch.tensor(scores, dtype=torch.promote_types(images.dtype, torch.float32), device=images.device)

    def _asked(self, files: list[bytes], prompts: list[str]) -> list[float]:
        settings = self.settings
        body = json.dumps({"images": [base64.b64encode(file).decode() for file in files], "prompts": prompts}).encode()
        until, pause, attempts, last = time.monotonic() + settings.deadline_s, FIRST_PAUSE_S, 0, "no answer"
        while (left := until - time.monotonic()) > 0:
            attempts += 1
            try:
                return self._scores(_post(settings.url, body, left), len(files))
            except _TryAgain as error:
                last = str(error)
            time.sleep(max(0.0, min(pause * random.uniform(1.0, 1.5), until - time.monotonic())))
            pause = min(2 * pause, LONGEST_PAUSE_S)
        raise RewardUnavailableError(
            f"the reward server {settings.url} gave no answer within {settings.deadline_s:g} s and {attempts} attempts "
            f"({last}): see its log, or raise server.deadline_s"
        )

    def _scores(self, answer: bytes, count: int) -> list[float]:
        url, field = self.settings.url, self.settings.field
        try:
            said = json.loads(answer)
        except ValueError:
            raise RewardUnavailableError(f"the reward server {url} answered no JSON: is it the right one?") from None
        found = said if field is None else said.get(field) if isinstance(said, dict) else None
        scores = found if isinstance(found, list) else []
        if len(scores) != count or not all(type(score) in (int, float) and math.isfinite(score) for score in scores):
            where = "the answer" if field is None else f"'{field}' of the answer"
            raise RewardUnavailableError(
                f"the reward server {url}: {where} is no list of {count} finite numbers: correct server.field"
            )
        return [float(score) for score in scores]


class _TryAgain(Exception):
    """What another attempt may cure."""


def _post(url: str, body: bytes, timeout_s: float) -> bytes:
    request = urllib.request.Request(url, body, {"Content-Type": "application/json", "Accept": "application/json"})
    until = time.monotonic() + timeout_s
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as reply:
            return _bounded(reply, until)
    except urllib.error.HTTPError as error:
        said = " ".join(error.read(SHOWN).decode("utf-8", "replace").split())
        if error.code in RETRIED or error.code >= 500:
            raise _TryAgain(f"{error.code} {said}") from None
        raise CallError(f"the reward server {url} refused the call: {error.code} {said}") from None
    except (OSError, HTTPException) as error:  # URLError and time-outs are OSErrors
        raise _TryAgain(str(getattr(error, "reason", error)) or type(error).__name__) from None


def _bounded(reply, until: float) -> bytes:
    """The body, read piece by piece: a server that sends a byte now and then must not outlast the deadline."""
    parts, size = [], 0
    while part := reply.read1(65536):
        size += len(part)
        if size > MOST_ANSWER:
            raise CallError(f"the reward server answered more than {MOST_ANSWER} bytes")
        if time.monotonic() > until:
            raise TimeoutError("the answer did not end in time")
        parts.append(part)
    return b"".join(parts)
