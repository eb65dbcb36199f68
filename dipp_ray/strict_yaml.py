"""YAML as configurations are written in it: safe, and a key that is given twice is refused, not overwritten."""

from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    def compose_mapping_node(self, anchor):
        node = super().compose_mapping_node(anchor)
        seen: dict[tuple[str, str], yaml.Mark] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):  # `<<` is one too: of several it takes a list
                continue
            name = key.tag, key.value
            if name in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"'{key.value}' is given twice, in line {seen[name].line + 1} too", key.start_mark
                )
            seen[name] = key.start_mark
        return node


def load(text: str) -> Any:
    """The value of a YAML document. Raises yaml.YAMLError for what is none, for a key given twice in a mapping, and for
    what lies too deep, or in itself."""
    try:
        value = yaml.load(text, _Loader)  # a SafeLoader
        _require_end(value, set(), set())
    except RecursionError:
        raise yaml.YAMLError("it holds itself, or lies too deep") from None
    return value


def _require_end(value: Any, above: set[int], seen: set[int]) -> None:
    """Raise RecursionError where an alias names what it lies in. above, seen: the collections, by identity."""
    if not isinstance(value, dict | list) or id(value) in seen:
        return
    if id(value) in above:
        raise RecursionError
    above.add(id(value))
    for inner in value.values() if isinstance(value, dict) else value:
        _require_end(inner, above, seen)
    above.remove(id(value))
    seen.add(id(value))
