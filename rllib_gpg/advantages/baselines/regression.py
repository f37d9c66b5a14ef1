"""Least squares inside bins: the sums over a group, and the weights that follow from them.

Everything goes through a group in blocks: the features of all steps at once would take many times
the memory of the group.

Axes: S = steps of the group, trajectory after trajectory; B = bins; F = features; X = 1 + F; C =
candidates for the ridge's strength rho.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from rllib_gpg.advantages.binning import IntArray
from rllib_gpg.advantages.grouping import BinnedGroup, differs_from_previous
from rllib_gpg.advantages.inputs import FloatArray

# The candidates for rho. Of equally good ones the first is taken: infinite, which is plain bins.
# The small ones are for many features: 512 of them explain most with the smallest.
STRENGTHS = np.array([np.inf, 10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001])

# A feature that varies less than this within bins (mean square; features are of size 1) is a
# function of the bin, but for rounding errors.
_MIN_VARIANCE = 1e-10
# Steps whose features are in memory at a time: as many as stay in a core's cache.
_BLOCK = 512


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
    """Sums over the steps of a group, of x = [R, phi].

    Attributes:
        first: [B, X], over the first visits to each bin.
        every: [B, X], over all steps of each bin.
        counts: [B], how many steps these are.
        products: [X, X], the sum of x.x' over all steps of all bins.
    """

    first: FloatArray
    every: FloatArray
    counts: FloatArray
    products: FloatArray

    def within_bins(self, mean_BX: FloatArray) -> NormalEquations:
        """Returns what the sums are of x~, that is x minus the mean of its bin.

        sum of x~.x~' = sum of x.x' - k - k', k = sum over bins of (e - count m / 2).m', e = every

        Args:
            mean_BX: The means m, in general those of more groups than this one.
        """
        k_XX = (self.every - 0.5 * self.counts[:, None] * mean_BX).T @ mean_BX
        within_XX = self.products - k_XX - k_XX.T
        return NormalEquations(within_XX[1:, 1:], within_XX[1:, 0], float(self.counts.sum()))


def predict_and_sum(
    group: BinnedGroup,
    x_of: Callable[[IntArray], FloatArray],
    weight_FC: FloatArray,
    kept_B: IntArray,
    alone_S: NDArray[np.bool_],
) -> tuple[FloatArray, GroupSums]:
    """Goes through a group once: features are what takes the time.

    Args:
        group: The group.
        x_of: Gives x = [R, phi] of some steps, [.., X], by their positions in S.
        weight_FC: The weights of phi, one column for each rho.
        kept_B: The bins to sum over, ascending.
        alone_S: Marks the steps with no other trajectory in their bin: these are in no sum but
            `first`.

    Returns:
        predicted_CS: w.phi of every step.
        sums: Over the steps in `kept_B`.
    """
    row_B = np.full(len(group.counts), -1)
    row_B[kept_B] = np.arange(len(kept_B))
    row_S = row_B[group.bins]
    is_first_S = np.zeros(len(row_S), np.bool_)
    is_first_S[group.first_visits] = True
    is_first_S &= row_S >= 0
    in_sums_S = (row_S >= 0) & ~alone_S

    num_features, num_rhos = weight_FC.shape
    predicted_SC = np.empty((len(row_S), num_rhos))
    first_BX, every_BX = np.zeros((2, len(kept_B), 1 + num_features))
    product_XX = np.zeros((1 + num_features, 1 + num_features))
    for in_sums, marked_S in ((True, in_sums_S), (False, ~in_sums_S)):
        for steps in _blocks_by_bin(group, marked_S):
            x, row, is_first = x_of(steps), row_S[steps], is_first_S[steps]
            predicted_SC[steps] = x[:, 1:] @ weight_FC
            if in_sums:
                product_XX += x.T @ x
                rows, sums = _sums_by_row(x, row)
                every_BX[rows] += sums
            # Where no bin is visited again, the sums over first visits are those over all steps.
            if not (in_sums and is_first.all()):
                rows, sums = _sums_by_row(x[is_first], row[is_first])
            first_BX[rows] += sums
    count_B = np.bincount(row_S[in_sums_S], minlength=len(kept_B)).astype(np.float64)
    return predicted_SC.T, GroupSums(first_BX, every_BX, count_B, product_XX)


def _sums_by_row(x: FloatArray, row: IntArray) -> tuple[IntArray, FloatArray]:
    """The rows that steps belong to, ascending, and the sum of x over the steps of each."""
    if not len(row):
        return row, x
    starts = np.flatnonzero(differs_from_previous(row))
    return row[starts], np.add.reduceat(x, starts, axis=0)


def _blocks_by_bin(group: BinnedGroup, marked_S: NDArray[np.bool_]) -> Iterator[IntArray]:
    """The steps that are marked, in blocks, sorted by bin: the steps of one are neighbours."""
    steps = np.flatnonzero(marked_S)
    steps = steps[np.argsort(group.bins[steps], kind="stable")]
    for start in range(0, len(steps), _BLOCK):
        yield steps[start : start + _BLOCK]
