"""Symptoms of a run that doesn't learn. Each looks at an iteration, and says what it sees of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.utils.metrics import (
    ENV_RUNNER_SAMPLING_TIMER,
    LEARNER_UPDATE_TIMER,
)
from ray.rllib.utils.spaces.space_utils import flatten_space

from rllib_gpg.advantages.baselines import (
    Baseline,
    BinBaseline,
    NoBaseline,
    OptimalBaseline,
    RidgeBaseline,
    resolve_baseline,
)
from rllib_gpg.advantages.binning import (
    Binning,
    UniversalBinning,
    counts_time,
    resolve_binning,
)
from rllib_gpg.advantages.credit import OUTCOME, PROCESS

# Advantages that vary less than this are rounding errors, see advantages/units.py.
MIN_STD = 1e-4
_MOST = 0.5
_MAX_CLIPPED = 0.5
# Times `kl_target`. Above 2 the coefficient grows; here it has lost.
_MAX_KL = 10.0
# Of the entropy of the uniform policy; and per number of an action of a normal distribution: that
# of a standard deviation of 0.01.
_MIN_ENTROPY_SHARE = 0.002
_MIN_ENTROPY_OF_NUMBER = math.log(0.01) + 0.5 * math.log(2.0 * math.pi * math.e)
# Below this an update is short enough, whatever sampling takes.
_LONG_UPDATE_S = 1.0

_MEND_ALONE = (
    "Use a larger group (`group_size`); coarser bins, such as binning='time' or a larger `epsilon`;"
    " or a baseline that remembers (`baseline='ridge'`, `baseline_decay=0.8`)."
)


@dataclass(frozen=True)
class Iteration:
    """One iteration, as seen by one module.

    Attributes:
        learned: The module's results.
        timers: The algorithm's.
        config: The module's.
        action_space: Its actions'.
        best_return: The highest mean return of a group that there was something to learn from, up
            to the iteration before; infinite if there was none.
    """

    learned: Mapping[str, Any]
    timers: Mapping[str, float]
    config: AlgorithmConfig
    action_space: gym.Space | None
    best_return: float

    def __getitem__(self, metric: str) -> float:
        """Returns a metric of the module, nan if it isn't there: no comparison with it is true."""
        return float(self.learned.get(metric, math.nan))

    @property
    def baseline(self) -> Baseline:
        """The baseline in force."""
        return resolve_baseline(
            self.config.baseline,
            decay=self.config.baseline_decay,
            leave_one_out=self.config.leave_one_out,
        )

    @property
    def compares_within_group(self) -> bool:
        """Whether a step alone in its bin is compared with itself, so that nothing is learned."""
        plain = isinstance(self.baseline, BinBaseline) and not self.baseline.remembers
        return plain and self.config.second_level is None


Symptom = Callable[[Iteration], str | None]


def all_alone(seen: Iteration) -> str | None:
    """Every first visit is alone in its bin."""
    alone = seen.compares_within_group and seen["group_singleton_fraction"] >= 1.0
    # An episode that comes back to a bin compares its visits.
    if not (alone and seen["group_advantage_std"] < MIN_STD):
        return None
    return (
        "all first visits are alone in their bin, so each step is compared with itself: nothing is "
        f"learned. {_MEND_ALONE}"
    )


def most_alone(seen: Iteration) -> str | None:
    """Most first visits are alone in their bin."""
    share = seen["group_singleton_fraction"]
    # Agents of one episode count as one there, but are compared with one another.
    has_mates = seen.config.is_multi_agent and seen["group_num_episodes"] > seen.config.group_size
    in_a_team = has_mates and seen.baseline.keeps_own
    if not seen.compares_within_group or in_a_team or not share > _MOST:
        return None
    return (
        f"{share:.0%} of the first visits are alone in their bin, and nothing is learned from "
        f"them. {_MEND_ALONE}"
    )


def nothing_to_learn(seen: Iteration) -> str | None:
    """All advantages are 0, though steps aren't alone; unless there is nothing left to learn."""
    if not seen["group_advantage_std"] < MIN_STD or seen.config.second_level is not None:
        return None
    # Returns as they are teach by what they are, equal or not, unless they are 0.
    plain = isinstance(seen.baseline, NoBaseline) and seen.config.normalize_advantages is not True
    if plain and seen.config.credit != PROCESS and seen["group_return_mean"] != 0.0:
        return None
    if all_alone(seen) or seen["group_return_mean"] >= seen.best_return:
        return None
    mends = "larger groups, more `entropy_coeff`, or rewards on the way"
    if seen["group_truncated_fraction"] == 1.0:
        steps = seen["group_num_env_steps"] / seen["group_num_episodes"]
        mends += f"; and all episodes are cut, after {steps:.0f} steps: a longer limit"
    return (
        f"there is nothing to compare: the returns of the {seen['group_num_episodes']:.0f} "
        f"episodes of a group are all alike ({seen['group_return_mean']:.4g} ± "
        f"{seen['group_return_std']:.2g}). If that isn't the best there is, take {mends}; if "
        "rewards are tiny, scale them."
    )


def nothing_explained(seen: Iteration) -> str | None:
    """The baseline foresees returns worse than their mean does; unless that does no harm."""
    share = seen["baseline_explained_variance"]
    # Of constants, and of one bin, it is below 0 by construction: they explain nothing.
    constant = isinstance(seen.baseline, NoBaseline | OptimalBaseline)
    one_bin = isinstance(resolve_binning(seen.config.binning), UniversalBinning)
    # Where nearly all returns are alike, there is next to nothing to explain.
    at_its_best = seen["group_return_mean"] >= seen.best_return
    if constant or one_bin or at_its_best or not share < 0.0:
        return None
    if isinstance(seen.baseline, RidgeBaseline):
        mend = "Try a larger group, a larger decay, or baseline='bins' with `lambda_=1`"
    elif isinstance(seen.baseline, BinBaseline):
        mend = "Try a larger group, coarser bins if there are any, or baseline='ridge'"
    else:
        mend = (
            f"Try a larger group, look at the values of {seen.baseline}, or take baseline='ridge'"
        )
    return (
        f"the explained variance of the baseline is {share:.2f}: others' returns foresee a "
        f"trajectory's worse than the mean of all. {mend}; `python -m rllib_gpg.inspect CHECKPOINT`"
        " shows what each would explain."
    )


def entropy_gone(seen: Iteration) -> str | None:
    """The policy has settled on one action everywhere."""
    least = _least_entropy(seen.action_space)
    if least is None or not seen["entropy"] < least:
        return None
    return (
        f"the policy's entropy is {seen['entropy']:.2g}: it explores no more. If the return "
        f"({seen['group_return_mean']:.4g}) isn't what it should be, use `entropy_coeff` (0.01), a "
        "smaller `lr` or fewer epochs."
    )


def mostly_clipped(seen: Iteration) -> str | None:
    """Most steps count nothing any more when an update ends."""
    share = seen["clip_fraction"]
    # The bounds of ratios of whole trajectories are that narrow.
    if seen.config.ratio_level != "step" or not share > _MAX_CLIPPED:
        return None
    return (
        f"{share:.0%} of the steps are clipped at the end of an update (`clip_fraction`): it goes "
        "further than the ratio may. Use fewer `num_epochs` or `num_minibatches` (that many steps "
        "are taken with a small group, too), a smaller `lr`, or a larger `clip_param`."
    )


def kl_exploding(seen: Iteration) -> str | None:
    """The policy moves much further than it is to."""
    kl, target = seen["mean_kl_loss"], seen.config.kl_target
    # TRPO has a bound of its own, which it can't pass.
    if not seen.config.use_kl_loss or not kl > _MAX_KL * target:
        return None
    return (
        f"the KL divergence of an update is {kl:.2g}, {kl / target:.0f} times `kl_target`. Use a "
        "smaller `lr`, fewer `num_epochs`, or a larger `kl_coeff`."
    )


def all_cut(seen: Iteration) -> str | None:
    """A time limit cuts all episodes, and the baseline doesn't know how much time is left."""
    config, binning = seen.config, resolve_binning(seen.config.binning)
    # A function of the user's may know it, whatever it says.
    blind = isinstance(binning, Binning) and not counts_time(binning)
    blind = blind and isinstance(seen.baseline, BinBaseline) and config.credit != OUTCOME
    # Rollouts of a fixed length are cut, but not by a time limit.
    whole = config.batch_mode == "complete_episodes"
    if not (blind and whole and seen["group_truncated_fraction"] == 1.0):
        return None
    steps = seen["group_num_env_steps"] / seen["group_num_episodes"]
    return (
        f"all episodes are cut by the time limit, after {steps:.0f} steps, where returns stop: the "
        "later a step, the less it seems worth, and the bins don't know the time. Use "
        "binning='time' or SpatialTimeBinning, or baseline='ridge', with "
        "`bootstrap_truncated=True` if the task goes on."
    )


def update_takes_longer(seen: Iteration) -> str | None:
    """Learning takes longer than sampling."""
    update = seen.timers.get(LEARNER_UPDATE_TIMER, math.nan)
    sampling = seen.timers.get(ENV_RUNNER_SAMPLING_TIMER, math.nan)
    # With a group ahead, the time of sampling is that of waiting for it.
    if seen.config.sample_ahead or not update > max(sampling, _LONG_UPDATE_S):
        return None
    meanwhile = "`sample_ahead=1`, which samples meanwhile."
    if seen.config.num_env_runners == 0:
        meanwhile = "`sample_ahead=1` and `num_env_runners` above 0: they sample meanwhile."
    return (
        f"an update takes {update:.1f} s, sampling its group {sampling:.1f} s. Use fewer "
        "`num_minibatches` (or a larger `minibatch_size`), fewer `num_epochs`, a GPU for the "
        "learner, for a large network more threads "
        f"(`resources(num_cpus_for_main_process=..)`), or {meanwhile}"
    )


def _least_entropy(action_space: gym.Space | None) -> float | None:
    """Below which a policy has settled; None if that can't be said of such actions."""
    least = 0.0
    for leaf in flatten_space(action_space) if action_space is not None else ():
        if isinstance(leaf, gym.spaces.Discrete):
            least += _MIN_ENTROPY_SHARE * math.log(leaf.n)
        elif isinstance(leaf, gym.spaces.MultiDiscrete):
            least += _MIN_ENTROPY_SHARE * float(np.log(leaf.nvec).sum())
        elif isinstance(leaf, gym.spaces.Box):
            least += _MIN_ENTROPY_OF_NUMBER * math.prod(leaf.shape)
        else:
            return None
    return least if action_space is not None else None
