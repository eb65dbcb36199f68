"""Objects of JSON in which each name is given once: Python's reader keeps the last of two in silence."""

from typing import Any

from dipp_ray.errors import UserError


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For `json.loads(..., object_pairs_hook=once)`. Raises UserError, whose sentence lacks the place."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise UserError("an object names something twice: keep one")
    return found
