"""Whether a service decodes a trainer's latents: found out before any is sent."""

import pytest

from dipp_ray.errors import UserError
from dipp_ray.serving.client.vaes import require_vae
from dipp_ray.serving.contract.records import LimitsRecord, ServiceRecord, VaeRecord

LIMITS = LimitsRecord(
    body_mib=1, header_kib=1, upload_s=1, rows=8, image_side=8, latent_side=8, aspect=8, prompt_chars=8
)
SD15, SDXL, SD3 = (
    VaeRecord(latent_channels=channels, latents=f"AutoencoderKL of {channels} channels, {scale}")
    for channels, scale in ((4, "scale 0.18215"), (4, "scale 0.13025"), (16, "scale 1.5305"))
)


def service(channels=None, **vaes):
    return ServiceRecord(
        name="shared", version="1", deterministic=True, batch_rows=8, latent_channels=channels, vaes=vaes, models=[],
        limits=LIMITS,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("given", "named", "own"),
    [
        (service(4), None, SD15),
        (service(4), None, None),
        (service(4), None, SDXL),  # the one without a name does not say its scale
        (service(4, sd15=SD15), None, SD15),
        (service(None, sd15=SD15, sdxl=SDXL), "sdxl", SDXL),
        (service(None, sd15=SD15, sdxl=SDXL), "sdxl", None),
    ],
)
def test_a_service_of_the_same_family_is_taken(given, named, own):
    require_vae(given, named, own)


@pytest.mark.parametrize(
    ("given", "named", "own", "message"),
    [
        (service(), None, SD15, "shared has no VAE and takes no latents: set its vae"),
        (service(4), "sd15", SD15, "a VAE without a name, not one named 'sd15': leave reward.vae out"),
        (service(4), None, SD3, "decodes latents of 4 channels, and this run's have 16: call one of their family"),
        (service(None, sd15=SD15, sdxl=SDXL), None, SDXL, "has the VAEs sd15, sdxl: set reward.vae to sdxl"),
        (service(None, sd15=SD15, sdxl=SDXL), None, None, "sdxl: set reward.vae to the one of this run's latents"),
        (service(None, sd15=SD15, sdxl=SDXL), "sd3", SD15, "has no VAE 'sd3' but sd15, sdxl: set reward.vae to sd15"),
        (
            service(None, sd15=SD15, sdxl=SDXL), "sd15", SDXL,
            r"under 'sd15' an AutoencoderKL of 4 channels, scale 0\.18215, and this run's latents are of an "
            r"AutoencoderKL of 4 channels, scale 0\.13025: set reward\.vae to sdxl",
        ),
        (service(4, sd15=SD15), None, SDXL, "under 'sd15' an .*: add theirs to its vaes, or call one of their family"),
    ],
)  # fmt: skip
def test_latents_of_another_family_are_refused_by_name(given, named, own, message):
    with pytest.raises(UserError, match=message):
        require_vae(given, named, own)
