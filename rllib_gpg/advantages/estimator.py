"""Algorithm 2: what each step of a group was worth, relative to the group.

The symbols are the paper's: R return-to-go, k bin key, b baseline, A advantage, for step t of
trajectory n. Array names carry their axes:

    N  trajectories
    T  steps of one trajectory
    S  steps of the whole group, trajectory after trajectory: the pairs (n, t)
    K  the integers that make up one key
    B  bins
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rllib_gpg.advantages.binning import BinningFunction, resolve_binning
from rllib_gpg.advantages.grouping import bin_keys, first_visits, key_codes
from rllib_gpg.advantages.returns import returns_to_go

FloatArray = NDArray[np.float64]

# Below this standard deviation advantages are rounding errors: as in RLlib's PPO.
_MIN_STD = 1e-4


@dataclass(frozen=True)
class GroupEstimate:
    """The advantages of a group, and what its bins were like.

    Attributes:
        advantages: N arrays [T_n], float64, in the unit of the rewards unless normalised.
        num_bins: Bins that some trajectory of the group visited.
        singleton_fraction: Share of first visits that are alone in their bin, in [0, 1]. Near 1
            there is no signal: take coarser bins or a larger group.
        baseline_explained_variance: 1 - Var(A) / Var(R) over all steps, before normalisation. 0
            when all returns are equal: there is nothing to explain then, and nan breaks loggers.
            1 is a perfect baseline or a group of singletons.
    """

    advantages: list[FloatArray]
    num_bins: int
    singleton_fraction: float
    baseline_explained_variance: float


def estimate_advantages(
    observations: Sequence[Any],
    rewards: Sequence[ArrayLike],
    *,
    gamma: float,
    binning: str | BinningFunction,
    leave_one_out: bool = False,
    normalize: bool = False,
) -> list[FloatArray]:
    """The advantage of every step of a group: ``estimate_group(...).advantages``.

    Example:
        >>> rewards = [np.array([1.0, 1.0]), np.array([0.0, 3.0]), np.array([2.0])]
        >>> observations = [np.zeros(2), np.zeros(2), np.zeros(1)]
        >>> estimate_advantages(observations, rewards, gamma=1.0, binning="time")
        [array([-0.33333333, -1.        ]), array([0.66666667, 1.        ]), array([-0.33333333])]
    """
    return estimate_group(
        observations,
        rewards,
        gamma=gamma,
        binning=binning,
        leave_one_out=leave_one_out,
        normalize=normalize,
    ).advantages


def estimate_group(
    observations: Sequence[Any],
    rewards: Sequence[ArrayLike],
    *,
    gamma: float,
    binning: str | BinningFunction,
    leave_one_out: bool = False,
    normalize: bool = False,
    names: Sequence[str] | None = None,
) -> GroupEstimate:
    """Estimates the advantage of every step of a group of trajectories (Algorithm 2).

    Assumes whole trajectories, sampled independently under one policy; a trajectory that a time
    limit cut counts as it is. A bin's baseline is the mean return of the trajectories that visit
    it, each entered once, at its first visit (equation 6). A bin that one trajectory alone visits
    (a singleton) gives that first visit A = 0.

    Args:
        observations: N arrays [T_n, ...], one observation per step, without the final one. A
            custom binning may take dicts or tuples of such arrays.
        rewards: N arrays [T_n]. Any unit; summed in float64.
        gamma: Discount factor in [0, 1], per step.
        binning: A binning object, a function ``f(observations, timesteps) -> keys`` or a name, see
            binning.py.
        leave_one_out: Take the mean without the trajectory's own entry, which makes the estimate
            unbiased (Proposition 1). Not in the paper. A singleton has no other entry and falls
            back to its own, as without leave_one_out.
        normalize: Return (A - mean) / max(std, 1e-4), over all steps of the group, as RLlib's PPO
            does. The floor keeps advantages that are zero up to rounding from being blown up.
        names: N words for the trajectories, for errors; "trajectory 3" by default.

    Returns:
        The advantages, in the order of the trajectories, and statistics of the bins.

    Raises:
        ValueError: If the group or a trajectory is empty, lengths disagree, a reward or an
            observation is not finite, gamma is outside [0, 1], or keys have the wrong shape.
        TypeError: If keys are not integers, or the binning cannot take the observations.
    """
    binning = resolve_binning(binning)
    names = names or _default_names(rewards)
    observations, rewards = _as_arrays(observations, rewards, names)
    check_finite(observations, rewards, names)
    lengths_N = np.array([len(reward_T) for reward_T in rewards])

    # R[n,t] = sum_{s>=t} gamma^(s-t) * r[n,s]
    ret_S = returns_to_go(np.concatenate(rewards), lengths_N, gamma)
    # k[n,t] = f(s[n,t], t)
    key_SK = bin_keys(binning, observations, lengths_N, names)
    # first[n,t] = no t' < t in trajectory n has the same key
    trajectory_S = np.repeat(np.arange(len(lengths_N)), lengths_N)
    bin_S, entry_S = first_visits(key_codes(key_SK), trajectory_S)
    first_S = entry_S == np.arange(len(ret_S))
    # b(k) = mean of R[n,t] over all (n,t) of the group with key k and first[n,t]
    count_B = np.bincount(bin_S[first_S])
    sum_B = np.bincount(bin_S[first_S], weights=ret_S[first_S])
    base_S = (sum_B / count_B)[bin_S]
    if leave_one_out:
        # b_loo[n,k] = (sum - own) / (count - 1), own = R of trajectory n at its first visit to k
        own_S, count_S = ret_S[entry_S], count_B[bin_S]
        others_S = (sum_B[bin_S] - own_S) / np.maximum(count_S - 1, 1)
        base_S = np.where(count_S > 1, others_S, own_S)
    # A[n,t] = R[n,t] - b(k[n,t])
    adv_S = ret_S - base_S

    explained = _explained_variance(adv_S, ret_S)
    if normalize:
        adv_S = (adv_S - adv_S.mean()) / max(adv_S.std(), _MIN_STD)
    return GroupEstimate(
        advantages=np.split(adv_S, np.cumsum(lengths_N)[:-1]),
        num_bins=len(count_B),
        singleton_fraction=float((count_B == 1).sum() / first_S.sum()),
        baseline_explained_variance=explained,
    )


def check_finite(
    observations: Sequence[Any],
    rewards: Sequence[ArrayLike],
    names: Sequence[str] | None = None,
) -> None:
    """Refuses a group that holds a nan or an infinity: the baselines would spread it.

    Args:
        observations: N arrays [T_n, ...], or dicts, tuples or lists of such arrays.
        rewards: N arrays [T_n].
        names: N words for the trajectories, for errors; "trajectory 3" by default.

    Raises:
        ValueError: Names the first trajectory concerned, its first bad step, whether that is an
            observation or the reward, and its value.
    """
    names = names or _default_names(rewards)
    for observation, reward, name in zip(observations, rewards, names, strict=True):
        columns = [("observation", leaf) for leaf in _leaves(observation)]
        columns.append(("reward", np.asarray(reward)))
        bad = [(t, what, value) for what, array in columns for t, value in _first_non_finite(array)]
        if bad:
            t, what, value = min(bad, key=lambda found: found[0])
            raise ValueError(
                f"{name}: the {what} at step {t} is not finite: {value}. Mend the environment, or "
                "the piece between it and the estimator."
            )


def _default_names(rewards: Sequence[ArrayLike]) -> list[str]:
    return [f"trajectory {n}" for n in range(len(rewards))]


def _as_arrays(
    observations: Sequence[Any], rewards: Sequence[ArrayLike], names: Sequence[str]
) -> tuple[list[Any], list[FloatArray]]:
    """The group as arrays (nested observations as they are), refused if its lengths disagree."""
    if len(observations) != len(rewards):
        raise ValueError(
            f"A group needs as many observations as rewards, got {len(observations)} trajectories "
            f"of observations and {len(rewards)} of rewards."
        )
    if len(rewards) == 0:
        raise ValueError("The group is empty: it needs at least one trajectory.")
    observation_arrays = [o if _is_nested(o) else np.asarray(o) for o in observations]
    reward_arrays = [np.asarray(reward, dtype=np.float64) for reward in rewards]
    for observation, reward, name in zip(observation_arrays, reward_arrays, names, strict=True):
        if reward.ndim != 1 or len(reward) == 0:
            raise ValueError(
                f"{name}: rewards must have shape [T] with T >= 1, got {reward.shape}."
            )
        for leaf in _leaves(observation):
            if leaf.shape[:1] != reward.shape:
                raise ValueError(
                    f"{name}: {len(reward)} rewards, but observations of shape "
                    f"{leaf.shape}. Give one observation per step, without the final one."
                )
    return observation_arrays, reward_arrays


def _explained_variance(adv_S: FloatArray, ret_S: FloatArray) -> float:
    """1 - Var(A) / Var(R), or 0 when all returns are equal."""
    variance = (ret_S - ret_S[0]).var()  # shifted, so that equal returns give exactly 0
    return float(1.0 - adv_S.var() / variance) if variance > 0.0 else 0.0


def _first_non_finite(array: NDArray[Any]) -> Iterator[tuple[int, Any]]:
    """Yields the first step of an array [T, ...] with a nan or infinity, and its value, if any."""
    if array.dtype.kind in "fc":
        finite = np.isfinite(array)
        if not finite.all():
            where = np.argwhere(~finite)[0]
            yield int(where[0]), array[tuple(where)]


def _leaves(observation: Any) -> Iterator[NDArray[Any]]:
    """Yields the arrays of an observation: itself, or the leaves of a dict, tuple or list."""
    if _is_nested(observation):
        children = observation.values() if isinstance(observation, Mapping) else observation
        for child in children:
            yield from _leaves(child)
    else:
        yield np.asarray(observation)


def _is_nested(observation: Any) -> bool:
    """A list is nested if it holds arrays or mappings; a list of numbers is one array."""
    if isinstance(observation, list):
        return any(isinstance(child, np.ndarray | Mapping) for child in observation)
    return isinstance(observation, Mapping | tuple)
