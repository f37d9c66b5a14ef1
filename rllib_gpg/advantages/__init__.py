"""What each step of a group was worth: the estimator, its binnings and baselines.

Functions of NumPy arrays, which need no running Ray, but for the connector. Importing them loads
Ray all the same: `rllib_gpg` registers its trainable with Ray Tune.
"""

from rllib_gpg.advantages.baselines import (
    Baseline,
    BinBaseline,
    NoBaseline,
    OptimalBaseline,
    RidgeBaseline,
    Valuation,
)
from rllib_gpg.advantages.binning import (
    SpatialBinning,
    SpatialTimeBinning,
    StateBinning,
    TimeBinning,
    UniversalBinning,
)
from rllib_gpg.advantages.connector import GroupAdvantageEstimation
from rllib_gpg.advantages.estimator import GroupEstimate, estimate_advantages, estimate_group
from rllib_gpg.advantages.grouping import BinnedGroup
from rllib_gpg.advantages.levels import Level

__all__ = [
    "Baseline",
    "BinBaseline",
    "BinnedGroup",
    "GroupAdvantageEstimation",
    "GroupEstimate",
    "Level",
    "NoBaseline",
    "OptimalBaseline",
    "RidgeBaseline",
    "SpatialBinning",
    "SpatialTimeBinning",
    "StateBinning",
    "TimeBinning",
    "UniversalBinning",
    "Valuation",
    "estimate_advantages",
    "estimate_group",
]
