"""Whether EnvPool's envs are gymnasium's: the returns of the same policies in both.

The paper's experiments take up to 26 million env steps, which EnvPool simulates several times
faster. It is used where a Kolmogorov-Smirnov test of two samples of returns sees no difference,
with an untrained policy and with one that has learned.
"""

from __future__ import annotations

from typing import Any

from scipy.stats import ks_2samp

from benchmarks.cells import Cell
from benchmarks.evidence.paper import PAPER_TASKS

EXPERIMENT = "simulators"
ITERATIONS, GROUP_SIZE, EPISODES = 40, 16, 400
SEED = 100


def cells_of(env: str, seeds: tuple[int, ...] | None = None) -> list[Cell]:
    """One on each task of the paper's that EnvPool would simulate."""
    task = PAPER_TASKS.get(env)
    if task is None or not task.on_envpool:
        return []
    steps = GROUP_SIZE * task.episode_length * ITERATIONS
    return [
        Cell(EXPERIMENT, env, "time", GROUP_SIZE, seed, steps, ITERATIONS)
        for seed in seeds or (SEED,)
    ]


def run(cell: Cell) -> dict[str, Any]:
    """Trains in EnvPool; gives the returns in both simulators, before and after."""
    from benchmarks.evidence.paper_runs import config_of
    from benchmarks.evidence.rllib_runs import returns_of
    from benchmarks.training import after_iterations, settings_of, train

    config = config_of(cell)
    config.debugging(seed=cell.seed, log_level="ERROR", log_sys_usage=False)
    algo = config.build_algo()

    def in_both() -> dict[str, list[float]]:
        where = {"gymnasium": (cell.env, "sync"), "envpool": (config.env, "vector_entry_point")}
        return {
            name: returns_of(algo, env, 1, True, number=EPISODES, vectorize=vectorize)
            for name, (env, vectorize) in where.items()
        }

    try:
        untrained = in_both()
        curve = train(algo, after_iterations(cell.num_iterations))
        returns = {"untrained": untrained, "trained": in_both()}
    finally:
        algo.stop()
    return {"settings": settings_of(config), "curve": curve, "returns": returns}


def p_value(returns: dict[str, list[float]]) -> float:
    """How probable so large a difference is if the simulators don't differ."""
    return float(ks_2samp(returns["gymnasium"], returns["envpool"]).pvalue)
