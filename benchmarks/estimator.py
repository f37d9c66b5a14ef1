"""How long the advantages of one large group take, per binning.

Run on one core: ``taskset -c 0 python benchmarks/estimator.py``. Everything is included: the finite
check, returns-to-go, keys, grouping and advantages.
"""

import argparse
import time
from statistics import median

import numpy as np

from rllib_gpg.advantages.binning import (
    Binning,
    SpatialBinning,
    SpatialTimeBinning,
    StateBinning,
    TimeBinning,
    UniversalBinning,
)
from rllib_gpg.advantages.estimator import estimate_advantages

DIMENSIONS = 8  # as LunarLander
# Seconds for the default group on one core: what the estimator must not exceed.
LIMITS: dict[Binning, float] = {TimeBinning(): 0.15, SpatialTimeBinning(0.2): 1.0}
OTHERS: list[Binning] = [UniversalBinning(), StateBinning(), SpatialBinning(0.2)]


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
    print(f"{'binning':<36}{'median s':>10}{'minimum s':>11}{'limit s':>9}")
    for binning in [*LIMITS, *OTHERS]:
        seconds = []
        for _ in range(args.repeats):
            start = time.perf_counter()
            estimate_advantages(observations, rewards, gamma=0.99, binning=binning)
            seconds.append(time.perf_counter() - start)
        limit = f"{LIMITS[binning]:.2f}" if binning in LIMITS else "-"
        print(f"{binning!s:<36}{median(seconds):>10.3f}{min(seconds):>11.3f}{limit:>9}")


if __name__ == "__main__":
    main()
