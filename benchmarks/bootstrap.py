"""What can be said of a few runs on a few tasks: means, interquartile means, who is better.

Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical Precipice" (2021): runs
are resampled within each task (a stratified bootstrap), tasks are all there are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import trim_mean

Scores = Mapping[str, NDArray[np.float64]]
"""For each task the scores of some runs, [number of seeds]."""

RESAMPLES = 2000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A figure, and between which values it lies in 95 % of resamples."""

    value: float
    low: float
    high: float


def mean_and_error(scores: ArrayLike) -> tuple[float, float]:
    """The mean of some runs, and its standard error (nan of a single run)."""
    scores = np.asarray(scores, np.float64)
    error = scores.std(ddof=1) / len(scores) ** 0.5 if len(scores) > 1 else float("nan")
    return float(scores.mean()), float(error)


def interquartile_mean(scores: Scores) -> Estimate:
    """The mean of the middle half of all runs on all tasks, whose scores must be comparable."""
    return _bootstrap(
        lambda one: float(trim_mean(np.concatenate(list(one.values())), 0.25)), scores
    )


def mean_over_tasks(scores: Scores) -> Estimate:
    """The mean over tasks of the mean of their runs, whose scores must be comparable."""
    return _bootstrap(lambda one: float(np.mean([own.mean() for own in one.values()])), scores)


def probability_of_improvement(ours: Scores, theirs: Scores) -> Estimate:
    """How probable it is that a run of ours beats one of theirs, on a task drawn at random.

    A draw counts one half (Mann-Whitney's U).

    Raises:
        ValueError: If they aren't of the same tasks.
    """
    if set(ours) != set(theirs):
        raise ValueError(f"Tasks differ: {sorted(ours)} and {sorted(theirs)}.")

    def probability(mine: Scores, other: Scores) -> float:
        # The sign of every difference, 1, 0 or -1.
        signs = [np.sign(np.subtract.outer(mine[task], other[task])).mean() for task in mine]
        return float(np.mean(signs) + 1.0) / 2.0

    return _bootstrap(probability, ours, theirs)


def normalized(scores: Scores, worst: Mapping[str, float], best: Mapping[str, float]) -> Scores:
    """Scores of which 0 is `worst` and 1 is `best` on each task."""
    return {task: (own - worst[task]) / (best[task] - worst[task]) for task, own in scores.items()}


def _bootstrap(statistic: Callable[..., float], *groups: Scores) -> Estimate:
    rng = np.random.default_rng(0)

    def resampled(scores: Scores) -> Scores:
        return {task: rng.choice(own, len(own)) for task, own in scores.items()}

    values = [statistic(*map(resampled, groups)) for _ in range(RESAMPLES)]
    tail = (1.0 - CONFIDENCE) / 2.0
    low, high = np.quantile(values, [tail, 1.0 - tail])
    return Estimate(statistic(*groups), float(low), float(high))
