"""Fit a reward model to preference pairs:

dipp-ray submit -- python jobs/fit_reward.py CONFIG [section.key=value ...]
"""

import sys

import entry

from dipp_ray.preferences.config import load_fit_config


def results(given):
    return "out", load_fit_config(given.config, given.settings).out


if __name__ == "__main__":
    sys.exit(entry.verb("fit-reward", results, sys.argv[1:]))
