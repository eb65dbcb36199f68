"""The settings of an evaluation, with their units, defaults and meanings."""

from pydantic import Field, model_validator

from dipp_ray.settings import Count, LocalPath, ModelPath, Section

Channels = tuple[float, float, float]


class FeatureSettings(Section):
    network: ModelPath = Field(
        description="TorchScript file of (images [B, 3, H, W]) -> features [B, D]; or a CLIP folder."
    )
    size: Count | None = Field(
        None, description="Side to which its images are brought, pixels; null: CLIP's own, or as the images are."
    )
    mean: Channels | None = Field(
        None,
        description="Subtracted from channels in [0, 1]; null: CLIP's own. A network that wants 0 .. 255 has mean "
        "[0, 0, 0] and std [0.00392157, 0.00392157, 0.00392157].",
    )
    std: Channels | None = Field(None, description="Divides the channels after that; null: CLIP's own.")
    images: LocalPath | None = Field(None, description="Folder of the images to compare with, as deep as it is.")
    statistics: LocalPath | None = Field(
        None, description="Their statistics, .npz: read where the file is there, else written from `images`."
    )

    @model_validator(mode="after")
    def _something_to_compare_with(self):
        if self.images is None and self.statistics is None:
            raise ValueError("evaluation.features compares with nothing: set its images, its statistics, or both")
        if self.std is not None and min(self.std) <= 0:
            raise ValueError(f"evaluation.features.std={list(self.std)} must be above 0")
        return self


class EvaluationSection(Section):
    prompts: LocalPath | list[LocalPath] | None = Field(None, description="As data.prompts; null: those of training.")
    samples: int = Field(500, ge=2, description="Images of each model.")
    judge: str | None = Field(None, description="`package.module:function` (images, prompts) -> {metric: value}.")
    clip: ModelPath | None = Field(None, description="CLIP folder, or hub id, that measures diversity too; null: none.")
    features: FeatureSettings | None = Field(None, description="What the Frechet distance is of; null: none.")
    workers: int = Field(
        1,
        ge=1,
        description="Actors that share the images: at a run's end in the rooms of its ranks, else with a generator's "
        "resources.",
    )
    teacher_steps: int = Field(25, ge=1, description="Steps of the teacher that is shown beside.")
    teacher_guidance: float | None = Field(
        None, ge=1, description="Guidance scale of that teacher, from 1 on; null: objective.guidance_scale."
    )
