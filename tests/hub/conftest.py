"""A hub on loopback and an empty cache, which `huggingface_hub` and everything above it use in this process."""

import pytest
from fake_hub import FakeHub

from dipp_ray.hub import revisions


@pytest.fixture
def hub(tmp_path, monkeypatch):
    served = FakeHub()
    use(monkeypatch, served.url, tmp_path / "cache")
    yield served
    served.close()


@pytest.fixture
def offline(monkeypatch):
    """A function that sets HF_HUB_OFFLINE from now on, as in a process that was started so."""

    def set_offline():
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        revisions._commit_of.cache_clear()

    return set_offline


def use(monkeypatch, url: str, cache) -> None:
    """The library reads the environment once, when it is imported: so its constants are set themselves."""
    constants = {
        "ENDPOINT": url,
        "HUGGINGFACE_CO_URL_TEMPLATE": url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(cache),
        "HF_TOKEN_PATH": str(cache / "token"),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
    }
    for name, value in constants.items():
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(revisions, "_pinned_alone", False)  # another test may have been an actor here
    revisions._commit_of.cache_clear()
