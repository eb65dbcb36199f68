"""The DeepSpeed engine against plain AdamW, at every stage and at one and two ranks; its state by name."""

import socket

import pytest
import ray
import torch

from dipp_ray.alignment.hyperparameters import Optimiser
from dipp_ray.config import RoleSection, TrainedRoleSection
from dipp_ray.errors import NonFiniteError
from dipp_ray.models.pipeline import load_denoiser
from dipp_ray.training.plain import Trained
from tiny import pixart_pipeline

OPTIM = Optimiser(lr=1e-3, betas=(0.0, 0.999), grad_clip=0.05, weight_decay=0.01, warmup_steps=3)
SAMPLES = 4


def batch(update: int):
    generator = torch.Generator().manual_seed(update)
    x = torch.randn(SAMPLES, 1, 8, 8, generator=generator)
    t = torch.randint(0, 1000, (SAMPLES,), generator=generator)
    return x, t, torch.randn(SAMPLES, 3, 16, generator=generator)


def loss_of(network, x, t, tokens):
    from dipp_ray.diffusion.prompt_embeds import PromptEmbeds

    embeds = PromptEmbeds(tokens, torch.ones(tokens.shape[:2], dtype=torch.int64))
    return (network(x, t, embeds) - x).square().mean()


@ray.remote(num_cpus=0.5)
class Rank:
    """One rank of a group, with one engine after another over the tiny pipeline."""

    def __init__(self, folder, rank, world, port):
        from dipp_ray.roles.process import join, prepare

        self.device = prepare(RoleSection(), deterministic=True)
        join(rank, world, "127.0.0.1", port, self.device, timeout_s=120)
        self.folder, self.rank, self.world = folder, rank, world

    def begin(self, stage):
        from dipp_ray.roles.engine import Engine

        role = TrainedRoleSection(workers=self.world, zero_stage=stage, persistence_threshold=0)
        self.engine = Engine(load_denoiser(self.folder, "fp32"), role, OPTIM, SAMPLES // self.world)
        self.engine.start_average()

    def update(self, update, factor=1.0):
        """One update, its loss times `factor` on rank 0."""
        x, t, tokens = batch(update)
        for i in range(self.rank, SAMPLES, self.world):
            rows = slice(i, i + 1)
            loss = loss_of(self.engine, x[rows], t[rows], tokens[rows])
            self.engine.backward(loss * factor if self.rank == 0 else loss, updates=i + self.world >= SAMPLES)
        norm = self.engine.step("engine under test", update)
        self.engine.update_average(0.9)
        return norm

    def refuse(self, factor):
        """What an update says whose gradient is not finite, and whether weights and moments stayed as they were."""
        before, _ = self.engine.state()
        try:
            self.update(3, factor)
        except NonFiniteError as error:
            after, counters = self.engine.state()
            return str(error), all(torch.equal(before[name], after[name]) for name in before), counters
        return "nothing", False, {}

    def output(self, average=False):
        from contextlib import nullcontext

        x, t, tokens = batch(1000)
        with self.engine.average_in_place() if average else nullcontext(), torch.no_grad():
            return loss_of(self.engine, x, t, tokens).item()

    def state(self):
        return self.engine.state()

    def load(self, tensors, counters):
        self.engine.load(tensors, counters)

    def shard_elements(self):
        """Elements of weights and of optimiser state that this rank holds."""
        optimizer = self.engine.engine.optimizer
        inner = optimizer if self.engine.role.zero_stage == 0 else optimizer.optimizer
        moments = sum(entry["exp_avg"].numel() for entry in inner.state.values())
        return sum(getattr(p, "ds_tensor", p).numel() for _, p in self.engine.named), moments


def start(folder, world):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return [Rank.remote(folder, rank, world, port) for rank in range(world)]


def together(ranks, method, *arguments):
    return ray.get([getattr(rank, method).remote(*arguments) for rank in ranks])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return pixart_pipeline(tmp_path_factory.mktemp("engine") / "pipeline")


@pytest.fixture(scope="module")
def lives(ray_session, folder):
    """Groups of one and of two ranks, and others that train nothing before they load, as after a crash."""
    first, second = ({world: start(folder, world) for world in (1, 2)} for _ in range(2))
    yield first, second
    for ranks in (*first.values(), *second.values()):
        for rank in ranks:
            ray.kill(rank)


@pytest.fixture(scope="module")
def reference(folder):
    """Norms, weights and moving average of five updates with torch alone."""
    trained = Trained(load_denoiser(folder, "fp32"), OPTIM)
    network = trained.network
    average = {name: p.detach().clone() for name, p in network.network.named_parameters()}
    norms = []
    for update in range(5):
        x, t, tokens = batch(update)
        for i in range(SAMPLES):
            rows = slice(i, i + 1)
            (loss_of(network, x[rows], t[rows], tokens[rows]) / SAMPLES).backward()
        norms.append(trained.step())
        for name, p in network.network.named_parameters():
            average[name].lerp_(p.detach(), 0.1)
    with torch.no_grad():
        return norms, loss_of(network, *batch(1000)).item(), average


def run(ranks, updates):
    return [together(ranks, "update", update)[0] for update in updates]


def whole_state(ranks):
    shares = together(ranks, "state")
    return {name: value for share, _ in shares for name, value in share.items()}, shares[0][1]


def resumed(ranks, stage, state):
    """Norms of the updates after the third, by an engine that loaded the state then."""
    together(ranks, "begin", stage)
    together(ranks, "load", *state)
    return run(ranks, (3, 4))


# (stage, world, where the state of the third update is loaded a second time: another stage and size)
@pytest.mark.parametrize(
    ("stage", "world", "other"),
    [(0, 1, (2, 2)), (1, 2, (3, 2)), (2, 2, (0, 1)), (3, 2, (1, 1)), (3, 1, (0, 2)), (1, 1, (3, 1)), (2, 1, (0, 1))],
)
def test_engine_follows_plain_adamw_and_resumes_to_the_bit(lives, reference, stage, world, other):
    norms, loss, average = reference
    first, second = lives
    ranks = first[world]
    together(ranks, "begin", stage)
    seen = run(ranks, range(3))
    middle = whole_state(ranks)
    seen += run(ranks, (3, 4))
    assert seen == pytest.approx(norms, rel=1e-4)
    final = together(ranks, "output")[0]
    assert final == pytest.approx(loss, rel=1e-5)
    assert together(ranks, "output", True)[0] != pytest.approx(final, rel=1e-5)  # the moving average's
    assert together(ranks, "output")[0] == final  # the trained weights came back to the bit
    state, _ = whole_state(ranks)
    assert len(state) == 4 * len(average)
    for name in average:
        torch.testing.assert_close(state[f"ema/{name}"], average[name], rtol=1e-3, atol=2e-4)
    whole = sum(value.numel() for value in average.values())
    weights, moments = together(ranks, "shard_elements")[0]
    assert (weights < 0.6 * whole) == (stage == 3 and world == 2), "weights are sharded at ZeRO 3 alone"
    assert (moments < 0.6 * whole) == (stage >= 1 and world == 2), "moments are sharded from ZeRO 1 on"

    assert resumed(second[world], stage, middle) == seen[3:]
    again, _ = whole_state(second[world])
    assert all(torch.equal(again[name], state[name]) for name in state)

    for factor in (float("nan"), float("inf")):  # on one rank alone, yet no rank steps
        for said, kept, counters in together(second[world], "refuse", factor):
            assert "the gradient of step 3 is not finite" in said
            assert kept and counters == {"updates": 5}, "the weights stay as they were"

    other_stage, other_world = other
    assert resumed(second[other_world], other_stage, middle) == pytest.approx(norms[3:], rel=1e-4)
