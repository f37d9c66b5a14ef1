"""How much of the variance of a group's returns each built-in baseline explains, side by side.

Each trajectory is foreseen by others alone: what is left out of a baseline is all of its episode.
A step that no baseline can compare is compared with the steps of all other episodes, so that bins
which are too fine don't look good by the few steps that they can compare.

Axes: S = steps of the group, trajectory after trajectory; N = trajectories.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from rllib_gpg.advantages.baselines import Baseline, BinBaseline, RidgeBaseline, Valuation
from rllib_gpg.advantages.baselines.features import MAX_NUMBERS
from rllib_gpg.advantages.binning import (
    BinningFunction,
    SpatialBinning,
    StateBinning,
    TimeBinning,
    UniversalBinning,
)
from rllib_gpg.advantages.estimator import Comparison, explained_variance
from rllib_gpg.advantages.grouping import BinnedGroup, first_visits, into_bins, numbered

# So many parts of a group teach a baseline that remembers, which is then asked about the others.
_NUM_PARTS = 4
# A ridge chooses its strength by how it would have foreseen a second group.
_MIN_PARTS = 3

# A setting is printed if it is no longer than this.
_FEW_NUMBERS = 8

_OTHERS = BinBaseline(leave_one_out=True)
# What is remembered has been decayed already; the decay of a baseline that remembers is above 0.
_CARRIED = BinBaseline(decay=0.5)


@dataclass(frozen=True)
class Explained:
    """What one baseline explains of a group.

    Attributes:
        name: The baseline, in words.
        share: 1 - Var(R - v) / Var(R), where v is from other episodes; None if it has nothing to
            say of this group.
        note: What to know of it, such as why it has nothing to say.
        setting: How to get it, if there is a setting for it.
    """

    name: str
    share: float | None
    note: str = ""
    setting: str = ""


def _mean_of_others(group: BinnedGroup, ret_S: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean return of all steps of other episodes, [S]; of all steps, where there are none."""
    trajectory_S = np.repeat(np.arange(len(group.lengths)), group.lengths)
    sums_and_counts = np.column_stack([np.bincount(trajectory_S, ret_S), group.lengths])
    sum_N, count_N = group.sum_of_other_episodes(sums_and_counts).T
    mean_N = np.where(count_N > 0, sum_N / np.maximum(count_N, 1), ret_S.mean())
    return np.repeat(mean_N, group.lengths)


def explained_by_each(
    found: Comparison,
    *,
    baseline: Baseline,
    starts: Sequence[Hashable] | None = None,
) -> list[Explained]:
    """Returns what each built-in baseline explains, after what the one in force does.

    Args:
        found: What the group's returns were compared with.
        baseline: The baseline in force. Ridge and carried bins are those of its bins.
        starts: N labels of the starts of trajectories, where several share one.
    """
    group, ret_S = found.group, found.returns
    of_others_S = _mean_of_others(group, ret_S)

    def share_of(name: str, said: Valuation, setting: str = "") -> Explained:
        alone_S = np.zeros(len(ret_S), np.bool_) if said.alone is None else said.alone
        value_S = np.where(alone_S, of_others_S, said.values)
        share_alone = alone_S.mean()
        note = f"{share_alone:.0%} of steps alone" if share_alone >= 0.005 else ""
        return Explained(name, explained_variance(ret_S, value_S), note, setting)

    def bins(function: BinningFunction) -> Valuation:
        return _OTHERS.values(_binned(function, group, starts), ret_S, None)

    in_force = Valuation(found.values, alone=found.alone)
    if isinstance(baseline, BinBaseline) and baseline.keeps_own:
        in_force = _OTHERS.values(group, ret_S, None)
    rows = [
        share_of("in force", in_force),
        share_of("universal bins", bins(UniversalBinning()), "binning='universal'"),
        share_of("time bins", bins(TimeBinning()), "binning='time'"),
    ]
    if why := _no_state_bins(group):
        rows.append(Explained("state bins", None, why))
    else:
        state, name, setting = _state_bins(group, bins(StateBinning()))
        rows.append(share_of(f"{name} bins", bins(state), setting))
        rows.append(share_of(f"{name} and time bins", bins(_at_each_time(state))))
    for name, said, setting in (
        ("carried bins", _carried_bins(found, baseline), "baseline_decay=0.8"),
        ("ridge", _ridge(found, baseline), "baseline='ridge'"),
    ):
        rows.append(
            Explained(name, None, said) if isinstance(said, str) else share_of(name, said, setting)
        )
    return rows


def _binned(
    function: BinningFunction, group: BinnedGroup, starts: Sequence[Hashable] | None
) -> BinnedGroup:
    return into_bins(
        function,
        group.observations,
        group.lengths,
        group.starts,
        group.names,
        episodes=None if group.episodes is None else group.episodes.tolist(),
        starts=starts,
    )


def _no_state_bins(group: BinnedGroup) -> str:
    """Says why there can't be bins of the state; nothing if there can."""
    first = group.observations[0]
    if not isinstance(first, np.ndarray) or first.dtype.kind not in "biuf":
        return "observations aren't one array of numbers"
    if first[0].size > MAX_NUMBERS:
        return f"observations have more than {MAX_NUMBERS} numbers"
    return ""


def _state_bins(group: BinnedGroup, exact: Valuation) -> tuple[BinningFunction, str, str]:
    """Returns bins of the state, their name and setting: a grid where hardly any state comes again.

    The edges of the grid are the standard deviations of the observation's numbers.

    Args:
        group: The group.
        exact: What the bins of each state say of it.
    """
    few_alone = exact.alone is None or exact.alone.mean() < 0.5
    if group.observations[0].dtype.kind != "f" or few_alone:
        return StateBinning(), "state", "binning='state'"
    obs_SD = np.concatenate([o.reshape(len(o), -1) for o in group.observations])
    std_D = obs_SD.std(axis=0, dtype=np.float64)
    grid = SpatialBinning([float(f"{std:.2g}") if std > 0.0 else 1.0 for std in std_D])
    setting = f"binning={grid}" if len(std_D) <= _FEW_NUMBERS else ""
    return grid, "grid (1 std)", setting


def _at_each_time(state: BinningFunction) -> BinningFunction:
    return lambda observations, timesteps: np.column_stack(
        [state(observations, timesteps), timesteps]
    )


def _carried_bins(found: Comparison, baseline: Baseline) -> Valuation | str:
    """What the bins in force say with those of earlier groups; or why there are none of these."""
    if not found.group.keys_last:
        return "these bins don't last from group to group"
    if not (isinstance(baseline, BinBaseline | RidgeBaseline) and baseline.remembers):
        return "needs `baseline_decay` or the ridge in force"
    if found.earlier is None:
        return "nothing is carried over yet"
    memory = found.earlier
    if isinstance(baseline, RidgeBaseline):
        # It carries the same sums of returns, beside those of its features.
        memory = {**memory["bins"], "sums": memory["bins"]["sums"][:, :1]}
    return _CARRIED.values(found.group, found.returns, memory)


def _ridge(found: Comparison, baseline: Baseline) -> Valuation | str:
    """What a ridge says in the bins in force; or why it can't say anything.

    By what it remembers of earlier groups, if it is in force. Otherwise parts of the group teach
    it, one after the other as if they were groups, and then it is asked about the part left out.
    """
    group, ret_S = found.group, found.returns
    if isinstance(baseline, RidgeBaseline) and found.earlier is not None:
        return Valuation(found.values, alone=found.alone)
    if not group.keys_last:
        return "needs bins that last, or some groups to learn from"
    if group.num_episodes < _MIN_PARTS:
        return f"needs {_MIN_PARTS} episodes, or some groups to learn from"
    ridge = baseline if isinstance(baseline, RidgeBaseline) else RidgeBaseline()
    episode_N = np.arange(len(group.lengths)) if group.episodes is None else group.episodes
    part_N = episode_N % min(_NUM_PARTS, group.num_episodes)
    part_S = np.repeat(part_N, group.lengths)
    parts = [_part(group, part_N == k) for k in range(part_N.max() + 1)]
    value_S, alone_S = np.empty(len(ret_S)), np.empty(len(ret_S), np.bool_)
    try:
        for k, asked in enumerate(parts):
            memory = None
            for j, part in enumerate(parts):
                if j != k:
                    memory = ridge.values(part, ret_S[part_S == j], memory).memory
            said = ridge.values(asked, ret_S[part_S == k], memory)
            value_S[part_S == k], alone_S[part_S == k] = said.values, said.alone
    except ValueError as refusal:
        return str(refusal)
    return Valuation(value_S, alone=alone_S)


def _part(group: BinnedGroup, in_it_N: NDArray[np.bool_]) -> BinnedGroup:
    """Returns some trajectories of a group, in the same bins."""
    in_it_S = np.repeat(in_it_N, group.lengths)
    kept = np.flatnonzero(in_it_N).tolist()
    lengths_N = group.lengths[in_it_N]
    trajectory_S = np.repeat(np.arange(len(kept)), lengths_N)
    bin_S, entry_S = first_visits(group.bins[in_it_S], trajectory_S)
    return replace(
        group,
        observations=[group.observations[n] for n in kept],
        final_observations=None,
        lengths=lengths_N,
        starts=group.starts[in_it_N],
        keys=group.keys[in_it_S],
        bins=bin_S,
        entries=entry_S,
        names=[group.names[n] for n in kept],
        episodes=None if group.episodes is None else numbered(group.episodes[in_it_N].tolist()),
        scores=None,
    )
