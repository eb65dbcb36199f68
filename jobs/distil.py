"""Distil a teacher into a one-step generator, without a reward:

dipp-ray submit -- python jobs/distil.py CONFIG [section.key=value ...]
"""

import sys

import entry


def refuse(config) -> str | None:
    if config.objective.reward_scale > 0:
        return (
            f"objective.reward_scale={config.objective.reward_scale:g} is alignment: use jobs/align.py, or set it to 0"
        )
    return None


if __name__ == "__main__":
    sys.exit(entry.main(__doc__, refuse))
