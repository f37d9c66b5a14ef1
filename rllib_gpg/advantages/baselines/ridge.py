"""`RidgeBaseline`: a ridge regression inside the bins, solved in closed form.

A bin's mean can't see where in the bin a state lies. Least squares on fixed features can, without
a network and without a gradient step:

    phi                            features of a step, see features.py
    phi~, R~                       phi, R minus the mean of their bin
    w = (G + rho diag G)^-1 c      from earlier groups only: no return explains itself
    b(k)                           mean of R - w.phi over bin k, without the step's own trajectory
    v(n,t) = w.phi(n,t) + b(k(n,t))
    G <- sqrt(d) (G + phi~.phi~), c <- sqrt(d) (c + phi~.R~)    after the group, d the decay

A bin's means are over its first visits, as in Algorithm 2, those of earlier groups with weights d,
d^2, ..; the regression is over all steps. It looks back twice as far: as a policy learns, the level
of returns moves faster than what a state is worth relative to its bin. `rho` is the one of a few
candidates that would have predicted the groups so far best, each by the groups before it. With rho
infinite, w is 0.

Axes: S = steps of the group, trajectory after trajectory; B = bins; D = numbers of one step; F =
features; C = candidates for rho.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from math import sqrt
from numbers import Integral
from typing import Any, Self

import numpy as np

from rllib_gpg.advantages.baselines.base import Baseline, Valuation
from rllib_gpg.advantages.baselines.bins import check_decay
from rllib_gpg.advantages.baselines.carried import CarriedBins, most_visited
from rllib_gpg.advantages.baselines.features import (
    FeatureFunction,
    Features,
    Moments,
    check_numbers,
    final_numbers,
    step_numbers,
)
from rllib_gpg.advantages.baselines.regression import (
    STRENGTHS,
    NormalEquations,
    predict_and_sum,
)
from rllib_gpg.advantages.binning import IntArray, name_of
from rllib_gpg.advantages.grouping import BinnedGroup, find_keys
from rllib_gpg.advantages.inputs import FloatArray

logger = logging.getLogger("ray.rllib")

# A metric: 1 / (1 + rho), which is finite. 0 where what is left are plain bins.
RIDGE_SHARE = "baseline_ridge_share"


@dataclass(frozen=True)
class RidgeBaseline(Baseline):
    """A ridge regression inside the bins, solved in closed form.

    The value of a step is v = w.phi + b: phi are fixed features of its observation, w weights that
    earlier groups taught, and b the mean of what they leave unexplained in its bin.

    It sees the state, so that `lambda_` < 1 is safe over it. The first group is compared with its
    bins alone, each trajectory with the others (`BinBaseline(leave_one_out=True)`); so is every
    group in a bin that no weights help with.

    Args:
        num_features: How many random features to add to the numbers of the observation, the
            timestep and their squares. More see more, and need more steps to be fitted: 64 for runs
            of some 100,000 env steps, 512 for a million of continuous control.
        decay: The weight of each group relative to the next one, in [0, 1). Larger is smoother, and
            slower to follow a policy that changes. It is that of the bins' means; the regression,
            which changes less, remembers with its square root.
        features: What to look at instead of the flattened observation: a function f(observations,
            timesteps) -> numbers [T, ...], called once per trajectory. In training, observations
            are an array [T, ...] as the policy sees it: parts of a Dict are flattened, in the order
            of their keys. Row t may depend on the steps up to t; to complete truncated returns, on
            step t alone. Needed where an observation holds more than 1,024 numbers (images), or
            something else than numbers; of use wherever you know the quantity that decides returns,
            such as a distance to the goal.
        seed: Of the random features.

    Raises:
        ValueError: If num_features or seed is no integer >= 0, decay outside [0, 1), or features no
            function.
    """

    num_features: int = 64
    decay: float = 0.8
    features: FeatureFunction | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuses what can't be meant."""
        for name in ("num_features", "seed"):
            value = getattr(self, name)
            if not isinstance(value, Integral) or isinstance(value, bool) or value < 0:
                raise ValueError(f"{name} must be an integer >= 0, got {value!r}.")
        if self.features is not None and not callable(self.features):
            raise ValueError(
                "features must be a function f(observations, timesteps) -> numbers [T, ...], got "
                f"{self.features!r}."
            )
        check_decay(self.decay)

    @property
    def remembers(self) -> bool:
        """Whether there is a decay."""
        return self.decay > 0.0

    @property
    def sees_state(self) -> bool:
        """Whether there is a decay: weights are those that earlier groups taught."""
        return self.decay > 0.0

    def check_space(self, numbers: int | None) -> None:
        """Refuses observations that are too large or not numeric, unless there is a function.

        Raises:
            ValueError: Says what to give instead.
        """
        if self.features is None:
            check_numbers(numbers)

    def values(self, group: BinnedGroup, returns: FloatArray, memory: Any) -> Valuation:
        """Returns the value of every step by what earlier groups taught, and learns from this one.

        Raises:
            ValueError: If the observations can't be taken.
        """
        x_SD = step_numbers(group, self.features)
        earlier = self._recall(memory, x_SD.shape[1])
        if memory is not None and earlier.moments is None:
            logger.warning(
                f"What is remembered of earlier groups is of {memory['kind']}; now there are "
                f"{earlier.kind}: the ridge begins anew."
            )
        moments = earlier.moments.and_then(x_SD) if earlier.moments else Moments.of_first(x_SD)
        phi = Features(earlier.moments or moments, self.num_features, self.seed)
        bins = earlier.bins if group.keys_last else CarriedBins.none(1 + len(phi))

        # Returns are summed relative to their mean: large ones would round small differences away.
        level = returns.mean()

        def returns_and_phi(steps: IntArray) -> FloatArray:
            both = np.empty((len(steps), 1 + len(phi)))
            both[:, 0] = returns[steps] - level
            phi(x_SD[steps], out=both[:, 1:])
            return both

        # For every rho: w.phi of every step, b of its bin, and R - v for v = w.phi + b.
        weight_FC = earlier.weights
        residuals = _residuals(bins, weight_FC)
        # -1 where nothing is carried: the 0 at the end
        row_B = find_keys(group.bin_keys, bins.keys)
        carried_B: FloatArray = np.append(bins.counts, 0.0)[row_B]
        count_B = carried_B + group.counts
        kept_B, alone_S = most_visited(count_B, 1 + len(phi)), group.alone(carried_B)
        predicted_CS, sums = predict_and_sum(group, returns_and_phi, weight_FC, kept_B, alone_S)
        chosen, error_C = earlier.chosen, np.empty(len(STRENGTHS))

        # A function, so that what it needs on the way is gone before the next candidate.
        def valued(c: int) -> tuple[FloatArray, float]:
            rest_S = returns - predicted_CS[c]
            sum_B = np.append(residuals.sums[:, c], 0.0)[row_B]
            b_S = group.mean_of_others(rest_S, carried_B, sum_B)
            rest_S -= b_S
            return predicted_CS[c] + b_S, float(rest_S @ rest_S)

        for c in range(len(STRENGTHS)):
            of_rho_S, error_C[c] = valued(c)
            if c == chosen:
                value_S = of_rho_S

        # For the groups that follow: phi~ and R~ of every step, with the means of all entries.
        key_BK, entry_B = group.bin_keys[kept_B], group.counts[kept_B].astype(np.float64)
        mean_BX = bins.rows_of(key_BK).sums
        mean_BX[:, 0] -= level * carried_B[kept_B]
        mean_BX += sums.first
        mean_BX /= count_B[kept_B, None]
        equations = sums.within_bins(mean_BX)
        sums.first[:, 0] += level * entry_B
        current = CarriedBins(key_BK, entry_B, sums.first)
        equations = earlier.equations.and_then(equations, sqrt(self.decay))
        now = _Memory(
            kind=earlier.kind,
            moments=moments,
            bins=bins.and_then(current, self.decay) if group.keys_last else bins,
            equations=equations,
            weights=equations.solved(),
            errors=sqrt(self.decay) * (earlier.errors + error_C),
            range=(
                min(earlier.range[0], float(returns.min())),
                max(earlier.range[1], float(returns.max())),
            ),
        )
        metrics = {RIDGE_SHARE: float(1.0 / (1.0 + STRENGTHS[chosen]))}
        return Valuation(value_S, now.packed(), alone_S, metrics)

    def final_values(self, group: BinnedGroup, memory: Any) -> FloatArray:
        """Returns [N], v of the observations after trajectories that were cut, 0 for the others.

        It is w.phi of that observation, and the b of earlier groups in the bin of the last step. Of
        bins that count time, the last one has seen nothing of what would follow: there it is the
        mean, over the group's bins and by their entries, of what the state would be worth at their
        timesteps. 0 if no earlier group was there. It is within what returns have been so far: it
        becomes part of returns, and an error must not feed itself.
        """
        value_N = np.zeros(len(group.lengths))
        if group.final_observations is None:
            return value_N
        cut_N = np.array([final is not None for final in group.final_observations])
        if not cut_N.any():
            return value_N
        x_ND = final_numbers(group, self.features)
        earlier = self._recall(memory, x_ND.shape[1])
        if earlier.moments is None:
            return value_N
        weight_F = earlier.weights[:, [earlier.chosen]]
        residuals = _residuals(earlier.bins, weight_F)
        phi = Features(earlier.moments, self.num_features, self.seed)
        if group.counts_time:
            of_bins = residuals.rows_of(group.bin_keys)
            count_N = np.full(len(value_N), of_bins.counts.sum())
            sum_N = np.full(len(value_N), of_bins.sums.sum())
            t_U, count_U = _entries_over_time(group, of_bins.counts)
            predicted = [_at_times(x_D, t_U, phi, weight_F) @ count_U for x_D in x_ND]
            # Entries of long ago count less than one, also in all.
            predicted_N = np.array(predicted) / (count_U.sum() or 1.0)
        else:
            last_N = group.bins[np.cumsum(group.lengths) - 1]
            of_last = residuals.rows_of(group.bin_keys[last_N])
            count_N, sum_N = of_last.counts, of_last.sums[:, 0]
            predicted_N = (phi(x_ND) @ weight_F)[:, 0]
        known_N = count_N > 0.0
        b_N = sum_N / np.where(known_N, count_N, 1.0)
        value_N[cut_N] = np.clip(predicted_N + b_N[cut_N], *earlier.range)
        return np.where(known_N, value_N, 0.0)

    def _recall(self, memory: Any, num_numbers: int) -> _Memory:
        """What is remembered; nothing if that is of other features, whose weights mean nothing."""
        of = "" if self.features is None else f" that {name_of(self.features)} gives"
        kind = f"{self.num_features} waves of {num_numbers} numbers{of} (seed {self.seed})"
        if memory is None or memory["kind"] != kind:
            return _Memory.none(kind, 2 * num_numbers + self.num_features)
        return _Memory.unpacked(memory)


@dataclass(frozen=True)
class _Memory:
    """What a ridge remembers of earlier groups."""

    kind: str  # of features, in words
    moments: Moments | None
    bins: CarriedBins  # sums of R and of phi
    equations: NormalEquations
    weights: FloatArray  # [F, C], what follows from them for every rho
    errors: FloatArray  # of every rho in predicting each group with the weights before it
    range: tuple[float, float]  # of returns

    @property
    def chosen(self) -> int:
        """Which rho: of equally good ones, but for rounding, the first, which is infinite."""
        return int(np.argmax(self.errors <= self.errors.min() * (1.0 + 1e-9)))

    @classmethod
    def none(cls, kind: str, num_features: int) -> Self:
        return cls(
            kind,
            None,
            CarriedBins.none(1 + num_features),
            NormalEquations.none(num_features),
            np.zeros((num_features, len(STRENGTHS))),
            np.zeros(len(STRENGTHS)),
            (np.inf, -np.inf),
        )

    @classmethod
    def unpacked(cls, packed: dict[str, Any]) -> Self:
        return cls(
            packed["kind"],
            Moments(**packed["moments"]),
            CarriedBins(**packed["bins"]),
            NormalEquations(**packed["equations"]),
            packed["weights"],
            packed["errors"],
            tuple(packed["range"]),
        )

    def packed(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "moments": vars(self.moments),
            "bins": vars(self.bins),
            "equations": vars(self.equations),
            "weights": self.weights,
            "errors": self.errors,
            "range": self.range,
        }


def _residuals(bins: CarriedBins, weight_FC: FloatArray) -> CarriedBins:
    """The sums of R - w.phi in place of those of R and phi."""
    sum_BC = bins.sums[:, :1] - bins.sums[:, 1:] @ weight_FC
    return CarriedBins(bins.keys, bins.counts, sum_BC)


def _entries_over_time(group: BinnedGroup, count_B: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The timesteps [U] of bins that count time, and how many entries the bins of each have."""
    t_B = np.empty(len(count_B))
    t_B[group.first_visit_bins] = group.timesteps[group.first_visits]
    t_U, u_B = np.unique(t_B, return_inverse=True)
    return t_U, np.bincount(u_B, count_B).astype(np.float64)


def _at_times(x_D: FloatArray, t_U: FloatArray, phi: Features, weight_F: FloatArray) -> FloatArray:
    """[U], w.phi of one state at several timesteps: what it is worth relative to their bins."""
    x_UD = np.tile(x_D, (len(t_U), 1))
    x_UD[:, -1] = t_U
    return (phi(x_UD) @ weight_F)[:, 0]
