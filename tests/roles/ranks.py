"""Ranks of a trained group for tests: an engine over the tiny pipeline in each, with the same work for all sizes."""

import socket
import weakref

import fsspec
import ray
import torch
from fsspec.implementations.local import LocalFileSystem

from dipp_ray.alignment.hyperparameters import Optimiser
from dipp_ray.checkpoints import CheckpointStore
from dipp_ray.config import RoleSection, TrainedRoleSection
from dipp_ray.errors import NonFiniteError, UserError
from dipp_ray.models.denoiser import Denoiser
from dipp_ray.models.pipeline import load_denoiser, open_denoiser

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


class CountedFileSystem(LocalFileSystem):
    """The local disk, counting the bytes that are read from files of tensors."""

    protocol = "counted"
    read = 0

    def _open(self, path, mode="rb", **options):
        file = super()._open(path, mode, **options)
        if mode != "rb" or not path.endswith(".safetensors"):
            return file
        return CountedFile(file)


class CountedFile:
    def __init__(self, file):
        self.file = file

    def read(self, *size):
        content = self.file.read(*size)
        CountedFileSystem.read += len(content)
        return content

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.file.close()


class Held:
    """The bytes of tensors that a reader has alive at a time, without those that it is to keep as they are."""

    def __init__(self):
        self.now = self.most = 0

    def seen(self, pairs):
        for name, tensor in pairs:
            if not name.startswith("ema/"):
                self.now += tensor.nbytes
                self.most = max(self.most, self.now)
                weakref.finalize(tensor, self._gone, tensor.nbytes)
            yield name, tensor
            del tensor

    def _gone(self, size):
        self.now -= size


@ray.remote(num_cpus=0.5)
class Rank:
    """One rank of a group, with one engine after another over the tiny pipeline."""

    def __init__(self, folder, rank, world, port):
        from dipp_ray.roles.process import join, prepare

        self.device = prepare(RoleSection(), deterministic=True)
        join(rank, world, "127.0.0.1", port, self.device, timeout_s=120)
        self.folder, self.rank, self.world = folder, rank, world

    def begin(self, stage, **settings):
        from dipp_ray.roles.engine import Engine

        role = self.role(stage, **settings)
        network = load_denoiser(self.folder, "fp32").run_as(role)
        self.engine = Engine(network, role, OPTIM, SAMPLES // self.world)
        self.engine.start_average()

    def role(self, stage, **settings):
        return TrainedRoleSection(workers=self.world, zero_stage=stage, persistence_threshold=0, **settings)

    def begin_in_parts(self, **settings):
        """At ZeRO 3, each weight cut as it is read: (bytes read, bytes of weights that are here then)."""
        from dipp_ray.models import stored
        from dipp_ray.roles.engine import Engine, engine_settings
        from dipp_ray.roles.sharding import in_parts

        role, size, read = self.role(3, **settings), 0, stored._read

        def counted(*what):
            nonlocal size
            values = read(*what)
            size += values.nbytes
            return values

        stored._read = counted
        hollow, frame = open_denoiser(self.folder)
        settings = engine_settings(role, OPTIM, SAMPLES // self.world, self.world)
        hollow.fill(lambda _: torch.float32, in_parts(settings, self.device))
        stored._read = read
        here = sum(p.ds_tensor.nbytes + p.nbytes for p in hollow.model.parameters())
        network = Denoiser(hollow.model, frame, torch.float32)
        self.engine = Engine(network, role, OPTIM, SAMPLES // self.world)
        self.engine.start_average()
        return size, here

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
        self.engine.load(tensors.items(), counters)

    def write_share(self, url, step):
        return CheckpointStore(url).write_share(step, "generator", self.rank, self.world, *self.engine.state())

    def restore(self, url, step, weights_alone=False):
        """(what a rank was told instead, bytes of tensors' files that it read, most bytes of tensors that it held)."""
        from dipp_ray.roles.engine import is_weight
        from dipp_ray.roles.restore import spread

        CountedFileSystem.read = 0
        fsspec.register_implementation("counted", CountedFileSystem, clobber=True)
        store = CheckpointStore(url.replace("file://", "counted://"))
        held = Held()
        try:
            checkpoint = store.require(step)
            pairs = spread(store, checkpoint, "generator", self.device, *([is_weight] if weights_alone else []))
            if weights_alone:
                self.engine.load_weights(held.seen(pairs))
            else:
                self.engine.load(held.seen(pairs), store.counters(checkpoint, "generator"))
        except UserError as error:
            return str(error), CountedFileSystem.read, held.most
        return None, CountedFileSystem.read, held.most

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


def run(ranks, updates):
    return [together(ranks, "update", update)[0] for update in updates]


def whole_state(ranks):
    shares = together(ranks, "state")
    return {name: value for share, _ in shares for name, value in share.items()}, shares[0][1]
