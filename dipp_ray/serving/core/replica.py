"""One replica of one reward model: it scores the batches that the ingress sends, one after the other."""

import asyncio
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch

from dipp_ray.config import RoleSection
from dipp_ray.errors import CallError, NonFiniteError, UserError
from dipp_ray.hub.revisions import take_pinned_alone
from dipp_ray.models.latents import LatentDecoder
from dipp_ray.reporting.quiet import quiet_libraries
from dipp_ray.rewards.combination import Answer
from dipp_ray.rewards.terms import RewardTerm
from dipp_ray.serving.contract.failures import DeadlineError
from dipp_ray.serving.contract.records import Space
from dipp_ray.serving.core.scoring import ModelScorer

Computed = TypeVar("Computed")


class Replica:
    """What is computed on one device, in one thread beside the event loop, so that it answers meanwhile.

    stuck_s: a batch that takes longer makes it ill.
    """

    def __init__(self, named: str, role: RoleSection, deterministic: bool, stuck_s: float):
        quiet_libraries()
        take_pinned_alone()
        torch.set_num_threads(role.threads)
        self.device = "cuda" if role.gpus > 0 else "cpu"
        if deterministic and self.device == "cuda":
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it at its first product.
            torch.use_deterministic_algorithms(True)
        self.autocast = torch.bfloat16 if role.dtype == "bf16" else None
        self._named = named
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="score")
        self._stuck_s = stuck_s
        self._since: float | None = None  # when the batch that is computed now was begun

    async def compute(self, work: Callable[[], Computed], expires: float) -> Computed:
        """What `work` returns. Raises DeadlineError where it has not begun by `expires`, on the clock."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._compute, work, expires)

    def _compute(self, work: Callable[[], Computed], expires: float) -> Computed:
        if time.monotonic() >= expires:
            raise DeadlineError(f"{self._named}: the deadline passed before the work began")
        self._since = time.monotonic()
        try:
            return work()
        finally:
            self._since = None

    def is_busy(self) -> bool:
        """Whether a batch is in work. Raises TimeoutError where it has lasted longer than `stuck_s`."""
        since = self._since
        if since is not None and time.monotonic() - since > self._stuck_s:
            raise TimeoutError(f"{self._named}: one batch has lasted longer than {self._stuck_s:g} s")
        return since is not None


class ModelReplica(Replica):
    """One reward model on one device.

    term: name, model and folder of a RewardTerm. vae: pipeline folder of a decoder of its own, None for images only.
    """

    def __init__(
        self,
        term: dict,
        vae: str | None,
        checkpoint_decoder: bool,
        role: RoleSection,
        deterministic: bool,
        stuck_s: float,
    ):
        super().__init__(f"reward '{term['name']}'", role, deterministic, stuck_s)
        decoder = LatentDecoder.from_folder(vae, checkpoint=checkpoint_decoder) if vae is not None else None
        self._scorer = _made(RewardTerm(**term), decoder, self.device, self.autocast)
        require_finite_weights(self._named, self._scorer.model)
        self._elsewhere = getattr(self._scorer.model, "elsewhere", False)
        self._probe: tuple | None = None
        self._failed: str | None = None  # what the last call met; the error itself would hold its batch in memory

    async def answer(self, x: np.ndarray, prompts: list[str], space: Space, gradient: bool, expires_s: float) -> Answer:
        """The raw score of x [B, C, h, w] (fp32 or fp64) and, if asked, d score / d x. Non-finite values stay.

        Raises DeadlineError where `expires_s` seconds are over before the work begins; what the model raises, else.
        """
        expires = time.monotonic() + expires_s
        try:
            answer = await self._run(np.array(x), list(prompts), space, gradient, expires)  # x came read-only
        except (CallError, DeadlineError):
            raise
        except Exception as error:
            self._failed = str(error) or type(error).__name__
            raise
        self._failed = None
        # What is computed elsewhere says nothing about this process, and would be asked for again and again.
        if self._probe is None and not self._elsewhere and np.isfinite(answer.score[0]):
            self._probe = (np.array(x[:1]), prompts[:1], space)
        return answer

    async def _run(self, x, prompts, space, gradient, expires: float) -> Answer:
        return await self.compute(lambda: self._scorer.answer(torch.from_numpy(x), prompts, space, gradient), expires)

    async def check_health(self) -> None:
        """Can score, and is finite: the first row ever answered is scored again. Ray Serve restarts it otherwise.

        One that has answered nothing yet and failed at its last call is ill. A busy replica is taken for well, unless
        one batch has lasted longer than `stuck_s`.
        """
        if self.is_busy():
            return
        if self._probe is None:
            if self._failed is not None:
                raise RuntimeError(f"{self._named} has answered nothing yet: {self._failed}")
            return
        x, prompts, space = self._probe
        answer = await self._run(x, prompts, space, False, float("inf"))
        if not np.isfinite(answer.score).all():
            raise NonFiniteError(f"{self._named}: a row that was finite before no longer is")


def _made(term: RewardTerm, *how) -> ModelScorer:
    """The scorer of a term. Raises UserError that names the model, whatever its class raises when it is made."""
    try:
        return ModelScorer(term, *how)
    except UserError as error:
        if f"'{term.name}'" in str(error):
            raise
        raise UserError(f"reward '{term.name}': {error}") from error
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise UserError(f"reward '{term.name}': {term.model} cannot be made ({reason}): correct it") from error


def require_finite_weights(named: str, model) -> None:
    """Raise UserError where a weight is not finite."""
    if isinstance(model, torch.nn.Module):
        for key, value in model.state_dict().items():
            if value.is_floating_point() and not torch.isfinite(value).all():
                raise UserError(f"{named}: weight {key} is not finite: replace the file")
