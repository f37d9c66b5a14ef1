"""What one result says, in one line."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from rllib_gpg.progress.criteria import ITERATION, Criteria

_PHASES = {
    "sample": "env_runner_sampling_timer",
    "estimate": "group_advantage_estimation_timer",
    "update": "learner_update_timer",
}
# Only where there was one.
_EVALUATION = "evaluation_timer"


class Lines:
    """Puts the results of one run into a line each."""

    def __init__(self, stop: Mapping[str, float]):
        """Takes the stop criteria of the run, as `ray.tune.RunConfig(stop=..)` does."""
        self._limit = stop.get(ITERATION)
        self._criteria = Criteria(stop)

    def of(self, result: Mapping[str, Any]) -> str:
        """Returns the line of the next result.

        Args:
            result: What `Algorithm.train` returned, of GPG or of any algorithm with
                `GroupAdvantageEstimation` in its learner pipeline; of others it shows the mean
                return of episodes.
        """
        number = f"iteration {result[ITERATION]:4d}"
        if self._limit is not None:
            number += f"/{self._limit:.0f}"
        left = self._criteria.seconds_left(result)
        parts = [
            number,
            _returns(result),
            _speed(result),
            _shares_of_time(result),
            "" if left is None else f"at most {_clock(left)} left",
        ]
        return " | ".join(part for part in parts if part)


def _returns(result: Mapping[str, Any]) -> str:
    """Returns the mean return of each module's group, and between which returns 80 % of it are."""
    found = {module_id: _mean_and_spread(group) for module_id, group in groups_of(result)}
    if len(found) > 1:
        each = (f"{module_id} {returns.lstrip()}" for module_id, returns in found.items())
        return f"return {', '.join(each)}"
    if found:
        return f"return {next(iter(found.values()))}"
    if "env_runners" not in result:
        return ""  # learns from recordings
    # Missing as long as no episode has ended; of rollouts, nan where none has.
    mean = result["env_runners"].get("episode_return_mean", math.nan)
    return f"return {'-':>8}" if math.isnan(mean) else f"return {mean:8.{_decimals(mean)}f}"


def _mean_and_spread(group: Mapping[str, Any]) -> str:
    mean, low, high = (float(group[f"group_return_{name}"]) for name in ("mean", "p10", "p90"))
    decimals = _decimals(mean, low, high)
    return f"{mean:8.{decimals}f} ({low:.{decimals}f} to {high:.{decimals}f})"


def _decimals(*returns: float) -> int:
    """Of returns between 0 and 1 a single decimal says nothing."""
    return 3 if max(map(abs, returns)) < 10.0 else 1


def groups_of(result: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yields the ids and the metrics of all modules that have learned from a group of episodes.

    None for rollouts: what a piece of an episode has earned says little.
    """
    if result.get("config", {}).get("batch_mode") == "truncate_episodes":
        return
    for module_id, metrics in sorted(result.get("learners", {}).items()):
        # Beside modules there is what learners and their connectors have logged.
        is_module = isinstance(metrics, Mapping)
        # Of a module that was removed, RLlib goes on to report nan.
        if is_module and not math.isnan(metrics.get("group_return_mean", math.nan)):
            yield module_id, metrics


def _speed(result: Mapping[str, Any]) -> str:
    sampled = result.get("env_runners", {})
    if "num_env_steps_sampled" not in sampled:
        return ""
    per_second = sampled["num_env_steps_sampled"] / result["time_this_iter_s"]
    steps = sampled["num_env_steps_sampled_lifetime"]
    return f"{steps:11,.0f} env steps, {per_second:7,.0f}/s"


def _shares_of_time(result: Mapping[str, Any]) -> str:
    timers, whole = result.get("timers", {}), result["time_this_iter_s"]
    if not all(timer in timers for timer in _PHASES.values()):
        return ""  # not GPG
    phases = dict(_PHASES)
    if _EVALUATION in timers:
        phases["evaluate"] = _EVALUATION
    return " ".join(f"{phase} {timers[timer] / whole:.0%}" for phase, timer in phases.items())


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
