"""What the return of a step is compared with: one protocol, and the baselines that follow it."""

from rllib_gpg.advantages.baselines.base import Baseline, Valuation
from rllib_gpg.advantages.baselines.bins import BinBaseline
from rllib_gpg.advantages.baselines.choice import resolve_baseline
from rllib_gpg.advantages.baselines.constants import NoBaseline, OptimalBaseline
from rllib_gpg.advantages.baselines.ridge import RidgeBaseline

__all__ = [
    "Baseline",
    "BinBaseline",
    "NoBaseline",
    "OptimalBaseline",
    "RidgeBaseline",
    "Valuation",
    "resolve_baseline",
]
