"""The frozen teacher: a stateless pool that predicts x0_ref."""

from typing import Any

import numpy as np
import ray
import torch

from dipp_ray.alignment.questions import Network, predict_guided
from dipp_ray.alignment.times import divergence_times
from dipp_ray.config import RunConfig
from dipp_ray.diffusion.noise import Draws
from dipp_ray.models.pipeline import frame_of, load_denoiser
from dipp_ray.reporting.quiet import quiet_libraries
from dipp_ray.roles.embeds import EmbedsReader
from dipp_ray.roles.process import prepare
from dipp_ray.roles.report import Report, Stopwatch


# Stateless: what a lost one owes is asked again of its successor, with the same keyed noise. In any order: a question
# that is asked again must not wait behind those whose x0 waits for its answer.
@ray.remote(max_restarts=-1, max_task_retries=-1, concurrency_groups={"health": 1}, allow_out_of_order_execution=True)
class Teacher:
    def __init__(self, config: RunConfig):
        quiet_libraries()
        role = config.roles.teacher
        self.objective = config.objective
        self.device = prepare(role, config.run.deterministic)
        frame = frame_of(config.model)
        self.diffusion, self.latent_shape = frame.diffusion, frame.latent_shape
        self.embeds = EmbedsReader(config, self.device)
        # Frozen: its weights may lie in the precision of its arithmetic.
        network = load_denoiser(config.model.teacher, role.dtype, weights=role.dtype, frame=frame)
        self.network = network.run_as(role).lay_out(trained=False).to(self.device).eval()

    @ray.method(concurrency_group="health")
    def alive(self) -> None:
        """Returns as long as the process runs, whatever it is busy with."""

    @ray.method(num_returns=2)
    def guide(self, draws: Draws, x0, embeds, null) -> tuple[np.ndarray, Report]:
        """The guided x0_ref [b, C, h, w] at the divergence's x_t; `null` are the embeddings of ''."""
        watch = Stopwatch()
        return guided_x0(self, self.network, draws, x0, embeds, null), watch.report()


def guided_x0(actor: Any, network: Network, draws: Draws, x0, embeds, null) -> np.ndarray:
    """The teacher's answer of an actor that holds its `network`, by the actor's objective, diffusion, embeds and
    device."""
    t = divergence_times(actor.objective, actor.diffusion.schedule, draws).to(actor.device)
    eps = draws.normal("divergence_eps", actor.latent_shape).to(actor.device)
    x0_ref = predict_guided(
        network,
        actor.diffusion,
        torch.tensor(x0, device=actor.device),
        actor.embeds(embeds),
        actor.embeds(null),
        t,
        eps,
        actor.objective.guidance_scale,
    )
    return x0_ref.cpu().numpy()
