"""The unit of advantages: that of the rewards, the group's spread, or the spread of the bin.

Axes: S = steps of the group, trajectory after trajectory; F = first visits; B = bins.
"""

from typing import Any

import numpy as np

from rllib_gpg.advantages.grouping import BinnedGroup
from rllib_gpg.advantages.inputs import FloatArray
from rllib_gpg.advantages.returns import without_rounding

BINS = "bins"

# Below this standard deviation advantages are rounding errors: as in RLlib's PPO.
_MIN_STD = 1e-4
# A bin's spread counts as at least this share of that of all steps: entries may be close by chance,
# and a later visit of the same bin far off.
_FLOOR = 0.1


def is_unit(normalize: object) -> bool:
    """Whether it is True, False or "bins"; 1 and 0 are likely to mean something else."""
    return isinstance(normalize, bool) or (isinstance(normalize, str) and normalize == BINS)


def check_unit(normalize: object) -> None:
    """Refuses what is no unit.

    Raises:
        ValueError: Says what is.
    """
    if not is_unit(normalize):
        raise ValueError(f"normalize must be True, False or '{BINS}', got {normalize!r}.")


def normalized(
    adv_S: FloatArray, group: BinnedGroup, normalize: bool | str, memory: Any
) -> FloatArray:
    """Advantages in their unit.

    Args:
        adv_S: The advantages in the unit of the returns.
        group: The group.
        normalize: False: as they are. True: less their mean, over their standard deviation. "bins":
            over the standard deviation of their bin, around the baseline.
        memory: Of the estimate. A group of a single episode has the unit that it remembers: its own
            mean would take its signal away.
    """
    if not normalize:
        return adv_S
    if group.num_episodes == 1 and memory is not None:
        # No step could be compared with another trajectory yet: the unit is that of its own.
        mean_square = np.square(adv_S).mean()
        if memory["num_steps"] > 0.0:
            mean_square = memory["square_sum"] / memory["num_steps"]
        return adv_S / max(np.sqrt(mean_square), _MIN_STD)
    if normalize == BINS:
        return adv_S / _spread_of_bins(adv_S, group)
    centred_S = without_rounding(adv_S - adv_S.mean(), adv_S)
    return centred_S / max(adv_S.std(), _MIN_STD)


def _spread_of_bins(adv_S: FloatArray, group: BinnedGroup) -> FloatArray:
    """[S], the spread of the entries of every step's bin around the baseline, or a little at least.

    Around the bin's own mean that is the standard deviation. Around another baseline, which equal
    entries may be far from, a standard deviation would be next to nothing.
    """
    entry_F, bin_F = adv_S[group.first_visits], group.first_visit_bins
    # std_B^2 = mean of A^2 over the entries of a bin
    std_B = np.sqrt(np.bincount(bin_F, np.square(entry_F)) / group.counts)
    root_mean_square = float(np.sqrt(np.square(adv_S).mean()))
    typical = max(float(adv_S.std()), _FLOOR * root_mean_square, _MIN_STD)
    # A bin of one entry has none of its own.
    return np.where(group.counts == 1, typical, np.maximum(std_B, _FLOOR * typical))[group.bins]
