"""Envs that wait instead of computing, as if the simulator were elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from ray.tune import register_env

OBSERVATION_SPACE = gym.spaces.Box(-1.0, 1.0, (8,), np.float32)  # as LunarLander
ACTION_SPACE = gym.spaces.Discrete(4)
EPISODE_STEPS = 100


def slow_down_first(*, env_runner: Any, env: Any, env_context: Any, **kwargs: Any) -> None:
    """Makes the envs of env runner 1 slower by `slow_down` of the env's config."""
    if env_runner.worker_index == 1:
        for sub_env in getattr(env.unwrapped, "envs", [env]):
            sub_env.unwrapped.step_s *= env_context["slow_down"]


class WaitingEnv(gym.Env):
    """Waits at each step; `EPISODE_STEPS` steps an episode."""

    observation_space = OBSERVATION_SPACE
    action_space = ACTION_SPACE

    def __init__(self, config: Mapping[str, Any]):
        """Takes `step_s`, the seconds that a step takes."""
        self.step_s = config["step_s"]

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        """Begins an episode at once."""
        super().reset(seed=seed)
        self._num_steps = 0
        return np.zeros(OBSERVATION_SPACE.shape, np.float32), {}

    def step(self, action: Any) -> Any:
        """Waits."""
        time.sleep(self.step_s)
        self._num_steps += 1
        observation = np.zeros(OBSERVATION_SPACE.shape, np.float32)
        return observation, 1.0, self._num_steps >= EPISODE_STEPS, False, {}


class WaitingVectorEnv(VectorEnv):
    """Waits once per step of all its envs; episodes of 20 to 180 steps."""

    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012

    def __init__(self, config: Mapping[str, Any]):
        """Takes `num_envs`, and what `WaitingEnv` takes."""
        self.step_s = config["step_s"]
        self.num_envs = num_envs = config["num_envs"]
        self.single_observation_space = OBSERVATION_SPACE
        self.single_action_space = ACTION_SPACE
        self.observation_space = batch_space(OBSERVATION_SPACE, num_envs)
        self.action_space = batch_space(ACTION_SPACE, num_envs)
        self._left = np.zeros(num_envs, np.int64)

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        """Draws the lengths of all episodes."""
        super().reset(seed=seed)
        self._left = self._lengths()
        return self._observations(), {}

    def step(self, actions: Any) -> Any:
        """Waits; an env whose episode is over begins the next instead of stepping."""
        time.sleep(self.step_s)
        was_over = self._left == 0
        self._left = np.where(was_over, self._lengths(), self._left - 1)
        rewards, none = np.where(was_over, 0.0, 1.0), np.zeros(self.num_envs, np.bool_)
        return self._observations(), rewards, self._left == 0, none, {}

    def _lengths(self) -> np.ndarray:
        spread = 80
        low, high = EPISODE_STEPS - spread, EPISODE_STEPS + spread
        return self.np_random.integers(low, high, self.num_envs, endpoint=True)

    def _observations(self) -> np.ndarray:
        return np.zeros(self.observation_space.shape, np.float32)


register_env("waiting-vector", WaitingVectorEnv)
