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
from dipp_ray.models.activations import Alive
from dipp_ray.models.denoiser import Denoiser
from dipp_ray.models.pipeline import load_denoiser, open_denoiser
from dipp_ray.roles.engine import MOMENTS
from dipp_ray.roles.keeper import ShareKey

OPTIM = Optimiser(lr=1e-3, betas=(0.0, 0.999), grad_clip=0.05, weight_decay=0.01, warmup_steps=3)
SAMPLES = 4
RAY_GET = ray.get


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


class Held(Alive):
    """The bytes of tensors that are alive, as `Alive` counts them, and of what was fetched from keepers."""

    def __init__(self):
        super().__init__(on_cpu=False)
        self.fetched = 0

    def get(self, references):
        """In the place of `ray.get`."""
        answers = RAY_GET(references)
        for answer in answers if isinstance(references, list) else [answers]:
            for value in answer[0].values() if isinstance(answer, tuple) else ():
                self.fetched += value.nbytes
                self.now += value.nbytes
                self.most = max(self.most, self.now)
                weakref.finalize(value, self._given_back, value.nbytes)
        return answers

    def _given_back(self, size):
        self.now -= size


@ray.remote(num_cpus=0.5)
class Rank:
    """One rank of a group, with one engine after another over the tiny pipeline."""

    group = "generator"

    def __init__(self, folder, rank, world, port):
        from dipp_ray.roles.process import join, prepare

        self.device = prepare(RoleSection(), deterministic=True)
        join(rank, world, "127.0.0.1", port, self.device, timeout_s=120)
        self.folder, self.rank, self.world = folder, rank, world

    def look_at(self, folder):
        """Be of another pipeline from the next engine on."""
        self.folder = folder

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
        """(what a rank was told instead, bytes of tensors' files that it read)."""
        from dipp_ray.roles.engine import is_weight
        from dipp_ray.roles.restore import spread

        CountedFileSystem.read = 0
        fsspec.register_implementation("counted", CountedFileSystem, clobber=True)
        store = CheckpointStore(url.replace("file://", "counted://"))
        try:
            checkpoint = store.require(step)
            pairs = spread(store, checkpoint, "generator", self.device, *([is_weight] if weights_alone else []))
            if weights_alone:
                self.engine.load_weights(pairs)
            else:
                self.engine.load(pairs, store.counters(checkpoint, "generator"))
        except UserError as error:
            return str(error), CountedFileSystem.read
        return None, CountedFileSystem.read

    def kept_with(self, keeper, step):
        """The key of this rank's share, which the keeper holds now."""
        tensors, counters = self.engine.state()
        key = ShareKey(step, "generator", self.rank, self.world)
        arrays = ray.put({name: value.numpy() for name, value in tensors.items()})
        ray.get(keeper.hold.remote(key, [arrays], counters, 0))
        return key

    def peak(self, stage, method, *arguments):
        """A new engine takes its state up as a trained rank does: (the most bytes that are here meanwhile, those that
        are kept then, those that were fetched from keepers)."""
        from dipp_ray.roles.trained import TrainedRank

        self.begin(stage)
        self.engine.average = {}  # as a rank that is restored has none yet
        before, held = self.kept(), Held()
        ray.get = held.get
        try:
            with held:
                getattr(TrainedRank, method)(self, *arguments)
        finally:
            ray.get = RAY_GET
        return before + held.most, self.kept(), held.fetched

    def kept(self):
        """Bytes of weights, moments and average that lie here."""
        optimizer, stage = self.engine.engine.optimizer, self.engine.role.zero_stage
        inner = optimizer.optimizer if stage else optimizer
        tensors = [getattr(p, "ds_tensor", p) for _, p in self.engine.named] + list(self.engine.average.values())
        tensors += optimizer.fp32_partitioned_groups_flat if stage == 3 else []
        tensors += [entry[key] for entry in inner.state.values() for key in MOMENTS]
        storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
        return sum(storages.values())

    def placed(self):
        """(what DeepSpeed keeps off the device: optimiser's state, weights; kinds of device on which they and the
        average lie). On a CPU the devices are one, and what it was told is the difference."""
        optimizer, stage = self.engine.engine.optimizer, self.engine.role.zero_stage
        optimiser_away = optimizer.offload_optimizer if stage == 3 else optimizer.cpu_offload
        stepped = optimizer.fp32_partitioned_groups_flat if stage == 3 else optimizer.single_partition_of_fp32_groups
        moments = [entry[key] for entry in optimizer.optimizer.state.values() for key in MOMENTS]
        away = [*stepped, *moments, *self.engine.average.values()]
        weights_away = stage == 3 and optimizer.offload_param
        away += [p.ds_tensor for _, p in self.engine.named] if weights_away else []
        return bool(optimiser_away), bool(weights_away), len(moments), {tensor.device.type for tensor in away}

    def compiled(self):
        """Whether the network is one that compiles, and how many frames this process has compiled so far."""
        from torch._dynamo.utils import counters

        return self.engine.engine.module.network._compiled_call_impl is not None, counters["frames"]["ok"]

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
