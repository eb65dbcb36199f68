"""The keys of a JSON record, looked at before anything is made of it: bounded in number, and each given once."""

from pydantic_core import from_json

from dipp_ray.errors import CallError
from dipp_ray.serving.contract.failures import WireError

STRUCTURE = b"{}:"
NOISE = bytes(set(range(256)) - set(STRUCTURE))


def check_keys(text: bytes, most: int) -> None:
    """Raise CallError where the record has more than `most` texts, keys and objects, or names one thing twice.

    Parsers keep the last of two. What is no JSON at all is left to them. No Python loop runs over characters but over
    quotes, for a picture is one text of millions.
    """
    objects: list[set[str]] = []  # the keys of each object that is open
    count, parts, within = 0, [], False
    for piece in text.split(b'"'):
        if within:
            parts.append(piece)
            within = (len(piece) - len(piece.rstrip(b"\\"))) % 2 == 1  # the quote behind it belongs to the text
            continue
        structure = piece.translate(None, NOISE)
        count += 1 + len(structure)
        if count > most:
            raise CallError("the record holds more values than any call")
        if parts and objects and structure.startswith(b":"):
            key = _text(b'"' + b'"'.join(parts) + b'"')
            if key in objects[-1]:
                raise CallError(f"the key {ascii(key)[:64]} is given twice: give it once")
            objects[-1].add(key)
        for mark in structure:
            if mark == ord("{"):
                objects.append(set())
            elif mark == ord("}") and objects:
                objects.pop()
        parts, within = [], True


def _text(quoted: bytes) -> str:
    """What a string of JSON says. Raises WireError where it is none."""
    try:
        return from_json(quoted)
    except ValueError:
        raise WireError("the record is no JSON") from None
