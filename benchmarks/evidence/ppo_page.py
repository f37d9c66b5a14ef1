"""`docs/results/ppo.md`: what has been run, in tables and pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from benchmarks import reporting
from benchmarks.evidence import costs, over_tasks
from benchmarks.evidence.protocol import (
    CONTENDERS,
    GPG,
    RLLIB_PPO,
    SB3_PPO,
    TASKS,
    cells_of,
    contenders_of,
    seeds_of,
)
from benchmarks.evidence.published import CLEANRL_RETURNS, ZOO_RETURNS
from benchmarks.evidence.tables import Runs, at_the_end, curve_against, final
from benchmarks.reporting import markdown, spread

PAGE = reporting.DOCS / "results" / "ppo.md"
README = reporting.DOCS.parent / "README.md"
HOW = ("sampled", "greedy")
PICTURES = {
    "ppo_steps": "Mean return against env steps",
    "ppo_cpu_seconds": "Mean return against CPU seconds",
    "ppo_updates": "Mean return against updates",
}


def runs_of_ppo() -> Runs:
    """What has been run of the experiment `ppo`, under the contenders' names."""
    runs: Runs = {name: {} for name in CONTENDERS}
    for env in TASKS:
        names = {pair: name for name, pair in contenders_of(env).items()}
        for cell in cells_of("ppo", env, seeds_of(env)):
            if cell.is_done:
                name = names[cell.contender, cell.group_size]
                runs[name].setdefault(env, []).append(cell.result())
    return runs


def table_of_returns(runs: Runs, how: str) -> str:
    """Final returns with actions `sampled` or `greedy`, a row per task."""
    rows = [
        [
            env,
            f"{task.num_env_steps:,}",
            *(final(runs[name].get(env, []), how=how) for name in CONTENDERS),
        ]
        for env, task in TASKS.items()
    ]
    return markdown(["task", "env steps", *CONTENDERS], rows)


def table_of_published(runs: Runs) -> str:
    """What others report of PPO with the same settings, beside ours."""
    rows = []
    for env in TASKS:
        row = [env]
        for name, how, published in (
            (SB3_PPO, "greedy", ZOO_RETURNS),
            (RLLIB_PPO, "sampled", CLEANRL_RETURNS),
        ):
            theirs = published.get(env)
            row += [
                "none" if theirs is None else f"{theirs:,.0f}",
                final(runs[name].get(env, []), how=how),
            ]
        rows.append(row)
    return markdown(["task", "the Zoo", f"`{SB3_PPO}`", "CleanRL", f"`{RLLIB_PPO}`"], rows)


def table_of_losses(runs: Runs) -> str:
    """Where the mean of a PPO is above that of GPG as recommended, in one way or another."""
    if not runs[GPG]:
        return "Not run yet."
    rows = []
    pairs = {name: over_tasks.pairs_of(runs, name, GPG) for name in (RLLIB_PPO, SB3_PPO)}
    for env in TASKS:
        for name in (name for name in pairs if env in pairs[name]):
            both = pairs[name][env]
            ways = [
                *([[at_the_end(r, how) for r in of] for of in both] for how in HOW),
                [values.tolist() for values in over_tasks.at_equal_time(*both)],
            ]
            if any(np.mean(other) > np.mean(mine) for other, mine in ways):
                rows.append([env, name, *(f"{spread(a)} / {spread(b)}" for a, b in ways)])
    head = ["at equal env steps", "with the likeliest actions", "at equal CPU time"]
    return markdown(["task", "PPO", *head], rows) if rows else "Nowhere so far."


def table_in_short(runs: Runs) -> str:
    """RLlib's PPO and GPG as recommended, on the seeds that both have; the better mean is bold."""
    pairs = over_tasks.pairs_of(runs, GPG, RLLIB_PPO)
    if not pairs:
        return "Not run yet."
    rows = []
    for env, (ours, theirs) in pairs.items():
        row = [env]
        at_the_same_steps = ([at_the_end(r) for r in of] for of in (theirs, ours))
        at_the_same_time = (values.tolist() for values in over_tasks.at_equal_time(theirs, ours))
        for ppo, gpg in (at_the_same_steps, at_the_same_time):
            better = np.argmax([np.mean(ppo), np.mean(gpg)])
            row += [
                f"**{spread(of)}**" if at == better else spread(of)
                for at, of in enumerate((ppo, gpg))
            ]
        rows.append(row)
    found = over_tasks.compare(pairs)
    by_steps, by_time = (f"{found[how].value:.2f}" for how in ("sampled", "CPU time"))
    rows.append(["*probability that GPG is better*", "", by_steps, "", by_time])
    head = ["", "PPO, same env steps", "GPG", "PPO, same CPU time", "GPG"]
    return markdown(head, rows)


def write() -> None:
    """Rewrites the tables of the page, and draws its pictures once there is something to draw."""
    runs = runs_of_ppo()
    tables: Mapping[str, Callable[[Runs], str]] = {
        "losses": table_of_losses,
        "returns": lambda runs: table_of_returns(runs, "sampled"),
        "greedy": lambda runs: table_of_returns(runs, "greedy"),
        "comparisons": over_tasks.table_of_comparisons,
        "means": over_tasks.table_of_means,
        "published": table_of_published,
        "memory": costs.table_of_memory,
        "seconds": costs.table_of_seconds,
        "alone": lambda _: costs.table_of_time_alone(),
        "origins": costs.table_of_origins,
    }
    for name, table in tables.items():
        reporting.write_table(PAGE, name, table(runs))
    reporting.write_table(README, "evidence", table_in_short(runs))
    for axis in ("steps", "cpu_seconds", "updates"):
        panels = {
            env: {
                name: [curve_against(r, axis) for r in runs[name].get(env, [])]
                for name in CONTENDERS
            }
            for env in TASKS
            if any(env in of_tasks for of_tasks in runs.values())
        }
        label = {"steps": "env steps (thousands)", "cpu_seconds": "CPU seconds"}.get(axis, axis)
        path = reporting.DOCS / "images" / f"ppo_{axis}"
        reporting.draw(
            panels, "mean return", path, xlabel=label, unit=1e3 if axis == "steps" else 1
        )
    reporting.write_pictures(PAGE, PICTURES)
    over_tasks.draw(runs)
