"""What a person writes for a model of the hub: `org/name`, `org/name@REVISION`, `org/name/lies/within@REVISION`."""

import re
from dataclasses import dataclass, replace
from pathlib import Path

LONGEST_PART = 96
PART = r"[A-Za-z0-9_](?:[\w.-]*[A-Za-z0-9_])?"  # of an id: it neither begins nor ends in '-' or '.'
ID = re.compile(rf"({PART}/{PART})((?:/[^/@]+)*)(?:@([\w][\w./-]*))?", re.ASCII)
COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class HubId:
    """repo: 'org/name'. inner: a file or folder within it, '' for all. revision: branch, tag or commit, or None."""

    repo: str
    inner: str = ""
    revision: str | None = None

    @property
    def commit(self) -> str | None:
        """The revision where it is a commit, which never moves."""
        return self.revision if self.revision and COMMIT.fullmatch(self.revision) else None

    def at(self, revision: str) -> "HubId":
        return replace(self, revision=revision)

    def is_same_but_revision(self, other: "HubId") -> bool:
        return (self.repo, self.inner) == (other.repo, other.inner)

    def __str__(self) -> str:
        within = f"{self.repo}/{self.inner}" if self.inner else self.repo
        return f"{within}@{self.revision}" if self.revision else within


def hub_id(given: str | Path, within: bool = False) -> HubId | None:
    """The id that is meant where no file or folder `given` exists here; None where that can only be a path.

    within: whether a file or folder of a repository may be named, and not a repository alone.
    """
    match = ID.fullmatch(str(given))
    if match is None:
        return None
    repo, inner, revision = match[1], match[2][1:], match[3]
    if "--" in repo or repo.endswith(".git") or max(map(len, repo.split("/"))) > LONGEST_PART:  # the hub's own rules
        return None
    if ".." in str(given):  # nor would the cache be left
        return None
    if inner and not within:
        return None
    return HubId(repo, inner, revision)
