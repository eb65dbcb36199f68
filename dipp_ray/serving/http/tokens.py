"""Bearer tokens, one or more a trainer. The service keeps and passes on their digests alone."""

import hashlib
import hmac
import os
import re
from pathlib import Path

from dipp_ray.errors import UserError
from dipp_ray.serving.contract.records import TRAINER

VARIABLE = "DIPP_RAY_REWARD_TOKENS"
SHORTEST = 16  # characters


def trainer_of(token: str, digests: dict[str, str]) -> str | None:
    """Whose token it is, in a time that does not depend on how much of it is right; None for nobody's.

    digests: SHA-256 in hex of each token, to the trainer's name.
    """
    given, found = digest(token), None
    for known, name in digests.items():
        if hmac.compare_digest(given, known):
            found = name
    return found


def bearer(authorization: str) -> str:
    """The token of an Authorization header, empty where there is none."""
    scheme, _, token = authorization.partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def read_tokens(path: str | None) -> dict[str, str]:
    """{digest: trainer} of the file's lines `name:token`, and of DIPP_RAY_REWARD_TOKENS (several with commas between).

    Empty lines and lines that begin with # are left out. Raises UserError for a line that is none of this, and for a
    file without any; it never repeats a token.
    """
    entries = []
    if path is not None:
        try:
            lines = Path(path).read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not text"
            raise UserError(f"http.tokens: {path}: {reason}: give a file of name:token lines") from None
        entries += [(f"{path}, line {number}", line) for number, line in enumerate(lines, start=1)]
    given = os.environ.get(VARIABLE, "").split(",")
    entries += [(f"{VARIABLE}, entry {number}", entry) for number, entry in enumerate(given, start=1)]
    found: dict[str, str] = {}
    for where, entry in entries:
        entry = entry.strip()
        if not entry or entry.startswith("#"):
            continue
        name, colon, token = entry.partition(":")
        token = token.strip()
        if not colon or not re.fullmatch(TRAINER, name) or not re.fullmatch(r"[!-~]+", token):
            raise UserError(f"{where}: write name:token, a trainer's name and printable characters without spaces")
        if len(token) < SHORTEST:
            # Without the name: who writes token:name must not find the token in a log.
            raise UserError(f"{where}: the token is shorter than {SHORTEST} characters: make a longer one")
        if found.setdefault(digest(token), name) != name:
            raise UserError(f"{where}: the same token was given to another trainer before: make one for each")
    if path is not None and not found:  # a file that was emptied must not open the service
        raise UserError(f"http.tokens: {path} holds no token: write name:token lines, or leave http.tokens out")
    return found
