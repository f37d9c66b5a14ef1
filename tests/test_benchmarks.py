"""Long experiments can be interrupted and go on; their reports come from what they left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import cells
from benchmarks.cells import Cell


@pytest.fixture(autouse=True)
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(cells, "RESULTS", tmp_path)
    return tmp_path


def cell(seed: int, contender: str = "bins") -> Cell:
    return Cell("experiment", "CartPole-v1", contender, 4, seed, 100)


def outcome(of: Cell) -> dict[str, Any]:
    """20 episodes, one per 5 env steps, each with its own number as return."""
    if of.contender == "broken":
        raise ZeroDivisionError
    steps = list(range(5, 105, 5))
    return {"curve": {"steps": steps, "return": list(range(20)), "episodes": [1] * 20}}


def test_a_cell_says_what_was_run_and_where() -> None:
    cells._run_one(cell(3), outcome)
    result = cell(3).result()
    assert Cell(**result["cell"]) == cell(3)
    assert result["where"]["versions"].keys() >= {"ray", "torch", "python"}
    assert result["cpu_seconds"] >= 0.0
    # The last 10 % of 100 env steps: the episodes that ended at 95 and 100, but not at 90.
    assert cells.last_return(result) == (18 + 19) / 2


def test_a_cell_that_fails_leaves_nothing() -> None:
    with pytest.raises(ZeroDivisionError):
        cells._run_one(cell(0, "broken"), outcome)
    assert not cell(0, "broken").is_done


@pytest.mark.slow
def test_what_is_there_is_skipped_and_what_fails_does_not_stop_the_rest(results: Path) -> None:
    """In processes of their own, which take their functions from this file."""
    cell(0).path.parent.mkdir(parents=True)
    cell(0).path.write_text(json.dumps({"cell": "from an earlier run", "cpu_seconds": 2.0}))
    # The folder is a setting of the module, which other processes don't have.
    ours = [Cell(str(results), *list(vars(c).values())[1:]) for c in map(cell, range(3))]
    ours[0].path.parent.mkdir(parents=True)
    ours[0].path.write_text(cell(0).path.read_text())
    broken = Cell(str(results), "CartPole-v1", "broken", 4, 0, 100)
    with pytest.raises(ZeroDivisionError):
        cells.run_all([broken, *ours], outcome, jobs=2)
    assert ours[0].result()["cell"] == "from an earlier run"
    assert ours[1].is_done and ours[2].is_done and not broken.is_done


def test_the_status_counts_what_is_missing() -> None:
    cells._run_one(cell(0), lambda of: {**outcome(of), "cpu_seconds": 0.0})
    text = cells.status([cell(0), cell(1)])
    assert "CartPole-v1" in text and "1 of    2 done" in text
