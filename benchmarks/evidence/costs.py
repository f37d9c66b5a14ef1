"""What runs cost, and what they were run on: time, memory, commits."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain

import numpy as np

from benchmarks.evidence.protocol import ALONE_TASKS, CONTENDERS, FOLDER, TASKS, cells_of
from benchmarks.evidence.tables import Runs
from benchmarks.origins import origins
from benchmarks.reporting import markdown, spread


def table_of_seconds(runs: Runs) -> str:
    """CPU seconds of a run, a row per task; and the least share of the clock that runs have had."""
    rows, least = [], [1.0] * len(CONTENDERS)
    for env in TASKS:
        row = [env]
        for number, name in enumerate(CONTENDERS):
            curves = [result["curve"] for result in runs[name].get(env, [])]
            row.append(spread([curve["cpu_seconds"][-1] for curve in curves]))
            shares = [curve["cpu_seconds"][-1] / curve["seconds"][-1] for curve in curves]
            least[number] = min([least[number], *shares])
        rows.append(row)
    shares = [f"{share:.2f}" if runs[n] else "" for n, share in zip(CONTENDERS, least, strict=True)]
    return markdown(["task", *CONTENDERS], [*rows, ["of the clock, at least", *shares]])


def table_of_memory(runs: Runs) -> str:
    """What a contender's process has held at most, in MiB."""
    rows = [
        [
            env,
            *(
                spread([r["peak_memory"] / 2**20 for r in runs[name].get(env, [])])
                for name in CONTENDERS
            ),
        ]
        for env in TASKS
    ]
    return markdown(["task", *CONTENDERS], rows)


def table_of_time_alone() -> str:
    """Seconds for the same env steps with the same seed: beside another cell, and alone."""
    rows = []
    for env in ALONE_TASKS:
        for cell in cells_of("alone", env):
            beside = replace(cell, experiment=FOLDER, num_env_steps=TASKS[env].num_env_steps)
            times = ["not run"] * 3
            if cell.is_done and beside.is_done:
                alone, other = cell.result()["curve"], beside.result()["curve"]
                steps = alone["steps"][-1]
                cpu = float(np.interp(steps, other["steps"], other["cpu_seconds"]))
                times = [f"{t:.0f}" for t in (cpu, alone["cpu_seconds"][-1], alone["seconds"][-1])]
            rows.append([env, cell.contender, *times])
    head = ["task", "contender", "CPU s beside another", "CPU s alone", "s by the clock alone"]
    return markdown(head, rows)


def table_of_origins(runs: Runs) -> str:
    """At which commits each contender was run."""
    rows = [
        [name, origins(chain.from_iterable(of_tasks.values())) or "not run"]
        for name, of_tasks in runs.items()
    ]
    return markdown(["contender", "commit: runs"], rows)
