"""What the return of a step is compared with: one protocol, and the baselines that follow it."""

from rllib_gpg.advantages.baselines.base import Baseline, Valuation
from rllib_gpg.advantages.baselines.bins import BinBaseline
from rllib_gpg.advantages.baselines.choice import resolve_baseline
from rllib_gpg.advantages.baselines.ridge import RidgeBaseline

__all__ = ["Baseline", "BinBaseline", "RidgeBaseline", "Valuation", "resolve_baseline"]
