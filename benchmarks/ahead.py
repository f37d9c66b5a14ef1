"""What it costs to learn from the last policy's group, and what it gains: `sample_ahead`.

::

    python -m benchmarks.ahead status
    python -m benchmarks.ahead run
    python -m benchmarks.ahead report      # the table of docs/scaling.md

Two remote env runners sample, and this process learns: with `sample_ahead=1` at the same time. Both
have the same env steps; what is compared is the mean return of the episodes that ended in the last
10 % of them, and the time of an iteration. One cell runs at a time, and nothing else should. Needs
the extra `examples`.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

from benchmarks.cells import Cell, last_return, run_all, status
from benchmarks.reporting import DOCS, markdown, results_of, spread, write_table
from benchmarks.training import after, of_the_results, settings_of, train
from rllib_gpg import GPGConfig

EXPERIMENT, SEEDS = "ahead", (100, 101, 102)
CONTENDERS = {"in-turns": 0, "ahead": 1}
# Env, group size, env steps, whether actions are continuous.
TASKS: dict[str, tuple[int, int, bool]] = {
    "CartPole-v1": (32, 200_000, False),
    "LunarLander-v3": (32, 800_000, False),
    "Hopper-v5": (16, 300_000, True),
    "HalfCheetah-v5": (8, 400_000, True),
}


def config_of(cell: Cell) -> GPGConfig:
    """The settings of the tuned examples, or of those that are nearest."""
    group_size, _, is_continuous = TASKS[cell.env]
    config = (
        GPGConfig()
        .environment(cell.env)
        .env_runners(num_env_runners=2, num_envs_per_env_runner=4, episodes_per_share=4)
    )
    config.training(group_size=group_size, sample_ahead=CONTENDERS[cell.contender])
    model: dict[str, Any] = {"fcnet_hiddens": [64, 64]}
    if is_continuous:
        model |= {"free_log_std": True, "normalize_observations": True}
        config.training(lr=3e-4, num_epochs=10, minibatch_size=64, baseline="ridge", lambda_=0.98)
    config.rl_module(model_config=model)
    return config.debugging(seed=cell.seed, log_level="ERROR", log_sys_usage=False)


def run_cell(cell: Cell) -> dict[str, Any]:
    """Trains; gives the settings and the learning curve."""
    config = config_of(cell)
    algo = config.build_algo()
    try:
        curve = train(algo, after(cell.num_env_steps), of_the_results)
    finally:
        algo.stop()
    return {"settings": settings_of(config), "curve": curve}


def cells(envs: list[str], seeds: list[int]) -> list[Cell]:
    """Seed by seed, so that what is there at any time is the same of all."""
    return [
        Cell(EXPERIMENT, env, contender, TASKS[env][0], seed, TASKS[env][1])
        for seed in seeds
        for env in envs
        for contender in CONTENDERS
    ]


def report() -> None:
    """Writes the table, of whatever has been run."""
    found = results_of(cells(list(TASKS), list(SEEDS)))
    rows = []
    for env, (group_size, num_env_steps, _) in TASKS.items():
        of_env = [found.get((env, group_size, name), []) for name in CONTENDERS]
        returns, paces = (
            [spread([*map(value_of, results)]) for results in of_env]
            for value_of in (last_return, _pace)
        )
        rows.append([env, f"{group_size}", f"{num_env_steps:,}", *returns, *paces])
    heads = ["return, in turns", "return, ahead", "ms per iteration, in turns", "ms, ahead"]
    write_table(DOCS / "scaling.md", "ahead", markdown(["task", "N", "env steps", *heads], rows))


def _pace(result: dict[str, Any]) -> float:
    """The milliseconds of an iteration: the median, as the first ones have to warm up."""
    return float(np.median(np.diff(result["curve"]["seconds"]))) * 1e3


def main() -> None:
    """Does what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["run", "status", "report"])
    parser.add_argument("--envs", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    arguments = parser.parse_args()
    asked = cells(arguments.envs, arguments.seeds)
    if arguments.what == "run":
        run_all(asked, run_cell, jobs=1, num_cpus=3)
    elif arguments.what == "status":
        print(status(asked))
    else:
        report()


if __name__ == "__main__":
    main()
