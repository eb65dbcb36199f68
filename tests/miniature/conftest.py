import pytest
from miniature_worlds import TINY, silent

from dipp_ray.miniature.build import Miniature, build_miniature


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> Miniature:
    """A whole miniature by the recipe TINY."""
    return build_miniature(tmp_path_factory.mktemp("world"), silent, TINY)
