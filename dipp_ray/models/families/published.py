"""Published one-step generators: how each is read, taken from its own inference code or documentation, as data."""

from dataclasses import dataclass
from typing import Literal

from dipp_ray.diffusion.one_step import Convention
from dipp_ray.diffusion.parameterisation import Parameterisation

# What a fact rests on: code or documentation that was read; a stored page, maybe a mirror's; memory, not verified.
Source = Literal["read", "page", "not verified"]


@dataclass(frozen=True, kw_only=True)
class Published:
    """One generator, or several that are read alike.

    family: the class in `models/families` of teachers it belongs to. t_star, input, prediction: how it is read in one
    step; None of them is known where `why_not` says what stands in the way, or where a flow is read at its end.
    """

    name: str
    family: str
    repos: tuple[str, ...] = ()  # org/name; a file belongs to one of them
    files: tuple[str, ...] = ()  # names of files of the network alone; none: the repository is a folder
    t_star: int | None = None
    input: Convention | None = None
    prediction: Parameterisation | None = None
    call: str  # as its authors call it
    licence: str
    source: Source
    note: str = ""
    why_not: str | None = None  # it cannot be taken up by its name


SDXL, SD, SD3 = "StableDiffusionXL", "StableDiffusion", "StableDiffusion3"
FEW_STEPS = "it is made for several steps, so that no one time is its own; to start from its first step, "

TABLE: tuple[Published, ...] = (
    Published(
        name="DMD2 SDXL, one step", family=SDXL, repos=("tianweiy/DMD2",),
        files=("dmd2_sdxl_1step_unet.bin", "dmd2_sdxl_1step_unet_fp16.bin"),
        t_star=399, input="unit", prediction="epsilon", call="LCM, `timesteps=[399]`, guidance 0",
        licence="CC-BY-NC-4.0", source="read",
    ),
    Published(
        name="DMD2 SDXL, four steps", family=SDXL, repos=("tianweiy/DMD2",),
        files=("dmd2_sdxl_4step_unet.bin", "dmd2_sdxl_4step_unet_fp16.bin", "dmd2_sdxl_4step_unet_fp16.safetensors"),
        call="LCM, `timesteps=[999, 749, 499, 249]`, guidance 0", licence="CC-BY-NC-4.0", source="read",
        why_not=FEW_STEPS + "give model.t_star=999, model.input=unit and model.prediction=epsilon",
    ),
    Published(
        name="DMD2 SDXL, LoRA", family=SDXL, repos=("tianweiy/DMD2",),
        files=("dmd2_sdxl_4step_lora.safetensors", "dmd2_sdxl_4step_lora_fp16.safetensors"),
        call="LCM, `timesteps=[999, 749, 499, 249]`, guidance 0", licence="CC-BY-NC-4.0", source="read",
        why_not=FEW_STEPS + "give model.t_star=999, model.input=unit and model.prediction=epsilon",
    ),
    Published(
        name="Diff-Instruct++, Diff-Instruct, SIM, DI* SDXL (Luo)", family=SDXL,
        repos=("XDG-XHS/dipp_1step", "XDG-XHS/diff_instruct_1step", "XDG-XHS/sim_1step", "XDG-XHS/distar_short_1step",
               "XDG-XHS/distar_long_1step"),
        t_star=399, input="unit", prediction="epsilon", call="LCM, `timesteps=[399]`, guidance 0",
        licence="of its repository", source="read", note="distar_long_1step is a whole pipeline, the others a `unet/`",
    ),
    Published(
        name="Hyper-SD SDXL, one step", family=SDXL, repos=("ByteDance/Hyper-SD",),
        files=("Hyper-SDXL-1step-Unet.safetensors",),
        t_star=800, input="unit", prediction="epsilon", call="LCM, `timesteps=[800]`, guidance 0",
        licence="of its repository", source="read",
    ),
    Published(
        name="Hyper-SD LoRAs, one step", family=SDXL, repos=("ByteDance/Hyper-SD",),
        files=("Hyper-SDXL-1step-lora.safetensors", "Hyper-SD15-1step-lora.safetensors"),
        call="TCD", licence="of its repository", source="not verified",
        why_not="how its one step is read was not verified here: give model.t_star and model.input as its repository "
        "says",
    ),
    Published(
        name="NitroFusion SDXL, realism", family=SDXL, repos=("ChenDY/NitroFusion",),
        files=("nitrosd-realism_unet.safetensors",),
        t_star=249, input="unit", prediction="epsilon", call="a subclass of LCM, `shifted_timestep=250`, guidance 0",
        licence="of its repository", source="read",
        note="its scheduler reads one step at int(999 x 250/1000), alpha and sigma of that time; several steps differ",
    ),
    Published(
        name="NitroFusion SDXL, vibrant", family=SDXL, repos=("ChenDY/NitroFusion",),
        files=("nitrosd-vibrant_unet.safetensors",),
        t_star=499, input="unit", prediction="epsilon", call="a subclass of LCM, `shifted_timestep=500`, guidance 0",
        licence="of its repository", source="read", note="as realism, at int(999 x 500/1000)",
    ),
    Published(
        name="SDXL-Lightning, one step", family=SDXL, repos=("ByteDance/SDXL-Lightning",),
        files=("sdxl_lightning_1step_unet_x0.safetensors",),
        t_star=999, input="sigma", prediction="sample", call='Euler, trailing, `prediction_type="sample"`, guidance 0',
        licence="of its repository", source="page", note="predicts x0; its authors call it experimental",
    ),
    Published(
        name="SDXL-Turbo", family=SDXL, repos=("stabilityai/sdxl-turbo",),
        t_star=999, input="sigma", prediction="epsilon", call="Euler ancestral, trailing, guidance 0, 512 pixels",
        licence="of its repository", source="read",
    ),
    Published(
        name="SD-Turbo", family=SD, repos=("stabilityai/sd-turbo",),
        t_star=999, input="sigma", prediction="epsilon", call="Euler, trailing, guidance 0, 512 pixels",
        licence="of its repository", source="read", note="of Stable Diffusion 2.1's architecture, as its teacher is",
    ),
    Published(
        name="SwiftBrush", family=SD, repos=("thuanz123/swiftbrush",),
        t_star=999, input="unit", prediction="epsilon", call="by hand: x0 = (z - sigma eps)/alpha, alpha^2 = .0047",
        licence="of its repository", source="read",
        note="of Stable Diffusion 2.1-base; read here with its teacher's own alpha^2, .00466 at 999: x0 is .4 % larger",
    ),
    Published(
        name="InstaFlow 0.9B", family=SD, repos=("XCLIU/instaflow_0_9B_from_sd_1_5",),
        t_star=1000, input="unit", prediction="negative_flow", call="its own pipeline: x0 = z + output",
        licence="CC-BY-NC-4.0", source="read", note="its scheduler's file says otherwise and is not read",
    ),
    Published(
        name="DMD2 SD1.5", family=SD, call="its own sampler, alpha^2 fixed at .0047",
        licence="CC-BY-NC-4.0", source="read",
        why_not="its file is pytorch_model.bin, as that of every training folder is called: give model.t_star=999, "
        "model.input=unit and model.prediction=epsilon",
    ),
    Published(
        name="SiD-LSG SD1.5, 2.1-base", family=SD, call="sigma z at 625, eps", licence="Apache-2.0", source="read",
        why_not="it is a pickle of a whole UNet object, which is never opened here: save its weights as safetensors "
        "where you trust it, and give model.t_star=625, model.input=sigma and model.prediction=epsilon",
    ),
    Published(
        name="PixArt-DMD 512", family="PixArtAlpha", repos=("PixArt-alpha/PixArt-Alpha-DMD-XL-2-512x512",),
        t_star=400, input="unit", prediction="epsilon", call="`timesteps=[400]`, guidance 1",
        licence="of its repository", source="read", note="a transformer and a scheduler: its teacher is PixArt-alpha's",
    ),
    Published(
        name="PeRFlow", family=SD, call="its own scheduler of four windows",
        licence="of its repository", source="not verified",
        why_not="it takes four windows of time, each with a step of its own, of which the first does not reach x0",
    ),
    Published(
        name="FLUX.1-schnell", family="Flux", repos=("black-forest-labs/FLUX.1-schnell",),
        prediction="flow_prediction", call="1 to 4 steps, guidance 0", licence="Apache-2.0", source="not verified",
        note="a start of few steps, read at the flow's end; its teacher is itself, for dev's network reads guidance",
    ),
    Published(
        name="SANA-Sprint", family="SanaSprint",
        repos=("Efficient-Large-Model/Sana_Sprint_1.6B_1024px_diffusers",
               "Efficient-Large-Model/Sana_Sprint_0.6B_1024px_diffusers"),
        prediction="flow_prediction", call="SCM, 1 to 4 steps, embedded guidance 4.5", licence="of its repository",
        source="read",
        note="its teacher is itself, for SANA's own network reads no guidance; a consistency model is no score: its "
        "answers as a teacher are ends of paths, not means of x0",
    ),
    Published(
        name="SD3.5-large-turbo", family=SD3, repos=("stabilityai/stable-diffusion-3.5-large-turbo",),
        prediction="flow_prediction", call="4 steps, guidance 0", licence="of its repository", source="page",
        note="a start of few steps, read at the flow's end",
    ),
    Published(
        name="Z-Image-Turbo", family="ZImage", repos=("Tongyi-MAI/Z-Image-Turbo",),
        prediction="flow_prediction", call="8 steps, guidance 0", licence="of its repository", source="page",
        note="a start of few steps, read at the flow's end",
    ),
)  # fmt: skip
