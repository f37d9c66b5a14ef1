"""`docs/results/why.md`: what each step from PPO to GPG is worth, and why."""

from __future__ import annotations

from itertools import chain

import numpy as np

from benchmarks import reporting
from benchmarks.cells import Cell
from benchmarks.evidence import signal_to_noise
from benchmarks.evidence.protocol import (
    ADVANTAGES,
    GROUP_SIZES,
    GROUPS_TASKS,
    LADDER_TASKS,
    cells_of,
    ladder_of,
    seeds_of,
)
from benchmarks.evidence.tables import Result, curve_against, final
from benchmarks.reporting import markdown

PAGE = reporting.DOCS / "results" / "why.md"
SURVIVORS_AT = (0, 100, 200, 400, 800)


def write() -> None:
    """Rewrites the tables of the page, and draws its picture of whatever has been run."""
    reporting.write_table(PAGE, "ladder", table_of_the_ladder())
    reporting.write_table(PAGE, "groups", table_of_groups())
    reporting.write_table(PAGE, "signal", table_of_signal())
    reporting.write_table(PAGE, "survivors", table_of_survivors())
    panels = {
        env: {
            name: [curve_against(result, "steps") for result in results]
            for name, results in _results("ladder", env).items()
        }
        for env in LADDER_TASKS
    }
    panels = {env: lines for env, lines in panels.items() if any(lines.values())}
    reporting.draw(panels, "mean return", reporting.DOCS / "images" / "ladder")
    reporting.write_pictures(PAGE, {"ladder": "Mean return against env steps, rung by rung"})


def table_of_the_ladder() -> str:
    """A row per rung, a column per task."""
    found = {env: _results("ladder", env) for env in LADDER_TASKS}
    rungs = {env: ladder_of(env) for env in LADDER_TASKS}
    every = dict.fromkeys(rung for of_task in rungs.values() for rung in of_task)
    rows = [
        [
            rung,
            *(
                final(found[env].get(rungs[env][rung][0], [])) if rung in rungs[env] else ""
                for env in LADDER_TASKS
            ),
        ]
        for rung in every
    ]
    return markdown(["rung", *LADDER_TASKS], rows)


def table_of_groups() -> str:
    """A row per task and group size."""
    rows = []
    for env in GROUPS_TASKS:
        found = _results("groups", env, by_size=True)
        for n in GROUP_SIZES:
            pair = [results for name, results in found.items() if name.endswith(f" {n}")]
            shown = [(final(of), _updates(of)) for of in pair]
            rows.append([env, str(n), *chain.from_iterable(shown)])
    return markdown(["task", "N", "time bins", "updates", "ridge", "updates"], rows)


def table_of_signal() -> str:
    """Signal to noise, and the cosine to the gradient that isn't biased."""
    rows = []
    for env in LADDER_TASKS:
        for cell in signal_to_noise.cells_of(env):
            for point, steps in enumerate(_points(cell)):
                rows.append([env, f"{steps:,}", *_signals(cell, point)])
    return markdown(["task", "env steps", *ADVANTAGES], rows)


def table_of_survivors() -> str:
    """The share of episodes that go on after so many steps."""
    rows = []
    for env in LADDER_TASKS:
        for cell in signal_to_noise.cells_of(env):
            for point, steps in enumerate(_points(cell)):
                if cell.is_done:
                    lengths = np.array(cell.result()["points"][point]["lengths"])
                    shares = [f"{(lengths > t).mean():.2f}" for t in SURVIVORS_AT]
                else:
                    shares = ["not run"] * len(SURVIVORS_AT)
                rows.append([env, f"{steps:,}", *shares])
    return markdown(["task", "env steps", *(f"t = {t}" for t in SURVIVORS_AT)], rows)


def _points(cell: Cell) -> list[int]:
    number = signal_to_noise.POINTS
    return [point * cell.num_env_steps // (number - 1) for point in range(number)]


def _signals(cell: Cell, point: int) -> list[str]:
    if not cell.is_done:
        return ["not run"] * len(ADVANTAGES)
    estimates = cell.result()["points"][point]["estimates"]
    return [
        f"{estimates[name]['signal_to_noise']:.3f} ({estimates[name]['cosine']:.2f})"
        for name in ADVANTAGES
    ]


def _updates(results: list[Result]) -> str:
    """The mean number of updates."""
    return f"{np.mean([len(r['curve']['steps']) for r in results]):.0f}" if results else ""


def _results(experiment: str, env: str, by_size: bool = False) -> dict[str, list[Result]]:
    """Contender -> its cells that have been run."""
    found: dict[str, list[Result]] = {}
    for cell in cells_of(experiment, env, seeds_of(env)):
        name = f"{cell.contender} {cell.group_size}" if by_size else cell.contender
        found.setdefault(name, []).extend([cell.result()] if cell.is_done else [])
    return found
