"""The model card of an exported generator."""

import json
from pathlib import Path

from dipp_ray.config import RunConfig
from dipp_ray.hub.fetch import local
from dipp_ray.hub.revisions import named_here
from dipp_ray.hub.selection import configurations
from dipp_ray.models.adapter_files import PEFT_CONFIG, is_adapter
from dipp_ray.models.bare import is_bare
from dipp_ray.models.families import Family
from dipp_ray.models.plain_pipeline import call_arguments
from dipp_ray.models.reading import prediction_of

CARD = """---
library_name: diffusers
pipeline_tag: text-to-image
tags: [one-step, diff-instruct-plus-plus]
{base}---
# {name}

```python
{loading}
image = pipeline("{prompt}", {arguments}).images[0]
```

**Call it with just these arguments.** {warning}

A one-step text-to-image generator, trained by {method} (unofficial implementation of Luo, 2024,
arXiv:2410.18881) with dipp-ray.

| | |
|---|---|
| base and teacher | {teacher} |
| starting generator | {generator} |
| reward | {reward} |
| reward scale | {scale} |
| guidance scale of the teacher | {guidance} |
| weight, divisor, reduction | {weight}, {divisor}, {reduction} |
| read at | t* = {t_star}, input convention `{input}`, output `{prediction}` |
| trained | {trained} |
| generator updates | {steps}, batch {batch} |
| licence | that of the base model: nothing is granted beyond it |

Caveats. {caveat}
"""
WHOLE = """from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("{folder}"{without})"""
ADAPTER = """from diffusers import DiffusionPipeline, {scheduler}{imports}

pipeline = DiffusionPipeline.from_pretrained({base}{without}){beside}
{load}
pipeline.scheduler = {scheduler}.from_pretrained("{folder}", subfolder="scheduler")"""
BY_DIFFUSERS = 'pipeline.load_lora_weights("{folder}")'
BY_PEFT = 'pipeline.{part} = PeftModel.from_pretrained(pipeline.{part}, "{folder}").merge_and_unload()'
# What diffusers' own defaults, or a habit of other models, make of the call. A folder cannot hold a call's arguments.
WITHOUT = "The pipeline's own defaults, or any other guidance, give wrong images without a word. "
WORSE = {
    "guidance_scale": "`guidance_scale` is {given:g}, as trained: what guided models are given spoils the picture.",
    "true_cfg_scale": "`true_cfg_scale` is {given:g}, as trained: what guided models are given spoils the picture.",
    "use_resolution_binning": "Without `use_resolution_binning=False` another size is made and resized.",
    "height": "`height` and `width` are those it was trained at.",
    "num_inference_steps": "{steps}",
}
SAME = (
    "More steps take longer and give the same picture: its scheduler holds them all at the one time it was trained at."
)
OF_ONE_STEP = ("DDPMScheduler", "SCMScheduler")  # schedulers that hold other times too
ONE = "More steps than one give wrong images."
ALIGNED = """It was pushed
towards one reward: look at the held-out reward and at diversity in evaluation.json before trusting the reward's gain.
It inherits the biases of its base and of its reward model."""
DISTILLED = """It inherits the
biases of its base."""


def write_card(
    folder: Path, frame: Family, config: RunConfig, steps: int, adapter: bool = False, published: str | None = None
) -> None:
    """Write README.md into an exported folder, with the call that reproduces the trainer's x0.

    adapter: it holds the adapter alone. published: the hub id under which it will be loaded; None: the folder's path.
    """
    arguments = ", ".join(f"{key}={value:g}" if isinstance(value, float) else f"{key}={value!r}"
                          for key, value in call_arguments(frame).items())  # fmt: skip
    lora = config.adapters.generator
    objective, rewarded = config.objective, config.objective.reward_scale > 0
    terms = ", ".join(f"{term.name} ({term.model}, weight {term.weight:g})" for term in config.trained_terms)
    (folder / "README.md").write_text(
        CARD.format(
            name=config.run.name,
            base=_base_model(_base(config) if adapter else config.model.teacher, adapter),
            loading=_loading(folder, frame, config, adapter, published),
            prompt="your prompt",
            arguments=arguments,
            teacher=config.model.teacher,
            generator=config.model.generator or "the teacher",
            reward=(terms or config.reward.app or ", ".join(config.reward.urls)) if rewarded else "none (distillation)",
            scale=f"{objective.reward_scale:g}",
            caveat=ALIGNED if rewarded else DISTILLED,
            method="Diff-Instruct++" if rewarded else "Diff-Instruct",
            warning=_warning(frame, folder),
            guidance=f"{objective.guidance_scale:g}" + _shown_beside(config),
            weight=objective.weight,
            divisor=objective.divisor,
            reduction=objective.reduction,
            t_star=config.model.t_star,
            input=config.model.input,
            prediction=prediction_of(config.model) or frame.diffusion.kind,
            trained="all weights" if lora is None else f"LoRA, rank {lora.rank}, alpha {lora.scaled_by:g}",
            steps=steps,
            batch=config.data.batch_size,
        )
    )


def _shown_beside(config: RunConfig) -> str:
    """What the teacher of the evaluation was guided by, where that is something else."""
    same = config.teacher_guidance == config.objective.guidance_scale
    return "" if same else f" ({config.teacher_guidance:g} where it is shown beside)"


def _warning(frame: Family, folder: Path) -> str:
    """What goes wrong with other arguments, of those that the call has."""
    scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())["_class_name"]
    steps = ONE if scheduler in OF_ONE_STEP else SAME
    given = call_arguments(frame)
    return WITHOUT + " ".join(text.format(given=given[key], steps=steps) for key, text in WORSE.items() if key in given)


def _loading(folder: Path, frame: Family, config: RunConfig, adapter: bool, published: str | None) -> str:
    """The lines that make the pipeline."""
    without = "".join(f", {name}=None" for name in frame.absent if name not in frame.dispensable)
    place = published or folder
    if not adapter:
        return WHOLE.format(folder=place, without=without)
    generator, by_peft = config.model.generator, (folder / PEFT_CONFIG).exists()
    alone = generator is not None and _base(config) != generator and not is_adapter(generator)
    beside = f"\n# with the network of {generator} as pipeline.{frame.network_part}, on which it was trained"
    return ADAPTER.format(
        folder=place,
        without=without,
        base=_as_argument(_base(config)),
        beside=beside if alone else "",
        imports="\nfrom peft import PeftModel" if by_peft else "",
        load=(BY_PEFT if by_peft else BY_DIFFUSERS).format(part=frame.network_part, folder=place),
        scheduler=json.loads((folder / "scheduler" / "scheduler_config.json").read_text())["_class_name"],
    )


def _base(config: RunConfig) -> str:
    """The pipeline beside which an adapter is loaded: the starting generator's, where that is one, or the teacher's."""
    generator = config.model.generator
    whole = generator is not None and not is_bare(local(generator, configurations, within=True))
    return generator if generator is not None and whole else config.model.teacher


def _as_argument(given: str) -> str:
    """What a person wrote as `from_pretrained` takes it, in quotes: it wants a hub id and its revision apart."""
    named = named_here(given)
    if named is None or not named.revision:
        return f'"{given}"'
    return f'"{named.repo}", revision="{named.revision}"'


def _base_model(given: str, adapter: bool) -> str:
    """The hub's own lines about the model that this one was made from, where that is one of the hub.

    The hub takes an id there without its revision, which has a line of its own.
    """
    named = named_here(given)
    if named is None:
        return ""
    revision = f"base_model_revision: {named.revision}\n" if named.revision else ""
    return f"base_model: {named.repo}\n{revision}base_model_relation: {'adapter' if adapter else 'finetune'}\n"
