"""The settings that a reader of a report asks for first, out of the run's resolved configuration."""

from typing import Any


def key_settings(config: dict) -> list[tuple[str, str]]:
    """(name, value) pairs in words; what `config` (nested mappings) lacks is left out."""

    def get(path: str):
        value: Any = config
        for part in path.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return value

    rows = [
        ("Reward scale", get("objective.reward_scale")),
        ("Reward", _terms(get("reward.terms"), held_out=False)),
        ("Held-out reward", _terms(get("reward.terms"), held_out=True)),
        ("Guidance scale", get("objective.guidance_scale")),
        ("Weight w(t)", get("objective.weight")),
        ("Divisor", get("objective.divisor")),
        ("Reduction", get("objective.reduction")),
        ("Order", get("objective.order")),
        ("Score updates a step", get("objective.score_updates")),
        ("Times of score matching", _times(get("objective.score_timesteps"), get("objective.score_times"))),
        ("Times of divergence", _times(get("objective.divergence_timesteps"), get("objective.divergence_times"))),
        ("Time read by the generator", get("model.t_star")),
        ("Output of the generator", get("model.prediction")),
        ("Batch", _batch(get("data"))),
        ("Steps", get("run.steps")),
        ("Learning rate, generator", get("generator_optim.lr")),
        ("Learning rate, score", get("score_optim.lr")),
        ("LoRA of the generator", _adapter(get("adapters.generator"))),
        ("LoRA of the score model", _adapter(get("adapters.score"))),
        ("Decay of the average", get("ema.decay")),
        ("Seed", get("run.seed")),
        ("Generator ranks", _group(get("roles.generator"))),
        ("Score ranks", _group(get("roles.score"))),
        ("Teacher", get("model.teacher")),
        ("Starting generator", get("model.generator") or get("model.teacher")),
    ]
    return [
        (name, f"{value:g}" if isinstance(value, float) else str(value)) for name, value in rows if value is not None
    ]


def _terms(terms: list[dict] | None, held_out: bool) -> str | None:
    chosen = [term for term in terms or [] if bool(term.get("held_out")) == held_out]
    names = [str(term.get("name")) + ("" if held_out else f" × {term.get('weight', 1):g}") for term in chosen]
    return ", ".join(names) or None


def _times(limits: list[int] | None, times: dict | None) -> str | None:
    if not limits:
        return None
    words, times = [f"{limits[0]} to {limits[1]}"], times or {}
    if times.get("distribution", "uniform") != "uniform":
        words.append(f"logit normal, mean {times.get('mean', 0):g}, deviation {times.get('std', 1):g}")
    if times.get("shift", 1) != 1:
        words.append(f"shift {times['shift']:g}")
    return ", ".join([*words, "continuous"] if times.get("continuous") else words)


def _batch(data: dict | None) -> str | None:
    if not data or "batch_size" not in data:
        return None
    return f"{data['batch_size']} in {data.get('micro_batches', 1)} micro-batches"


def _adapter(settings: dict | None) -> str | None:
    return f"rank {settings['rank']}, alpha {settings.get('alpha') or settings['rank']:g}" if settings else None


def _group(role: dict | None) -> str | None:
    if not role:
        return None
    workers = role.get("workers", 1)
    ranks = f"{workers['min']} to {workers['max']}" if isinstance(workers, dict) else workers
    return f"{ranks}, ZeRO {role.get('zero_stage', 0)}, {role.get('dtype', '')}"
