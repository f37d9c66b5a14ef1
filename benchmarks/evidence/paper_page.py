"""`docs/results/paper.md`: the paper's table and figures beside ours."""

from __future__ import annotations

import numpy as np

from benchmarks import reporting
from benchmarks.bootstrap import mean_and_error
from benchmarks.cells import Cell, seeds_run
from benchmarks.evidence import simulators
from benchmarks.evidence.paper import (
    BINNING_NAMES,
    BINNINGS,
    BINNINGS_SEEDS,
    BINNINGS_TASK,
    PAPER_TASKS,
    PUBLISHED,
    TABLE,
    TABLE_GROUP_SIZES,
    TABLE_SEEDS,
    TIME,
    binnings_cells,
    table1_cells,
)
from benchmarks.evidence.protocol import RLLIB_PPO
from benchmarks.evidence.tables import Result, curve_against, final, mean_at_the_end
from benchmarks.reporting import Results, markdown, results_of

PAGE = reporting.DOCS / "results" / "paper.md"
PICTURES = {
    "paper_gpg": "GPG: mean return against iterations, Table 1 dashed (Figure 2)",
    "paper_ppo": "RLlib's PPO: mean return against iterations, Table 1 dashed (Figure 2)",
    "paper_env_steps": "GPG: mean return against env steps (Figure 3)",
    "paper_binnings": "Bins on LunarLander: mean return against iterations (Figure 4)",
}


def write() -> None:
    """Rewrites the tables of the page, and draws its pictures of whatever has been run."""
    table = results_of(
        cell for env in PAPER_TASKS for cell in table1_cells(env, _seeds(TABLE, env, TABLE_SEEDS))
    )
    binnings = results_of(
        binnings_cells(BINNINGS_TASK, _seeds(BINNINGS, BINNINGS_TASK, BINNINGS_SEEDS))
    )
    reporting.write_table(PAGE, "table1", table1(table))
    reporting.write_table(PAGE, "short", those_that_fall_short(table))
    reporting.write_table(PAGE, "binnings", table_of_binnings(binnings))
    reporting.write_table(PAGE, "simulators", table_of_simulators())
    _draw_curves(table)
    panels = {
        f"{n} episodes": {
            name: [curve_against(r, "updates") for r in binnings.get((BINNINGS_TASK, n, name), [])]
            for name in BINNING_NAMES
        }
        for n in TABLE_GROUP_SIZES
        if (BINNINGS_TASK, n, TIME) in binnings
    }
    path = reporting.DOCS / "images" / "paper_binnings"
    reporting.draw(panels, "mean return", path, xlabel="iterations", unit=1)
    reporting.write_pictures(PAGE, PICTURES)


def _seeds(experiment: str, env: str, planned: tuple[int, ...]) -> tuple[int, ...]:
    """Those of the protocol, and those that have been added."""
    return tuple(sorted({*planned} | seeds_run(experiment, env)))


def table1(results: Results) -> str:
    """A row per task and group size: the paper's figures and ours."""
    rows = []
    for env, by_size in PUBLISHED.items():
        digits = _digits(env)
        for n, (gpg, ppo) in by_size.items():
            ours, theirs = (results.get((env, n, name), []) for name in (TIME, RLLIB_PPO))
            rows.append(
                [
                    env,
                    str(n),
                    _published(gpg, digits),
                    final(ours, digits),
                    _published(ppo, digits),
                    final(theirs, digits),
                    f"{n * PAPER_TASKS[env].rollout_length:,}",
                    _steps_per_iteration(ours),
                ]
            )
    head = ["task", "N", "GPG, paper", "GPG, here", "PPO, paper", "RLlib's PPO"]
    return markdown([*head, "env steps, PPO", "env steps, GPG"], rows)


def those_that_fall_short(results: Results) -> str:
    """Cells whose mean is below the interval that the paper gives."""
    rows = []
    for env, by_size in PUBLISHED.items():
        for n, pair in by_size.items():
            for name, published in zip((TIME, RLLIB_PPO), pair, strict=True):
                ours, digits = results.get((env, n, name), []), _digits(env)
                if ours and mean_at_the_end(ours) < published[0] - published[1]:
                    who = "GPG" if name == TIME else "RLlib's PPO"
                    rows.append([env, str(n), who, _published(published, digits)])
                    rows[-1].append(final(ours, digits))
    head = ["task", "N", "method", "paper", "here"]
    return markdown(head, rows) if rows else "None of those that were run."


def table_of_binnings(results: Results) -> str:
    """A row per binning function, a column per group size."""
    sizes = sorted({cell.group_size for cell in binnings_cells(BINNINGS_TASK)})
    rows = [
        [name, *(final(results.get((BINNINGS_TASK, n, name), [])) for n in sizes)]
        for name in BINNING_NAMES
    ]
    return markdown(["bins", *(f"N {n}" for n in sizes)], rows)


def table_of_simulators() -> str:
    """How alike returns are in gymnasium and in EnvPool."""
    rows = []
    for env in PAPER_TASKS:
        for cell in simulators.cells_of(env):
            for policy in ("untrained", "trained"):
                rows.append([env, policy, *_compared(cell, policy)])
    return markdown(["task", "policy", "gymnasium", "EnvPool", "p"], rows)


def _compared(cell: Cell, policy: str) -> list[str]:
    if not cell.is_done:
        return ["not run"] * 3
    returns = cell.result()["returns"][policy]
    means = (mean_and_error(returns[name]) for name in ("gymnasium", "envpool"))
    shown = [f"{mean:.1f} ± {error:.1f}" for mean, error in means]
    return [*shown, f"{simulators.p_value(returns):.2f}"]


def _draw_curves(results: Results) -> None:
    def panels(name: str, axis: str) -> dict[str, dict[str, list[reporting.Curve]]]:
        return {
            env: {
                f"N {n}": [curve_against(r, axis) for r in results.get((env, n, name), [])]
                for n in TABLE_GROUP_SIZES
            }
            for env in PAPER_TASKS
            if any((env, n, name) in results for n in TABLE_GROUP_SIZES)
        }

    images = reporting.DOCS / "images"
    for which, name in enumerate((TIME, RLLIB_PPO)):
        levels = {
            env: {f"N {n}": figures[which][0] for n, figures in by_size.items()}
            for env, by_size in PUBLISHED.items()
        }
        path = images / f"paper_{'gpg' if name == TIME else 'ppo'}"
        reporting.draw(
            panels(name, "updates"), "mean return", path, xlabel="iterations", unit=1, levels=levels
        )
    path = images / "paper_env_steps"
    reporting.draw(
        panels(TIME, "steps"), "mean return", path, xlabel="env steps", unit=1, xscale="log"
    )


def _steps_per_iteration(results: list[Result]) -> str:
    curves = [result["curve"]["steps"] for result in results]
    return f"{np.mean([steps[-1] / len(steps) for steps in curves]):,.0f}" if curves else "not run"


def _digits(env: str) -> int:
    return 1 if env == "CliffWalking-v1" else 0


def _published(figures: tuple[float, float], digits: int) -> str:
    return f"{figures[0]:,.{digits}f} ± {figures[1]:,.{digits}f}"
