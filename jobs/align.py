"""Align a one-step generator with a reward:

dipp-ray submit -- python jobs/align.py CONFIG [section.key=value ...] [--generator RUN]
"""

import sys

import entry


def refuse(config) -> str | None:
    if config.objective.reward_scale == 0:
        return "objective.reward_scale=0 is distillation: use jobs/distil.py, or set it above 0"
    return None


if __name__ == "__main__":
    sys.exit(entry.main(__doc__, refuse))
