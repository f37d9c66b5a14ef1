"""What a step is credited with: what came after it, or what its whole trajectory got.

Axes: S = steps of the group, trajectory after trajectory; N = trajectories; M = starts.
"""

import difflib

import numpy as np

from rllib_gpg.advantages.binning import IntArray
from rllib_gpg.advantages.inputs import FloatArray
from rllib_gpg.advantages.returns import ROUNDING, returns_to_go

RETURNS, OUTCOME, PROCESS = "returns", "outcome", "process"
CREDITS = (RETURNS, OUTCOME, PROCESS)

# Rewards that differ by less are equal, but for rounding.
_MIN_STD = 1e-4


def check_credit(
    credit: str, *, lambda_: float = 1.0, bootstrap: bool = False, of_pieces: bool = False
) -> None:
    """Refuses what is no credit, and what an outcome can't mean.

    Args:
        credit: One of `CREDITS`.
        lambda_: λ of the λ-returns, 1 for plain returns.
        bootstrap: Whether the returns of truncated trajectories are to be completed.
        of_pieces: Whether trajectories may be pieces of episodes.

    Raises:
        ValueError: Says what is known, or why not.
    """
    if credit not in CREDITS:
        nearest = difflib.get_close_matches(str(credit), CREDITS, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"credit must be one of {', '.join(map(repr, CREDITS))}, got {credit!r}; the nearest "
            f"is {nearest!r}."
        )
    if credit == OUTCOME and (lambda_ < 1.0 or bootstrap):
        raise ValueError(
            f"credit='{OUTCOME}' gives every step the total of its trajectory: there is nothing "
            "that `lambda_` < 1 or `bootstrap_truncated` could replace or complete. Take "
            f"credit='{RETURNS}'."
        )
    if credit == OUTCOME and of_pieces:
        raise ValueError(
            f"credit='{OUTCOME}' gives every step the total of its episode, of which a piece has "
            "but a part (`batch_mode='truncate_episodes'`). Take whole episodes, or "
            f"credit='{RETURNS}'."
        )


def credited_rewards(reward_S: FloatArray, credit: str, start_S: IntArray) -> FloatArray:
    """The rewards that are summed: with "process", in units of those that they are compared with.

    Process supervision (Shao et al., 2024, section 4.1.3) normalises step rewards over the group,
    the answers to one prompt, and sums them from each step on.

    Args:
        reward_S: The rewards.
        credit: One of `CREDITS`.
        start_S: The number of the start of each step's trajectory, from 0: rewards of different
            starts aren't compared.
    """
    if credit != PROCESS:
        return reward_S
    # r~ = (r - mean r) / std r, over all steps of the trajectories of a start
    count_M = np.bincount(start_S)
    deviation_S = reward_S - (np.bincount(start_S, reward_S) / count_M)[start_S]
    std_M = np.sqrt(np.bincount(start_S, np.square(deviation_S)) / count_M)
    rms_M = np.sqrt(np.bincount(start_S, np.square(reward_S)) / count_M)
    # Exactly 0 where rewards are equal: what rounding leaves would be summed over many steps.
    deviation_S[(std_M <= ROUNDING * rms_M)[start_S]] = 0.0
    return deviation_S / np.maximum(std_M, _MIN_STD)[start_S]


def credited_returns(
    reward_S: FloatArray, lengths_N: np.ndarray, gamma: float, credit: str
) -> FloatArray:
    """[S], what each step is credited with.

    Args:
        reward_S: Rewards, as `credited_rewards` gives them.
        lengths_N: [N], the number of steps of each trajectory.
        gamma: Discount factor. An outcome is the plain sum of rewards: it has no distance to a step
            that it could be discounted by.
        credit: One of `CREDITS`.
    """
    if credit == OUTCOME:
        # R[n,t] = sum_s r[n,s]
        total_N = np.add.reduceat(reward_S, np.cumsum(lengths_N) - lengths_N)
        return np.repeat(total_N, lengths_N)
    # R[n,t] = sum_{s>=t} gamma^(s-t) r[n,s]
    return returns_to_go(reward_S, lengths_N, gamma)
