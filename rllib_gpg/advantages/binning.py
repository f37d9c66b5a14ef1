"""Binning functions f(s, t): which steps of a group share a baseline (section 3.1 of the paper).

A binning function is called once per trajectory, with its observations [T, ...] and its timesteps
[T] (0 at the episode's reset), and returns one integer key per step: [T], or [T, k] for keys of k
integers. Steps of the group with equal keys share a bin. Bins too coarse predict returns badly;
bins too fine hold one trajectory each, which leaves no signal.

Any function of that form will do. By the remark under Proposition 1 it may use the *history*: key
t may depend on steps 0..t, never on anything after step t. A baseline that knows the future
biases the gradient, and nothing here can notice.

    >>> def start_and_time(observations, timesteps):
    ...     '''One bin per coarse start of the episode and timestep.'''
    ...     start = np.rint(observations[:1] / 0.5).astype(np.int64)  # [1, D]: known from step 0 on
    ...     return np.column_stack([np.repeat(start, len(timesteps), axis=0), timesteps])
    >>> def laps(observations, timesteps):
    ...     '''One bin per number of times the agent has crossed x = 0 so far.'''
    ...     x = observations[:, 0]
    ...     return np.cumsum(np.diff(x > 0, prepend=x[0] > 0))  # cumulative: never looks ahead

A baseline that remembers earlier groups (baselines/) needs to know whether equal keys of two
groups name the same bin. Those of the built-in binnings do. A function of yours, whose keys might
as well be numbers of clusters found anew in each group, says so: ``laps.keys_last = True``.
Otherwise its bins are those of one group only. One whose keys count the time says that too:
``f.counts_time = True``. The last bin before a time limit has seen nothing of what would follow.

Axes: T = steps of one trajectory, D = dimensions of one flattened observation.
"""

import difflib
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

IntArray = NDArray[np.int64]
BinningFunction = Callable[[Any, IntArray], ArrayLike]

_ELSE = "For others give a function f(observations, timesteps) -> integer keys."


class Binning:
    """Base of the built-in binnings: a binning function that can look at a space beforehand.

    Attributes:
        keys_last: Whether equal keys of two groups name the same bin, see the head of this file.
        counts_time: Whether keys of one state differ with the time.
    """

    keys_last: ClassVar[bool] = False
    counts_time: ClassVar[bool] = False

    def __call__(self, observations: Any, timesteps: IntArray) -> IntArray:
        """Returns the keys, [T] or [T, k], of one trajectory: see the head of this file."""
        raise NotImplementedError

    def check_space(self, *, shape: tuple[int, ...] | None, dtype: np.dtype[Any] | None) -> None:
        """Refuses, before the first sample, observations it cannot take. The base takes all.

        Args:
            shape: Shape of one observation; None if it is not one array, e.g. a dict.
            dtype: Its dtype; None if it is not one numeric array.
        """


@dataclass(frozen=True)
class TimeBinning(Binning):
    """f(s, t) = t: the paper's choice in all its main experiments, and the default."""

    keys_last = True
    counts_time = True

    def __call__(self, observations: Any, timesteps: IntArray) -> IntArray:
        """Returns the timesteps themselves, [T]."""
        return timesteps


@dataclass(frozen=True)
class UniversalBinning(Binning):
    """f(s, t) = 0: one bin. With normalisation it is GRPO outcome supervision and REINFORCE++.

    To the letter this holds for a terminal reward, gamma 1 and trajectories of equal length.
    """

    keys_last = True

    def __call__(self, observations: Any, timesteps: IntArray) -> IntArray:
        """Returns zeros, [T]."""
        return np.zeros_like(timesteps)


@dataclass(frozen=True)
class StateBinning(Binning):
    """f(s, t) = s: every state is a bin of its own. For discrete state spaces.

    Two observations share a bin when they are exactly equal; 0.0 and -0.0 are equal.
    """

    keys_last = True

    def __call__(self, observations: Any, timesteps: IntArray) -> IntArray:
        """Returns the bytes of each observation as 64-bit words, [T, ceil(bytes / 8)]."""
        obs_TD = _numeric_rows(observations, self)
        if obs_TD.dtype.kind == "f":
            obs_TD = obs_TD + obs_TD.dtype.type(0)  # -0.0 + 0.0 = 0.0; nothing else changes
        byte_TD = np.ascontiguousarray(obs_TD).view(np.uint8)
        missing = -byte_TD.shape[1] % 8
        if missing:
            byte_TD = np.pad(byte_TD, ((0, 0), (0, missing)))
        return byte_TD.view(np.int64)

    def check_space(self, *, shape: tuple[int, ...] | None, dtype: np.dtype[Any] | None) -> None:
        """Warns if observations are floats; refuses what is not one numeric array.

        Raises:
            ValueError: If an observation is not one numeric array.
        """
        _require_numeric_space(self, shape, dtype)
        if dtype is not None and dtype.kind == "f":
            warnings.warn(
                f"{self} on {dtype} observations: unless states repeat exactly, every state will "
                "be a bin of its own (a singleton): no signal. See SpatialBinning(epsilon=...).",
                UserWarning,
                stacklevel=2,
            )


@dataclass(frozen=True)
class SpatialBinning(Binning):
    """f(s, t) = epsilon * round(s / epsilon): states on a grid. For continuous state spaces.

    Args:
        epsilon: Edge of a patch, > 0, in the unit of the observations (as the environment
            gives them, not normalised): one float, or one per dimension of the flattened
            observation. Larger is coarser; the more trajectories, the finer a grid they can fill.

    Raises:
        ValueError: If epsilon is not positive and finite.
    """

    keys_last = True

    epsilon: float | Sequence[float] | NDArray[np.floating]

    def __post_init__(self) -> None:
        """Makes epsilon a float or a tuple of floats: hashable, and short in trial names."""
        epsilon = np.asarray(self.epsilon)
        numbers = epsilon.dtype.kind in "iuf" and epsilon.ndim <= 1 and epsilon.size > 0
        if not (numbers and (np.isfinite(epsilon) & (epsilon > 0)).all()):
            raise ValueError(
                "epsilon must be a number > 0 and finite, or one such number per observation "
                f"dimension, got {self.epsilon!r}."
            )
        plain = float(epsilon) if epsilon.ndim == 0 else tuple(map(float, epsilon))
        object.__setattr__(self, "epsilon", plain)

    def __call__(self, observations: Any, timesteps: IntArray) -> IntArray:
        """Returns round(s / epsilon) as integers, [T, D].

        Raises:
            TypeError: If the observations are not one numeric array.
            ValueError: If epsilon has another length than the observations, or if s / epsilon
                does not fit a 64-bit integer.
        """
        obs_TD = _numeric_rows(observations, self)
        self._check_dimensions(obs_TD.shape[1])
        with np.errstate(over="ignore"):  # what overflows is refused below
            cell_TD: NDArray[np.float64] = np.rint(
                np.divide(obs_TD, self.epsilon, dtype=np.float64)
            )
        fits_TD = np.abs(cell_TD) < 2.0**63  # False for nan
        if not fits_TD.all():
            t, d = np.argwhere(~fits_TD)[0]
            raise ValueError(
                f"{self}: the observation at step {t}, dimension {d}, is {obs_TD[t, d]}; divided "
                "by epsilon it does not fit a 64-bit bin key. Use a larger epsilon."
            )
        return cell_TD.astype(np.int64)

    def check_space(self, *, shape: tuple[int, ...] | None, dtype: np.dtype[Any] | None) -> None:
        """Refuses observations that are not one numeric array, or do not match epsilon's length.

        Raises:
            ValueError: In both cases.
        """
        _require_numeric_space(self, shape, dtype)
        self._check_dimensions(math.prod(shape or ()))

    def _check_dimensions(self, dimensions: int) -> None:
        if isinstance(self.epsilon, tuple) and len(self.epsilon) != dimensions:
            raise ValueError(
                f"{self}: epsilon has {len(self.epsilon)} entries, but a flattened observation "
                f"has {dimensions} dimensions. Give one float, or {dimensions} of them."
            )


@dataclass(frozen=True)
class SpatialTimeBinning(SpatialBinning):
    """f(s, t) = (epsilon * round(s / epsilon), t): the grid of SpatialBinning at each timestep.

    The paper finds it equal to time bins on small groups and better on large ones, with epsilon
    1.0 for groups of 1-4, 0.5 for 16-32 and 0.2 for 128. Arguments and errors: SpatialBinning.
    """

    counts_time = True

    def __call__(self, observations: Any, timesteps: IntArray) -> IntArray:
        """Returns round(s / epsilon) and the timestep as integers, [T, D + 1]."""
        return np.column_stack([super().__call__(observations, timesteps), timesteps])


_NAMED: dict[str, type[Binning]] = {
    "time": TimeBinning,
    "universal": UniversalBinning,
    "state": StateBinning,
}
_NEED_EPSILON = {"spatial": "SpatialBinning", "spatial-time": "SpatialTimeBinning"}


def resolve_binning(binning: str | BinningFunction) -> BinningFunction:
    """Turns what a user may give as a binning into a binning function.

    Args:
        binning: A binning object or function (returned as is), or one of "time", "universal",
            "state".

    Raises:
        ValueError: If the name is unknown, or names a binning that needs an epsilon.
        TypeError: If it is neither a name nor callable.
    """
    if isinstance(binning, str):
        if binning in _NAMED:
            return _NAMED[binning]()
        if binning in _NEED_EPSILON:
            name = _NEED_EPSILON[binning]
            raise ValueError(f"binning {binning!r} needs an epsilon: give {name}(epsilon=...).")
        nearest = difflib.get_close_matches(binning, _NAMED, n=1, cutoff=0.0)
        raise ValueError(
            f"Unknown binning {binning!r}. Known names: {', '.join(map(repr, _NAMED))}; "
            f"the nearest is {nearest[0]!r}."
        )
    if isinstance(binning, type) or not callable(binning):
        raise TypeError(
            "binning must be a name, an object such as TimeBinning() or a function "
            f"f(observations, timesteps) -> keys, got {binning!r}."
        )
    return binning


def keys_last(binning: BinningFunction) -> bool:
    """Whether equal keys of two groups name the same bin: True only if the binning says so."""
    return bool(getattr(binning, "keys_last", False))


def counts_time(binning: BinningFunction) -> bool:
    """Whether keys of one state differ with the time: True only if the binning says so."""
    return bool(getattr(binning, "counts_time", False))


def name_of(function: Callable[..., Any]) -> str:
    """Tells functions of users apart, the same in every process: built-in ones with settings."""
    kind = type(function)
    return (
        repr(function)
        if isinstance(function, Binning)
        else getattr(function, "__qualname__", kind.__qualname__)
    )


def _numeric_rows(observations: Any, binning: Binning) -> NDArray[Any]:
    """Observations as rows [T, D], or a TypeError if they are not one numeric array."""
    if not isinstance(observations, np.ndarray) or not _is_numeric(observations.dtype):
        got = getattr(observations, "dtype", type(observations).__name__)
        raise TypeError(f"{binning} needs one array of numbers, got {got}. {_ELSE}")
    return observations.reshape(len(observations), -1)


def _require_numeric_space(
    binning: Binning, shape: tuple[int, ...] | None, dtype: np.dtype[Any] | None
) -> None:
    if shape is None or dtype is None or not _is_numeric(dtype):
        raise ValueError(
            f"{binning} needs observations that are one array of numbers, but the observation "
            f"space has shape {shape} and dtype {dtype}. {_ELSE}"
        )


def _is_numeric(dtype: np.dtype[Any]) -> bool:
    """Bool, integer or float of at most 64 bits (longdouble has padding bytes)."""
    return dtype.kind in "biuf" and dtype.itemsize <= 8
