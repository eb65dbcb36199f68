"""What the front refused, on its way into the service's metrics: a header of the very request that asks for them.

Where there is no front a caller may send that header itself, and reads in its own answer what it sent.
"""

import re
from collections import Counter

HEADER = b"x-dipp-ray-refused"
PATH = b"/metrics"
NAME = "dipp_ray_reward_front_refusals_total"
COUNTS = re.compile(r"[a-z_]{1,32}=[0-9]{1,18}(,[a-z_]{1,32}=[0-9]{1,18}){0,31}")


def as_header(refused: Counter[str]) -> tuple[bytes, bytes]:
    """The header of what was refused, by the code of an ErrorReply."""
    return HEADER, ",".join(f"{code}={count}" for code, count in sorted(refused.items())).encode()


def as_text(value: str) -> bytes:
    """The header's value in the form of Prometheus; nothing for what is none."""
    if not COUNTS.fullmatch(value):
        return b""
    lines = [f"# HELP {NAME} Requests that the front refused, by code.", f"# TYPE {NAME} counter"]
    for entry in value.split(","):
        code, _, count = entry.partition("=")
        lines.append(f'{NAME}{{code="{code}"}} {float(count)}')
    return ("\n".join(lines) + "\n").encode()
