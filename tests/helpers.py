"""What several tests do: build an algorithm, sample a group, look at its episodes."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import tree
from ray.rllib.core import DEFAULT_MODULE_ID

from rllib_gpg import GPG, GPGConfig

SMALL_NET = {"fcnet_hiddens": [8]}

# What the README promises in the results of a module, from the first iteration.
GROUP_METRICS = {
    "group_num_episodes",
    "group_num_env_steps",
    "group_num_bins",
    "group_singleton_fraction",
    "baseline_explained_variance",
    "group_return_mean",
    "group_return_std",
    "clip_fraction",
    "policy_loss",
    "entropy",
    "mean_kl_loss",
}


def small_config(env: Any, **training: Any) -> GPGConfig:
    """A config with a small network and 4 envs in one process.

    Without RLlib's monitor of the machine, whose end takes up to 0.7 s.
    """
    return (
        GPGConfig()
        .environment(env)
        .env_runners(num_envs_per_env_runner=4)
        .training(**{"group_size": 8, **training})
        .rl_module(model_config=SMALL_NET)
        .debugging(seed=1, log_sys_usage=False)
    )


@contextmanager
def built(config: GPGConfig) -> Iterator[GPG]:
    algo = config.build_algo()
    try:
        yield algo
    finally:
        algo.stop()


def sample_group(algo: GPG) -> list[Any]:
    """The next group, sampled as `training_step` samples it."""
    episodes = algo._sample_group(algo._weights or algo._sync_weights())
    algo._num_groups += 1
    return episodes


def fingerprint(episodes: list[Any]) -> list[tuple[Any, ...]]:
    """What makes two episodes the same: observations, actions, rewards."""
    return [
        (
            np.asarray(e.get_observations()).tobytes(),
            np.asarray(e.get_actions()).tobytes(),
            np.asarray(e.get_rewards()).tobytes(),
        )
        for e in episodes
    ]


def module_results(result: dict[str, Any]) -> dict[str, Any]:
    return result["learners"][DEFAULT_MODULE_ID]


def snapshot(algo: GPG) -> dict[str, Any]:
    """Copies of all arrays that learning changes: module and optimizer of the (local) learner.

    Copies, because a learner's state is a view of its live parameters.
    """
    state = algo.learner_group.foreach_learner(lambda learner: learner.get_state())
    state = state.result_or_errors[0].get()
    return copy.deepcopy({name: state[name] for name in ("rl_module", "optimizer")})


def same(one: Any, other: Any) -> bool:
    """Whether two snapshots are equal to the last bit."""
    ones, others = (tree.flatten_with_path(nested) for nested in (one, other))
    return [path for path, _ in ones] == [path for path, _ in others] and all(
        np.array_equal(a, b) for (_, a), (_, b) in zip(ones, others, strict=True)
    )
