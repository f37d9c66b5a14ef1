"""Which steps of a group share a bin, and which of them are first visits. Exact, without hashes.

Axes: S = every step of the group, trajectory after trajectory; N = trajectories; T = steps of one
trajectory; K = the integers that make up one key.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rllib_gpg.advantages.binning import BinningFunction, IntArray


def bin_keys(
    binning: BinningFunction, observations: Sequence[Any], lengths_N: IntArray, names: Sequence[str]
) -> IntArray:
    """Calls a binning function once per trajectory, and checks what comes back.

    Args:
        binning: ``f(observations [T, ...], timesteps [T]) -> integer keys [T] or [T, K]``.
        observations: N arrays [T_n, ...], or what else the binning understands.
        lengths_N: [N], the number of steps of each trajectory.
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
    for observation, length, name in zip(observations, lengths_N, names, strict=True):
        asked = f"binning {function}, {name}:"
        try:
            found = np.asarray(binning(observation, np.arange(length)))
        except Exception as error:
            error.add_note(f"Raised in {asked[:-1]}.")
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
    code_S[order_S] = np.cumsum(_differs_from_previous(row_S[order_S]))
    return code_S


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
    new_bin_S = _differs_from_previous(code_S[order_S])
    new_visit_S = new_bin_S | _differs_from_previous(trajectory_S[order_S])
    bin_S, entry_S = np.empty_like(order_S), np.empty_like(order_S)
    bin_S[order_S] = np.cumsum(new_bin_S) - 1
    entry_S[order_S] = order_S[new_visit_S][np.cumsum(new_visit_S) - 1]
    return bin_S, entry_S


def _described(keys: NDArray[Any]) -> str:
    return f"got {keys.dtype} of shape {keys.shape}"


def _differs_from_previous(value_S: NDArray[Any]) -> NDArray[np.bool_]:
    """Marks the first entry, and every entry unlike the one before it."""
    return np.concatenate([[True], value_S[1:] != value_S[:-1]])
