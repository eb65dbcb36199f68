"""The reward service of one run alone: its name, and its configuration made of the run's own."""

import hashlib
from pathlib import Path

from dipp_ray.config import RewardSection, RoleSection
from dipp_ray.role_settings import Between
from dipp_ray.serving.contract.limits import LimitsSection
from dipp_ray.serving.core.queue import QueueSection
from dipp_ray.serving.deploy.config import ServedModel, ServedVae, ServiceConfig

LONGEST_PROMPT = 1_000_000  # its run has read the prompts already


def private_name(run_folder: str | Path) -> str:
    """Name of the application that belongs to the run in `run_folder` alone, whatever other runs are called."""
    folder = Path(run_folder).resolve()
    return f"dipp-ray-reward-{folder.name}-{hashlib.sha256(str(folder).encode()).hexdigest()[:8]}"


def private_config(
    name: str,
    reward: RewardSection,
    vae: str,
    role: RoleSection,
    deterministic: bool,
    rows: int,
) -> ServiceConfig:
    """A run's own service: every term as one model with the role's resources, for calls of `rows` rows. vae: folder or
    hub id of what decodes latents, in front of each model or once for all of them."""
    replicas = reward.replicas
    scaled = (replicas.min, replicas.max) if isinstance(replicas, Between) else replicas
    models = [ServedModel(**term.model_dump(), role=role, replicas=scaled) for term in reward.terms]
    shared = [ServedVae(name="latents", folder=vae, role=role, replicas=scaled)] if reward.decode_once else []
    wide = LimitsSection().rows
    return ServiceConfig(
        name=name,
        models=models,
        vae=None if shared else vae,
        vaes=shared,
        checkpoint_decoder=reward.checkpoint_decoder,
        batch_rows=rows,
        deterministic=deterministic,
        limits=LimitsSection(rows=max(rows, wide), prompt_chars=LONGEST_PROMPT),
        queue=QueueSection(rows=8 * max(rows, wide)),
    )
