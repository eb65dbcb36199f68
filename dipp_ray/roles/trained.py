"""What the generator's and the score model's ranks share: start, rendezvous, checkpoint shares."""

from functools import partial

import ray
import torch
from torch import Tensor

from dipp_ray.alignment.hyperparameters import Optimiser
from dipp_ray.checkpoints.store import CheckpointStore
from dipp_ray.config import RunConfig, TrainedRoleSection
from dipp_ray.models.hollow import Put, put_whole
from dipp_ray.models.pipeline import frame_of
from dipp_ray.models.reading import one_step_of_model
from dipp_ray.models.start import GroupName, starting_network
from dipp_ray.reporting.quiet import quiet_libraries
from dipp_ray.roles.embeds import EmbedsReader
from dipp_ray.roles.engine import Engine, engine_settings, is_weight
from dipp_ray.roles.keeper import Sender, ShareKey
from dipp_ray.roles.process import free_port, join, prepare
from dipp_ray.roles.report import Report, Stopwatch
from dipp_ray.roles.restore import spread, spread_kept
from dipp_ray.roles.sharding import in_parts
from dipp_ray.roles.writer import Writer
from dipp_ray.storage.files import FileRecord
from dipp_ray.storage.remote import require_store

# Threads of a rank's process: `alive` has one of its own, so that it returns whatever the rank is busy with, and so has
# `kept`, which waits, and `share_written`.
HEALTH = {"health": 1, "state": 1, "writing": 1}


class TrainedRank:
    """One rank of a trained group. The group's name is also its name in checkpoints."""

    group: GroupName

    def __init__(self, config: RunConfig, role: TrainedRoleSection, optim: Optimiser):
        quiet_libraries()
        self.config, self.objective, self.role, self.optim = config, config.objective, role, optim
        self.device = prepare(role, config.run.deterministic)
        self.frame = frame_of(config.model)
        self.one_step = one_step_of_model(self.frame, config.model)
        self.diffusion = self.frame.diffusion  # the teacher's and the score model's; the generator's is in one_step
        self.latent_shape = self.frame.latent_shape
        self.embeds = EmbedsReader(config, self.device)
        self.sender, self.writer = Sender(config.roles.heartbeat_s), Writer()

    @ray.method(concurrency_group="health")
    def alive(self) -> None:
        """Returns as long as the process runs, even in the middle of a call or of a collective."""

    def meeting_point(self) -> tuple[str, int]:
        """Host and port where the group meets, offered by its rank 0."""
        return ray.util.get_node_ip_address(), free_port(*self.config.roles.ports)

    def meet(self, rank: int, world: int, host: str, port: int) -> int:
        """Be rank `rank` of `world`: join the group and load its network; returns the number of trained parameters."""
        self.rank, self.world = rank, world
        here = f"{self.group} {self.rank} on {ray.util.get_node_ip_address()}"
        require_store(self.config.checkpoints, f"{here}: checkpoint.url")
        join(self.rank, self.world, host, port, self.device, self.config.roles.step_timeout_s)
        accumulation = self.config.data.micro_batches // self.world
        put: Put = put_whole
        if self.role.zero_stage == 3:
            put = in_parts(engine_settings(self.role, self.optim, accumulation, self.world), self.device)
        network = starting_network(self.config, self.group, self.frame, put).to(self.device)
        self.engine = Engine(network, self.role, self.optim, accumulation)
        return sum(getattr(p, "ds_numel", p.numel()) for _, p in self.engine.named)

    def tensor(self, array) -> Tensor:
        return torch.tensor(array, device=self.device)

    def write_share(self, url: str, step: int) -> None:
        """Begin to write this rank's share of the group's state as it is now; all ranks of the group are called
        together. `share_written` returns when it is there."""
        write = partial(CheckpointStore(url).write_share, step, self.group, self.rank, self.world)
        self.writer.begin(write, self.engine.state)

    @ray.method(concurrency_group="writing")
    def share_written(self) -> list[FileRecord]:
        """The files of the share that was begun last, when they are written. Raises what the writing raised."""
        return self.writer.written()

    def restore(self, url: str, step: int) -> None:
        """Load the group's state from a committed checkpoint, whatever sizes it was written at."""
        store = CheckpointStore(url)
        checkpoint = store.require(step)
        counters = store.counters(checkpoint, self.group)
        self.engine.load(spread(store, checkpoint, self.group, self.device), counters)

    # -- state in memory -----------------------------------------------------------------------------------------------

    def node_id(self) -> str:
        return ray.get_runtime_context().get_node_id()

    def keep_with(self, keepers: list) -> None:
        """From now on these keep this rank's share."""
        self.sender.keepers = keepers

    def keep(self, step: int, complete: int) -> Report:
        """Have this rank's share after `step` steps kept, beside what comes next; all ranks of the group are called
        together. complete: the last step of which everything is known to be kept."""
        watch = Stopwatch()
        self.sender.send(ShareKey(step, self.group, self.rank, self.world), *self.engine.state(), complete)
        return watch.report()

    @ray.method(concurrency_group="state")
    def kept(self, step: int) -> None:
        """Returns when what `keep` was called for has arrived. Raises where it was lost."""
        self.sender.arrived(step)

    def take_up(self, *shares: tuple) -> None:
        """Load the group's state from (share's key, its keeper), whatever size it was kept at; all ranks of the group
        are called together."""
        key, keeper = shares[0]
        counters = ray.get(keeper.counters.remote(key))
        self.engine.load(spread_kept(shares, self.device), counters)

    def take_weights(self, url: str, step: int) -> None:
        """Start from the weights of another run's checkpoint, with fresh moments."""
        store = CheckpointStore(url)
        weights = spread(store, store.require(step), self.group, self.device, is_weight)
        self.engine.load_weights(weights)
