"""One way to step any vector env: these envs go on, those begin anew.

Both classes below offer the same two methods. `reset` begins the first episode of each given env,
`step` moves the envs named in `stepping` by one action each and begins a new episode in those
named in `starting`. Arrays that come back have one row per named env, in the order given. Actions
are a list with one action per stepping env, or the same as one batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import tree
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from gymnasium.vector.utils import concatenate, create_empty_array
from gymnasium.wrappers.vector import DictInfoToList
from ray.rllib.utils.spaces.space_utils import batch, unbatch

Seeded = dict[int, int | None]
"""Env index -> the seed of the episode that begins there, or None for a random one."""


@dataclass(frozen=True)
class Resets:
    """First observations; `observations` is batched as the env's observation space says."""

    observations: Any
    infos: list[dict[str, Any]]


@dataclass(frozen=True)
class Steps:
    """One transition per env that stepped."""

    observations: Any
    rewards: np.ndarray
    terminateds: np.ndarray
    truncateds: np.ndarray
    infos: list[dict[str, Any]]


class SubEnvs:
    """Steps any subset of the sub-envs of gymnasium's synchronous vector env.

    No env that owes nothing is ever simulated, and every episode can be seeded by itself.
    """

    def __init__(self, env: DictInfoToList):
        """Takes the env runner's vector env apart: `env.unwrapped` is a `SyncVectorEnv`."""
        self._envs = env.unwrapped.envs
        self._observation_space = env.single_observation_space

    def reset(self, starting: Seeded) -> Resets:
        """Resets each env in `starting` with its own seed."""
        results = [self._envs[index].reset(seed=seed) for index, seed in starting.items()]
        observations = self._batch([observation for observation, _ in results])
        return Resets(observations, [info for _, info in results])

    def step(self, stepping: Sequence[int], actions: Any, starting: Seeded) -> tuple[Steps, Resets]:
        """Steps the envs `stepping` and resets those in `starting`."""
        rows = actions if isinstance(actions, (np.ndarray, list)) else unbatch(actions)
        results = [
            self._envs[index].step(action) for index, action in zip(stepping, rows, strict=True)
        ]
        observations, rewards, terminateds, truncateds, infos = (
            zip(*results, strict=True) if results else ((), (), (), (), ())
        )
        steps = Steps(
            self._batch(observations),
            np.array(rewards, np.float64),
            np.array(terminateds, np.bool_),
            np.array(truncateds, np.bool_),
            list(infos),
        )
        return steps, self.reset(starting)

    def _batch(self, observations: Sequence[Any]) -> Any:
        out = create_empty_array(self._observation_space, n=len(observations))
        return concatenate(self._observation_space, observations, out) if observations else out


class WholeVectorEnv:
    """Steps a vector env that only moves as a whole: native, or in processes of its own.

    Envs that owe nothing are stepped along with an arbitrary valid action. A sub-env begins its
    next episode by itself (gymnasium's `NEXT_STEP` autoreset), from its own random numbers: only
    the first episode of each sub-env is seeded by the share.
    """

    def __init__(self, env: DictInfoToList):
        """Checks how `env` begins new episodes.

        Raises:
            ValueError: If the env's autoreset mode isn't `NEXT_STEP`.
        """
        mode = env.metadata.get("autoreset_mode", AutoresetMode.NEXT_STEP)
        if AutoresetMode(mode) != AutoresetMode.NEXT_STEP:
            raise ValueError(
                f"The vector env {env.unwrapped} has the autoreset mode {mode}. Like RLlib's own "
                "env runners, GroupEnvRunner needs gymnasium's `AutoresetMode.NEXT_STEP`: set it "
                "in the env's metadata, or wrap the env so that the step after the end of an "
                "episode returns the first observation of the next."
            )
        self._env = env
        self._has_sub_envs = isinstance(env.unwrapped, SyncVectorEnv | AsyncVectorEnv)
        # Rows of envs that owe nothing need a valid action too.
        self._actions = env.action_space.sample()

    def reset(self, starting: Seeded) -> Resets:
        """Resets all sub-envs, those in `starting` with their seeds; returns the rows of these."""
        first_seed = next(iter(starting.values()), None)
        if first_seed is None or not self._has_sub_envs:
            # A native vector env seeds all its rows from one number.
            seeds: Any = first_seed
        else:
            # Idle sub-envs get seeds too, so that nothing about the share is left to chance.
            seeds = [starting.get(index, 0) for index in range(self._env.num_envs)]
        observations, infos = self._env.reset(seed=seeds)
        return self._resets(observations, infos, list(starting))

    def step(self, stepping: Sequence[int], actions: Any, starting: Seeded) -> tuple[Steps, Resets]:
        """Steps all sub-envs; those in `starting` were done before, and so begin anew."""
        rows = list(stepping)

        def fill(template: np.ndarray, given: Any) -> None:
            template[rows] = given

        if rows:
            batched = batch(actions) if isinstance(actions, list) else actions
            tree.map_structure(fill, self._actions, batched)
        observations, rewards, terminateds, truncateds, infos = self._env.step(self._actions)
        steps = Steps(
            _take(observations, rows),
            np.asarray(rewards)[rows],
            np.asarray(terminateds)[rows],
            np.asarray(truncateds)[rows],
            [infos[index] for index in rows],
        )
        return steps, self._resets(observations, infos, list(starting))

    @staticmethod
    def _resets(observations: Any, infos: list[dict[str, Any]], rows: list[int]) -> Resets:
        return Resets(_take(observations, rows), [infos[index] for index in rows])


def _take(arrays: Any, rows: list[int]) -> Any:
    """Copies the given rows: vector envs reuse their buffers."""
    return tree.map_structure(lambda array: np.asarray(array)[rows], arrays)


def adapt(env: gym.vector.VectorEnv) -> SubEnvs | WholeVectorEnv:
    """Returns the cheapest of the two for an env runner's vector env."""
    # RLlib wraps what `gym.make_vec` returns into one `DictInfoToList`. Any further vector wrapper
    # must see every step, so its env moves as a whole.
    bare = isinstance(env, DictInfoToList) and isinstance(env.env, SyncVectorEnv)
    return SubEnvs(env) if bare else WholeVectorEnv(env)


def limit_episodes(env: gym.vector.VectorEnv, max_episode_steps: int) -> None:
    """Cuts the episodes of every sub-env after `max_episode_steps` steps (truncated).

    Raises:
        ValueError: If `env` isn't gymnasium's synchronous vector env: the sub-envs of any other
            can't be reached, or not be reset one by one.
    """
    if not isinstance(env.unwrapped, SyncVectorEnv):
        raise ValueError(
            f"`max_episode_steps` can't cut the episodes of {env.unwrapped}: only those of "
            "sub-envs that gymnasium steps one by one (`gym_env_vectorize_mode='sync'`). Build "
            "the limit into the env instead. For an id that gymnasium knows: "
            f"`environment(env_config={{'max_episode_steps': {max_episode_steps}}})`."
        )
    env.unwrapped.envs = [
        gym.wrappers.TimeLimit(sub_env, max_episode_steps) for sub_env in env.unwrapped.envs
    ]
