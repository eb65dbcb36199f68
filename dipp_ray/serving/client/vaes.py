"""Whether a service decodes the latents that a trainer is going to send: asked once, before any is made."""

from dipp_ray.errors import UserError
from dipp_ray.serving.contract.records import ServiceRecord, VaeRecord

SETTING = "reward.vae"


def require_vae(service: ServiceRecord, named: str | None, own: VaeRecord | None) -> None:
    """Raise UserError where the service has no VAE that is `named`, or none for latents such as `own`.

    named: None for its only one. own: None where nobody knows. What a VAE without a name decodes, a service does not
    say but for its channels.
    """
    said, names = f"the reward service {service.name}", ", ".join(service.vaes)
    if not service.vaes:
        if service.latent_channels is None:
            raise UserError(f"{said} has no VAE and takes no latents: set its vae")
        if named is not None:
            raise UserError(
                f"{said} has a VAE without a name, not one named '{named}': leave {SETTING} out, or set its vaes"
            )
        if own is not None and own.latent_channels != service.latent_channels:
            raise UserError(
                f"{said} decodes latents of {service.latent_channels} channels, and this run's have "
                f"{own.latent_channels}: call one of their family"
            )
        return
    fits = [name for name, vae in service.vaes.items() if own is not None and vae.latents == own.latents]
    cure = f"set {SETTING} to {' or '.join(fits)}" if fits else f"set {SETTING} to the one of this run's latents"
    if named is None and len(service.vaes) > 1:
        raise UserError(f"{said} has the VAEs {names}: {cure}")
    if named is not None and named not in service.vaes:
        raise UserError(f"{said} has no VAE '{named}' but {names}: {cure}")
    name = next(iter(service.vaes)) if named is None else named
    if own is not None and service.vaes[name].latents != own.latents:
        cure = cure if fits else "add theirs to its vaes, or call one of their family"
        raise UserError(
            f"{said} has under '{name}' an {service.vaes[name].latents}, and this run's latents are of an "
            f"{own.latents}: {cure}"
        )
