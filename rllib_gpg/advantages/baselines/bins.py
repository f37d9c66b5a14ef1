"""`BinBaseline`: the mean return of a bin, of one group or with earlier ones.

Axes: S = steps of the group, trajectory after trajectory; B = bins.
"""

from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np

from rllib_gpg.advantages.baselines.base import Baseline, Valuation
from rllib_gpg.advantages.baselines.carried import CarriedBins
from rllib_gpg.advantages.grouping import BinnedGroup
from rllib_gpg.advantages.inputs import FloatArray


@dataclass(frozen=True)
class BinBaseline(Baseline):
    """The mean return of the trajectories that visit a bin, each entered once (equation 6).

    Args:
        decay: The weight of each group relative to the next one, in [0, 1). With 0, the default
            and as in the paper, a group is compared with itself alone. Otherwise entries of earlier
            groups count too, and the trajectory's own doesn't: also a group of one learns.
        leave_one_out: Leave the trajectory's own entry out, which makes the estimate unbiased
            (Proposition 1) wherever somebody else is in the bin. Where nobody is, it stays. Not in
            the paper.

    Raises:
        ValueError: If decay is outside [0, 1).
    """

    decay: float = 0.0
    leave_one_out: bool = False

    def __post_init__(self) -> None:
        """Refuses a decay that would remember everything, or worse."""
        check_decay(self.decay)

    @property
    def remembers(self) -> bool:
        """Whether there is a decay."""
        return self.decay > 0.0

    @property
    def keeps_own(self) -> bool:
        """As in the paper, unless told otherwise."""
        return not (self.remembers or self.leave_one_out)

    def values(self, group: BinnedGroup, returns: FloatArray, memory: Any) -> Valuation:
        """Returns the mean of every step's bin."""
        if self.keeps_own:
            # b(k) = mean of R[n,t] over all (n,t) of the group with key k and first[n,t]
            return Valuation((group.sum_in_bins(returns) / group.counts)[group.bins])
        if not self.remembers:
            return Valuation(group.mean_of_others(returns), alone=group.alone())
        # The same over the entries of earlier groups too, which count decay, decay^2, ..
        carried = CarriedBins(**memory) if memory and group.keys_last else CarriedBins.none(1)
        earlier = carried.rows_of(group.bin_keys)
        current = CarriedBins(
            group.bin_keys, group.counts.astype(np.float64), group.sum_in_bins(returns)[:, None]
        )
        return Valuation(
            values=group.mean_of_others(returns, earlier.counts, earlier.sums[:, 0]),
            memory=vars(carried.and_then(current, self.decay)),
            alone=group.alone(earlier.counts),
        )


def check_decay(decay: float) -> None:
    """Refuses what is no decay.

    Raises:
        ValueError: If it is no number, or outside [0, 1).
    """
    if not isinstance(decay, Real) or not 0.0 <= decay < 1.0:
        raise ValueError(
            f"decay must lie in [0, 1): the weight of a group relative to the next one, got "
            f"{decay!r}."
        )
