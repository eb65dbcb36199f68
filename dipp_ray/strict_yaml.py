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
    """The value of a YAML document. Raises yaml.YAMLError for what is none, and for a key given twice in a mapping."""
    return yaml.load(text, _Loader)  # noqa: S506: a SafeLoader
