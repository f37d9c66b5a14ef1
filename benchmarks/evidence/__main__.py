"""Runs the evidence: `python -m benchmarks.evidence run ppo`, see docs/results/protocol.md."""

from __future__ import annotations

import argparse
from typing import Any

from benchmarks.cells import Cell, run_all, status
from benchmarks.evidence.protocol import EXPERIMENTS, SB3_PPO, TASKS, cells_of


def run_cell(cell: Cell) -> dict[str, Any]:
    """Runs a cell with the library that it is of."""
    # Here, so that no contender's process holds the other's libraries.
    if cell.contender == SB3_PPO:
        from benchmarks.evidence import sb3_runs

        return sb3_runs.run(cell)
    from benchmarks.evidence import rllib_runs

    return rllib_runs.run(cell)


def main() -> None:
    """Does what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evidence")
    parser.add_argument("what", choices=["run", "status", "report"])
    parser.add_argument("experiments", nargs="+", choices=EXPERIMENTS)
    parser.add_argument("--envs", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--seeds", nargs="+", type=int, help="others than the protocol's")
    parser.add_argument("--jobs", type=int, default=2, help="cells at a time")
    arguments = parser.parse_args()
    if arguments.what == "report":
        from benchmarks.evidence import report

        report.write(report.runs_of_ppo())
        return
    cells = [
        cell
        for experiment in arguments.experiments
        for env in arguments.envs
        for cell in cells_of(experiment, env, arguments.seeds and tuple(arguments.seeds))
    ]
    # Seed by seed, so that what is there at any time is the same of all.
    cells = sorted(dict.fromkeys(cells), key=lambda cell: cell.seed)
    if arguments.what == "run":
        run_all(cells, run_cell, arguments.jobs)
    else:
        print(status(cells))


if __name__ == "__main__":
    main()
