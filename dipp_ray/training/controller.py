"""The training step as a schedule of micro-batches. The controller passes references on and holds no tensor.

    sample        generator -> x0                                     (every repeat k of K_TA)
    ask           x0 -> teacher, reward                               beside everything else, as soon as x0 is there
    strict        score model trains on all repeats, then answers x0_psi
    overlapped    score model answers x0_psi, then trains             behind the generator's backward and next sampling
    send back     all answers -> generator: g, backward, step

Every role's call answers two references: what travels on, and a small record that tells the controller it is good.
"""

from collections.abc import Callable
from dataclasses import dataclass

import ray

from dipp_ray.alignment.updates import mean_of
from dipp_ray.config import RunConfig
from dipp_ray.data.prompts import Prompts
from dipp_ray.diffusion.noise import SCORE_WARMUP, STANDARDISATION, Draws
from dipp_ray.errors import RewardUnavailableError, UserError
from dipp_ray.roles.waiting import wait_all
from dipp_ray.training.roles import Roles


@dataclass(frozen=True)
class Sample:
    """One micro-batch on its way: what it is, and references to its embeddings and its x0."""

    number: int  # m
    draws: Draws
    prompts: list[str]
    embeds: ray.ObjectRef
    x0: ray.ObjectRef
    told: ray.ObjectRef


@dataclass(frozen=True)
class Step:
    """A step whose backward has been submitted: the records that are still to come."""

    step: int
    sampled: list[ray.ObjectRef]
    scored: list[ray.ObjectRef]
    asked: dict[str, list[ray.ObjectRef]]
    sent_back: list[ray.ObjectRef]


class Controller:
    def __init__(self, config: RunConfig, roles: Roles, prompts: Prompts, say: Callable[[str], None]):
        self.config, self.objective, self.roles, self.prompts, self.say = config, config.objective, roles, prompts, say
        self.rewarded = self.objective.reward_scale > 0
        self.reward_deviation = 1.0
        self.ahead: dict[int, list[list[Sample]]] = {}

    def submit(self, step: int, sample_ahead: bool) -> Step:
        """Run a step until its backward is submitted; with `sample_ahead` the next step's sampling is queued too."""
        repeats = self.ahead.pop(step, None) or self.sample_repeats(step)
        last = repeats[-1]
        asked = {"teacher": self.ask_teacher(last), "reward": self.ask_reward(last)}
        if self.objective.order == "strict":
            scored = [record for batch in repeats for record in self.train_score(batch)]
            asked["score"] = self.ask_score(last)
        else:
            asked["score"] = self.ask_score(last)
            scored = [record for batch in repeats for record in self.train_score(batch)]
        sent_back = self.send_back(last, asked)
        if sample_ahead:
            self.ahead[step + 1] = self.sample_repeats(step + 1)
        records = {role: [told for _, told in answers if told is not None] for role, answers in asked.items()}
        return Step(step, [sample.told for batch in repeats for sample in batch], scored, records, sent_back)

    def collect(self, step: Step) -> tuple[dict[str, float], dict[str, float]]:
        """Wait for a submitted step; answers its measurements and the busy seconds of each role."""
        sent_back = self.wait(step.sent_back, f"step {step.step}: generator's backward")
        scored = self.wait(step.scored, f"step {step.step}: score model's training")
        busy = {
            "generator": seconds(sent_back) + seconds(self.wait(step.sampled, "sampling")),
            "score": seconds(scored),
        }
        for role, told in step.asked.items():
            busy[role] = busy.get(role, 0.0) + seconds(self.wait(told, role))
        return mean_of(scored) | mean_of(sent_back), busy

    # -- the parts of a step -----------------------------------------------------------------------------------------

    def micro_batches(self, step: int, repeat: int) -> list[Draws]:
        """The step's fixed list: M micro-batches of consecutive global sample indices."""
        size = self.config.micro_batch_size
        starts = range(0, self.config.data.batch_size, size)
        return [Draws(self.config.run.seed, step, repeat, range(start, start + size)) for start in starts]

    def sample_repeats(self, step: int) -> list[list[Sample]]:
        last = self.objective.score_updates - 1
        return [self.sample(step, k, trained=k == last) for k in range(last + 1)]

    def sample(self, step: int, repeat: int, trained: bool) -> list[Sample]:
        samples = []
        for m, draws in enumerate(self.micro_batches(step, repeat)):
            prompts = self.prompts.of(draws)
            embeds = self.roles.text.encode.remote(prompts)
            x0, told = self.roles.generator.rank_of(m).sample.remote(draws, embeds, trained)
            samples.append(Sample(m, draws, prompts, embeds, x0, told))
        return samples

    def train_score(self, batch: list[Sample]) -> list[ray.ObjectRef]:
        return [self.roles.score.rank_of(s.number).train.remote(s.draws, s.x0, s.embeds) for s in batch]

    def ask_score(self, batch: list[Sample]) -> list:
        return [self.roles.score.rank_of(s.number).predict.remote(s.draws, s.x0, s.embeds) for s in batch]

    def ask_teacher(self, batch: list[Sample]) -> list:
        teachers, null = self.roles.teachers, self.roles.null
        return [teachers[s.number % len(teachers)].predict.remote(s.draws, s.x0, s.embeds, null) for s in batch]

    def ask_reward(self, batch: list[Sample]) -> list:
        if not self.rewarded:
            return [(None, None)] * len(batch)
        return [self.roles.reward.score.remote(s.x0, s.prompts, True) for s in batch]

    def send_back(self, batch: list[Sample], asked: dict[str, list]) -> list[ray.ObjectRef]:
        """Backward is submitted to any rank only when all of its inputs are known to be good."""
        records = []
        for sample, psi, ref, reward in zip(batch, asked["score"], asked["teacher"], asked["reward"], strict=True):
            for role, (_, told) in {"teacher": ref, "reward": reward, "score model": psi}.items():
                self.wait([told] if told is not None else [], f"step {sample.draws.step}: {role}")
            rank = self.roles.generator.rank_of(sample.number)
            records.append(rank.backward.remote(sample.draws, psi[0], ref[0], reward[0], self.reward_deviation))
        return records

    def wait(self, references: list, what: str) -> list:
        return wait_all(references, what, self.config.roles.step_timeout_s, self.say)

    # -- before the first step ---------------------------------------------------------------------------------------

    def warm_score_up(self) -> None:
        """Score-only updates on the starting generator's samples (`init.score_warmup_steps`)."""
        for i in range(self.config.init.score_warmup_steps):
            self.wait(self.train_score(self.sample(SCORE_WARMUP, i, trained=False)), f"score warm-up, update {i}")

    def standardise(self) -> dict[str, float]:
        """Mean and deviation of the reward on samples of the starting generator."""
        rewards: list[float] = []
        for i in range(-(-self.config.reward.standardise_samples // self.config.data.batch_size)):
            for sample in self.sample(STANDARDISATION, i, trained=False):
                reply, told = self.roles.reward.score.remote(sample.x0, sample.prompts, False)
                self.wait([told], "reward of the starting generator")
                answer = ray.get(reply)
                if answer["failed"]:  # a deviation with and without a term would be neither's
                    raise RewardUnavailableError(f"reward.standardise: {next(iter(answer['failed'].values()))}")
                rewards += answer["reward"][answer["finite"]].tolist()
        mean = sum(rewards) / max(1, len(rewards))
        deviation = (sum((r - mean) ** 2 for r in rewards) / max(1, len(rewards) - 1)) ** 0.5
        if not deviation > 0:
            raise UserError(
                f"reward.standardise: the reward of the starting generator has no deviation over {len(rewards)} finite "
                "samples: check the reward, or set reward.standardise=false"
            )
        return {"reward_mean": mean, "reward_deviation": deviation}


def seconds(records: list[dict]) -> float:
    return sum(record.get("seconds", 0.0) for record in records)
