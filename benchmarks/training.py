"""Trains algorithms of RLlib, and writes down how they learn: what experiments have in common."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.core import DEFAULT_MODULE_ID

Curve = dict[str, list[float]]
"""Iteration by iteration: `steps`, `return`, `length`, `episodes`, `cpu_seconds` of this process,
`seconds` by the clock, and what is known of the variance of returns: how much of it `baseline`,
`bins`, or a `critic` explain."""

# What is written down of a config; each algorithm has some of it.
SETTINGS = (
    "group_size",
    "episodes_per_start",
    "max_extra_starts",
    "learner_class",
    "binning",
    "batch_mode",
    "rollout_fragment_length",
    "baseline",
    "lambda_",
    "bootstrap_truncated",
    "credit",
    "second_level",
    "normalize_advantages",
    "surrogate",
    "ratio_level",
    "loss_averaging",
    "reference_kl_coeff",
    "gamma",
    "train_batch_size_per_learner",
    "num_envs_per_env_runner",
    "num_epochs",
    "num_minibatches",
    "minibatch_size",
    "lr",
    "clip_param",
    "entropy_coeff",
    "grad_clip",
    "use_kl_loss",
    "vf_loss_coeff",
    "vf_clip_param",
    "model_config",
)
EXPLAINED = {
    "baseline_explained_variance": "baseline",
    "bins_explained_variance": "bins",
    "baseline_ridge_share": "ridge_share",
    "vf_explained_var": "critic",
}


class EndedEpisodes(RLlibCallback):
    """The returns and lengths of the episodes that have ended since they were asked for last."""

    # One of each, as everything happens in one process.
    _ended: list[tuple[float, int]] = []  # noqa: RUF012
    _going: dict[str, tuple[float, int]] = {}  # noqa: RUF012

    def on_sample_end(self, *, samples: list[Any], **kwargs: Any) -> None:
        """Adds up what was sampled; PPO samples its episodes piece by piece."""
        for piece in samples:
            total, length = self._going.pop(piece.id_, (0.0, 0))
            episode = (total + float(piece.get_return()), length + len(piece))
            if piece.is_done:
                self._ended.append(episode)
            else:
                self._going[piece.id_] = episode

    @classmethod
    def since_last(cls) -> list[tuple[float, int]]:
        """Gives them, as pairs."""
        episodes = cls._ended.copy()
        cls._ended.clear()
        return episodes


class ScaleRewards(RLlibCallback):
    """Divides rewards by the running standard deviation of the discounted sum of earlier ones.

    It is what PPO's published settings for MuJoCo have as a wrapper of the env, and RLlib doesn't.
    Not in the learner's pipeline, where no piece of an episode is known to go on any more.
    """

    def __init__(self) -> None:
        """Has seen nothing."""
        self._sums: dict[str, float] = {}
        self._count, self._mean, self._squares = 1e-4, 0.0, 1e-4

    def on_sample_end(self, *, env_runner: Any, samples: list[Any], **kwargs: Any) -> None:
        """Scales the rewards of all pieces of episodes, in which they replace the old ones."""
        for piece in samples:
            rewards = np.asarray(piece.get_rewards(), np.float64)
            total = self._sums.pop(piece.id_, 0.0)
            for reward in rewards:
                total = env_runner.config.gamma * total + reward
                self._count += 1
                delta = total - self._mean
                self._mean += delta / self._count
                self._squares += delta * (total - self._mean)
            if not piece.is_done:
                self._sums[piece.id_] = total
            std = (self._squares / self._count) ** 0.5
            piece.set_rewards(new_data=np.clip(rewards / (std + 1e-8), -10.0, 10.0))


Ended = tuple[float, float, int]
"""Of the episodes that have ended in an iteration: mean return, mean length, and their number."""


def in_this_process(result: dict[str, Any]) -> Ended:
    """What the callback `EndedEpisodes` knows: for algorithms that sample in this process."""
    returns, lengths = np.array(EndedEpisodes.since_last() or [(0.0, 0)]).T
    return float(returns.mean()), float(lengths.mean()), int((lengths > 0).sum())


def of_the_results(result: dict[str, Any]) -> Ended:
    """What the results say: those of GPG are of the iteration's episodes, and of no others."""
    found = result["env_runners"]
    return found["episode_return_mean"], found["episode_len_mean"], int(found["num_episodes"])


def train(
    algo: Algorithm,
    until: Callable[[Curve], bool],
    ended: Callable[[dict[str, Any]], Ended] = in_this_process,
) -> Curve:
    """Trains until a curve is long enough.

    Args:
        algo: The algorithm.
        until: Is asked after each iteration.
        ended: Gives the episodes of an iteration, from its results.
    """
    EndedEpisodes.since_last()
    curve: Curve = {}
    start, start_of_clock = time.process_time(), time.monotonic()
    while not curve or not until(curve):
        result = algo.train()
        mean_return, mean_length, episodes = ended(result)
        row = {
            "steps": int(result["num_env_steps_sampled_lifetime"]),
            "return": round(mean_return, 3),
            "length": round(mean_length, 1),
            "episodes": episodes,
            "cpu_seconds": round(time.process_time() - start, 2),
            "seconds": round(time.monotonic() - start_of_clock, 2),
            **explained(result["learners"][DEFAULT_MODULE_ID]),
        }
        for name, value in row.items():
            curve.setdefault(name, []).append(value)
    return curve


def after(num_env_steps: int) -> Callable[[Curve], bool]:
    """Says stop after that many env steps."""
    return lambda curve: curve["steps"][-1] >= num_env_steps


def after_iterations(number: int) -> Callable[[Curve], bool]:
    """Says stop after that many iterations."""
    return lambda curve: len(curve["steps"]) >= number


def explained(results: dict[str, Any]) -> dict[str, float]:
    """How much of the variance of returns is explained, and by what."""
    return {ours: round(float(results[n]), 4) for n, ours in EXPLAINED.items() if n in results}


def settings_of(config: AlgorithmConfig) -> dict[str, Any]:
    """What matters of a config, in words that JSON knows."""
    settings = {name: getattr(config, name) for name in SETTINGS if hasattr(config, name)}
    return {name: _in_json(value) for name, value in settings.items() if value is not None}


def _in_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _in_json(item) for name, item in value.items()}
    is_plain = isinstance(value, int | str | list) or (
        isinstance(value, float) and np.isfinite(value)
    )
    return value if is_plain else str(value)
