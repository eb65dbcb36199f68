"""What happened to a run beside its steps: written, read, and seen in the report."""

import re

from dipp_ray.reporting.events import read_events, record_event
from dipp_ray.reporting.metrics import MetricsLog
from dipp_ray.reporting.report import write_report


def test_events_are_read_as_they_were_written_and_a_half_written_one_is_left_out(tmp_path):
    assert read_events(tmp_path) == []
    record_event(tmp_path, "fault", 7, "generator rank 1 died")
    record_event(tmp_path, "recovered", 6, "2 steps lost", steps_lost=2, seconds=3.5)
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write('{"time": 1')
    fault, recovered = read_events(tmp_path)
    assert (fault["event"], fault["step"], fault["reason"]) == ("fault", 7, "generator rank 1 died")
    assert recovered["steps_lost"] == 2 and recovered["time"] >= fault["time"]


def test_a_folder_that_is_gone_ends_nothing(tmp_path):
    record_event(tmp_path / "gone", "fault", 1, "lost")


def test_the_report_shows_faults_with_their_reason_and_on_the_curve(tmp_path):
    with MetricsLog(tmp_path) as metrics:
        for step in range(1, 9):
            metrics.write(step, {"images_per_second": 10.0 + step, "score_loss": 1.0 / step, "reward": 0.1 * step})
    before = write_report(tmp_path).read_text()
    record_event(tmp_path, "lost node", 5, "score rank <0> died")
    page = write_report(tmp_path).read_text()
    assert "What happened" not in before
    assert "step 5: lost node, score rank &lt;0&gt; died" in page
    assert page.count("lost node") > 1, "on the curve of the speed too"
    figures = re.findall(r'<figure class="chart">.*?</figure>', page, re.S)
    assert len(figures) == 3 and all('<path class="mark"' in figure for figure in figures), "on each chart's steps"
    assert '<path class="mark"' not in before
