"""A reward service for the trainers of a cluster, until the job is stopped:

dipp-ray submit -- python jobs/serve_rewards.py CONFIG [section.key=value ...] [--detach]
"""

import sys

from dipp_ray import cli

if __name__ == "__main__":
    sys.exit(cli.main(["serve-rewards", *sys.argv[1:]]))
