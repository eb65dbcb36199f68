"""All that can fail is checked before anything is started: files, shapes, weights, rewards."""

from collections.abc import Mapping
from pathlib import Path

from dipp_ray.checkpoints.store import CheckpointStore
from dipp_ray.config import RunConfig, allowed_group_sizes
from dipp_ray.data.prompts import Prompts, read_prompts
from dipp_ray.diffusion.process import Diffusion
from dipp_ray.diffusion.schedule import VPSchedule
from dipp_ray.errors import UserError
from dipp_ray.evaluation.measure import evaluation_prompts, load_judge
from dipp_ray.models.adapter_files import is_adapter
from dipp_ray.models.bare import check_bare, is_bare
from dipp_ray.models.components import check_components, check_model
from dipp_ray.models.pipeline import frame_of, one_step_of, one_step_of_folder, same_network
from dipp_ray.models.start import check_adapters
from dipp_ray.rewards.loading import check_term, is_differentiable, reward_class
from dipp_ray.training.folder import check_folder


def check(config: RunConfig) -> Prompts:
    """The prompts, after everything that needs no cluster has been found in order. Raises UserError otherwise."""
    frame = frame_of(config.model)
    one_step_of(frame, config.model.t_star, config.model.input)
    for key in ("score_timesteps", "divergence_timesteps"):
        high = getattr(config.objective, key)[1]
        if high > frame.diffusion.schedule.num_timesteps:
            raise UserError(
                f"objective.{key} ends at {high}, but the teacher has {frame.diffusion.schedule.num_timesteps} steps"
            )
    check_end(config, frame.diffusion)
    check_components(frame)
    check_generator(config, frame)
    for term in config.reward.terms if not config.reward.shared else ():  # a shared service has loaded its own
        check_term(term)
        if config.objective.reward_scale > 0 and not term.held_out and not is_differentiable(reward_class(term)):
            raise UserError(f"reward '{term.name}': model {term.model} has no gradient: set its held_out=true")
    if config.init.score_checkpoint:
        score_checkpoint(config)
    prompts = read_prompts(config.data.prompts, config.data.column)
    load_judge(config.evaluation.judge)  # what is read after training is looked at before it
    evaluation_prompts(config)
    check_folder(config)
    return prompts


def check_end(config: RunConfig, diffusion: Diffusion) -> None:
    """Raise UserError where x_0 is asked of an eps-predicting network at a time of alpha = 0, where it has none."""
    if diffusion.kind != "epsilon" or not isinstance(diffusion.schedule, VPSchedule):
        return
    ends = [t for t, squared in enumerate(diffusion.schedule.alphas_cumprod.tolist()) if squared == 0]
    objective = config.objective
    asked = {"model.t_star": (config.model.t_star, config.model.t_star + 1)}
    asked["objective.divergence_timesteps"] = objective.divergence_timesteps
    if objective.score_weight == "x0":
        asked["objective.score_timesteps"] = objective.score_timesteps
    for key, (low, high) in asked.items():
        if any(low <= t < high for t in ends):
            raise UserError(
                f"{key} holds t={ends[0]}, where the teacher's schedule has no signal left (zero terminal SNR) and its "
                f"network, which predicts eps, says nothing of x_0: end before {ends[0]}"
            )


def check_generator(config: RunConfig, frame) -> None:
    check_adapters(config, frame)
    if config.model.generator is None or is_adapter(config.model.generator):
        return
    if is_bare(config.model.generator):
        check_bare(config.model.generator, frame)
        return
    generator = frame_of(config.model, config.model.generator)
    same_network(frame, generator)
    check_model(generator.folder / generator.network_part, "diffusers", generator.network_class)
    trained_with = one_step_of_folder(config.model.generator)
    given = {"t_star": config.model.t_star, "input": config.model.input}
    trained_with = trained_with and {key: trained_with.get(key) for key in given}
    if trained_with and trained_with != given:
        raise UserError(
            f"{config.model.generator} was trained with {trained_with}, but the configuration says {given}: "
            "set model.t_star and model.input to the former"
        )


def score_checkpoint(config: RunConfig) -> tuple[str, int]:
    """(URL, step) of the checkpoint whose score model the run starts from: a run's folder or its checkpoints."""
    given = (config.init.score_checkpoint or "").rstrip("/")
    for url in (f"{given}/checkpoints", given):
        latest = CheckpointStore(url, say=lambda _: None).latest()
        if latest is not None:
            check_score_adapter(config, latest.record)
            return url, latest.step
    raise UserError(f"init.score_checkpoint: {given} holds no committed checkpoint: give the folder of a finished run")


def check_score_adapter(config: RunConfig, record: Mapping) -> None:
    """Raise UserError where the score model of a checkpoint was trained otherwise: its weights are other ones then."""
    before = (record.get("trajectory") or {}).get("adapters", {}).get("score")
    now = config.adapters.score and config.adapters.score.model_dump(mode="json")
    if before != now:
        raise UserError(
            f"init.score_checkpoint={config.init.score_checkpoint} was trained with adapters.score={before or 'null'}, "
            f"and this run has {now or 'null'}: set it to the former"
        )


def doubt_about_start(config: RunConfig) -> str | None:
    """A sentence about an alignment whose generator is the teacher as it is: one step of it gives no image yet."""
    model = config.model
    given = model.generator if model.generator is not None else model.teacher
    raw = Path(given).resolve() == Path(model.teacher).resolve() and one_step_of_folder(model.teacher) is None
    if not raw or config.objective.reward_scale == 0:
        return None
    return (
        f"warning: objective.reward_scale={config.objective.reward_scale:g}, but the generator starts as the teacher "
        f"{model.teacher}, whose single step gives no image yet for a reward to judge: distil first "
        "(objective.reward_scale=0), then align from that run with --generator RUN"
    )


def sizes_line(config: RunConfig) -> str:
    sizes = ", ".join(map(str, allowed_group_sizes(config.data.micro_batches)))
    return f"group sizes that divide the {config.data.micro_batches} micro-batches: {sizes}"
