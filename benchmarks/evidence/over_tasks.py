"""All tasks together: who is better, and how far everyone is, on a scale that tasks share."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import numpy as np

from benchmarks import reporting
from benchmarks.bootstrap import (
    Estimate,
    Scores,
    interquartile_mean,
    mean_over_tasks,
    normalized,
    probability_of_improvement,
)
from benchmarks.cells import return_until
from benchmarks.evidence.protocol import (
    CONTENDERS,
    GPG,
    GPG_PAPER,
    HELD_OUT,
    PPO_LAMBDA_1,
    RLLIB_PPO,
    SEEDS_SEEN,
    TASKS,
)
from benchmarks.evidence.tables import (
    Result,
    Runs,
    at_the_end,
    curve_against,
    mean_at_the_end,
)
from benchmarks.reporting import markdown

Pairs = dict[str, tuple[list[Result], list[Result]]]
"""Task -> ours and theirs, of the same seeds."""

# Fewer runs on a task say nothing of how they vary.
MIN_SEEDS = 3
# Contenders that have all tasks.
EVERYWHERE = tuple(name for name in CONTENDERS if name != PPO_LAMBDA_1)
PICTURE = "ppo_over_tasks"


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


def pairs_of(runs: Runs, ours: str, theirs: str, without: Collection[int] = ()) -> Pairs:
    """The runs of the seeds that both have, on the tasks where there are any."""
    pairs: Pairs = {}
    for env in (env for env in TASKS if env in runs[ours] and env in runs[theirs]):
        both = runs[ours][env], runs[theirs][env]
        if seeds := common_seeds(both).difference(without):
            mine, other = ([r for r in of if seed_of(r) in seeds] for of in both)
            pairs[env] = mine, other
    return pairs


def compare(pairs: Pairs) -> dict[str, Estimate]:
    """How probable it is that ours is better, at equal env steps and at equal CPU time."""

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


def table_of_comparisons(runs: Runs) -> str:
    """Who is better over tasks, as far as both have been run: all, and those not chosen by."""
    rows = []
    for theirs in (name for name in CONTENDERS if name != GPG):
        every = pairs_of(runs, GPG, theirs)
        for which, pairs in (
            ("all", every),
            ("held out", {env: pair for env, pair in every.items() if env in HELD_OUT}),
            ("all, unseen seeds", pairs_of(runs, GPG, theirs, without=SEEDS_SEEN)),
        ):
            if pairs:
                seeds = min(len(ours) for ours, _ in pairs.values())
                shown = [_interval(estimate, seeds) for estimate in compare(pairs).values()]
                rows.append([theirs, f"{which}: {len(pairs)}", *shown])
    head = ["at equal env steps", "with the likeliest actions", "at equal CPU time"]
    return markdown([f"`{GPG}` against", "tasks", *head], rows)


def table_of_means(runs: Runs) -> str:
    """Over tasks and seeds that all of `EVERYWHERE` have been run on; 1 is the best one's mean."""
    alike, seeds = those_of_all(runs)
    if not seeds:
        return "Not run on any task by all."

    def scores(name: str, how: str) -> Scores:
        finals = {
            env: np.array([at_the_end(r, how) for r in results])
            for env, results in alike[name].items()
        }
        return normalized(finals, *_worst_and_best(alike, how))

    rows = [
        [
            name,
            *(
                _interval(mean(scores(name, how)), len(seeds))
                for how in ("sampled", "greedy")
                for mean in (mean_over_tasks, interquartile_mean)
            ),
        ]
        for name in EVERYWHERE
    ]
    of = f"mean of {_count(len(alike[GPG]), 'task')}, {_count(len(seeds), 'seed')}"
    both = [of, "interquartile"]
    greedy = ["mean, likeliest actions", "interquartile, likeliest actions"]
    return markdown(["contender", *both, *greedy], rows)


def draw(runs: Runs) -> None:
    """How far everyone is, on average over tasks, by the env steps and by the time it has taken."""
    panels = curves_over_tasks(runs)
    reporting.draw(
        panels,
        "0: untrained, 1: the best",
        reporting.DOCS / "images" / PICTURE,
        xlabel=f"share of what {RLLIB_PPO} takes",
        unit=1,
    )


def curves_over_tasks(runs: Runs) -> dict[str, dict[str, list[reporting.Curve]]]:
    """A curve per seed, on the scale of the table, against two shares of what RLlib's PPO takes.

    A run that is over stays where it is. Nothing if there is no task and seed that all have.
    """
    alike, seeds = those_of_all(runs)
    if not seeds:
        return {}
    worst, best = _worst_and_best(alike, "sampled")
    share = np.linspace(0.0, 1.0, reporting.POINTS)

    def of_run(env: str, result: Result, axis: str) -> np.ndarray:
        whole = np.mean([result["curve"][axis][-1] for result in alike[RLLIB_PPO][env]])
        at, returns = curve_against(result, axis)
        return np.interp(share * whole, at, (returns - worst[env]) / (best[env] - worst[env]))

    def curves(of_tasks: dict[str, list[Result]], axis: str) -> list[reporting.Curve]:
        values = [[of_run(env, run, axis) for run in runs] for env, runs in of_tasks.items()]
        return [(share, mean) for mean in np.mean(values, axis=0)] if values else []

    # With those that aren't everywhere, so that everyone has one colour in all pictures.
    return {
        title: {name: curves(alike.get(name, {}), axis) for name in CONTENDERS}
        for title, axis in (("env steps", "steps"), ("CPU time", "cpu_seconds"))
    }


def those_of_all(runs: Runs) -> tuple[Runs, set[int]]:
    """The runs on tasks and seeds that all of `EVERYWHERE` have, seed by seed, and the seeds."""
    tasks = sorted(set.intersection(*(set(runs[name]) for name in EVERYWHERE)))
    seeds = common_seeds([runs[name][env] for name in EVERYWHERE for env in tasks])
    alike = {
        name: {env: [r for r in runs[name][env] if seed_of(r) in seeds] for env in tasks}
        for name in EVERYWHERE
    }
    return alike, seeds


def _worst_and_best(alike: Runs, how: str) -> tuple[dict[str, float], dict[str, float]]:
    """On each task the untrained policy's return, and the mean of the contender that is best."""
    worst = {env: _untrained(results) for env, results in alike[GPG_PAPER].items()}
    best = {env: max(mean_at_the_end(of[env], how) for of in alike.values()) for env in worst}
    return worst, best


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
