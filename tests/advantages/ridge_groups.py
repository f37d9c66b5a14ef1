"""Random groups whose returns depend on the states, and what a ridge makes of them."""

import numpy as np

from rllib_gpg.advantages import RidgeBaseline
from rllib_gpg.advantages.binning import (
    StateBinning,
    TimeBinning,
)
from rllib_gpg.advantages.estimator import estimate_group
from rllib_gpg.advantages.grouping import into_bins
from rllib_gpg.advantages.returns import returns_to_go

SMALL = RidgeBaseline(num_features=5)


def random_group(rng, lengths, num_states=3, scale=1.0):
    """Returns depend on the states: r = s0 + noise."""
    observations = [rng.integers(-num_states, num_states + 1, (n, 2)) * 0.5 for n in lengths]
    rewards = [scale * (o[:, 0] + 0.3 * rng.normal(size=len(o))) for o in observations]
    return observations, rewards


def random_groups(seed, num_groups, lengths=(12, 9, 12, 7), **options):
    rng = np.random.default_rng(seed)
    return [random_group(rng, lengths, **options) for _ in range(num_groups)]


def estimates(groups, **options):
    """The estimates of groups in sequence, each with the memory that the one before left."""
    options = {"gamma": 0.9, "binning": "time", "baseline": SMALL, **options}
    memory, found = None, []
    for observations, rewards in groups:
        found.append(estimate_group(observations, rewards, memory=memory, **options))
        memory = found[-1].memory
    return found


def flat(estimate):
    return np.concatenate(estimate.advantages)


def values(observations, rewards, memory, binning="time", gamma=0.9):
    """v(n,t), and which steps could be compared with nothing."""
    lengths = np.array([len(reward) for reward in rewards])
    binning = {"time": TimeBinning(), "state": StateBinning()}[binning]
    group = into_bins(binning, observations, lengths, 0 * lengths, ["name"] * len(lengths))
    returns = returns_to_go(np.concatenate(rewards), lengths, gamma)
    found = SMALL.values(group, returns, memory)
    return [np.split(x, np.cumsum(lengths)[:-1]) for x in (found.values, found.alone)]
