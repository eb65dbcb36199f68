"""The prompts' embeddings, once and for all:

dipp-ray submit -- python jobs/encode.py CONFIG OUT [section.key=value ...]
"""

import sys

import entry


def results(given):
    return "OUT", given.out


if __name__ == "__main__":
    sys.exit(entry.verb("encode", results, sys.argv[1:]))
