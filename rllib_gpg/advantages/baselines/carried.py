"""What is carried from group to group of every bin: sums over its first visits, decayed.

Axes: B = bins; K = the integers of a key; X = the quantities that are summed.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np

from rllib_gpg.advantages.binning import IntArray
from rllib_gpg.advantages.grouping import find_keys
from rllib_gpg.advantages.inputs import FloatArray

# At most so many bins are carried, the most visited ones: grids may hold one bin per step. Fewer if
# there is much to carry of each: at most so many numbers in all, 32 MiB.
MAX_BINS = 2**14
MAX_NUMBERS = 2**22
# Entries with less weight than this are forgotten.
_MIN_COUNT = 1e-3


@dataclass(frozen=True)
class CarriedBins:
    """Sums over the first visits to bins, of several groups.

    Attributes:
        keys: [B, K], the keys of the bins, none of them twice.
        counts: [B], how many first visits; those of earlier groups count less.
        sums: [B, X], what is summed over them.
    """

    keys: IntArray
    counts: FloatArray
    sums: FloatArray

    @classmethod
    def none(cls, num_quantities: int) -> Self:
        """Nothing carried."""
        return cls(np.empty((0, 1), np.int64), np.empty(0), np.empty((0, num_quantities)))

    def rows_of(self, key_BK: IntArray) -> Self:
        """Returns what is carried for the bins of these keys: zeros where nothing is."""
        row_B = find_keys(key_BK, self.keys)
        count_B = np.zeros(len(key_BK))
        sum_BX = np.zeros((len(key_BK), self.sums.shape[1]))
        count_B[row_B >= 0] = self.counts[row_B[row_B >= 0]]
        sum_BX[row_B >= 0] = self.sums[row_B[row_B >= 0]]
        return type(self)(key_BK, count_B, sum_BX)

    def and_then(self, group: Self, decay: float) -> Self:
        """Returns what to carry on: these sums and those of a group, decayed.

        Args:
            group: The sums over the first visits of one group.
            decay: The weight of each group relative to the next one, in [0, 1].
        """
        earlier, num_integers = self.rows_of(group.keys), group.keys.shape[1]
        # Keys of another width are those of another binning.
        unvisited_B = find_keys(self.keys, group.keys) < 0
        unvisited_B &= self.keys.shape[1] == num_integers
        key_BK = np.concatenate([group.keys, self.keys[unvisited_B].reshape(-1, num_integers)])
        count_B = np.concatenate([earlier.counts + group.counts, self.counts[unvisited_B]])
        sum_BX = np.concatenate([earlier.sums + group.sums, self.sums[unvisited_B]])
        kept = most_visited(count_B, sum_BX.shape[1])
        kept = kept[decay * count_B[kept] >= _MIN_COUNT]
        return type(self)(key_BK[kept], decay * count_B[kept], decay * sum_BX[kept])


def most_visited(count_B: FloatArray, num_quantities: int) -> IntArray:
    """The bins with the largest counts, in their order, as many as are carried.

    Args:
        count_B: [B], how often bins were visited.
        num_quantities: X, how many numbers are carried of each.
    """
    most = min(MAX_BINS, MAX_NUMBERS // num_quantities)
    if len(count_B) <= most:
        return np.arange(len(count_B))
    return np.sort(np.argsort(-count_B, kind="stable")[:most])
