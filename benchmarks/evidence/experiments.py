"""All experiments of the evidence: which cells they have, and who runs one.

Not in `__main__.py`: the processes that run cells don't know what is there.
"""

from __future__ import annotations

import resource
from typing import Any

from benchmarks.cells import Cell
from benchmarks.evidence import paper, protocol, signal_to_noise, simulators

ENVS = tuple(dict.fromkeys([*protocol.TASKS, *paper.PAPER_TASKS]))
OTHERS = {
    "table1": paper.table1_cells,
    "binnings": paper.binnings_cells,
    "simulators": simulators.cells_of,
    "signal": signal_to_noise.cells_of,
}
EXPERIMENTS = (*protocol.EXPERIMENTS, *OTHERS)


def cells_of(experiment: str, env: str, seeds: tuple[int, ...] | None) -> list[Cell]:
    """The cells of an experiment on one env; none if it isn't one of its tasks."""
    if experiment in OTHERS:
        return OTHERS[experiment](env, seeds)
    return protocol.cells_of(experiment, env, seeds) if env in protocol.TASKS else []


def run_cell(cell: Cell) -> dict[str, Any]:
    """Runs a cell with the library that it is of."""
    outcome = _run(cell)
    # Of the process, which runs no other cell, in bytes.
    outcome["peak_memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return outcome


def _run(cell: Cell) -> dict[str, Any]:
    # Imported here: Stable-Baselines3 is needed for its own cells only.
    if cell.experiment == simulators.EXPERIMENT:
        return simulators.run(cell)
    if cell.experiment == signal_to_noise.EXPERIMENT:
        return signal_to_noise.run(cell)
    if cell.contender == protocol.SB3_PPO:
        from benchmarks.evidence import sb3_runs

        return sb3_runs.run(cell)
    if cell.num_iterations:
        from benchmarks.evidence import paper_runs

        return paper_runs.run(cell)
    from benchmarks.evidence import rllib_runs

    return rllib_runs.run(cell)
