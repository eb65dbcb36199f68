"""Measure a pipeline, beside another:

dipp-ray submit -- python jobs/evaluate.py PIPELINE [--against PIPELINE] [--config FILE] [--out FOLDER]
"""

import sys

import entry


def results(given):
    return ("--out", given.out) if given.out else ("PIPELINE", given.pipeline)


if __name__ == "__main__":
    sys.exit(entry.verb("evaluate", results, sys.argv[1:]))
