"""`docs/results/ppo.md`: what has been run, in tables and pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from benchmarks import reporting
from benchmarks.bootstrap import (
    Estimate,
    Scores,
    interquartile_mean,
    normalized,
    probability_of_improvement,
)
from benchmarks.cells import return_until
from benchmarks.evidence import costs
from benchmarks.evidence.protocol import (
    CONTENDERS,
    GPG,
    PPO_LAMBDA_1,
    RLLIB_PPO,
    SB3_PPO,
    TASKS,
    cells_of,
    contenders_of,
    seeds_of,
)
from benchmarks.evidence.published import CLEANRL_RETURNS, ZOO_RETURNS
from benchmarks.evidence.tables import (
    Result,
    Runs,
    at_the_end,
    curve_against,
    final,
    markdown,
    mean_at_the_end,
)

PAGE = reporting.DOCS / "results" / "ppo.md"
# Contenders that have all tasks.
EVERYWHERE = tuple(name for name in CONTENDERS if name != PPO_LAMBDA_1)
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


def at_equal_time(ours: list[Result], theirs: list[Result]) -> tuple[np.ndarray, np.ndarray]:
    """The returns of both when the one that is through first is through, in CPU time."""

    def mean_seconds(results: list[Result]) -> float:
        return float(np.mean([result["curve"]["cpu_seconds"][-1] for result in results]))

    seconds = min(mean_seconds(ours), mean_seconds(theirs))
    both = ([return_until(r, seconds) for r in results] for results in (ours, theirs))
    return np.array(next(both)), np.array(next(both))


def compare(runs: Runs, ours: str, theirs: str) -> dict[str, Estimate]:
    """How probable it is that ours is better, at equal env steps and at equal CPU time."""
    tasks = runs[ours].keys() & runs[theirs].keys()
    steps: tuple[dict[str, np.ndarray], ...] = ({}, {})
    time: tuple[dict[str, np.ndarray], ...] = ({}, {})
    for env in sorted(tasks):
        pair = runs[ours][env], runs[theirs][env]
        for scores, results in zip(steps, pair, strict=True):
            scores[env] = np.array([at_the_end(result) for result in results])
        for scores, values in zip(time, at_equal_time(*pair), strict=True):
            scores[env] = values
    return {
        "env steps": probability_of_improvement(*steps),
        "CPU time": probability_of_improvement(*time),
    }


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


def table_of_comparisons(runs: Runs) -> str:
    """Who is better over all tasks, as far as both have been run."""
    rows = []
    for theirs in (name for name in CONTENDERS if name != GPG):
        if runs[GPG].keys() & runs[theirs].keys():
            found = compare(runs, GPG, theirs)
            rows.append([theirs, _interval(found["env steps"]), _interval(found["CPU time"])])
    return markdown([f"`{GPG}` against", "at equal env steps", "at equal CPU time"], rows)


def table_of_interquartile_means(runs: Runs) -> str:
    """Over the tasks that all of `EVERYWHERE` have been run on; 1 is the best one's mean."""
    tasks = set.intersection(*(set(runs[name]) for name in EVERYWHERE))
    if not tasks:
        return "Not run on any task by all."
    worst = {env: _untrained(runs[GPG][env]) for env in tasks}
    best = {env: max(mean_at_the_end(runs[name][env]) for name in EVERYWHERE) for env in tasks}

    def scores(name: str) -> Scores:
        finals = {env: np.array([*map(at_the_end, runs[name][env])]) for env in sorted(tasks)}
        return normalized(finals, worst, best)

    rows = [[name, _interval(interquartile_mean(scores(name)))] for name in EVERYWHERE]
    return markdown(["contender", f"interquartile mean over {len(tasks)} tasks"], rows)


def table_of_losses(runs: Runs) -> str:
    """The tasks on which the mean of a PPO is above that of GPG as recommended."""
    if not runs[GPG]:
        return "Not run yet."
    rows = []
    for env in TASKS:
        own = runs[GPG].get(env)
        for name in (RLLIB_PPO, SB3_PPO):
            theirs = runs[name].get(env)
            if own and theirs and mean_at_the_end(theirs) > mean_at_the_end(own):
                rows.append([env, name, final(theirs), final(own)])
    return markdown(["task", "behind", "theirs", GPG], rows) if rows else "Nowhere so far."


def write() -> None:
    """Rewrites the tables of the page, and draws its pictures once there is something to draw."""
    runs = runs_of_ppo()
    tables: Mapping[str, Callable[[Runs], str]] = {
        "losses": table_of_losses,
        "returns": lambda runs: table_of_returns(runs, "sampled"),
        "greedy": lambda runs: table_of_returns(runs, "greedy"),
        "comparisons": table_of_comparisons,
        "means": table_of_interquartile_means,
        "published": table_of_published,
        "memory": costs.table_of_memory,
        "seconds": costs.table_of_seconds,
        "alone": lambda _: costs.table_of_time_alone(),
        "origins": costs.table_of_origins,
    }
    for name, table in tables.items():
        reporting.write_table(PAGE, name, table(runs))
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


def _untrained(results: list[Result]) -> float:
    # Of GPG's first groups: whole episodes, while PPO's first steps end short ones only, or none.
    return float(np.mean([result["curve"]["return"][0] for result in results]))


def _interval(estimate: Estimate) -> str:
    return f"{estimate.value:.2f} ({estimate.low:.2f} to {estimate.high:.2f})"
