"""All that can fail is checked before anything is started: files, shapes, weights, rewards."""

from collections.abc import Mapping
from pathlib import Path

from dipp_ray.alignment.hyperparameters import Objective
from dipp_ray.checkpoints.store import newest_checkpoint
from dipp_ray.config import RunConfig, allowed_group_sizes
from dipp_ray.data.prompts import Prompts, prompts_of
from dipp_ray.diffusion.one_step import generator_diffusion, same_reading
from dipp_ray.diffusion.process import Diffusion
from dipp_ray.diffusion.schedule import FlowSchedule, Schedule, VPSchedule
from dipp_ray.diffusion.times import mass
from dipp_ray.errors import UserError
from dipp_ray.evaluation.evaluator import check_networks
from dipp_ray.evaluation.measure import load_judge
from dipp_ray.hub.fetch import local
from dipp_ray.models.adapter_files import is_adapter
from dipp_ray.models.bare import check_bare, is_bare
from dipp_ray.models.components import check_components, check_model
from dipp_ray.models.latents import LatentDecoder
from dipp_ray.models.pipeline import frame_of, one_step_of_folder
from dipp_ray.models.reading import exported_reading, one_step_of_model, prediction_of, settle
from dipp_ray.models.schedulers import output_scale
from dipp_ray.models.start import check_adapters
from dipp_ray.reporting.trackers import require_trackers
from dipp_ray.rewards.loading import check_term, is_differentiable, reward_class
from dipp_ray.training.first_look import first_look, no_checkpoint
from dipp_ray.training.folder import check_folder
from dipp_ray.training.text_checks import check_embeddings, text_line

LEAST_FREE_BYTES = 50_000_000
LEAST_MASS = 1e-9  # of a distribution of times within its range


def check(config: RunConfig) -> Prompts:
    """The prompts, after everything that needs no cluster has been found in order. Raises UserError otherwise."""
    require_trackers(config.log.trackers)
    first_look(config)
    frame = frame_of(config.model)
    if one_step_of_folder(config.model.teacher):
        raise UserError(
            f"model.teacher={config.model.teacher} is an exported one-step generator, which knows one time alone: give "
            "the pipeline that it was distilled from"
        )
    config = config.model_copy(update={"model": settle(config.model, frame)})
    one_step = one_step_of_model(frame, config.model)
    frame.one_step_scheduler(one_step)
    if config.adapters.generator is not None and output_scale(frame.diffusion, one_step) != 1:
        raise UserError(
            f"adapters.generator: an adapter alone cannot be exported with model.prediction={one_step.diffusion.kind}, "
            "for which the network's last layer is changed: leave it out, to train the whole network"
        )
    if not frame.two_branches and config.objective.guidance_scale != 1:
        raise UserError(
            f"objective.guidance_scale={config.objective.guidance_scale:g}: {frame.folder} was distilled from guidance "
            "and has no null branch: set it to 1, and model.embedded_guidance to what the network is told"
        )
    for name in ("generator", "score", "teacher"):
        if getattr(config.roles, name).channels_last and not frame.convolutional:
            raise UserError(
                f"roles.{name}.channels_last: the {frame.network_class} of {frame.folder} is no UNet, and reads "
                "patches as tokens: leave it out"
            )
    check_times(config.objective, frame.diffusion.schedule)
    check_end(config, frame.diffusion, one_step.diffusion)
    local(config.model.teacher)  # all of it now: the files are looked at, and an export copies them
    check_components(frame)
    check_generator(config, frame)
    for term in config.reward.terms if not config.reward.shared else ():  # a shared service has loaded its own
        check_term(term)
        if config.objective.reward_scale > 0 and not term.held_out and not is_differentiable(reward_class(term)):
            raise UserError(f"reward '{term.name}': model {term.model} has no gradient: set its held_out=true")
    if config.reward.checkpoint_decoder and config.reward.terms and not config.reward.shared:
        LatentDecoder.empty(frame.vae, checkpoint=True)  # which not every decoder can
    if config.init.score_checkpoint:
        score_checkpoint(config)
    if config.data.embeddings is not None:
        check_embeddings(config, frame)
    prompts = prompts_of(config)
    load_judge(config.evaluation.judge)  # what is read after training is looked at before it
    check_networks(config.evaluation)
    check_folder(config)
    return prompts


def check_times(objective: Objective, schedule: Schedule) -> None:
    """Raise UserError where t cannot be drawn as the objective says, in this schedule of the teacher's."""
    steps, flow = schedule.num_timesteps, isinstance(schedule, FlowSchedule)
    for name in ("score", "divergence"):
        limits, times = getattr(objective, f"{name}_timesteps"), getattr(objective, f"{name}_times")
        if limits[1] > steps:
            unit = f" (of a flow, sigma = t/{steps})" if flow else ""
            raise UserError(
                f"objective.{name}_timesteps ends at {limits[1]}, but the teacher has {steps} steps{unit}: end there"
            )
        if times.continuous and not flow:
            raise UserError(
                f"objective.{name}_times.continuous: the teacher's schedule is a table of {steps} whole steps, with no "
                "time between them: leave it false"
            )
        if mass(schedule, times, limits) < LEAST_MASS:
            raise UserError(
                f"objective.{name}_times lies almost wholly outside objective.{name}_timesteps={list(limits)}: choose "
                "a mean and shift whose times are in the range"
            )


def check_end(config: RunConfig, diffusion: Diffusion, generator: Diffusion) -> None:
    """Raise UserError where x_0 is asked of an eps-predicting network at a time of alpha = 0, where it has none.

    `diffusion` is the teacher's frame, `generator` the generator's own.
    """
    objective, t_star = config.objective, config.model.t_star
    assert t_star is not None, "settled"
    asked = [("model.t_star", generator, (t_star, t_star + 1))]
    asked.append(("objective.divergence_timesteps", diffusion, objective.divergence_timesteps))
    if objective.score_weight == "x0":
        asked.append(("objective.score_timesteps", diffusion, objective.score_timesteps))
    for key, frame, (low, high) in asked:
        if frame.kind != "epsilon" or not isinstance(frame.schedule, VPSchedule):
            continue
        ends = [t for t, squared in enumerate(frame.schedule.alphas_cumprod.tolist()) if squared == 0]
        if any(low <= t < high for t in ends):
            raise UserError(
                f"{key} holds t={ends[0]}, where the teacher's schedule has no signal left (zero terminal SNR) and its "
                f"network, which predicts eps, says nothing of x_0: end before {ends[0]}"
            )


def check_generator(config: RunConfig, frame) -> None:
    check_adapters(config, frame)
    if config.model.generator is None or is_adapter(config.model.generator):
        return
    folder = local(config.model.generator, within=True)
    if is_bare(folder):
        check_bare(folder, frame)
    else:
        generator = frame_of(config.model, folder)  # of the teacher's architecture: it is settled
        check_model(generator.folder / generator.network_part, "diffusers", generator.network_class)
    said = exported_reading(config.model, frame)
    if said is None:
        return
    given: dict[str, object] = {"t_star": config.model.t_star, "input": config.model.input}
    trained_with: dict[str, object] = {"t_star": said.t_star, "input": said.input}
    kinds = [generator_diffusion(frame.diffusion, kind) for kind in (prediction_of(config.model), said.prediction)]
    if not same_reading(*kinds):
        given["prediction"], trained_with["prediction"] = (diffusion.kind for diffusion in kinds)
    if trained_with != given:
        raise UserError(
            f"{config.model.generator} was trained with {trained_with}, but the configuration says {given}: leave "
            "model.t_star, model.input and model.prediction out, or set them to the former"
        )


def score_checkpoint(config: RunConfig) -> tuple[str, int]:
    """(URL, step) of the checkpoint whose score model the run starts from: a run's folder or its checkpoints."""
    given = config.init.score_checkpoint or ""
    if (found := newest_checkpoint(given)) is None:
        raise UserError(no_checkpoint(given))
    url, latest = found
    check_score_adapter(config, latest.record)
    return url, latest.step


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


def start_line(config: RunConfig) -> str:
    """How the generator is read, as it was settled."""
    frame = frame_of(config.model)
    one_step = one_step_of_model(frame, config.model)
    return (
        f"generator: {config.model.generator or 'starts as the teacher'}, read at t*={one_step.t_star}, input "
        f"{one_step.convention}, output {one_step.diffusion.kind}"
    )


def embeddings_line(config: RunConfig) -> str:
    """Where the embeddings come from, and what they weigh."""
    return text_line(config, frame_of(config.model))


def sizes_line(config: RunConfig) -> str:
    sizes = ", ".join(map(str, allowed_group_sizes(config.data.micro_batches)))
    return f"group sizes that divide the {config.data.micro_batches} micro-batches: {sizes}"
