"""What each step of a group was worth: the estimator and its binnings, in NumPy alone."""

from rllib_gpg.advantages.binning import (
    SpatialBinning,
    SpatialTimeBinning,
    StateBinning,
    TimeBinning,
    UniversalBinning,
)
from rllib_gpg.advantages.connector import GroupAdvantageEstimation
from rllib_gpg.advantages.estimator import estimate_advantages

__all__ = [
    "GroupAdvantageEstimation",
    "SpatialBinning",
    "SpatialTimeBinning",
    "StateBinning",
    "TimeBinning",
    "UniversalBinning",
    "estimate_advantages",
]
