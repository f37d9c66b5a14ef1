"""How the ratio pi(a|s) / pi_old(a|s) enters the loss: one small object per way.

A surrogate is a function of the ratio and the advantage of each step, tensors of one shape, to be
maximised. At ratio 1 all of them have the gradient A grad log pi.

    >>> @dataclass(frozen=True)
    ... class Squeezed(Surrogate):
    ...     '''The logarithm of the ratio, which grows slowly.'''
    ...     def __call__(self, ratio, advantages):
    ...         return torch.log(ratio) * advantages
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor

Bounds = float | tuple[float, float]

# Further out, exp leaves single precision: 0 has no logarithm, and infinity no gradient.
_MAX_LOG_RATIO = 80.0


class Surrogate:
    """Base of all surrogates: settings, and a function."""

    @property
    def bounds_ratio(self) -> bool:
        """Whether steps with ratios far from 1 are held back, for several updates per group."""
        return True

    def __call__(self, ratio: Tensor, advantages: Tensor) -> Tensor:
        """Returns the surrogate of each step.

        Args:
            ratio: pi(a|s) / pi_old(a|s).
            advantages: What each step was worth.
        """
        raise NotImplementedError

    def is_clipped(self, ratio: Tensor) -> Tensor:
        """Returns 1.0 for each step whose ratio is out of bounds, else 0.0."""
        return torch.zeros_like(ratio)


@dataclass(frozen=True)
class Clip(Surrogate):
    """PPO's clipped surrogate (equation 2; Schulman et al., 2017).

    Args:
        low: How far the ratio may fall below 1 before the surrogate stops improving.
        high: How far it may rise above 1. More than `low` is DAPO's clip-higher, which lets rare
            actions become likelier (Yu et al., 2025: 0.2 and 0.28). Default: as `low`.
        dual: Of steps that went badly, the surrogate is never below `dual * A` (dual clip, Ye et
            al., 2020: 3), so that a ratio that has exploded can't either. Default None: no bound.

    Raises:
        ValueError: If a bound isn't positive, or dual isn't above 1.
    """

    low: float = 0.2
    high: float | None = None
    dual: float | None = None

    def __post_init__(self) -> None:
        """Refuses what can't be meant."""
        _check_positive(low=self.low, high=self.upper)
        if self.dual is not None:
            _check_positive(dual=self.dual)
            if self.dual <= 1.0:
                raise ValueError(f"dual must be above 1, got {self.dual!r}.")

    @property
    def upper(self) -> float:
        """How far the ratio may rise above 1."""
        return self.low if self.high is None else self.high

    def __call__(self, ratio: Tensor, advantages: Tensor) -> Tensor:
        """Returns min(ratio A, clip(ratio) A), bounded from below with `dual`."""
        # min(ratio * A, clip(ratio, 1 - low, 1 + high) * A)
        clipped = torch.clamp(ratio, 1.0 - self.low, 1.0 + self.upper)
        surrogate = torch.min(ratio * advantages, clipped * advantages)
        if self.dual is None:
            return surrogate
        # max(.., dual * A) where A < 0
        bounded = torch.max(surrogate, self.dual * advantages)
        return torch.where(advantages < 0.0, bounded, surrogate)

    def is_clipped(self, ratio: Tensor) -> Tensor:
        """Returns 1.0 where the ratio is outside of [1 - low, 1 + high]."""
        # ratio < 1 - low or ratio > 1 + high
        return _outside(ratio, self.low, self.upper)


@dataclass(frozen=True)
class SoftGate(Surrogate):
    """A smooth gate in place of the clip (SAPO; Gao et al., 2025).

    Args:
        temperature: How fast the gate closes for steps that went well. Default 1.0.
        temperature_negative: The same for steps that went badly, which spread to all other actions.
            Default 1.05, as published.

    Raises:
        ValueError: If one isn't positive.
    """

    temperature: float = 1.0
    temperature_negative: float = 1.05

    def __post_init__(self) -> None:
        """Refuses what can't be meant."""
        _check_positive(
            temperature=self.temperature, temperature_negative=self.temperature_negative
        )

    def __call__(self, ratio: Tensor, advantages: Tensor) -> Tensor:
        """Returns gate(ratio) A, whose slope at ratio 1 is A."""
        # sigmoid(tau (ratio - 1)) 4 / tau * A
        good, bad = map(advantages.new_tensor, (self.temperature, self.temperature_negative))
        tau = torch.where(advantages > 0.0, good, bad)
        return torch.sigmoid(tau * (ratio - 1.0)) * 4.0 / tau * advantages


@dataclass(frozen=True)
class ClippedWeight(Surrogate):
    """A clipped weight without a gradient, times log pi: every step counts (CISPO; MiniMax, 2025).

    Args:
        low: How far the weight may fall below 1. Default 1, no bound, as published.
        high: How far it may rise above 1. Default 0.28.

    Raises:
        ValueError: If one isn't positive.
    """

    low: float = 1.0
    high: float = 0.28

    def __post_init__(self) -> None:
        """Refuses what can't be meant."""
        _check_positive(low=self.low, high=self.high)

    def __call__(self, ratio: Tensor, advantages: Tensor) -> Tensor:
        """Returns weight A log(ratio): log pi_old is a constant."""
        # stop_gradient(clip(ratio, 1 - low, 1 + high)) * A * log pi
        weight = torch.clamp(ratio, 1.0 - self.low, 1.0 + self.high).detach()
        return weight * advantages * torch.log(ratio)

    def is_clipped(self, ratio: Tensor) -> Tensor:
        """Returns 1.0 where the weight isn't the ratio."""
        return _outside(ratio, self.low, self.high)


@dataclass(frozen=True)
class Unclipped(Surrogate):
    """The ratio as it is: for a single update per group, or with a penalty on KL(old, new)."""

    @property
    def bounds_ratio(self) -> bool:
        """No: after some updates, the estimate is of another policy."""
        return False

    def __call__(self, ratio: Tensor, advantages: Tensor) -> Tensor:
        """Returns ratio A."""
        return ratio * advantages


_NAMED = ("clip", "soft_gate", "clipped_weight", "unclipped")


def resolve_surrogate(surrogate: str | Surrogate, clip_param: Bounds = 0.2) -> Surrogate:
    """Turns what a user may give as a surrogate into one.

    Args:
        surrogate: A surrogate object (returned as is), or one of "clip", "soft_gate",
            "clipped_weight", "unclipped".
        clip_param: The bounds of "clip" and "clipped_weight": of both sides, or (lower, upper).

    Raises:
        ValueError: If the name is unknown, or the bounds can't be meant.
        TypeError: If it is neither a name nor a surrogate.
    """
    if isinstance(surrogate, Surrogate):
        return surrogate
    if not isinstance(surrogate, str):
        raise TypeError(
            "surrogate must be a name or an object of a class that derives from "
            f"rllib_gpg.learning.surrogates.Surrogate, such as Clip(dual=3.0), got {surrogate!r}."
        )
    if surrogate not in _NAMED:
        nearest = difflib.get_close_matches(surrogate, _NAMED, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"Unknown surrogate {surrogate!r}. Known names: {', '.join(map(repr, _NAMED))}; the "
            f"nearest is {nearest!r}."
        )
    if surrogate == "soft_gate":
        return SoftGate()
    if surrogate == "unclipped":
        return Unclipped()
    low, high = clip_param if isinstance(clip_param, tuple | list) else (clip_param, clip_param)
    return Clip(low, high) if surrogate == "clip" else ClippedWeight(low, high)


def step_ratio(log_ratio: Tensor) -> Tensor:
    """Returns pi(a|s) / pi_old(a|s), or a number as good where it is out of all bounds.

    Args:
        log_ratio: log pi(a|s) - log pi_old(a|s).
    """
    return torch.exp(_within_numbers(log_ratio))


def trajectory_ratio(log_ratio: Tensor, trajectory: Tensor) -> Tensor:
    """Returns each trajectory's ratio to the power of 1 / its length, at all of its steps (GSPO).

    Its gradient at a step is that of the step's own log pi, times the ratio: GSPO-token (Zheng et
    al., 2025, section 4.3). Where all steps of a trajectory have one advantage that is GSPO's
    gradient; elsewhere that of the mean would give each step the sum of all their advantages.

    Args:
        log_ratio: log pi(a|s) - log pi_old(a|s), [B]. All steps of a trajectory must be there.
        trajectory: The number of the trajectory that each step is of, integers >= 0, [B].
    """
    log_ratio = _within_numbers(log_ratio)
    fixed = log_ratio.detach()
    # s(n) = exp(mean over t of log ratio(n,t))
    zeros = fixed.new_zeros(int(trajectory.max()) + 1)
    sums = zeros.index_add(0, trajectory, fixed)
    counts = zeros.index_add(0, trajectory, torch.ones_like(fixed))
    ratio = torch.exp(sums / counts.clamp(min=1.0))
    # stop_gradient(s(n)) pi(a|s) / stop_gradient(pi(a|s))
    return ratio[trajectory] * torch.exp(log_ratio - fixed)


def reference_kl(log_x: Tensor) -> Tensor:
    """Returns an estimate of KL(pi, pi_ref) at each step, unbiased and never negative.

    Args:
        log_x: log pi_ref(a|s) - log pi(a|s).
    """
    # x - log x - 1, x = pi_ref / pi
    log_x = log_x.clamp(max=_MAX_LOG_RATIO)
    return torch.expm1(log_x) - log_x


def _within_numbers(log_ratio: Tensor) -> Tensor:
    return log_ratio.clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO)


def _outside(ratio: Tensor, low: float, high: float) -> Tensor:
    return ((ratio < 1.0 - low) | (ratio > 1.0 + high)).float()


def _check_positive(**settings: Any) -> None:
    for name, value in settings.items():
        is_number = isinstance(value, Real) and not isinstance(value, bool)
        if not is_number or not 0.0 < float(value) < float("inf"):
            raise ValueError(f"{name} must be a number > 0, got {value!r}.")
