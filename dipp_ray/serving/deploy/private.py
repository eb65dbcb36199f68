"""The reward service of one run alone: its name, and its configuration made of the run's own."""

import hashlib
from pathlib import Path

from dipp_ray.config import RoleSection
from dipp_ray.rewards.terms import RewardTerm
from dipp_ray.role_settings import Between
from dipp_ray.serving.contract.limits import LimitsSection
from dipp_ray.serving.core.queue import QueueSection
from dipp_ray.serving.deploy.config import ServedModel, ServiceConfig

LONGEST_PROMPT = 1_000_000  # its run has read the prompts already


def private_name(run_folder: str | Path) -> str:
    """Name of the application that belongs to the run in `run_folder` alone, whatever other runs are called."""
    folder = Path(run_folder).resolve()
    return f"dipp-ray-reward-{folder.name}-{hashlib.sha256(str(folder).encode()).hexdigest()[:8]}"


def private_config(
    name: str,
    terms: list[RewardTerm],
    vae: str | None,
    role: RoleSection,
    replicas: int | Between,
    deterministic: bool,
    rows: int,
    checkpoint_decoder: bool = False,
) -> ServiceConfig:
    """A run's own service: every term as one model with the role's resources, for calls of `rows` rows."""
    scaled = (replicas.min, replicas.max) if isinstance(replicas, Between) else replicas
    models = [ServedModel(**term.model_dump(), role=role, replicas=scaled) for term in terms]
    wide = LimitsSection().rows
    return ServiceConfig(
        name=name,
        models=models,
        vae=vae,
        checkpoint_decoder=checkpoint_decoder,
        batch_rows=rows,
        deterministic=deterministic,
        limits=LimitsSection(rows=max(rows, wide), prompt_chars=LONGEST_PROMPT),
        queue=QueueSection(rows=8 * max(rows, wide)),
    )
