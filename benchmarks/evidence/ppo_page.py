"""`docs/results/ppo.md`: what has been run, in tables and pictures."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

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
    GPG_PAPER,
    HELD_OUT,
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
    spread,
)

PAGE = reporting.DOCS / "results" / "ppo.md"
HOW = ("sampled", "greedy")
# Fewer runs on a task say nothing of how they vary.
MIN_SEEDS = 3
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
    """The returns of both when the one that is through first is through, in CPU time.

    All runs of that one are whole; the other's are cut at its mean time.
    """

    def mean_seconds(results: list[Result]) -> float:
        return float(np.mean([result["curve"]["cpu_seconds"][-1] for result in results]))

    def returns(results: list[Result], seconds: float) -> np.ndarray:
        limit = seconds if mean_seconds(results) > seconds else math.inf
        return np.array([return_until(result, limit) for result in results])

    seconds = min(mean_seconds(ours), mean_seconds(theirs))
    return returns(ours, seconds), returns(theirs, seconds)


def compare(runs: Runs, tasks: Sequence[str], ours: str, theirs: str) -> dict[str, Estimate]:
    """How probable it is that ours is better, at equal env steps and at equal CPU time."""
    pairs = {env: (runs[ours][env], runs[theirs][env]) for env in tasks}

    def at_equal_steps(how: str) -> Estimate:
        both = (
            {env: np.array([at_the_end(r, how) for r in pair[i]]) for env, pair in pairs.items()}
            for i in (0, 1)
        )
        return probability_of_improvement(*both)

    times = {env: at_equal_time(*pair) for env, pair in pairs.items()}
    by_time = ({env: values[i] for env, values in times.items()} for i in (0, 1))
    return {
        "sampled": at_equal_steps("sampled"),
        "greedy": at_equal_steps("greedy"),
        "CPU time": probability_of_improvement(*by_time),
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
    """Who is better over tasks, as far as both have been run: all, and those not chosen by."""
    rows = []
    for theirs in (name for name in CONTENDERS if name != GPG):
        for which, among in (("all", tuple(TASKS)), ("held out", HELD_OUT)):
            tasks = [env for env in among if env in runs[GPG] and env in runs[theirs]]
            if tasks:
                found = compare(runs, tasks, GPG, theirs)
                seeds = min(len(runs[name][env]) for name in (GPG, theirs) for env in tasks)
                shown = [_interval(estimate, seeds) for estimate in found.values()]
                rows.append([theirs, f"{which}: {len(tasks)}", *shown])
    head = ["at equal env steps", "with the likeliest actions", "at equal CPU time"]
    return markdown([f"`{GPG}` against", "tasks", *head], rows)


def table_of_interquartile_means(runs: Runs) -> str:
    """Over tasks and seeds that all of `EVERYWHERE` have been run on; 1 is the best one's mean."""
    tasks = sorted(set.intersection(*(set(runs[name]) for name in EVERYWHERE)))
    seeds = common_seeds([runs[name][env] for name in EVERYWHERE for env in tasks])
    if not seeds:
        return "Not run on any task by all."
    alike = {
        name: {env: [r for r in runs[name][env] if seed_of(r) in seeds] for env in tasks}
        for name in EVERYWHERE
    }
    worst = {env: _untrained(alike[GPG_PAPER][env]) for env in tasks}

    def scores(name: str, how: str) -> Scores:
        best = {
            env: max(mean_at_the_end(alike[other][env], how) for other in EVERYWHERE)
            for env in tasks
        }
        finals = {env: np.array([at_the_end(r, how) for r in alike[name][env]]) for env in tasks}
        return normalized(finals, worst, best)

    rows = [
        [
            name,
            *(
                _interval(interquartile_mean(scores(name, how)), len(seeds))
                for how in ("sampled", "greedy")
            ),
        ]
        for name in EVERYWHERE
    ]
    of = f"{_count(len(tasks), 'task')}, {_count(len(seeds), 'seed')}"
    return markdown(["contender", of, "with the likeliest actions"], rows)


def table_of_losses(runs: Runs) -> str:
    """Where the mean of a PPO is above that of GPG as recommended, in one way or another."""
    if not runs[GPG]:
        return "Not run yet."
    rows = []
    for env in TASKS:
        own = runs[GPG].get(env)
        for name in (RLLIB_PPO, SB3_PPO):
            theirs = runs[name].get(env)
            if not (own and theirs):
                continue
            timed = at_equal_time(theirs, own)
            ways = [
                *([[at_the_end(r, how) for r in of] for of in (theirs, own)] for how in HOW),
                [values.tolist() for values in timed],
            ]
            if any(np.mean(other) > np.mean(mine) for other, mine in ways):
                rows.append([env, name, *(f"{spread(a)} / {spread(b)}" for a, b in ways)])
    head = ["at equal env steps", "with the likeliest actions", "at equal CPU time"]
    return markdown(["task", "PPO", *head], rows) if rows else "Nowhere so far."


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


def seed_of(result: Result) -> int:
    """The seed of a run."""
    return int(result["cell"]["seed"])


def common_seeds(groups: Sequence[list[Result]]) -> set[int]:
    """The seeds that all groups of runs have."""
    return set.intersection(*({*map(seed_of, results)} for results in groups)) if groups else set()


def _untrained(results: list[Result]) -> float:
    # Of first groups of whole episodes: rollouts, and PPO's first steps, end short ones, or none.
    assert all(result["curve"]["episodes"][0] for result in results)
    return float(np.mean([result["curve"]["return"][0] for result in results]))


def _interval(estimate: Estimate, seeds: int) -> str:
    if seeds < MIN_SEEDS:  # There is next to nothing to resample.
        return f"{estimate.value:.2f} ({_count(seeds, 'seed')})"
    return f"{estimate.value:.2f} ({estimate.low:.2f} to {estimate.high:.2f})"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"
