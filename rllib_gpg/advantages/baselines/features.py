"""What a regression sees of a step: numbers of comparable size, and fixed functions of them.

Axes: S = steps of the group, trajectory after trajectory; T = steps of one trajectory; D = numbers
of one step: its flattened observation and the timestep; F = features.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rllib_gpg.advantages.binning import IntArray
from rllib_gpg.advantages.grouping import BinnedGroup
from rllib_gpg.advantages.inputs import FloatArray, leaves

FeatureFunction = Callable[[Any, IntArray], ArrayLike]

# The regression costs memory with the square of this and time with its third power.
MAX_NUMBERS = 1024
# Beyond this, squares would overflow.
_LARGEST = 1e100
_CLIP = 5.0
# Of the random features' kernel, in standard deviations and for one number.
_KERNEL_WIDTH = 1.4
# Standard deviations from the mean beyond which a number counts as no further: one wild observation
# among thousands would else be all that is left to see.
_OUTLIER = 10.0
# Standard deviations of normal numbers in one median deviation from their median.
_MEDIAN_DEVIATION = 1.4826
# The weight of each group relative to the next one: a policy that learns comes to see other things.
_DECAY = 0.9


def step_numbers(group: BinnedGroup, features: FeatureFunction | None) -> FloatArray:
    """Returns [S, D]: of every step the numbers of its observation, and its timestep.

    Args:
        group: The group.
        features: Takes the observations of a trajectory and its timesteps, and gives the numbers
            [T, ...] to use instead of the observations. None: the flattened observations.

    Raises:
        ValueError: If an observation, or what `features` makes of it, has too many numbers or
            something else in it; if `features` doesn't give one row of finite numbers per step.
    """
    timesteps = np.split(group.timesteps, np.cumsum(group.lengths)[:-1])
    steps = zip(group.names, group.observations, timesteps, strict=True)
    return _numbers(list(steps), features)


def final_numbers(group: BinnedGroup, features: FeatureFunction | None) -> FloatArray:
    """Returns the same, [.., D], of the final observations of the trajectories that have one."""
    ends = group.starts + group.lengths
    final_observations = [] if group.final_observations is None else group.final_observations
    finals = zip(group.names, final_observations, ends, strict=True)
    steps = [(n, o, np.array([t])) for n, o, t in finals if o is not None]
    return _numbers(steps, features)


def _numbers(
    trajectories: Sequence[tuple[str, Any, IntArray]], features: FeatureFunction | None
) -> FloatArray:
    """Numbers of (name, observations, timesteps) of each trajectory."""
    rows = [
        np.column_stack(
            [
                _flat(observations, t_T)
                if features is None
                else _of_user(features, name, observations, t_T),
                t_T,
            ]
        )
        for name, observations, t_T in trajectories
    ]
    widths = {row_TD.shape[1] - 1 for row_TD in rows}
    if len(widths) > 1:
        raise ValueError(
            f"observations, or features, must have as many numbers in all trajectories, got "
            f"{sorted(widths)} per step."
        )
    x_SD = np.concatenate(rows)
    return np.clip(x_SD, -_LARGEST, _LARGEST, out=x_SD)


def _of_user(
    features: FeatureFunction, name: str, observations: Any, timesteps: IntArray
) -> FloatArray:
    """Calls a user's function for one trajectory, and checks what comes back."""
    try:
        x_TD = _flat(features(observations, timesteps), timesteps)
        if not np.isfinite(x_TD).all():
            t = int(np.argwhere(~np.isfinite(x_TD))[0, 0])
            raise ValueError(f"features must be finite, got {x_TD[t]} at step {t}.")
    except Exception as error:
        shape = getattr(observations, "shape", None)
        seen = type(observations).__name__ if shape is None else f"an array of shape {shape}"
        error.add_note(f"Raised in the features of {name}, which were given {seen}.")
        raise
    return x_TD


def _flat(given: Any, timesteps: IntArray) -> FloatArray:
    """Returns [T, D - 1]: the numbers of one trajectory, whatever they are in."""
    parts: list[NDArray[Any]] = [np.asarray(part) for part in leaves(given)]
    if not parts:
        raise ValueError("there are no numbers to look at: observations, or features, are empty.")
    for part in parts:
        if part.shape[:1] != timesteps.shape:
            raise ValueError(
                f"features must give one row per step: {len(timesteps)} rows, got an array of "
                f"shape {part.shape}."
            )
    numeric = all(part.dtype.kind in "biuf" for part in parts)
    check_numbers(sum(part[0].size for part in parts) if numeric else None)
    return np.concatenate(
        [part.reshape(len(part), -1).astype(np.float64) for part in parts], axis=1
    )


def check_numbers(numbers: int | None) -> None:
    """Refuses what is too much for a regression, or has parts that aren't numbers.

    Args:
        numbers: How many numbers one flattened observation has; None if it has other parts.

    Raises:
        ValueError: Says what to give instead.
    """
    if numbers is None or numbers > MAX_NUMBERS:
        got = "something else" if numbers is None else f"{numbers}"
        raise ValueError(
            f"RidgeBaseline needs at most {MAX_NUMBERS} numbers per step, got {got}. Give it a few "
            "of your own: RidgeBaseline(features=f) with f(observations, timesteps) -> numbers "
            "[T, ...], called once per trajectory."
        )


@dataclass(frozen=True)
class Moments:
    """Over some steps.

    Attributes:
        count: How many they are; those of earlier groups count less.
        mean: [D], the mean of each number.
        squares: [D], the sum of squared deviations from it.
    """

    count: float
    mean: FloatArray
    squares: FloatArray

    @classmethod
    def of(cls, x_SD: FloatArray) -> Self:
        """Returns the moments of some steps. Those of a constant are exact."""
        from_first_SD = x_SD - x_SD[0]
        mean_D = from_first_SD.mean(axis=0)
        from_first_SD -= mean_D
        return cls(len(x_SD), x_SD[0] + mean_D, np.einsum("sd,sd->d", *[from_first_SD] * 2))

    @classmethod
    def of_first(cls, x_SD: FloatArray) -> Self:
        """Returns the moments of the steps of a first group, whose outliers are limited."""
        median_D = np.median(x_SD, axis=0)
        deviation_D = np.median(np.abs(x_SD - median_D), axis=0)
        return cls.of(_within_reach(x_SD, median_D, _MEDIAN_DEVIATION * deviation_D))

    def and_then(self, x_SD: FloatArray) -> Self:
        """Returns these moments, decayed, and those of a group, whose outliers are limited."""
        std_D = np.sqrt(self.squares / self.count)
        earlier = type(self)(_DECAY * self.count, self.mean, _DECAY * self.squares)
        return earlier.and_those_of(self.of(_within_reach(x_SD, self.mean, std_D)))

    def and_those_of(self, other: Self) -> Self:
        """Returns the moments of both, by Chan's formula."""
        count = self.count + other.count
        share, delta_D = other.count / count, other.mean - self.mean
        return type(self)(
            count,
            self.mean + share * delta_D,
            self.squares + other.squares + share * self.count * delta_D**2,
        )


def _within_reach(x_SD: FloatArray, center_D: FloatArray, std_D: FloatArray) -> FloatArray:
    """Numbers too far from the rest as if they were no further; all, if the rest has no scale."""
    limit_D = np.where(std_D > 0.0, _OUTLIER * std_D, np.inf)
    return np.clip(x_SD, center_D - limit_D, center_D + limit_D)


class Features:
    """The features of a step: phi = [z, z^2, sin(2 pi (W z + u))] of its numbers x.

    z = clip((x - mean) / std, -5, 5), and 0 for a number that has been constant so far. W and u are
    random and fixed: random Fourier features (Rahimi and Recht, 2007) of a Gaussian kernel whose
    width is 1.4 sqrt(D) standard deviations. Of 512, these explain more than functions that rise
    from one level to another (h / (1 + |h|), tanh); of 64 as much.

    The sine is drawn with parabolas, f (1/2 - |f|) on each period, at a quarter of the time.
    """

    def __init__(self, moments: Moments, num_random: int, seed: int):
        """Draws W and u.

        Args:
            moments: Of the numbers x, over the steps seen so far.
            num_random: How many rows W has.
            seed: Of W and u.
        """
        std_D = np.sqrt(moments.squares / moments.count)
        self._mean_D = moments.mean
        self._scale_D = np.divide(1.0, std_D, out=np.zeros_like(std_D), where=std_D > 0.0)
        rng = np.random.default_rng(seed)
        width = _KERNEL_WIDTH * np.sqrt(len(std_D))
        self._w_RD = rng.standard_normal((num_random, len(std_D))) / (2.0 * np.pi * width)
        self._u_R = rng.uniform(0.0, 1.0, num_random)

    def __call__(self, x_SD: FloatArray, out: FloatArray | None = None) -> FloatArray:
        """Returns phi, [S, F], in `out` if that is given."""
        num_inputs = x_SD.shape[1]
        phi_SF = np.empty((len(x_SD), len(self))) if out is None else out
        z_SD = phi_SF[:, :num_inputs]
        np.clip((x_SD - self._mean_D) * self._scale_D, -_CLIP, _CLIP, out=z_SD)
        np.square(z_SD, out=phi_SF[:, num_inputs : 2 * num_inputs])
        h_SR = z_SD @ self._w_RD.T + self._u_R
        _wave(h_SR, out=phi_SF[:, 2 * num_inputs :])
        return phi_SF

    def __len__(self) -> int:
        """The number of features, F."""
        return 2 * len(self._mean_D) + len(self._u_R)


def _wave(h: FloatArray, out: FloatArray) -> None:
    """Writes a wave of period 1 in h, from -1 to 1, to `out`. `h` is overwritten."""
    # 16 f (1/2 - |f|), f = h - round(h)
    h -= np.rint(h)
    np.abs(h, out=out)
    out *= -16.0
    out += 8.0
    out *= h
