"""Algorithm 2: what each step of a group was worth, relative to the group.

The symbols are the paper's: R return-to-go, k bin key, b baseline, A advantage, for step t of
trajectory n. Array names carry their axes:

    N  trajectories
    T  steps of one trajectory
    S  steps of the whole group, trajectory after trajectory: the pairs (n, t)
"""

import logging
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rllib_gpg.advantages.baselines import Baseline, BinBaseline, Valuation, resolve_baseline
from rllib_gpg.advantages.binning import BinningFunction, name_of, resolve_binning
from rllib_gpg.advantages.credit import RETURNS, credited_returns, credited_rewards
from rllib_gpg.advantages.grouping import BinnedGroup, ScoreFunction, into_bins, numbered
from rllib_gpg.advantages.inputs import (
    FloatArray,
    as_arrays,
    check_finals,
    check_finite,
    check_labels,
    check_memory,
    check_starts,
    check_values,
    default_names,
)
from rllib_gpg.advantages.levels import Level
from rllib_gpg.advantages.returns import lambda_returns, without_rounding
from rllib_gpg.advantages.settings import check_settings
from rllib_gpg.advantages.units import normalized

logger = logging.getLogger("ray.rllib")

# How much the unit of advantages of a group counts in that of the next, where groups are too small
# to have one of their own.
_UNIT_DECAY = 0.9
_NOTHING = {"baseline": None, "square_sum": 0.0, "num_steps": 0.0}


@dataclass(frozen=True)
class Comparison:
    """What the returns of a group were compared with, step by step.

    Attributes:
        group: The group, its steps sorted into bins.
        returns: [S], R, what each step is credited with.
        values: [S], v, what the baseline says of it.
        alone: [S], marks the steps that could be compared with nothing; None: there are none.
        differences: [S], the advantages in the unit of the returns, without a second level.
        earlier: What the baseline remembered of earlier groups; None if nothing.
    """

    group: BinnedGroup
    returns: FloatArray
    values: FloatArray
    alone: NDArray[np.bool_] | None
    differences: FloatArray
    earlier: Any


@dataclass(frozen=True)
class GroupEstimate:
    """The advantages of a group, and what its bins and its baseline were like.

    Attributes:
        advantages: N arrays [T_n], float64, in the unit of the rewards unless normalised.
        memory: What to give with the next group, for baselines that remember.
        num_bins: Bins that some trajectory of the group visited.
        singleton_fraction: Share of first visits that are alone in their bin, in [0, 1]. Near 1
            plain bins give no signal: take coarser ones, a larger group or a baseline that
            remembers.
        baseline_explained_variance: 1 - Var(R - v) / Var(R), where v leaves the step's own
            trajectory out, even if bins don't: how well the returns of a trajectory are predicted
            by others. (A baseline of a user's that keeps it is taken at its word.) Over the steps
            that can be compared with others. 0 if there are none, or their returns are all equal:
            there is nothing to explain then, and nan breaks loggers. Negative where the mean
            return of all steps would do better.
        bins_explained_variance: The same of the bins of this group alone, so that one sees what
            another baseline is worth.
        metrics: Numbers from the baseline.
        comparison: What the advantages come from.
    """

    advantages: list[FloatArray]
    memory: Any
    num_bins: int
    singleton_fraction: float
    baseline_explained_variance: float
    bins_explained_variance: float
    metrics: Mapping[str, float]
    comparison: Comparison


def estimate_advantages(
    observations: Sequence[Any], rewards: Sequence[ArrayLike], **settings: Any
) -> list[FloatArray]:
    """The advantage of every step of a group: ``estimate_group(...).advantages``.

    Args:
        observations: As for `estimate_group`.
        rewards: As for `estimate_group`.
        **settings: Its other arguments, of which `gamma` and `binning` have to be given.

    Example:
        >>> rewards = [np.array([1.0, 1.0]), np.array([0.0, 3.0]), np.array([2.0])]
        >>> observations = [np.zeros(2), np.zeros(2), np.zeros(1)]
        >>> estimate_advantages(observations, rewards, gamma=1.0, binning="time")
        [array([-0.33333333, -1.        ]), array([0.66666667, 1.        ]), array([-0.33333333])]
    """
    return estimate_group(observations, rewards, **settings).advantages


def estimate_group(
    observations: Sequence[Any],
    rewards: Sequence[ArrayLike],
    *,
    gamma: float,
    binning: str | BinningFunction,
    leave_one_out: bool = False,
    normalize: bool | str = False,
    baseline: str | Baseline = "bins",
    lambda_: float = 1.0,
    credit: str = RETURNS,
    second_level: Level | None = None,
    memory: Any = None,
    final_observations: Sequence[Any] | None = None,
    first_timesteps: Sequence[int] | None = None,
    episodes: Sequence[Hashable] | None = None,
    scores: ScoreFunction | None = None,
    starts: Sequence[Hashable] | None = None,
    names: Sequence[str] | None = None,
) -> GroupEstimate:
    """Estimates the advantage of every step of a group of trajectories (Algorithm 2).

    Assumes trajectories sampled independently under one policy. One that was cut, by a time limit
    or by the end of a rollout, counts as it is unless its final observation is given. A bin's
    baseline is the mean return of the trajectories that visit it, each entered once, at its first
    visit (equation 6). A bin that one trajectory alone visits (a singleton) gives that first visit
    A = 0.

    Baselines that remember are given what they learned from earlier groups, and hand back what to
    remember:

        memory = None
        for observations, rewards in groups:
            estimate = estimate_group(
                observations, rewards, gamma=0.99, binning="time", baseline="ridge", lambda_=0.95,
                memory=memory,
            )
            memory = estimate.memory

    Args:
        observations: N arrays [T_n, ...], one observation per step, without the final one. A
            custom binning may take dicts or tuples of such arrays; so does "ridge".
        rewards: N arrays [T_n]. Any unit; summed in float64.
        gamma: Discount factor in [0, 1], per step.
        binning: A binning object, a function ``f(observations, timesteps) -> keys`` or a name, see
            binning.py.
        leave_one_out: Take the mean without the trajectory's own entry, which makes the estimate
            unbiased (Proposition 1), but for singletons: these have no other entry and fall back to
            their own, as without leave_one_out. Not in the paper.
        normalize: Return (A - mean) / max(std, 1e-4), over all steps of the group, as RLlib's PPO
            does. The floor keeps advantages that are zero up to rounding from being blown up. With
            a baseline that remembers, those of a group of one are divided by their root mean
            square over this and earlier groups: its own mean would take its signal away. "bins":
            A over the standard deviation of the entries of its bin around the baseline, see
            units.py.
        baseline: What returns are compared with: a baseline object or a name, see baselines/.
        lambda_: λ of the λ-returns, as in GAE: below 1, part of what happens later is replaced by
            later values. Needs a baseline that sees the state.
        credit: What each step is credited with, see credit.py: "returns" (to go), "outcome" (the
            total reward of its trajectory) or "process" (returns of normalised rewards).
        second_level: A second comparison, whose advantages are added.
        memory: The `memory` of the group before; None at first. That of another kind of baseline,
            or of another binning, counts as none.
        final_observations: N arrays [1, ...]: the observation after the last step of a trajectory
            that was cut, whose return the baseline then completes; None for a trajectory that has
            ended. Needs a baseline that sees the state. Default None: nothing is completed.
        first_timesteps: N integers: how many steps after its episode's reset each trajectory
            begins. Default None: 0, all begin with the reset.
        episodes: N labels of the episodes that trajectories are of, where several agents of one
            episode are in the group. Their rewards may depend on one another's actions, so what is
            left out of a mean is all of an episode, not only the trajectory. Default None: each is
            of its own.
        scores: The policy's gradients, for "optimal": see `BinnedGroup`.
        starts: N labels of the starts that trajectories have, where several share one: those of
            different starts share no bin then, as answers to different prompts don't in GRPO, and
            "process" doesn't compare their rewards. What is remembered of bins means nothing in
            the next group. Default None: a bin holds trajectories of all starts.
        names: N words for the trajectories, for errors; "trajectory 3" by default.

    Returns:
        The advantages, in the order of the trajectories, statistics of the bins, and the memory.

    Raises:
        ValueError: If the group or a trajectory is empty, lengths disagree, a reward or an
            observation is not finite, gamma or lambda_ is outside [0, 1], keys have the wrong
            shape, a setting needs a baseline that sees the state or bins that last, or a baseline
            gives values that aren't finite or not one per step, or a memory that it says it hasn't.
        TypeError: If keys are not integers, the binning cannot take the observations, memory is no
            memory, or a baseline gives something else than a `Valuation`.
    """
    binning = resolve_binning(binning)
    baseline = resolve_baseline(baseline, leave_one_out=leave_one_out)
    check_settings(
        baseline,
        binning,
        lambda_=lambda_,
        normalize=normalize,
        credit=credit,
        second_level=second_level,
        bootstrap=final_observations is not None,
        of_starts=starts is not None,
    )
    names = names or default_names(rewards)
    observations, rewards = as_arrays(observations, rewards, names)
    check_finite(observations, rewards, names)
    if final_observations is not None:
        check_finals(final_observations, names)
    lengths_N = np.array([len(reward_T) for reward_T in rewards])
    check_labels(starts, names)
    start_N = check_starts(first_timesteps, names)
    check_memory(memory)
    of = _what_is_remembered(baseline, binning, gamma, credit)
    earlier = _recalled(memory, of, baseline) or _NOTHING

    # k[n,t] = f(s[n,t], t)
    group = into_bins(
        binning,
        observations,
        lengths_N,
        start_N,
        names,
        final_observations,
        episodes,
        starts,
        scores,
    )
    found, valuation = _compared(
        group,
        rewards,
        baseline,
        earlier["baseline"],
        gamma=gamma,
        lambda_=lambda_,
        credit=credit,
        starts=starts,
    )
    memory = _remembered(of, earlier, valuation, found.differences) if baseline.remembers else None
    unit_S = normalized(found.differences, group, normalize, memory)
    if second_level is not None:
        # A[n,t] += weight A'[n,t]
        unit_S = unit_S + second_level.weight * np.concatenate(
            estimate_advantages(
                observations,
                rewards,
                gamma=gamma,
                binning=second_level.binning,
                leave_one_out=not baseline.keeps_own,
                normalize=second_level.normalize,
                credit=second_level.credit,
                first_timesteps=start_N.tolist(),
                episodes=episodes,
                starts=starts,
            )
        )
    of_bins = explained_variance(found.returns, group.mean_of_others(found.returns), ~group.alone())
    return GroupEstimate(
        advantages=np.split(unit_S, np.cumsum(lengths_N)[:-1]),
        memory=memory,
        num_bins=len(group.counts),
        singleton_fraction=float(group.alone()[group.first_visits].mean()),
        baseline_explained_variance=_explained_by(baseline, found, of_bins),
        bins_explained_variance=of_bins,
        metrics=valuation.metrics,
        comparison=found,
    )


def _compared(
    group: BinnedGroup,
    rewards: Sequence[FloatArray],
    baseline: Baseline,
    memory: Any,
    *,
    gamma: float,
    lambda_: float,
    credit: str,
    starts: Sequence[Hashable] | None,
) -> tuple[Comparison, Valuation]:
    """Compares what each step is credited with with what the baseline says of it.

    Args:
        group: The group, its steps sorted into bins.
        rewards: N arrays [T_n].
        baseline: The baseline.
        memory: What it has remembered of earlier groups.
        gamma: As for `estimate_group`.
        lambda_: As for `estimate_group`.
        credit: As for `estimate_group`.
        starts: As for `estimate_group`.

    Raises:
        ValueError, TypeError: If what the baseline gives can't be meant.
    """
    lengths_N, names = group.lengths, group.names
    start_N = numbered([0] * len(names) if starts is None else starts)
    reward_S = credited_rewards(np.concatenate(rewards), credit, np.repeat(start_N, lengths_N))
    if group.final_observations is not None:
        # r[n,T-1] += gamma v(s[n,T]), where a time limit cut trajectory n
        final_N = baseline.final_values(group, memory)
        check_values(final_N, np.ones_like(lengths_N), names, baseline)
        reward_S[np.cumsum(lengths_N) - 1] += gamma * final_N
    # R[n,t] = sum_{s>=t} gamma^(s-t) * r[n,s], unless another credit is asked for
    ret_S = credited_returns(reward_S, lengths_N, gamma, credit)
    ret_S.flags.writeable = False  # A baseline may be anybody's.
    # v[n,t] = b(k[n,t]), and what else the baseline sees
    valuation = baseline.values(group, ret_S, memory)
    if not isinstance(valuation, Valuation):
        raise TypeError(f"{baseline} must give a Valuation, got {type(valuation).__name__}.")
    value_S = valuation.values
    check_values(value_S, lengths_N, names, baseline)
    if valuation.memory is not None and type(baseline).remembers is Baseline.remembers:
        raise ValueError(f"{baseline} gives a memory: let its property `remembers` say so.")
    # A[n,t] = R[n,t] - v[n,t]
    adv_S = ret_S - value_S
    if lambda_ < 1.0:
        # A[n,t] = sum_j (gamma lambda)^j (r[n,t+j] + gamma v[n,t+j+1] - v[n,t+j])
        mixed_S = lambda_returns(reward_S, value_S, lengths_N, gamma, lambda_)
        adv_S = mixed_S - value_S
        if valuation.alone is not None:
            # Alone in a bin, v is from the own return R of the first visit: what is compared with
            # it must be of its kind, or the worse the step did, the better it would look.
            adv_S -= np.where(valuation.alone, (mixed_S - ret_S)[group.entries], 0.0)
    # Exactly 0 where returns are equal, so that such a group moves nothing.
    adv_S = without_rounding(adv_S, ret_S)
    return Comparison(group, ret_S, value_S, valuation.alone, adv_S, memory), valuation


def _explained_by(baseline: Baseline, found: Comparison, of_bins: float) -> float:
    if isinstance(baseline, BinBaseline) and baseline.keeps_own:
        return of_bins
    known_S = np.True_ if found.alone is None else ~found.alone
    return explained_variance(found.returns, found.values, known_S)


def _what_is_remembered(
    baseline: Baseline, binning: BinningFunction, gamma: float, credit: str
) -> tuple[str, ...]:
    """Names what a memory is of: with any of it changed, it means nothing."""
    of_credit = (credit,) if credit != RETURNS else ()
    return type(baseline).__name__, name_of(binning), f"gamma {gamma:g}", *of_credit


def _recalled(memory: Any, of: tuple[str, ...], baseline: Baseline) -> Any:
    """What is remembered of earlier groups, if it means something here.

    Not what was learned with other bins, by another kind of baseline, of another credit or gamma.
    """
    if not memory or tuple(memory["of"]) == of:
        return memory
    if baseline.remembers:
        then, now = (" with ".join(settings) for settings in (memory["of"], of))
        logger.warning(
            f"What is remembered of earlier groups is of {then}; now it is {now}: it begins anew."
        )
    return None


def _remembered(
    of: tuple[str, ...], earlier: Any, valuation: Valuation, adv_S: FloatArray
) -> dict[str, Any]:
    """What the baseline remembers, and the sum of squares that the unit of advantages is from."""
    # Steps that could be compared with nothing say nothing of the unit.
    known_S = adv_S if valuation.alone is None else adv_S[~valuation.alone]
    return {
        "of": of,
        "baseline": valuation.memory,
        "square_sum": _UNIT_DECAY * earlier["square_sum"] + float(known_S @ known_S),
        "num_steps": _UNIT_DECAY * earlier["num_steps"] + len(known_S),
    }


def explained_variance(
    ret_S: FloatArray, value_S: FloatArray, known_S: NDArray[np.bool_] | np.bool_ = np.True_
) -> float:
    """1 - Var(R - v) / Var(R) over the steps that are marked, or 0 where R doesn't vary."""
    error_S = ret_S - value_S
    if not known_S.all():
        ret_S, error_S = ret_S[known_S], error_S[known_S]
    variance = _variance(ret_S)
    return 1.0 - _variance(error_S) / variance if variance > 0.0 else 0.0


def _variance(x_S: FloatArray) -> float:
    """The variance, exactly 0 of no numbers and of equal ones."""
    if len(x_S) == 0:
        return 0.0
    x_S = x_S - x_S[0]
    x_S -= x_S.mean()
    return float(x_S @ x_S) / len(x_S)
