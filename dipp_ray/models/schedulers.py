"""Schedulers of diffusers: the diffusion that a folder's configuration means, and the one for a single exact step."""

from pathlib import Path
from typing import Any

from dipp_ray.diffusion.one_step import OneStep
from dipp_ray.diffusion.parameterisation import PARAMETERISATIONS
from dipp_ray.diffusion.process import Diffusion
from dipp_ray.diffusion.schedule import FlowSchedule, VPSchedule
from dipp_ray.errors import UserError

STEPS = 1000  # of every scheduler of diffusers that says nothing
# sigma of the step that exports a flow within betas. 2^-10, so that to multiply a network's last layer by its inverse,
# and to divide it again, is exact in every precision; alpha is 1 - 5e-7, and in fp16 outputs up to 64 are finite.
FLOW_STEP_SIGMA = 2.0**-10
NARROW = 1e-4  # what the sigmas of an exported step span, relative to that of t*


def diffusion_of(folder: Path, scheduler: dict, flow: bool) -> Diffusion:
    """The diffusion that a scheduler_config.json describes; `flow`: its family is one of flow matching.

    Raises UserError for schedules that are neither of betas nor of flow matching, whatever diffusers would make of
    their configuration: its DDPM takes linear betas where it finds none.
    """
    kind: str = scheduler.get("_class_name", "a scheduler without a name")
    prediction: Any = scheduler.get("prediction_type") or "epsilon"
    flow_sigmas = bool(scheduler.get("use_flow_sigmas"))
    if kind.startswith("FlowMatch") or (flow and flow_sigmas and prediction == "flow_prediction"):
        return Diffusion(FlowSchedule(scheduler.get("num_train_timesteps", STEPS)), "flow_prediction")
    if flow:
        raise UserError(f"{folder}: its scheduler {kind} is none of flow matching: take the one it was published with")
    if flow_sigmas:
        raise UserError(
            f"{folder}: its scheduler {kind} has use_flow_sigmas, but models of its class are trained on betas: "
            "take the one it was published with"
        )
    if not (scheduler.get("trained_betas") or scheduler.get("beta_schedule")):
        raise UserError(
            f"{folder}: its scheduler {kind} has neither betas nor flow matching: only variance-preserving and flow "
            "schedules are supported"
        )
    if prediction not in PARAMETERISATIONS:
        raise UserError(
            f"{folder}: prediction type {prediction} is not supported; known are {', '.join(PARAMETERISATIONS)}"
        )
    return Diffusion(VPSchedule((1 - _betas(scheduler, folder).double()).cumprod(0)), prediction)


def _betas(scheduler: dict, folder: Path):
    from diffusers import DDPMScheduler

    try:  # it computes the betas of every VP scheduler's configuration; the product is taken again in fp64
        return DDPMScheduler.from_config(scheduler).betas
    except (NotImplementedError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{folder}: the betas of its scheduler are not known here ({reason})") from None


def one_step_scheduler(scheduler: dict, one_step: OneStep, of_betas: str, shift: float) -> Any:
    """The scheduler whose single step is the generator's x_0 = to_x0(network(input)) at t*.

    Of betas it is one of class `of_betas`, Euler's or Heun's: from sigma z in the spacing `trailing`, from z in
    `leading`. All its sigmas lie within a ten-thousandth of that of t*, and all of a flow, by its `shift`, near its
    end at 1: a call with more steps than one takes longer and gives the same picture, and one with so many that two
    fall together is refused by diffusers. Other choices are silently wrong: DDIM with set_alpha_to_one=False by 2.5 %,
    DDPM with clip_sample by 46 %; a flow's shift_terminal gives NaN at one step. Where alpha is 0 at t*, both input
    conventions are one, and Euler, which divides by alpha, cannot do it: then it is DDPM's, and one step must be asked
    for.
    """
    import diffusers

    schedule, t_star = one_step.diffusion.schedule, one_step.t_star
    if isinstance(schedule, FlowSchedule):
        return diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=schedule.num_timesteps, shift=shift)
    shared = {
        "trained_betas": diffusers.DDPMScheduler.from_config(scheduler).betas[: t_star + 1].tolist(),
        "num_train_timesteps": t_star + 1,
        "prediction_type": one_step.diffusion.kind,
    }
    if not (t_star and schedule.alphas_cumprod[t_star]):
        return diffusers.DDPMScheduler(
            clip_sample=False, variance_type="fixed_small", timestep_spacing="trailing", **shared
        )
    spacing = "trailing" if one_step.convention == "sigma" else "leading"
    # steps_offset is not read, but pipelines of Stable Diffusion call a folder outdated without it.
    narrow = getattr(diffusers, of_betas)(timestep_spacing=spacing, use_karras_sigmas=True, steps_offset=1, **shared)
    alpha_squared = float(narrow.alphas_cumprod[-1])
    sigma = ((1 - alpha_squared) / alpha_squared) ** 0.5
    # Heun's is not asked for these, and reads them from its configuration all the same. Above the last sigma the time
    # is t* to the bit.
    narrow.register_to_config(sigma_max=sigma * (1 + 1e-7), sigma_min=sigma * (1 - NARROW))
    return narrow


def flow_within_betas(steps: int) -> Any:
    """The scheduler with which a pipeline of betas takes a flow's one step from z at t = steps.

    None of diffusers' gives x_0 = z -+ output there: the flow's own have no init_noise_sigma, which these pipelines
    ask for. But an eps-step of sigma s at that time, x_0 = (z - s output')/alpha, is it where the network gives
    output' = +-output / s: where its last layer is multiplied by `output_scale`. alpha = sqrt(1 - s^2) is 1 to 5e-7.
    """
    import diffusers

    return diffusers.DDPMScheduler(
        trained_betas=[0.0] * steps + [FLOW_STEP_SIGMA**2],
        num_train_timesteps=steps + 1,
        timestep_spacing="trailing",
        prediction_type="epsilon",
        clip_sample=False,
        variance_type="fixed_small",
    )


def output_scale(teacher: Diffusion, one_step: OneStep) -> float:
    """By what an exported network's last layer is multiplied: 1, except for a flow within betas."""
    if not is_flow_within_betas(teacher, one_step):
        return 1.0
    return (-1 if one_step.diffusion.kind == "negative_flow" else 1) / FLOW_STEP_SIGMA


def is_flow_within_betas(teacher: Diffusion, one_step: OneStep) -> bool:
    """Whether the generator predicts a flow, and the pipeline that it is exported into knows betas alone."""
    return isinstance(teacher.schedule, VPSchedule) and isinstance(one_step.diffusion.schedule, FlowSchedule)
