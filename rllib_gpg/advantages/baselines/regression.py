"""Least squares inside bins: the sums over a group, and the weights that follow from them.

Everything goes through a group in blocks: the features of all steps at once would take many times
the memory of the group.

Axes: S = steps of the group, trajectory after trajectory; B = bins; F = features; C = candidates
for the ridge's strength rho.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
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


@dataclass(frozen=True)
class GroupSums:
    """Sums over the steps of a group; those "that count" are in company, in a bin that is kept.

    Attributes:
        first: [B, F], of phi, over the first visits to each bin.
        every: [B, F], of phi, over all steps of each bin that count.
        counts: [B], how many steps these are.
        returns: [B], the sum of their R.
        gram: [F, F], the sum of phi.phi over all steps that count.
        product: [F], the sum of phi.R over them.
    """

    first: FloatArray
    every: FloatArray
    counts: FloatArray
    returns: FloatArray
    gram: FloatArray
    product: FloatArray

    def within_bins(self, mean_R_B: FloatArray, mean_BF: FloatArray) -> NormalEquations:
        """Returns the same sums, of what is above or below the means of the bins.

        sum (x - m)(y - n) = sum x y - X n - m Y + count m n,   X = sum x, Y = sum y, bin by bin

        Args:
            mean_R_B: [B], the mean of R in each bin.
            mean_BF: [B, F], the mean of phi.
        """
        crossed_FF = self.every.T @ mean_BF
        weighted_BF = self.counts[:, None] * mean_BF
        return NormalEquations(
            self.gram - crossed_FF - crossed_FF.T + weighted_BF.T @ mean_BF,
            self.product
            - self.every.T @ mean_R_B
            - mean_BF.T @ self.returns
            + weighted_BF.T @ mean_R_B,
            float(self.counts.sum()),
        )


def predict_and_sum(
    group: BinnedGroup,
    phi_of: PhiOf,
    returns: FloatArray,
    weight_FC: FloatArray,
    kept_B: IntArray,
    alone_S: NDArray[np.bool_],
) -> tuple[FloatArray, GroupSums]:
    """Goes through a group once: features are what takes the time.

    Args:
        group: The group.
        phi_of: Gives the features of steps.
        returns: The returns-to-go.
        weight_FC: The weights, one column for each rho.
        kept_B: The bins to sum over, ascending.
        alone_S: Marks the steps with no other trajectory in their bin: these don't count.

    Returns:
        predicted_CS: w.phi of every step.
        sums: Over the steps in `kept_B`.
    """
    num_bins, num_features = len(kept_B), len(weight_FC)
    row_B = np.full(len(group.counts), -1)
    row_B[kept_B] = np.arange(num_bins)
    row_S = row_B[group.bins]
    is_first_S = np.zeros(len(row_S), np.bool_)
    is_first_S[group.first_visits] = True
    counts_S = (row_S >= 0) & ~alone_S

    predicted_CS = np.empty((weight_FC.shape[1], len(row_S)))
    first_BF, every_BF = np.zeros((2, num_bins, num_features))
    gram_FF, product_F = np.zeros((num_features, num_features)), np.zeros(num_features)
    # Sorted by bin, so that the steps of one are neighbours.
    for steps in _blocks(np.argsort(group.bins, kind="stable")):
        phi, row = phi_of(steps), row_S[steps]
        predicted_CS[:, steps] = (phi @ weight_FC).T
        _add_by_row(first_BF, phi, row, is_first_S[steps] & (row >= 0))
        counted = _add_by_row(every_BF, phi, row, counts_S[steps])
        gram_FF += counted.T @ counted
        product_F += counted.T @ returns[steps[counts_S[steps]]]
    counted_S, size = row_S[counts_S], num_bins
    return predicted_CS, GroupSums(
        first_BF,
        every_BF,
        np.bincount(counted_S, minlength=size).astype(np.float64),
        np.bincount(counted_S, returns[counts_S], minlength=size),
        gram_FF,
        product_F,
    )


def _add_by_row(
    sum_BF: FloatArray, phi: FloatArray, row: IntArray, marked: NDArray[np.bool_]
) -> FloatArray:
    """Adds what is marked to the rows it belongs to, ascending; gives what is marked."""
    if not marked.all():
        phi, row = phi[marked], row[marked]
    starts = np.flatnonzero(np.diff(row, prepend=-1))
    sum_BF[row[starts]] += np.add.reduceat(phi, starts, axis=0)
    return phi


def _blocks(steps: IntArray) -> Iterator[IntArray]:
    for start in range(0, len(steps), _BLOCK):
        yield steps[start : start + _BLOCK]
