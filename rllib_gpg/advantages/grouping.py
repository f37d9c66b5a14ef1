"""Which steps of a group share a bin, and which of them are first visits. Exact, without hashes.

Axes: S = every step of the group, trajectory after trajectory; N = trajectories; T = steps of one
trajectory; K = the integers that make up one key; B = bins; F = first visits, in the order of S.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rllib_gpg.advantages.binning import BinningFunction, IntArray, counts_time, keys_last
from rllib_gpg.advantages.inputs import FloatArray, leaves

ScoreFunction = Callable[[FloatArray], FloatArray]


@dataclass(frozen=True)
class BinnedGroup:
    """A group whose steps are sorted into bins: what a baseline is given.

    Attributes:
        observations: N arrays [T_n, ...], or dicts, tuples or lists of such arrays.
        final_observations: N observations after the last step, None where a trajectory has ended
            and not been cut; or None.
        lengths: [N], the number of steps of each trajectory.
        starts: [N], the timestep of each trajectory's first step: 0, unless it goes on from an
            earlier group.
        keys: [S, K], the bin key of every step.
        keys_last: Whether equal keys of two groups name the same bin.
        counts_time: Whether keys of one state differ with the time.
        bins: [S], the bin of every step; bins are numbered from 0, and all of them are visited.
        entries: [S], the position in S of the first step of the same trajectory in the same bin.
        names: N words for the trajectories, for errors.
        episodes: [N], the number of the episode that each trajectory is of, where some are of
            several agents of one episode; None: each is of its own.
        scores: The policy's gradients, for baselines that ask for them; or None. Of the returns
            [S], it gives [N, 2]: with g = sum_t grad log pi(a|s) and G = sum_t R grad log pi(a|s),
            the products <G, g> and <g, g> of every trajectory.
    """

    observations: Sequence[Any]
    final_observations: Sequence[Any] | None
    lengths: IntArray
    starts: IntArray
    keys: IntArray
    keys_last: bool
    counts_time: bool
    bins: IntArray
    entries: IntArray
    names: Sequence[str]
    episodes: IntArray | None = None
    scores: ScoreFunction | None = None

    @property
    def num_episodes(self) -> int:
        """How many episodes the trajectories are of."""
        return len(self.lengths) if self.episodes is None else int(self.episodes.max()) + 1

    @cached_property
    def timesteps(self) -> IntArray:
        """[S], the timestep of every step, 0 at the reset of its episode."""
        position_N = np.cumsum(self.lengths) - self.lengths
        return np.arange(len(self.bins)) + np.repeat(self.starts - position_N, self.lengths)

    @cached_property
    def first_visits(self) -> IntArray:
        """[F], the positions in S of first visits: one per trajectory and bin it visits."""
        return np.flatnonzero(self.entries == np.arange(len(self.entries)))

    @cached_property
    def first_visit_bins(self) -> IntArray:
        """[F], the bin of every first visit."""
        return self.bins if self._no_revisits else self.bins[self.first_visits]

    @cached_property
    def counts(self) -> IntArray:
        """[B], how many trajectories visit a bin."""
        return np.bincount(self.first_visit_bins)

    @cached_property
    def bin_keys(self) -> IntArray:
        """[B, K], the key of every bin."""
        some_B = np.empty_like(self.counts)
        some_B[self.first_visit_bins] = self.first_visits
        return self.keys[some_B]

    @cached_property
    def _no_revisits(self) -> bool:
        return len(self.first_visits) == len(self.bins)

    def sum_in_bins(self, x_S: FloatArray) -> FloatArray:
        """Sums a quantity over the first visits to every bin: [S] -> [B]."""
        entered = x_S if self._no_revisits else x_S[self.first_visits]
        sum_B: FloatArray = np.bincount(self.first_visit_bins, entered).astype(np.float64)
        return sum_B

    def alone(self, count_B: FloatArray | float = 0.0) -> NDArray[np.bool_]:
        """Marks the steps, [S], with no other episode in their bin.

        Args:
            count_B: [B], how many entries of earlier groups also count.
        """
        if self.episodes is None:
            return np.asarray(count_B + self.counts == 1)[self.bins]
        return np.asarray(count_B + self.counts)[self.bins] == self._own_counts

    def mean_of_others(
        self, x_S: FloatArray, count_B: FloatArray | float = 0.0, sum_B: FloatArray | float = 0.0
    ) -> FloatArray:
        """The mean of a quantity in the bin of every step, without the step's own episode.

        Args:
            x_S: The quantity. It enters at first visits.
            count_B: [B], how many entries of earlier groups, not negative, also count.
            sum_B: [B], the sum of the quantity over these.

        Returns:
            [S]. Where nobody else is in the bin, the own entry.
        """
        # (earlier + sum - own) / (earlier + count - own count), own = x at own first visits
        if self.episodes is not None:
            return self._mean_of_other_episodes(x_S, count_B, sum_B)
        others_B = np.asarray(count_B + (self.counts - 1))
        alone_B = others_B == 0
        total_B = np.where(alone_B, 2.0, 1.0) * (sum_B + self.sum_in_bins(x_S))  # 2 own - own
        mean_S = total_B[self.bins]
        mean_S -= x_S if self._no_revisits else x_S[self.entries]
        mean_S /= (others_B + alone_B)[self.bins]
        return mean_S

    def sum_of_other_episodes(self, x_NX: FloatArray) -> FloatArray:
        """Sums a quantity over the trajectories of all episodes but each one's own: [N, X]."""
        if self.episodes is None:
            return x_NX.sum(0) - x_NX
        of_episode = np.zeros((self.num_episodes, x_NX.shape[1]))
        np.add.at(of_episode, self.episodes, x_NX)
        return x_NX.sum(0) - of_episode[self.episodes]

    def _mean_of_other_episodes(
        self, x_S: FloatArray, count_B: FloatArray | float, sum_B: FloatArray | float
    ) -> FloatArray:
        own_S = np.bincount(self._own_pairs[self.first_visits], x_S[self.first_visits])
        total_S = np.asarray(sum_B + self.sum_in_bins(x_S))[self.bins] - own_S[self._own_pairs]
        others_S = np.asarray(count_B + self.counts)[self.bins] - self._own_counts
        alone_S = others_S == 0
        return np.where(alone_S, x_S[self.entries], total_S / (others_S + alone_S))

    @cached_property
    def _own_pairs(self) -> IntArray:
        """[S], the number of the pair of bin and episode that a step belongs to."""
        assert self.episodes is not None
        episode_S = np.repeat(self.episodes, self.lengths)
        return np.unique(self.bins * (episode_S.max() + 1) + episode_S, return_inverse=True)[1]

    @cached_property
    def _own_counts(self) -> IntArray:
        """[S], how many trajectories of the step's own episode visit its bin."""
        return np.bincount(self._own_pairs[self.first_visits])[self._own_pairs]


def into_bins(
    binning: BinningFunction,
    observations: Sequence[Any],
    lengths_N: IntArray,
    start_N: IntArray,
    names: Sequence[str],
    final_observations: Sequence[Any] | None = None,
    episodes: Sequence[Hashable] | None = None,
    starts: Sequence[Hashable] | None = None,
    scores: ScoreFunction | None = None,
) -> BinnedGroup:
    """Sorts the steps of a group into bins.

    Args:
        binning: ``f(observations [T, ...], timesteps [T]) -> integer keys [T] or [T, K]``.
        observations: N arrays [T_n, ...], or what else the binning understands.
        lengths_N: [N], the number of steps of each trajectory.
        start_N: [N], the timestep of each trajectory's first step.
        names: N words for the trajectories, for errors.
        final_observations: See `BinnedGroup`.
        episodes: N labels, of the episodes that the trajectories are of. None: each of its own.
        starts: N labels, of the starts that the trajectories have. Those of different starts share
            no bin. None: all may.
        scores: See `BinnedGroup`.

    Raises:
        TypeError, ValueError: As `bin_keys` does.
    """
    # k[n,t] = f(s[n,t], t), or (start of n, f(s[n,t], t))
    key_SK = bin_keys(binning, observations, lengths_N, start_N, names)
    if starts is not None:
        key_SK = np.column_stack([np.repeat(numbered(starts), lengths_N), key_SK])
    # first[n,t] = no t' < t in trajectory n has the same key
    trajectory_S = np.repeat(np.arange(len(lengths_N)), lengths_N)
    bin_S, entry_S = first_visits(key_codes(key_SK), trajectory_S)
    return BinnedGroup(
        observations=observations,
        final_observations=final_observations,
        lengths=lengths_N,
        starts=start_N,
        keys=key_SK,
        # The first start of the next group is another one.
        keys_last=keys_last(binning) and starts is None,
        counts_time=counts_time(binning),
        bins=bin_S,
        entries=entry_S,
        names=names,
        episodes=None if episodes is None or _all_differ(episodes) else numbered(episodes),
        scores=scores,
    )


def _all_differ(labels: Sequence[Hashable]) -> bool:
    return len(set(labels)) == len(labels)


def numbered(labels: Sequence[Hashable]) -> IntArray:
    """Numbers for labels, from 0, equal where these are."""
    numbers = {label: number for number, label in enumerate(dict.fromkeys(labels))}
    return np.array([numbers[label] for label in labels])


def bin_keys(
    binning: BinningFunction,
    observations: Sequence[Any],
    lengths_N: IntArray,
    start_N: IntArray,
    names: Sequence[str],
) -> IntArray:
    """Calls a binning function once per trajectory, and checks what comes back.

    Args:
        binning: ``f(observations [T, ...], timesteps [T]) -> integer keys [T] or [T, K]``.
        observations: N arrays [T_n, ...], or what else the binning understands.
        lengths_N: [N], the number of steps of each trajectory.
        start_N: [N], the timestep of each trajectory's first step.
        names: N words for the trajectories, for errors.

    Returns:
        [S, K] int64.

    Raises:
        TypeError: If keys are not integers (or bools). Errors, also the binning's own, name the
            binning and the trajectory.
        ValueError: If there is not one key per step, or keys differ in width, or a key does not
            fit int64.
    """
    keys: list[IntArray] = []
    function = getattr(binning, "__name__", binning)
    for observation, length, start, name in zip(
        observations, lengths_N, start_N, names, strict=True
    ):
        asked = f"binning {function}, {name}:"
        try:
            found = np.asarray(binning(observation, start + np.arange(length)))
        except Exception as error:
            shapes = ", ".join(str(leaf.shape) for leaf in leaves(observation))
            error.add_note(
                f"Raised in {asked[:-1]}. What it was given: observations of shape {shapes}, as "
                "connectors leave them, and as many timesteps."
            )
            raise
        if found.dtype.kind not in "biu":
            raise TypeError(
                f"{asked} {_described(found)}, keys must be integers. Round, then astype(np.int64)."
            )
        if found.ndim not in (1, 2) or len(found) != length or found.size == 0:
            raise ValueError(
                f"{asked} {_described(found)}, expected one key per step: shape ({length},) or "
                f"({length}, k)."
            )
        if found.dtype == np.uint64 and found.max() > np.iinfo(np.int64).max:
            raise ValueError(
                f"{asked} {_described(found)} above 2**63 - 1. Return keys that fit int64."
            )
        key_TK = found.reshape(length, -1).astype(np.int64, copy=False)
        width = keys[0].shape[1] if keys else key_TK.shape[1]
        if key_TK.shape[1] != width:
            raise ValueError(
                f"{asked} {_described(found)}, but the keys of {names[0]} hold {width} integers. "
                "Return keys of one width for all trajectories."
            )
        keys.append(key_TK)
    return np.concatenate(keys)


def key_codes(key_SK: IntArray) -> IntArray:
    """One integer per key, equal exactly where all integers of the keys are equal.

    Args:
        key_SK: [S, K] int64, any values.

    Returns:
        [S] int64, not negative.
    """
    if key_SK.shape[1] == 1 and key_SK.min() >= 0:
        return key_SK[:, 0]
    low_K, high_K = key_SK.min(axis=0), key_SK.max(axis=0)
    sizes = [int(high) - int(low) + 1 for low, high in zip(low_K, high_K, strict=True)]
    if math.prod(sizes) < 2**63:
        # The key is a number with K digits, digit k in base sizes[k].
        place_K = np.cumprod([1, *sizes[:0:-1]])[::-1]
        return np.asarray((key_SK - low_K) @ place_K)
    # Too many possible keys for one integer: sort the rows by their bytes, and number them.
    row_S = np.ascontiguousarray(key_SK).view(np.dtype((np.void, key_SK[0].nbytes)))[:, 0]
    order_S = np.argsort(row_S)
    code_S = np.empty_like(order_S)
    code_S[order_S] = np.cumsum(differs_from_previous(row_S[order_S]))
    return code_S


def find_keys(key_BK: IntArray, among_CK: IntArray) -> IntArray:
    """Looks keys up in a table.

    Args:
        key_BK: [B, K], the keys to look up.
        among_CK: [C, K], the table; no key twice.

    Returns:
        [B], the row of every key in the table; -1 where it is not in it.
    """
    if len(among_CK) == 0 or among_CK.shape[1] != key_BK.shape[1]:
        return np.full(len(key_BK), -1)
    code = key_codes(np.concatenate([among_CK, key_BK]))
    among_C, code_B = np.split(code, [len(among_CK)])
    order_C = np.argsort(among_C)
    row_B = order_C[np.minimum(np.searchsorted(among_C[order_C], code_B), len(order_C) - 1)]
    return np.where(among_C[row_B] == code_B, row_B, -1)


def first_visits(code_S: IntArray, trajectory_S: IntArray) -> tuple[IntArray, IntArray]:
    """The bin of every step, and the step at which its trajectory first visited that bin.

    Args:
        code_S: [S], equal where steps share a bin.
        trajectory_S: [S], the number of the step's trajectory, ascending.

    Returns:
        bin_S: [S], bins numbered from 0, all of them visited.
        entry_S: [S], the position in S of the first step of the same trajectory in the same bin.
            A first visit is a step that is its own entry.
    """
    # A stable sort leaves the steps of a bin in the order of their trajectories and timesteps.
    order_S = np.argsort(code_S, kind="stable")
    new_bin_S = differs_from_previous(code_S[order_S])
    new_visit_S = new_bin_S | differs_from_previous(trajectory_S[order_S])
    bin_S, entry_S = np.empty_like(order_S), np.empty_like(order_S)
    bin_S[order_S] = np.cumsum(new_bin_S) - 1
    entry_S[order_S] = order_S[new_visit_S][np.cumsum(new_visit_S) - 1]
    return bin_S, entry_S


def _described(keys: NDArray[Any]) -> str:
    return f"got {keys.dtype} of shape {keys.shape}"


def differs_from_previous(value_S: NDArray[Any]) -> NDArray[np.bool_]:
    """Marks the first entry, and every entry unlike the one before it."""
    return np.concatenate([[True], value_S[1:] != value_S[:-1]])
