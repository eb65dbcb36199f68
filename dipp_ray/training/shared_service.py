"""Whether a shared reward service still is what it was: its owner may change it while a run trains."""

SUM = ("model", "weight", "held_out", "mean", "deviation", "hinge", "cap", "required")
WHOLE = ("deterministic", "batch_rows")


def judge_of(record: dict | None) -> str | None:
    """The held-out model that judges which step is best: the first of the service, whichever way it is called."""
    models = record["models"] if record else []
    return next((model["name"] for model in models if model["held_out"]), None)


def changes(before: dict, now: dict, vae: str | None) -> list[str]:
    """What differs between two `ServiceRecord`s that a run's rewards may depend on, each such as
    'weight of hps was 1.0 and is 2.0'. Empty where nothing does. vae: which of the VAEs decodes for the run, None for
    the only one."""
    old, new = ({model["name"]: model for model in record["models"]} for record in (before, now))
    said = [f"{key} was {before.get(key)} and is {now.get(key)}" for key in WHOLE if before.get(key) != now.get(key)]
    decoded = [_latents(record, vae) for record in (before, now)]
    if decoded[0] != decoded[1]:
        said.append(f"the VAE that decodes was {decoded[0]} and is {decoded[1]}")
    if judge_of(before) != judge_of(now):
        said.append(f"the held-out model that judges was {judge_of(before)} and is {judge_of(now)}")
    said += [f"{name} is gone" for name in old if name not in new]
    said += [f"{name} is new" for name in new if name not in old]
    for name in [name for name in old if name in new]:
        pairs = [(key, old[name].get(key), new[name].get(key)) for key in SUM]
        said += [f"{key} of {name} was {was} and is {now}" for key, was, now in pairs if was != now]
    return said


def _latents(record: dict, vae: str | None) -> str:
    """What latents the VAE `vae` decodes, as far as the service says."""
    named = record.get("vaes", {})
    if vae is None and len(named) == 1:
        vae = next(iter(named))
    if vae in named:
        return f"an {named[vae]['latents']}"
    return f"one of {record.get('latent_channels')} channels"
