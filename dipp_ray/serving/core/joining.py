"""The chunks of a call and the models' answers about them, as one reply."""

from dataclasses import dataclass

import numpy as np

from dipp_ray.rewards.combination import Answer, Combined, trained
from dipp_ray.rewards.terms import SumTerm
from dipp_ray.serving.contract.calls import finite_rows
from dipp_ray.serving.contract.failures import DeadlineError, ModelError
from dipp_ray.serving.core.work import Outcome


@dataclass(frozen=True)
class IngressReply:
    combined: Combined
    held_out: list[str]
    failed: dict[str, ModelError]


def joined(
    terms: tuple[SumTerm, ...], outcomes: list[dict[str, Outcome]]
) -> tuple[dict[str, Answer], dict[str, ModelError]]:
    """(answers by model over all chunks of a call, failed models that are not required, and why).

    A model fails the whole call or none of it. Raises the error of a required model, and that of the last one where
    every trained model failed: an empty sum is no reward.
    """
    answers: dict[str, Answer] = {}
    failed: dict[str, ModelError] = {}
    last: ModelError | None = None
    for term in terms:
        said = [by_model[term.name] for by_model in outcomes]
        error = next((part for part in said if isinstance(part, Exception)), None)
        if error is None:
            parts = [part for part in said if isinstance(part, Answer)]
            slopes = [part.gradient for part in parts if part.gradient is not None]
            answer = Answer(np.concatenate([part.score for part in parts]), np.concatenate(slopes) if slopes else None)
            if term.required or not (reason := nonfinite(answer)):
                answers[term.name] = answer
                continue
            error = ModelError(term.name, reason, "failed")
        if term.required:
            raise error
        if isinstance(error, DeadlineError):
            error = ModelError(term.name, str(error), "lost")
        failed[term.name], last = error, error
    if last is not None and not any(term.name in answers for term in trained(terms) or terms):
        raise last
    return answers, failed


def nonfinite(answer: Answer) -> str | None:
    """What is wrong with an answer that is not finite."""
    bad = ~finite_rows(answer.score)
    if answer.gradient is not None:
        bad |= ~finite_rows(answer.gradient)
    return f"not finite for {int(bad.sum())} of {len(bad)} samples" if bad.any() else None
