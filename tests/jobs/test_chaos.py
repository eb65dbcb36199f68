"""What chaos takes up, and how it is told; a run of it is slow."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

JOBS = Path(__file__).parents[2] / "jobs"


@pytest.fixture
def cells(script):
    return script("chaos_cells")


@pytest.fixture
def table(script):
    return script("chaos_table")


def test_every_cell_is_in_one_run_whatever_the_seed(cells):
    assert len({cell.name for cell in cells.CELLS}) == len(cells.CELLS)
    for seed in (0, 1):
        runs = cells.chaos_runs(cells.CELLS, seed)
        taken = [cell for run in runs for cell in run.cells]
        assert sorted(cell.name for cell in taken) == sorted(cell.name for cell in cells.CELLS)
        assert len({run.name for run in runs}) == len(runs)
        assert all({(cell.kind, cell.zero) for cell in run.cells} == {(run.kind, run.zero)} for run in runs)
    (missing,) = [cell for cell in cells.CELLS if (cell.how, cell.zero) == ("drain", 2)]
    (run,) = cells.chaos_runs([missing], 1)
    assert [cell.how for cell in run.cells] == ["node", "back", "drain", "back"], "a drain needs the sizes before it"
    again = cells.chaos_runs(cells.CELLS, 1)
    assert again == runs and again != cells.chaos_runs(cells.CELLS, 0)


def test_every_victim_meets_every_phase_at_both_stages(cells):
    found = {(cell.victim, cell.phase, cell.zero) for cell in cells.CELLS if cell.how == "kill"}
    for zero in (2, 3):
        assert {(rank, phase, zero) for rank in cells.RANKS for phase in cells.PHASES} <= found
        assert {(victim, phase, zero) for victim in cells.STATELESS for phase in cells.EVERYWHERE} <= found
        sizes = [cell.how for cell in cells.CELLS if cell.kind == "sizes" and cell.zero == zero]
        assert sizes == ["node", "back", "drain", "back"], "each gives the next one what it needs"


def row_of(**changes):
    difference = {"weights": 0.0, "x0": 0.0, "loss": 0.0, "different_at": None}
    return {
        "cell": "kill-score-train-zero2", "seed": 1, "run": "r", "step": 5, "steps": 40, "seconds": 9.5,
        "recoveries": 1, "steps_lost": 1, "parts": {"seen": 0.5, "step": 2.0}, "same_until_next": True,
        "ended": None, "left": [], "bound": 0.0, "run_seconds": 100.0, "load": 3.0,
        "difference": difference, "good": True,
    } | changes  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "good"),
    [
        ({}, True),
        ({"seconds": None}, False),
        ({"ended": "RoleFailure: x"}, False),
        ({"left": ["Keeper"]}, False),
        ({"left_stopped": 1}, False),
        ({"fault": "not struck"}, False),
        ({"difference": {"weights": 1e-9, "x0": 0, "loss": 0, "different_at": None}}, False),
        ({"difference": {"weights": 0.0, "x0": 0, "loss": 0, "different_at": 7}}, False),
        ({"bound": 1e-2, "difference": {"weights": 1.0, "x0": 1e-3, "loss": 1e-3, "different_at": 7}}, True),
        ({"bound": 1e-2, "difference": {"weights": 1.0, "x0": 2e-2, "loss": 1e-3, "different_at": 7}}, False),
        ({"bound": 1e-2, "difference": {"weights": 1.0, "x0": 1e-3, "loss": 2e-2, "different_at": 7}}, False),
    ],
)
def test_an_outcome_is_good_only_where_all_of_it_is(table, changes, good):
    assert table.is_good(row_of(**changes)) is good


def test_the_page_keeps_its_text_and_shows_the_last_good_outcome_of_a_cell(table):
    rows = [row_of(good=False, run="old"), row_of(seconds=7.5, run="new"), row_of(good=False, run="newer")]
    page = table.as_page(rows, "# Title\n\nText.\n\n## Figures\n\nold ones")
    assert page.startswith("# Title\n\nText.\n\n## Figures\n\n1 faults, 1 as they should be; of 1 with a recovery")
    assert page.count("kill-score-train-zero2") == 1 and "| 7.5 | seen 0.5, step 2.0 |" in page
    assert "old ones" not in page
    assert "no |" in table.as_page([row_of(same_until_next=False)], "")


@pytest.mark.slow
def test_a_few_faults_and_the_weights_are_the_undisturbed_runs(tmp_path):
    words = ["--seed", "3", "--zero", "2", "--only", "backward-zero2", "--kind", "same", "--out", str(tmp_path)]
    words += ["--figures", str(tmp_path / "table.jsonl")]
    done = subprocess.run([sys.executable, JOBS / "chaos.py", *words], capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-3000:]
    rows = [json.loads(line) for line in (tmp_path / "table.jsonl").read_text().splitlines()]
    assert len(rows) > 2 and all(row["good"] for row in rows)
