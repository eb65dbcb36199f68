"""The model card of an exported generator."""

from pathlib import Path

from dipp_ray.config import RunConfig
from dipp_ray.hub.revisions import named_here
from dipp_ray.models.families import Family
from dipp_ray.models.plain_pipeline import call_arguments

CARD = """---
library_name: diffusers
pipeline_tag: text-to-image
tags: [one-step, diff-instruct-plus-plus]
{base}---
# {name}

A one-step text-to-image generator, trained by Diff-Instruct++ (unofficial implementation of Luo, 2024,
arXiv:2410.18881) with dipp-ray.

```python
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("{folder}"{without})
image = pipeline("{prompt}", {arguments}).images[0]
```

| | |
|---|---|
| base and teacher | {teacher} |
| starting generator | {generator} |
| reward | {reward} |
| reward scale | {scale} |
| guidance scale of the teacher | {guidance} |
| weight, divisor, reduction | {weight}, {divisor}, {reduction} |
| read at | t* = {t_star}, input convention `{input}` |
| generator updates | {steps}, batch {batch} |
| licence | that of the base model: nothing is granted beyond it |

Caveats. It answers in one step, without guidance; other step counts or schedulers give wrong images. {caveat}
"""
ALIGNED = """It was pushed
towards one reward: look at the held-out reward and at diversity in evaluation.json before trusting the reward's gain.
It inherits the biases of its base and of its reward model."""
DISTILLED = """It inherits the
biases of its base."""


def write_card(folder: Path, frame: Family, config: RunConfig, steps: int, published: str | None = None) -> None:
    """Write README.md into an exported pipeline folder, with the call that reproduces the trainer's x0.

    published: the hub id under which it will be loaded; None: by the folder's path.
    """
    arguments = ", ".join(f"{key}={value:g}" if not isinstance(value, bool) else f"{key}={value}"
                          for key, value in call_arguments(frame).items())  # fmt: skip
    objective, rewarded = config.objective, config.objective.reward_scale > 0
    terms = ", ".join(f"{term.name} ({term.model}, weight {term.weight:g})" for term in config.trained_terms)
    (folder / "README.md").write_text(
        CARD.format(
            name=config.run.name,
            base=base_model(config.model.teacher),
            folder=published or folder,
            without="".join(f", {name}=None" for name in frame.absent if name not in frame.dispensable),
            prompt="your prompt",
            arguments=arguments,
            teacher=config.model.teacher,
            generator=config.model.generator or "the teacher",
            reward=(terms or config.reward.app or ", ".join(config.reward.urls)) if rewarded else "none (distillation)",
            scale=f"{objective.reward_scale:g}",
            caveat=ALIGNED if rewarded else DISTILLED,
            guidance=f"{objective.guidance_scale:g}",
            weight=objective.weight,
            divisor=objective.divisor,
            reduction=objective.reduction,
            t_star=config.model.t_star,
            input=config.model.input,
            steps=steps,
            batch=config.data.batch_size,
        )
    )


def base_model(teacher: str) -> str:
    """The hub's own lines about the model that this one was made from, where the teacher is one of the hub.

    The hub takes an id there without its revision, which has a line of its own.
    """
    named = named_here(teacher)
    if named is None:
        return ""
    revision = f"base_model_revision: {named.revision}\n" if named.revision else ""
    return f"base_model: {named.repo}\n{revision}base_model_relation: finetune\n"
