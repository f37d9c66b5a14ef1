"""Every preset on the same envs, at the same env steps: what a method's settings are worth here.

::

    python -m benchmarks.methods status
    python -m benchmarks.methods run
    python -m benchmarks.methods report      # the tables and the picture of docs/methods.md

All have the same network, learning rate, group size and epochs, but for what a preset says itself;
nothing was tuned for any of them. What is compared is the mean return of the episodes that ended in
the last 10 % of the env steps. Needs the extra `examples`.
"""

from __future__ import annotations

import argparse
from typing import Any

import matplotlib
import numpy as np

from benchmarks.cells import Cell, last_return, run_all, status
from benchmarks.reporting import (
    COLOURS,
    DOCS,
    markdown,
    results_of,
    save,
    spread,
    write_table,
)
from benchmarks.training import EndedEpisodes, after, settings_of, train
from rllib_gpg import GPGConfig, presets

matplotlib.use("Agg")
import matplotlib.pyplot as plt

EXPERIMENT, SEEDS, GROUP_SIZE = "methods", (100, 101, 102), 16
TASKS = {"CartPole-v1": 100_000, "LunarLander-v3": 400_000}
COMMON: dict[str, Any] = {"lr": 1e-3, "gamma": 0.99, "group_size": GROUP_SIZE}
PRESETS = [name for name in vars(presets) if name.isupper() and not name.startswith("_")]
# Actions are discrete here; `benchmarks.evidence` has runs of it.
METHODS = [name for name in PRESETS if name != "RIDGE_CONTINUOUS"]


def config_of(cell: Cell) -> GPGConfig:
    """A preset, and what all have in common."""
    config = GPGConfig().environment(cell.env).training(**COMMON)
    config.training(**getattr(presets, cell.contender))
    config.env_runners(num_envs_per_env_runner=GROUP_SIZE).callbacks(EndedEpisodes)
    config.rl_module(model_config={"fcnet_hiddens": [64, 64]})
    return config.debugging(seed=cell.seed, log_level="ERROR", log_sys_usage=False)


def run_cell(cell: Cell) -> dict[str, Any]:
    """Trains; gives the settings and the learning curve."""
    config = config_of(cell)
    algo = config.build_algo()
    try:
        curve = train(algo, after(cell.num_env_steps))
    finally:
        algo.stop()
    return {"settings": settings_of(config), "curve": curve}


def cells(envs: list[str], methods: list[str], seeds: list[int]) -> list[Cell]:
    """Seed by seed, so that what is there at any time is the same of all."""
    return [
        Cell(EXPERIMENT, env, method, GROUP_SIZE, seed, TASKS[env])
        for seed in seeds
        for env in envs
        for method in methods
    ]


def table_of_settings() -> str:
    """What each preset sets that plain GPG doesn't."""

    def said(value: Any) -> str:
        return value.__name__ if isinstance(value, type) else repr(value).replace("'", '"')

    rows = []
    for name in PRESETS:
        preset = getattr(presets, name)
        differs = {key: value for key, value in preset.items() if value != presets.GPG[key]}
        words = (f"`{key}={said(value)}`" for key, value in differs.items())
        rows.append([f"`{name}`", ", ".join(words) or "nothing"])
    return markdown(["preset", "sets"], rows)


def report() -> None:
    """Writes the tables and draws the picture, of whatever has been run."""
    write_table(DOCS / "methods.md", "settings", table_of_settings())
    found = results_of(cells(list(TASKS), METHODS, list(SEEDS)))
    returns = {
        (method, env): [last_return(result) for result in found.get((env, GROUP_SIZE, method), [])]
        for method in METHODS
        for env in TASKS
    }
    rows = [[f"`{method}`", *(spread(returns[method, env]) for env in TASKS)] for method in METHODS]
    heads = [f"{env}, {steps:,} env steps" for env, steps in TASKS.items()]
    write_table(DOCS / "methods.md", "methods", markdown(["preset", *heads], rows))
    if not any(returns.values()):
        return
    figure, axes = plt.subplots(1, len(TASKS), figsize=(9.0, 4.0), sharey=True)
    at = np.arange(len(METHODS))[::-1]
    for axis, env in zip(axes, TASKS, strict=True):
        for y, method in zip(at, METHODS, strict=True):
            values = returns[method, env]
            axis.plot(values, [y] * len(values), ".", color=COLOURS[5], alpha=0.5)
            if values:
                axis.plot(np.mean(values), y, "D", color=COLOURS[0])
        axis.set_title(env, fontsize=10)
        axis.set_xlabel("mean return")
        axis.grid(alpha=0.3)
    axes[0].set_yticks(at, METHODS, fontsize=8)
    save(figure, DOCS / "images" / "methods")


def main() -> None:
    """Does what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["run", "status", "report"])
    parser.add_argument("--envs", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--jobs", type=int, default=2, help="cells at a time")
    arguments = parser.parse_args()
    asked = cells(arguments.envs, arguments.methods, arguments.seeds)
    if arguments.what == "run":
        run_all(asked, run_cell, arguments.jobs)
    elif arguments.what == "status":
        print(status(asked))
    else:
        report()


if __name__ == "__main__":
    main()
