"""Runs the evidence: `python -m benchmarks.evidence run ppo`, see docs/results/protocol.md."""

from __future__ import annotations

import argparse

from benchmarks.cells import run_all, status
from benchmarks.evidence import protocol
from benchmarks.evidence.experiments import ENVS, EXPERIMENTS, cells_of, run_cell


def main() -> None:
    """Does what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evidence")
    parser.add_argument("what", choices=["run", "status", "report"])
    # A default that is a list isn't taken with choices.
    parser.add_argument("experiments", nargs="*", choices=(*EXPERIMENTS, "all"), default="all")
    parser.add_argument("--envs", nargs="+", choices=ENVS, default=list(ENVS))
    parser.add_argument("--group-sizes", nargs="+", type=int, help="only those; PPO has 0")
    parser.add_argument("--contenders", nargs="+", help="only those, by their files' names")
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
        and cell.contender in (arguments.contenders or [cell.contender])
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
