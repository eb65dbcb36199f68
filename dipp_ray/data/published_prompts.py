"""Lists of prompts as they are published, where their form is none that `data.column` describes.

    PartiPrompts    PartiPrompts.tsv: Prompt, Category, Challenge, Note
    DrawBench       .csv: Prompts, Category
    COCO captions   captions_val2014.json: an object whose `annotations` have a `caption` each

The others need nothing of their own: HPDv2's benchmark is a list of texts a style (.json), GenEval's metadata and
flow_grpo's lists are objects with a `prompt` a line (.jsonl), or a prompt a line (.txt).
"""

from collections.abc import Sequence

COLUMNS = {
    frozenset({"Prompt", "Category", "Challenge", "Note"}): "Prompt",
    frozenset({"Prompts", "Category"}): "Prompts",
}


def published_column(names: Sequence[str], column: str) -> str:
    """The column of the texts: `column` where it is there, else that of a published list with just these names."""
    return column if column in names else COLUMNS.get(frozenset(names), column)


def published_list(data: object, column: str) -> tuple[object, str]:
    """(the list in a JSON file, the field of its texts): COCO's annotations and captions, or as they were given."""
    if isinstance(data, dict) and {"annotations", "images"} <= data.keys():
        return data["annotations"], "caption"
    return data, column
