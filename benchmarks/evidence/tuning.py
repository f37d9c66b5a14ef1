"""What tuning has found: the candidates' returns, and which of them GPG's settings are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks.cells import last_return
from benchmarks.evidence.protocol import CANDIDATES, GPG, GPG_PAPER, TASKS, cells_of
from benchmarks.evidence.tables import markdown, spread

PAPERS = tuple(pair for pair in CANDIDATES if pair[0] == "time")
RECOMMENDED = tuple(pair for pair in CANDIDATES if pair[0] != "time")


def returns_of(env: str) -> dict[tuple[str, int], list[float]]:
    """Candidate -> the last returns of its runs, seed by seed, as far as they have been run."""
    found: dict[tuple[str, int], list[float]] = {pair: [] for pair in CANDIDATES}
    for cell in cells_of("tuning", env):
        if cell.is_done:
            found[cell.contender, cell.group_size].append(last_return(cell.result()))
    return found


def best(env: str, among: Sequence[tuple[str, int]]) -> tuple[str, int] | None:
    """The candidate with the highest mean; None before all seeds of all have been run."""
    number = len(cells_of("tuning", env)) // len(CANDIDATES)
    returns = {pair: values for pair, values in returns_of(env).items() if pair in among}
    if any(len(values) < number for values in returns.values()):
        return None
    return max(returns, key=lambda pair: float(np.mean(returns[pair])))


def table() -> str:
    """A row per task: all candidates, and the two that are best."""
    rows = [
        [
            env,
            *(spread(values) for values in returns_of(env).values()),
            *(_name(best(env, among)) for among in (PAPERS, RECOMMENDED)),
        ]
        for env in TASKS
    ]
    names = [_name(pair) for pair in CANDIDATES]
    return markdown(["task", *names, f"`{GPG_PAPER}`", f"`{GPG}`"], rows)


def _name(pair: tuple[str, int] | None) -> str:
    return f"{pair[0]}, N {pair[1]}" if pair else "not chosen"
