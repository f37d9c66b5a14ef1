"""Runs the evidence: `python -m benchmarks.evidence run ppo`, see docs/results/protocol.md."""

from __future__ import annotations

import argparse
import resource
from typing import Any

from benchmarks.cells import Cell, run_all, status
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


def main() -> None:
    """Does what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evidence")
    parser.add_argument("what", choices=["run", "status", "report"])
    # A default that is a list isn't taken with choices.
    parser.add_argument("experiments", nargs="*", choices=(*EXPERIMENTS, "all"), default="all")
    parser.add_argument("--envs", nargs="+", choices=ENVS, default=list(ENVS))
    parser.add_argument("--group-sizes", nargs="+", type=int, help="only those; PPO has 0")
    parser.add_argument("--seeds", nargs="+", type=int, help="others than the protocol's")
    parser.add_argument("--jobs", type=int, default=2, help="cells at a time")
    arguments = parser.parse_args()
    if arguments.what == "report":
        from benchmarks.evidence import paper_page, ppo_page, why_page

        for page in (ppo_page, paper_page, why_page):
            page.write()
        return
    seeds = arguments.seeds and tuple(arguments.seeds)
    experiments = EXPERIMENTS if "all" in arguments.experiments else arguments.experiments
    cells = [
        cell
        for experiment in experiments
        for env in arguments.envs
        for cell in cells_of(experiment, env, seeds)
        if cell.group_size in (arguments.group_sizes or [cell.group_size])
    ]
    # Seed by seed, so that what is there at any time is the same of all.
    cells = sorted(dict.fromkeys(cells), key=lambda cell: cell.seed)
    if arguments.what == "run":
        alone = [cell for cell in cells if cell.experiment == protocol.FOLDERS["alone"]]
        others = [cell for cell in cells if cell not in alone]
        for some, jobs in ((others, arguments.jobs), (alone, 1)):
            run_all(some, run_cell, jobs, cells_per_process=1)
    else:
        print(status(cells))


if __name__ == "__main__":
    main()
