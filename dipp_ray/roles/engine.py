"""A trained network in a DeepSpeed engine: forward, accumulate, step, and its state by parameter name.

Weights, gradients and moments are fp32 at every ZeRO stage (bf16 is the arithmetic's, under autocast), so one
format describes the state whatever the stage and the number of ranks.
"""

import math
from collections.abc import Iterable
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed
from torch import Tensor

from dipp_ray.alignment.hyperparameters import Optimiser
from dipp_ray.alignment.updates import ema_update, learning_rate
from dipp_ray.config import TrainedRoleSection
from dipp_ray.errors import NonFiniteError, UserError
from dipp_ray.models.adapters import trained_weights
from dipp_ray.models.denoiser import Denoiser

MOMENTS = ("exp_avg", "exp_avg_sq")
# Elements of the buffer in which gradients are gathered for the ranks' sum. DeepSpeed's own is 5e8: 2 GB that it takes
# anew for every micro-batch, and that deterministic runs fill each time, whatever the network's size.
BUCKET = 50_000_000


def engine_settings(
    role: TrainedRoleSection, optim: Optimiser, accumulation: int, world: int, elements: int = BUCKET
) -> dict:
    """The DeepSpeed configuration of one group that trains so many elements."""
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": accumulation,
        "train_batch_size": accumulation * world,
        "gradient_clipping": optim.grad_clip if role.zero_stage else 0.0,  # at stage 0 `Engine.step` clips
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {
            "stage": role.zero_stage,
            "stage3_param_persistence_threshold": role.persistence_threshold,
            "contiguous_gradients": True,
            "reduce_bucket_size": min(BUCKET, elements),
            "overlap_comm": False,
            **({"offload_optimizer": {"device": "cpu"}} if role.offload else {}),
            **({"offload_param": {"device": "cpu"}} if role.offload == "weights" else {}),
        },
        "steps_per_print": None,
        "wall_clock_breakdown": False,
    }


def is_weight(name: str) -> bool:
    """Whether a tensor of `Engine.state` is a trained weight itself."""
    return name.startswith("master/")


class Engine:
    """One rank's part of a trained network."""

    def __init__(self, network: Denoiser, role: TrainedRoleSection, optim: Optimiser, accumulation: int):
        import deepspeed

        self.role, self.optim, self.updates = role, optim, 0
        self.rank, self.world = torch.distributed.get_rank(), torch.distributed.get_world_size()
        if role.gradient_checkpointing:
            network.network.enable_gradient_checkpointing()
        network.train()
        trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(
            trained, lr=optim.lr, betas=optim.betas, eps=optim.eps, weight_decay=optim.weight_decay
        )
        elements = sum(parameter.numel() for parameter in trained)
        self.engine, *_ = deepspeed.initialize(
            model=network,
            optimizer=optimizer,
            config=engine_settings(role, optim, accumulation, self.world, elements),
            dist_init_required=False,
        )
        network.lay_out()  # now that DeepSpeed has sent the weights about, which it does as they are by themselves
        if self.world == 1 and role.zero_stage == 0:  # nobody to meet, yet DeepSpeed would copy all gradients
            self.engine.enable_backward_allreduce = False
        # What is trained: all of the network, or its adapter.
        self.named = [(name.removeprefix("network."), p) for name, p in trained_weights(self.engine.module)]
        self.average: dict[str, Tensor] = {}

    def __call__(self, x_t: Tensor, t: Tensor, embeds) -> Tensor:
        return self.engine(x_t, t, embeds)

    def backward(self, loss: Tensor, updates: bool) -> None:
        """Accumulate the gradient of this micro-batch's loss, a scalar; DeepSpeed divides by the accumulation.

        `updates` says that it is this rank's last one before `step`: above stage 0 the ranks' gradients meet here.
        """
        self.engine.set_gradient_accumulation_boundary(updates)
        self.engine.backward(loss)

    def step(self, who: str, step: int) -> float:
        """Clip and step, after the update's last backward. Returns the gradient's norm before clipping.

        Raises NonFiniteError where that is not finite; the weights stay as they were.
        """
        for group in self.engine.optimizer.param_groups:
            group["lr"] = learning_rate(self.optim, self.updates)
        if self.role.zero_stage == 0:
            norm = self._clip_at_stage_0()
            if math.isfinite(norm):
                self.engine.step()
        else:
            self.engine.step()  # which leaves the weights alone where the norm is not finite
            norm = float(self.engine.get_global_grad_norm())
        if not math.isfinite(norm):
            raise NonFiniteError(f"{who}: the gradient of step {step} is not finite: lower the learning rate or scales")
        self.updates += 1
        return norm

    def _clip_at_stage_0(self) -> float:
        """Clip the gradients, which are whole on every rank; returns their norm before.

        As DeepSpeed clips them at this stage, to the bit; it would not say the norm, and meet the other ranks for it.
        """
        gradients = [p.grad for _, p in self.named if p.grad is not None]
        norms = torch.stack([torch.linalg.vector_norm(gradient) for gradient in gradients])
        if self.optim.grad_clip:
            total = norms.square().sum().sqrt()
            factor = (torch.full_like(total, self.optim.grad_clip) / (total + 1e-6)).clamp(max=1.0)
            for gradient in gradients:
                gradient.mul_(factor)
        return torch.linalg.vector_norm(norms).item()

    # -- state by parameter name -------------------------------------------------------------------------------------

    def _get(self, parameter: Tensor, key: str | None = None) -> Tensor:
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        if self.role.zero_stage == 0:
            state = self.engine.optimizer.state.get(parameter, {})
            return parameter.detach() if key is None else state.get(key, torch.zeros_like(parameter))
        return safe_get_full_fp32_param(parameter) if key is None else safe_get_full_optimizer_state(parameter, key)

    def _set(self, parameter: Tensor, value: Tensor, key: str | None = None) -> None:
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        value = value.to(parameter.device, torch.float32)
        if self.role.zero_stage == 0 and key is None:
            parameter.data.copy_(value)
        elif self.role.zero_stage == 0:
            self.engine.optimizer.state[parameter][key] = value.clone()
        elif self.role.zero_stage == 3:
            self._set_part(parameter, value, key)
        elif key is None:
            safe_set_full_fp32_param(parameter, value)  # writes the optimiser's copy alone
            parameter.data.copy_(value)  # the copy that the forward reads
        else:
            safe_set_full_optimizer_state(parameter, value, key)

    def _set_part(self, parameter: Any, value: Tensor, key: str | None) -> None:
        """This rank's part of a parameter that is cut into equal parts, the last one filled up with zeros.

        DeepSpeed's setter of whole values knows nothing of the filling.
        """
        from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

        kept = parameter.ds_tensor  # the copy that the forward gathers
        given = value.reshape(-1)[self.rank * kept.numel() : (self.rank + 1) * kept.numel()]
        part = torch.zeros(kept.numel(), device=value.device)
        part[: given.numel()] = given
        if key is not None:
            safe_set_local_optimizer_state(parameter, part, key)
            return
        safe_set_local_fp32_param(parameter, part)
        kept.data.copy_(part)
        if parameter.numel() == value.numel():  # small ones are whole in every rank
            parameter.data.copy_(value.view_as(parameter))

    def owned(self, index: int) -> bool:
        """Parameter number `index` is in this rank's share of the moving average and of checkpoints."""
        return index % self.world == self.rank

    def _beside(self, value: Tensor) -> Tensor:
        """Where the average lies: with the moments, where these lie in the node's memory."""
        return value.cpu() if self.role.offload else value

    def start_average(self) -> None:
        for i, (name, parameter) in enumerate(self.named):
            value = self._get(parameter)
            if self.owned(i):
                self.average[name] = self._beside(value.clone())

    @torch.no_grad()
    def update_average(self, decay: float) -> None:
        """Every rank keeps the moving average of its share of the parameters, at every stage."""
        for i, (name, parameter) in enumerate(self.named):
            value = self._get(parameter)  # a collective above stage 0: all ranks take part
            if self.owned(i):
                ema_update(self.average[name], self._beside(value), decay)

    @contextmanager
    def average_in_place(self):
        """Run with the moving average as weights, then put the trained weights back, bit for bit.

        Meanwhile each rank keeps the trained weights of its share in the average's place: no memory is added.
        """
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        """Exchange the weights with what lies in the average's place. All ranks together."""
        for i, (name, parameter) in enumerate(self.named):
            weight = self._get(parameter).clone()
            value = self.average[name].to(weight.device) if self.owned(i) else torch.empty_like(weight)
            torch.distributed.broadcast(value, src=i % self.world)
            self._set(parameter, value)
            if self.owned(i):
                self.average[name] = self._beside(weight)

    def state(self) -> tuple[dict[str, Tensor], dict]:
        """This rank's share of the state, on the CPU, and the counters. All ranks call it together."""
        tensors: dict[str, Tensor] = {}
        for i, (name, parameter) in enumerate(self.named):
            values = {"master": self._get(parameter)} | {key: self._get(parameter, key) for key in MOMENTS}
            if self.owned(i):
                tensors |= {f"{key}/{name}": value.detach().cpu().clone() for key, value in values.items()}
                if self.average:
                    tensors[f"ema/{name}"] = self.average[name].cpu().clone()
        return tensors, {"updates": self.updates}

    @torch.no_grad()
    def load(self, tensors: Iterable[tuple[str, Tensor]], counters: dict) -> None:
        """Restore the state of all parameters from (name, value) in any order, each value used at once and not kept.

        All ranks call it together, with the same. Raises UserError where something is not among them.
        """
        self.updates = counters["updates"]
        self._make_moments(self.updates)
        self._take(tensors, {"master": None} | {key: key for key in MOMENTS})

    @torch.no_grad()
    def load_weights(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Take the weights alone from a group's state, for a run of its own. All ranks call it together."""
        self._take(((name, value) for name, value in tensors if is_weight(name)), {"master": None})

    def _take(self, tensors: Iterable[tuple[str, Tensor]], keys: dict[str, str | None]) -> None:
        """keys: which kinds of values there must be, and the key of each in the optimiser's state."""
        places = {name: (i, parameter) for i, (name, parameter) in enumerate(self.named)}
        lacking = {f"{kind}/{name}" for name in places for kind in keys}
        for full, value in tensors:
            kind, _, name = full.partition("/")
            if name not in places:
                continue
            index, parameter = places[name]
            if kind in keys:
                self._set(parameter, value, keys[kind])
                lacking.discard(full)
            elif kind == "ema" and self.owned(index):
                self.average[name] = self._beside(value)
        if lacking:
            raise UserError(f"the checkpoint lacks {min(lacking)} ({len(lacking)} such): it is of another network")

    def _make_moments(self, updates: int) -> None:
        """Give AdamW the entries that its first step would make: the setters write into entries that exist.

        Above stage 0 they belong to this rank's flat partitions. `step` is the count of AdamW's bias correction.
        """
        optimizer, stage = self.engine.optimizer, self.role.zero_stage
        if stage == 0:
            inner, entries = optimizer, [parameter for _, parameter in self.named]
        else:
            inner = optimizer.optimizer
            entries = (
                optimizer.fp32_partitioned_groups_flat if stage == 3 else optimizer.single_partition_of_fp32_groups
            )
        for entry in entries:
            moments = {key: torch.zeros_like(entry) for key in MOMENTS}
            inner.state[entry] = {**moments, **inner.state.get(entry, {}), "step": torch.tensor(float(updates))}
        if stage in (1, 2):
            optimizer._lazy_init_hp_params_optimizer_state()  # what DeepSpeed does after a first step
