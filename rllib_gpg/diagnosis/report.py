"""`GroupReport`: what a group is like, in numbers, as its picture shows it.

Axes: S = steps of the group, trajectory after trajectory; N = trajectories; X = timesteps shown.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from rllib_gpg.advantages.baselines import Baseline, BinBaseline, NoBaseline, RidgeBaseline
from rllib_gpg.advantages.binning import BinningFunction, IntArray, name_of, resolve_binning
from rllib_gpg.advantages.estimator import Comparison, GroupEstimate
from rllib_gpg.advantages.inputs import FloatArray
from rllib_gpg.advantages.returns import are_equal
from rllib_gpg.diagnosis.explained import Explained, explained_by_each

# As many as a picture has room for.
_MAX_TIMESTEPS = 200
_NUM_INTERVALS = 50


@dataclass(frozen=True)
class OverTime:
    """Returns-to-go and baseline at some timesteps of a group.

    Attributes:
        timesteps: [X], ascending.
        survivors: [X], how many trajectories are still going.
        returns: [3, X], the 10 % quantile of their returns-to-go, the mean and the 90 % quantile.
        values: [X], the mean of the baseline in force.
    """

    timesteps: IntArray
    survivors: IntArray
    returns: FloatArray
    values: FloatArray

    @classmethod
    def of(cls, found: Comparison) -> Self:
        """Looks at a group."""
        t_S = found.group.timesteps
        all_T, count_T = np.unique(t_S, return_counts=True)
        shown_X = np.linspace(0, len(all_T) - 1, min(len(all_T), _MAX_TIMESTEPS)).astype(np.int64)
        # A stable sort leaves the steps of one timestep side by side.
        order_S = np.argsort(t_S, kind="stable")
        begin_T = np.cumsum(count_T) - count_T
        at_X = [order_S[begin_T[x] : begin_T[x] + count_T[x]] for x in shown_X]
        rows = [found.returns[at] for at in at_X]
        return cls(
            all_T[shown_X],
            count_T[shown_X],
            np.array([[*np.quantile(r, [0.1, 0.9]), r.mean()] for r in rows]).T[[0, 2, 1]],
            np.array([found.values[at].mean() for at in at_X]),
        )


@dataclass(frozen=True)
class Histogram:
    """How numbers are spread.

    Attributes:
        edges: The borders of the intervals, one more than there are of these.
        counts: How many numbers are in each.
        mean: Of all.
        std: Of all.
    """

    edges: FloatArray
    counts: IntArray
    mean: float
    std: float

    @classmethod
    def of(cls, x_S: FloatArray) -> Self:
        """Counts numbers in intervals of one length."""
        mean, limits = float(x_S.mean()), None
        if are_equal(x_S):
            # No intervals fit between numbers that rounding alone tells apart.
            width = max(abs(mean), 1.0)
            limits = mean - width / 2.0, mean + width / 2.0
        counts, edges = np.histogram(x_S, _NUM_INTERVALS, limits)
        return cls(edges, counts, mean, float(x_S.std()))


@dataclass(frozen=True)
class GroupReport:
    """What a group is like, for one module.

    Attributes:
        settings: Binning, baseline and gamma in force, in words.
        num_trajectories: How many there are.
        num_steps: Their steps.
        return_mean: Of the trajectories' undiscounted returns.
        return_std: Of these.
        over_time: Returns-to-go and baseline over time.
        entries: How many bins have 1, 2, .. entries: {entries: bins}.
        singleton_fraction: Share of first visits that are alone in their bin.
        before: The advantages in the unit of the returns.
        after: The advantages as the policy learns from them.
        explained: What each baseline explains, that in force first.
    """

    settings: str
    num_trajectories: int
    num_steps: int
    return_mean: float
    return_std: float
    over_time: OverTime
    entries: Mapping[int, int]
    singleton_fraction: float
    before: Histogram
    after: Histogram
    explained: Sequence[Explained]

    def __str__(self) -> str:
        """Says the main numbers, a line each."""
        lines = [
            f"{self.num_trajectories} trajectories, {self.num_steps:,} steps, {self.settings}",
            f"return {self.return_mean:.4g} ± {self.return_std:.3g}, advantages before their unit "
            f"± {self.before.std:.3g}",
            f"{sum(self.entries.values()):,} bins; {self.singleton_fraction:.0%} of first visits "
            "alone in theirs",
            "share of the variance of returns-to-go explained by others' returns:",
        ]
        for row in self.explained:
            share = "-" if row.share is None else f"{row.share:.3f}"
            said = "; ".join(filter(None, (row.note, row.setting)))
            lines.append(f"  {row.name:28}{share:>8}  {said}".rstrip())
        return "\n".join(lines)


def describe_group(
    estimate: GroupEstimate,
    rewards: Sequence[FloatArray],
    *,
    starts: Sequence[Hashable] | None = None,
    baseline: Baseline,
    binning: str | BinningFunction,
    gamma: float,
    **_: Any,
) -> GroupReport:
    """Reports on a group of one module. Nothing is drawn by chance, and nothing is changed.

    Args:
        estimate: What was estimated of it.
        rewards: N arrays [T_n].
        starts: N labels of the starts of trajectories, where several share one.
        baseline: The baseline in force.
        binning: The binning in force.
        gamma: The discount factor.
    """
    found = estimate.comparison
    return_N = np.array([reward_T.sum() for reward_T in rewards])
    entries, num_bins = np.unique(found.group.counts, return_counts=True)
    return GroupReport(
        settings=(
            f"baseline {_called(baseline)} in {name_of(resolve_binning(binning))}, gamma {gamma:g}"
        ),
        num_trajectories=len(return_N),
        num_steps=len(found.returns),
        return_mean=float(return_N.mean()),
        return_std=float(return_N.std()),
        over_time=OverTime.of(found),
        entries=dict(zip(entries.tolist(), num_bins.tolist(), strict=True)),
        singleton_fraction=estimate.singleton_fraction,
        before=Histogram.of(found.differences),
        after=Histogram.of(np.concatenate(estimate.advantages)),
        explained=explained_by_each(found, baseline=baseline, starts=starts),
    )


_WORDS = {BinBaseline: "bins", RidgeBaseline: "ridge", NoBaseline: "none"}


def _called(baseline: Baseline) -> str:
    return _WORDS.get(type(baseline), type(baseline).__name__)
