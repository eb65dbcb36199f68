"""The reward service: a Ray Serve application that answers scores and exact gradients, stateless, to any caller."""

import asyncio
import contextlib
import hashlib
import logging
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from ray import serve
from ray.serve.schema import ApplicationStatus

from dipp_ray.config import RoleSection
from dipp_ray.errors import NonFiniteError, UserError
from dipp_ray.models.latents import LatentDecoder
from dipp_ray.rewards.terms import RewardTerm
from dipp_ray.serving.scoring import Scorer, ScoreReply, Space

BATCH_WAIT_S = 0.005  # How long a batch waits for other callers.
ONGOING_REQUESTS = 64  # Of one replica; enough for its batches to fill.
POLL_S, SAY_EVERY_S = 0.1, 10.0
FAILED = (ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.UNHEALTHY)
Say = Callable[[str], None]
QUIET = {"log_level": "WARNING", "enable_access_log": False}


@dataclass(frozen=True)
class _Call:
    x: torch.Tensor
    prompts: list[str]
    space: Space
    gradient: bool

    @property
    def kind(self) -> tuple:
        """Calls of one kind can share a batch."""
        return self.space, self.gradient, self.x.dtype, tuple(self.x.shape[1:])


class RewardService:
    """One replica: the models of `terms` on one device.

    Torch runs in one thread beside the event loop, so that the replica answers while it computes. Calls of different
    callers are merged into one batch of up to `max_batch_images` rows, unless `deterministic`: then each call is
    scored by itself in chunks of that size, so that a caller's bits do not depend on who else is calling.
    """

    def __init__(
        self,
        terms: list[RewardTerm],
        vae_folder: str | None,
        role: RoleSection,
        deterministic: bool,
        max_batch_images: int,
    ):
        torch.set_num_threads(role.threads)
        device = "cuda" if role.gpus > 0 else "cpu"
        if deterministic and device == "cuda":
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it at its first product.
            torch.use_deterministic_algorithms(True)
        decoder = LatentDecoder.from_pipeline(vae_folder) if vae_folder is not None else None
        autocast = torch.bfloat16 if role.dtype == "bf16" else None
        self._scorer = Scorer(terms, decoder, max_batch_images, device, autocast)
        _require_finite_weights(self._scorer)
        self._merge = not deterministic
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="score")
        self._in_flight = 0
        self._probe: _Call | None = None
        self._batched.set_max_batch_size(max_batch_images)

    async def score(self, x: np.ndarray, prompts: list[str], space: Space, gradient: bool) -> dict:
        """x [B, C, h, w] float32, B prompts -> arrays: reward [B], scores {name: [B]}, gradient [B, C, h, w] or None.

        Raises ValueError for a call that cannot be answered. Non-finite values are returned as they are.
        """
        x = np.asarray(x)
        if x.dtype not in (np.float32, np.float64):
            raise ValueError(f"{x.dtype} was sent: send float32")
        # A copy: arguments arrive as read-only views of the object store.
        call = _Call(torch.from_numpy(x.copy()), list(prompts), space, gradient)
        self._scorer.validate(call.x, call.prompts, space, gradient)  # here, so that a bad call fails nobody else's
        self._in_flight += 1
        try:
            if self._merge and len(call.x) <= self._scorer.chunk_size:
                reply = await self._batched(call)
            else:
                reply = await self._run(call)
        finally:
            self._in_flight -= 1
        if self._probe is None and torch.isfinite(reply.reward[0]):
            self._probe = _Call(call.x[:1].clone(), call.prompts[:1], space, False)
        return {
            "reward": reply.reward.float().numpy(),
            "scores": {name: score.float().numpy() for name, score in reply.scores.items()},
            "gradient": None if reply.gradient is None else reply.gradient.float().numpy(),
        }

    async def check_health(self) -> None:
        """Can score, and is finite: the first row ever answered is scored again. A busy replica is taken for well."""
        if self._probe is None or self._in_flight:
            return
        reply = await self._run(self._probe)
        if not torch.isfinite(reply.reward).all():
            raise NonFiniteError("reward service: a call that was finite before no longer is")

    @serve.batch(batch_wait_timeout_s=BATCH_WAIT_S, batch_size_fn=lambda calls: sum(len(call.x) for call in calls))
    async def _batched(self, calls: list[_Call]) -> list[ScoreReply]:
        kinds: dict[tuple, list[int]] = {}
        for index, call in enumerate(calls):
            kinds.setdefault(call.kind, []).append(index)
        replies: list[ScoreReply | None] = [None] * len(calls)
        for indices in kinds.values():
            same = [calls[index] for index in indices]
            merged = _Call(
                torch.cat([call.x for call in same]),
                [prompt for call in same for prompt in call.prompts],
                same[0].space,
                same[0].gradient,
            )
            parts = _split(await self._run(merged), [len(call.x) for call in same])
            for index, part in zip(indices, parts, strict=True):
                replies[index] = part
        return replies

    async def _run(self, call: _Call) -> ScoreReply:
        return await asyncio.get_running_loop().run_in_executor(
            self._executor, self._scorer.score, call.x, call.prompts, call.space, call.gradient
        )


def _split(reply: ScoreReply, sizes: list[int]) -> list[ScoreReply]:
    rewards = reply.reward.split(sizes)
    scores = {name: score.split(sizes) for name, score in reply.scores.items()}
    gradients = reply.gradient.split(sizes) if reply.gradient is not None else [None] * len(sizes)
    return [
        ScoreReply(rewards[i], {name: parts[i] for name, parts in scores.items()}, gradients[i])
        for i in range(len(sizes))
    ]


def _require_finite_weights(scorer: Scorer) -> None:
    for name, model in scorer.combination.models.items():
        if isinstance(model, torch.nn.Module):
            for key, value in model.state_dict().items():
                if value.is_floating_point() and not torch.isfinite(value).all():
                    raise UserError(f"reward '{name}': weight {key} is not finite: replace the file")


def reward_application(
    name: str,
    terms: list[RewardTerm],
    vae_folder: str | None,
    role: RoleSection,
    replicas: int = 1,
    deterministic: bool = True,
    max_batch_images: int = 64,
) -> serve.Application:
    """The Serve application, one deployment of `replicas` replicas with the role's resources each.

    vae_folder: the pipeline folder whose VAE decodes latents; None if callers send images. Every replica must see
    the folders. max_batch_images: rows of one forward pass.
    """
    actor: dict = {"num_cpus": role.cpus, "num_gpus": role.gpus}
    if role.accelerator:
        actor["accelerator_type"] = role.accelerator
    if role.resources:
        actor["resources"] = role.resources
    if role.labels:
        actor["label_selector"] = role.labels
    deployment = serve.deployment(
        RewardService,
        name=name,
        num_replicas=replicas,
        max_ongoing_requests=ONGOING_REQUESTS,
        ray_actor_options=actor,
        logging_config=QUIET,
        max_constructor_retry_count=1,  # what fails to load once fails again: say so at once
        health_check_period_s=5,
        health_check_timeout_s=60,
        graceful_shutdown_wait_loop_s=0.1,
    )
    return deployment.bind(list(terms), vae_folder, role, deterministic, max_batch_images)


def private_name(run_folder: str | Path) -> str:
    """Name of the application that belongs to the run in `run_folder` alone, whatever other runs are called."""
    folder = Path(run_folder).resolve()
    return f"dipp-ray-reward-{folder.name}-{hashlib.sha256(str(folder).encode()).hexdigest()[:8]}"


def start_rewards(name: str, *arguments, wait_s: float = 600.0, say: Say = print, **settings) -> None:
    """`deploy_rewards` and `await_rewards` in one."""
    deploy_rewards(name, *arguments, **settings)
    await_rewards(name, wait_s, say)


def deploy_rewards(name: str, *arguments, **settings) -> None:
    """Ask Serve for the application `name` (arguments of `reward_application`) without waiting for it.

    Needs Ray. Starts Serve without its HTTP proxy if it does not run yet, and leaves it running. An orphan of that
    name is removed first.
    """
    # Its messages announce every step of a deployment; what goes wrong is raised by `await_rewards`.
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    serve.start(proxy_location="Disabled", logging_config=QUIET)
    stop_rewards(name)
    application = reward_application(name, *arguments, **settings)
    target = serve.RunTarget(target=application, name=name, route_prefix=None, logging_config=QUIET)
    serve.run_many([target], wait_for_applications_running=False)


def await_rewards(name: str, wait_s: float, say: Say) -> None:
    """Wait until the application runs, visibly and at most `wait_s` seconds; else remove it and raise UserError."""
    start, said = time.monotonic(), 0.0
    while (status := serve.status().applications[name].status) != ApplicationStatus.RUNNING:
        waited = time.monotonic() - start
        if status in FAILED or waited > wait_s:
            reason = _reason(name) or f"{status} after {waited:.0f} s: is there room for it? Raise roles.wait_s"
            with contextlib.suppress(Exception):  # the reason is worth more than a failed clean-up
                stop_rewards(name)
            raise UserError(f"the reward application {name} did not start: {reason}")
        if waited - said >= SAY_EVERY_S:
            said = waited
            say(f"waiting for the reward service {name}: {waited:.0f} of {wait_s:.0f} s so far")
        time.sleep(POLL_S)


def stop_rewards(name: str) -> None:
    """Remove the application `name`, if it is there. Serve and everybody else's applications stay."""
    if name in serve.status().applications:
        serve.delete(name)


def _reason(name: str) -> str | None:
    """The exception that a replica of the application died of, as one line."""
    application = serve.status().applications.get(name)
    messages = [deployment.message for deployment in application.deployments.values()] if application else []
    lines = [line.strip() for message in messages for line in message.splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line.split(":")[0]]
    return errors[-1] if errors else (lines[-1] if lines else None)
