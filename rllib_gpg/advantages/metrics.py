"""The numbers that are logged of a module's group."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from rllib_gpg.advantages.estimator import GroupEstimate
from rllib_gpg.advantages.returns import are_equal


def group_metrics(
    rewards: Sequence[np.ndarray], terminated: Sequence[bool], estimate: GroupEstimate
) -> dict[str, float]:
    """Returns what `GroupAdvantageEstimation` says that it logs.

    Args:
        rewards: N arrays [T_n].
        terminated: N times whether the trajectory has ended, and wasn't cut.
        estimate: What was estimated of the group.
    """
    returns = np.array([reward_T.sum() for reward_T in rewards])
    p10, p90 = np.quantile(returns, (0.1, 0.9))
    return {
        "group_num_episodes": len(rewards),
        "group_num_env_steps": sum(len(reward_T) for reward_T in rewards),
        "group_num_bins": estimate.num_bins,
        "group_singleton_fraction": estimate.singleton_fraction,
        "baseline_explained_variance": estimate.baseline_explained_variance,
        "bins_explained_variance": estimate.bins_explained_variance,
        **estimate.metrics,
        "group_advantage_std": float(estimate.comparison.differences.std()),
        "group_truncated_fraction": 1.0 - float(np.mean(terminated)),
        "group_return_mean": float(returns.mean()),
        "group_return_std": float(returns.std()),
        "group_return_p10": float(p10),
        "group_return_p90": float(p90),
    }


def num_equal_starts(
    rewards: Sequence[np.ndarray], episodes: Sequence[str], starts: Sequence[int]
) -> int:
    """Returns how many starts have episodes of equal return, the sum over their agents."""
    returns: defaultdict[int, defaultdict[str, float]] = defaultdict(lambda: defaultdict(float))
    for reward_T, episode, start in zip(rewards, episodes, starts, strict=True):
        returns[start][episode] += float(reward_T.sum())
    return sum(are_equal([*of_start.values()]) for of_start in returns.values())
