"""GPUs that several processes are planned on: what they hold together, and text encoders in a trainer's way."""

from collections import Counter

from dipp_ray.config import RunConfig
from dipp_ray.errors import UserError
from dipp_ray.models.components import text_parameters
from dipp_ray.models.pipeline import frame_of
from dipp_ray.role_settings import Between
from dipp_ray.training.footprint import Held, count, gigabytes
from dipp_ray.training.plan import GROUPS, Plan, Request

LARGE = 10**9  # parameters of text encoders that have no place beside a trainer


def sharing_lines(config: RunConfig, planned: Plan, processes: list[Held]) -> list[str]:
    """The sum of what the processes on one GPU hold, a line for all GPUs of a node with the same ones on them.

    processes: of `footprint.held`. Within a node Ray itself picks the GPU, so that the plan's is one of the possible
    ways.
    """
    found: Counter = Counter()
    for node, workers in planned.shared_gpus():
        found[node.name, tuple(sorted(processes.index(_process(config, one, processes)) for one in workers))] += 1
    lines = []
    for (node, numbers), gpus in found.items():
        on = [processes[number] for number in numbers]
        which = f"a GPU of {node}" if gpus == 1 else f"each of {gpus} GPUs of {node}"
        who = [f"{times} x {role}" if times > 1 else role for role, times in Counter(one.role for one in on).items()]
        beside = "".join(f" and {what}" for what in dict.fromkeys(part for one in on for part in one.unknown))
        said = f"{', '.join(who[:-1])} and {who[-1]}" if len(who) > 1 else who[0]
        lines.append(f"{which}, shared by {said}: {gigabytes(sum(one.bytes for one in on))}{beside} together")
    return lines


def _process(config: RunConfig, worker: Request, processes: list[Held]) -> Held:
    """What a worker holds: of the reward's, term by term, as many as there are replicas."""
    if worker.role != "reward":
        return next(one for one in processes if one.role == worker.role)
    replicas = config.reward.replicas
    each = replicas.min if isinstance(replicas, Between) else replicas
    return [one for one in processes if one.role.startswith("reward")][worker.index // each]


def text_beside_trainer(config: RunConfig, planned: Plan) -> str | None:
    """A sentence about text encoders that have a part of a GPU on a node where a rank has one too: Ray picks the GPU,
    and they may meet. None where there are none.

    Raises UserError where they are of LARGE parameters or more, such as T5-XXL, Gemma and Qwen.
    """
    if config.data.embeddings is not None:
        return None
    parts: dict[str, list[Request]] = {}
    for one in planned.requests:
        if one.gpus % 1 and (one.role, one.index) in planned.where:
            parts.setdefault(planned.where[one.role, one.index].name, []).append(one)
    for node, workers in parts.items():
        ranks = [f"{worker.role} {worker.index}" for worker in workers if worker.role in GROUPS]
        if ranks and any(worker.role == "text" for worker in workers):
            size = text_parameters(frame_of(config.model))
            said = (
                f"the text encoders, {count(size)} parameters, may come to lie on a GPU of {node} that "
                f"{' and '.join(ranks)} {'has' if len(ranks) == 1 else 'have'} a part of, and take memory from there: "
                "set roles.text.gpus=0, send them elsewhere with roles.text.labels, or encode once, before training "
                "(`dipp-ray encode`)"
            )
            if size >= LARGE:
                raise UserError(said)
            return f"warning: {said}"
    return None
