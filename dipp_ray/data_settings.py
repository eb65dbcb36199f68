"""The settings of the prompts, their embeddings, and how many of them make a step."""

from typing import Literal

from pydantic import Field, model_validator

from dipp_ray.settings import LocalPath, Section


class DataSection(Section):
    prompts: LocalPath | list[LocalPath] = Field(
        description="A file of prompts (.parquet, .csv, .tsv, .jsonl, .json, .txt), a folder of such, a pattern, or a "
        "list; local or s3://."
    )
    column: str = Field("prompt", description="Their text column, where they have columns.")
    embeddings: LocalPath | None = Field(
        None,
        description="Folder that `dipp-ray encode` made of these prompts, or `prompts` itself where that is one; null: "
        "each micro-batch's prompts are encoded as it comes.",
    )
    order: Literal["replacement", "epoch"] = Field(
        "replacement",
        description="Draw each sample's prompt from all of them, or take each prompt once an epoch; docs/prompts.md.",
    )
    batch_size: int = Field(64, ge=1, description="Samples of one generator update, over all ranks.")
    micro_batches: int = Field(2, ge=1, description="M: the step's fixed list; group sizes must divide it.")

    @model_validator(mode="after")
    def _divides(self):
        if self.batch_size % self.micro_batches:
            raise ValueError(
                f"data.batch_size={self.batch_size} does not split into data.micro_batches={self.micro_batches} "
                "equal parts: choose a divisor"
            )
        return self
