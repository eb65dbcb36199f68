import time

import pytest

from dipp_ray.errors import UserError
from dipp_ray.reporting import waiting


def test_a_wait_is_shown_with_its_detail_and_bounded(monkeypatch, capsys):
    monkeypatch.setattr(waiting, "QUIET", 0.05)
    monkeypatch.setattr(waiting, "PLAIN_EVERY", 0.05)
    with waiting.waiting("4 GPUs", limit_s=60) as detail:
        detail("the cluster has 2")
        time.sleep(0.2)  # blocked: the line still comes
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) >= 2 and set(lines) == {"waiting for 4 GPUs, 0 s so far (the cluster has 2)"}
    with (
        pytest.raises(UserError, match="waiting for 4 GPUs: the cluster has 2"),
        waiting.waiting("4 GPUs", limit_s=0) as detail,
    ):
        time.sleep(0.01)
        detail("the cluster has 2")


def test_a_short_wait_is_silent(capsys):
    with waiting.waiting("nothing"):
        pass
    assert capsys.readouterr().out == ""
