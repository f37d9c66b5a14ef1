"""Least squares inside bins: the sums over a group, and the weights that follow from them.

Everything goes through a group in blocks: the features of all steps at once would take many times
the memory of the group.

Axes: S = steps of the group, trajectory after trajectory; B = bins; F = features; C = candidates
for the ridge's strength rho.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from rllib_gpg.advantages.binning import IntArray
from rllib_gpg.advantages.grouping import BinnedGroup
from rllib_gpg.advantages.inputs import FloatArray

# The candidates for rho. Of equally good ones the first is taken: infinite, which is plain bins.
STRENGTHS = np.array([np.inf, 10.0, 3.0, 1.0, 0.3, 0.1, 0.03])

PhiOf = Callable[[IntArray], FloatArray]
"""Gives the features [.., F] of some steps, by their positions in S."""

# A feature that varies less than this within bins (mean square; features are of size 1) is a
# function of the bin, but for rounding errors.
_MIN_VARIANCE = 1e-10
# Steps whose features are in memory at a time.
_BLOCK = 4096


@dataclass(frozen=True)
class NormalEquations:
    """Sums over steps, of features and returns relative to their bins.

    Attributes:
        gram: [F, F], G, the sum of phi~.phi~.
        product: [F], c, the sum of phi~.R~.
        num_steps: How many steps.
    """

    gram: FloatArray
    product: FloatArray
    num_steps: float

    @classmethod
    def none(cls, num_features: int) -> Self:
        """No steps."""
        return cls(np.zeros((num_features, num_features)), np.zeros(num_features), 0.0)

    def and_then(self, group: Self, decay: float) -> Self:
        """Returns these sums and those of a group, decayed."""
        return type(self)(
            decay * (self.gram + group.gram),
            decay * (self.product + group.product),
            decay * (self.num_steps + group.num_steps),
        )

    def solved(self) -> FloatArray:
        """Returns the weights (G + rho diag G)^-1 c for every candidate rho, [F, C]."""
        variance_F = np.diag(self.gram)
        varies_F = variance_F > _MIN_VARIANCE * self.num_steps
        scale_F = np.zeros_like(variance_F)
        scale_F[varies_F] = 1.0 / np.sqrt(variance_F[varies_F])
        # With the features scaled to variance 1, G is their correlation, Q diag(e) Q', and
        # (G + rho)^-1 c = Q diag(1 / (e + rho)) Q' c
        e_F, q_FF = np.linalg.eigh(scale_F[:, None] * self.gram * scale_F)
        along_F = q_FF.T @ (scale_F * self.product)
        return scale_F[:, None] * (q_FF @ (along_F[:, None] / (e_F[:, None] + STRENGTHS)))


def predict(
    group: BinnedGroup, phi_of: PhiOf, weight_FC: FloatArray, kept_B: IntArray
) -> tuple[FloatArray, FloatArray]:
    """Applies weights to every step of a group, and sums features over first visits.

    Args:
        group: The group.
        phi_of: Gives the features of steps.
        weight_FC: The weights, one column for each rho.
        kept_B: The bins to sum over, ascending.

    Returns:
        predicted_CS: w.phi of every step.
        sum_BF: The sums of phi over the first visits to each of `kept_B`.
    """
    row_S = _rows(group, kept_B)
    is_first_S = np.zeros(len(row_S), np.bool_)
    is_first_S[group.first_visits] = True
    predicted_CS = np.empty((weight_FC.shape[1], len(row_S)))
    sum_BF = np.zeros((len(kept_B), len(weight_FC)))
    for steps in _blocks(np.argsort(group.bins, kind="stable")):
        phi = phi_of(steps)
        predicted_CS[:, steps] = (phi @ weight_FC).T
        # Sorted by bin: the first visits to one are neighbours.
        entered = is_first_S[steps] & (row_S[steps] >= 0)
        row = row_S[steps][entered]
        starts = np.flatnonzero(np.diff(row, prepend=-1))
        sum_BF[row[starts]] += np.add.reduceat(phi[entered], starts, axis=0)
    return predicted_CS, sum_BF


def within_bins(
    group: BinnedGroup,
    phi_of: PhiOf,
    returns: FloatArray,
    kept_B: IntArray,
    mean_BX: FloatArray,
    alone_S: NDArray[np.bool_],
) -> NormalEquations:
    """Sums over all steps what is above or below the mean of the bin.

    Args:
        group: The group.
        phi_of: Gives the features of steps.
        returns: The returns-to-go.
        kept_B: The bins whose steps count, ascending.
        mean_BX: The means of R and phi, [len(kept_B), 1 + F].
        alone_S: Marks the steps with no other trajectory in their bin: these don't count.
    """
    row_S = _rows(group, kept_B)
    equations = NormalEquations.none(mean_BX.shape[1] - 1)
    steps_in = np.flatnonzero((row_S >= 0) & ~alone_S)
    for steps in _blocks(steps_in):
        mean = mean_BX[row_S[steps]]
        above = phi_of(steps) - mean[:, 1:]
        equations.gram[:] += above.T @ above
        equations.product[:] += above.T @ (returns[steps] - mean[:, 0])
    return replace(equations, num_steps=float(len(steps_in)))


def _rows(group: BinnedGroup, kept_B: IntArray) -> IntArray:
    """The place among `kept_B` of every step's bin, -1 if it isn't among them."""
    row_B = np.full(len(group.counts), -1)
    row_B[kept_B] = np.arange(len(kept_B))
    return row_B[group.bins]


def _blocks(steps: IntArray) -> Iterator[IntArray]:
    for start in range(0, len(steps), _BLOCK):
        yield steps[start : start + _BLOCK]
