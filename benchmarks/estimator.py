"""How long the advantages of one large group take, per binning and baseline.

Run on one core: ``taskset -c 0 python benchmarks/estimator.py``. Everything is included: the finite
check, returns-to-go, keys, grouping and advantages. With a baseline that remembers, this is the
second group. Times are CPU time, which other processes change little.
"""

import argparse
import time
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np

from rllib_gpg.advantages import BinBaseline, RidgeBaseline
from rllib_gpg.advantages.binning import (
    Binning,
    SpatialBinning,
    SpatialTimeBinning,
    StateBinning,
    TimeBinning,
    UniversalBinning,
)
from rllib_gpg.advantages.estimator import estimate_group

DIMENSIONS = 8  # as LunarLander
RIDGE = {"baseline": RidgeBaseline(), "lambda_": 0.95}


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        binning: The binning.
        baseline: The other settings of the estimator.
        limit: Microseconds per step on one core that the default group must not exceed.
    """

    binning: Binning
    baseline: dict[str, Any] = field(default_factory=dict)
    limit: float | None = None


ROWS = [
    Row(TimeBinning(), limit=0.15),
    Row(SpatialTimeBinning(0.2), limit=1.0),
    Row(UniversalBinning()),
    Row(StateBinning()),
    Row(SpatialBinning(0.2)),
    Row(TimeBinning(), {"baseline": BinBaseline(decay=0.8)}),
    Row(TimeBinning(), RIDGE, limit=5.0),
    Row(SpatialTimeBinning(0.2), RIDGE, limit=5.0),
]


def sample_group(steps: int, trajectories: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Standard normal observations and rewards, cut into trajectories of unequal length."""
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.full(trajectories, 4.0))
    cuts = np.cumsum(1 + rng.multinomial(steps - trajectories, shares))[:-1]
    observations = rng.standard_normal((steps, DIMENSIONS), dtype=np.float32)
    rewards = rng.standard_normal(steps)
    return np.split(observations, cuts), np.split(rewards, cuts)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--trajectories", type=int, default=1_000)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()

    observations, rewards = sample_group(args.steps, args.trajectories)
    longest = max(map(len, rewards))
    print(f"{args.steps:,} steps in {args.trajectories:,} trajectories, the longest {longest:,}\n")
    print(f"{'binning':<36}{'baseline':<14}{'median us/step':>15}{'minimum':>9}{'limit':>7}")
    for row in ROWS:
        options = {"gamma": 0.99, "binning": row.binning, **row.baseline}
        memory = estimate_group(observations, rewards, **options).memory
        microseconds = []
        for _ in range(args.repeats):
            start = time.process_time()
            estimate_group(observations, rewards, memory=memory, **options)
            microseconds.append((time.process_time() - start) / args.steps * 1e6)
        name = type(row.baseline.get("baseline", BinBaseline())).__name__
        limit = "-" if row.limit is None else f"{row.limit:.2f}"
        print(
            f"{row.binning!s:<36}{name:<14}{median(microseconds):>15.3f}{min(microseconds):>9.3f}"
            f"{limit:>7}"
        )


if __name__ == "__main__":
    main()
