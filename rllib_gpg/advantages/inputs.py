"""What an estimator is given: checked, and made arrays.

Axes: N = trajectories; T = steps of one trajectory; S = steps of the group; D = numbers of one
flattened observation.
"""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]


def default_names(rewards: Sequence[ArrayLike]) -> list[str]:
    """N words for the trajectories, for errors."""
    return [f"trajectory {n}" for n in range(len(rewards))]


def as_arrays(
    observations: Sequence[Any], rewards: Sequence[ArrayLike], names: Sequence[str]
) -> tuple[list[Any], list[FloatArray]]:
    """The group as arrays; nested observations stay as they are.

    Args:
        observations: N arrays [T_n, ...], or dicts, tuples or lists of such arrays.
        rewards: N arrays [T_n].
        names: N words for the trajectories, for errors.

    Raises:
        ValueError: If the group or a trajectory is empty, or lengths disagree.
    """
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
        for leaf in leaves(observation):
            if leaf.shape[:1] != reward.shape:
                raise ValueError(
                    f"{name}: {len(reward)} rewards, but observations of shape "
                    f"{leaf.shape}. Give one observation per step, without the final one."
                )
    return observation_arrays, reward_arrays


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
    names = names or default_names(rewards)
    for observation, reward, name in zip(observations, rewards, names, strict=True):
        columns = [("observation", leaf) for leaf in leaves(observation)]
        columns.append(("reward", np.asarray(reward)))
        bad = [(t, what, value) for what, array in columns for t, value in _first_non_finite(array)]
        if bad:
            t, what, value = min(bad, key=lambda found: found[0])
            raise ValueError(
                f"{name}: the {what} at step {t} is not finite: {value}. Mend the environment, or "
                "the piece between it and the estimator."
            )


def check_finals(final_observations: Sequence[Any], names: Sequence[str]) -> None:
    """Refuses final observations that are not one per trajectory (or None), or not finite.

    Raises:
        ValueError: In both cases; names the trajectory.
    """
    if len(final_observations) != len(names):
        raise ValueError(
            f"final_observations needs one entry per trajectory, None where it has ended: got "
            f"{len(final_observations)} for {len(names)}."
        )
    for final, name in zip(final_observations, names, strict=True):
        for leaf in leaves(final) if final is not None else ():
            if len(leaf) != 1:
                raise ValueError(
                    f"{name}: a final observation must have shape [1, ...], got {leaf.shape}."
                )
            for _, value in _first_non_finite(leaf):
                raise ValueError(f"{name}: the final observation is not finite: {value}.")


def check_starts(first_timesteps: Sequence[int] | None, names: Sequence[str]) -> NDArray[np.int64]:
    """Returns [N], the timesteps that trajectories begin at: 0 by default.

    Raises:
        ValueError: If there isn't one per trajectory, or one is negative or no integer.
    """
    if first_timesteps is None:
        return np.zeros(len(names), np.int64)
    start_N = np.asarray(first_timesteps)
    if start_N.shape != (len(names),) or start_N.dtype.kind not in "iu" or start_N.min() < 0:
        raise ValueError(
            f"first_timesteps needs one integer >= 0 per trajectory: got {first_timesteps!r} for "
            f"{len(names)}."
        )
    return start_N.astype(np.int64)


def check_labels(starts: Sequence[Hashable] | None, names: Sequence[str]) -> None:
    """Refuses labels of starts that are not one per trajectory.

    Raises:
        ValueError: Says how many there are.
    """
    if starts is not None and len(starts) != len(names):
        raise ValueError(
            f"starts needs one label per trajectory: got {len(starts)} for {len(names)}."
        )


def check_memory(memory: Any) -> None:
    """Refuses what isn't the `memory` of an estimate.

    Raises:
        TypeError: Says what it is instead.
    """
    if memory is not None and not (isinstance(memory, Mapping) and "of" in memory):
        raise TypeError(
            "memory must be None, or the attribute `memory` of the estimate of the group before, "
            f"got {type(memory).__name__}."
        )


def check_values(
    values: FloatArray, lengths_N: NDArray[np.int64], names: Sequence[str], baseline: Any
) -> None:
    """Refuses values that aren't one finite number per step: training would be over, in silence.

    Args:
        values: [S], what a baseline gave.
        lengths_N: [N], for how many steps of each trajectory.
        names: N words for the trajectories.
        baseline: Whose they are.

    Raises:
        ValueError: Names the trajectory.
    """
    shape = (int(lengths_N.sum()),)
    if np.shape(values) != shape:
        raise ValueError(f"{baseline} must give values of shape {shape}, got {np.shape(values)}.")
    if not np.isfinite(values).all():
        s = int(np.argmin(np.isfinite(values)))
        n = int(np.searchsorted(np.cumsum(lengths_N), s, side="right"))
        raise ValueError(f"{baseline}, {names[n]}: a value is not finite: {values[s]}.")


def leaves(observation: Any) -> Iterator[NDArray[Any]]:
    """Yields the arrays of an observation: itself, or the leaves of a dict, tuple or list."""
    if _is_nested(observation):
        children = observation.values() if isinstance(observation, Mapping) else observation
        for child in children:
            yield from leaves(child)
    else:
        yield np.asarray(observation)


def _first_non_finite(array: NDArray[Any]) -> Iterator[tuple[int, Any]]:
    """Yields the first step of an array [T, ...] with a nan or infinity, and its value, if any."""
    if array.dtype.kind in "fc":
        finite = np.isfinite(array)
        if not finite.all():
            where = np.argwhere(~finite)[0]
            yield int(where[0]), array[tuple(where)]


def _is_nested(observation: Any) -> bool:
    """A list is nested if it holds arrays or mappings; a list of numbers is one array."""
    if isinstance(observation, np.ndarray):  # nearly always, and asking for a Mapping is slow
        return False
    if isinstance(observation, list):
        return any(isinstance(child, np.ndarray | Mapping) for child in observation)
    return isinstance(observation, Mapping | tuple)
