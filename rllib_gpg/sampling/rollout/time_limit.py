"""A time limit for a multi-agent env that has none of its own."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import gymnasium as gym
from ray.rllib.env.multi_agent_env import MultiAgentEnv
from ray.rllib.utils.annotations import override
from ray.rllib.utils.typing import MultiAgentDict


class MultiAgentTimeLimit(gym.Wrapper):
    """Cuts episodes (truncated) for all agents that are there: seen, and not done.

    RLlib wants a last observation of every agent that is cut. One that the env shows nothing at
    that step is shown what it saw last once more; what it was given since its last action still
    belongs to that action. An episode that the env itself ends at that step is left as it is.
    """

    def __init__(self, env: MultiAgentEnv, max_episode_steps: int):
        """Takes the env, and after how many of its steps to cut."""
        super().__init__(env)
        self._max_episode_steps = max_episode_steps
        self._num_steps = 0
        # What each agent that is there saw last.
        self._seen: MultiAgentDict = {}

    @override(gym.Wrapper)
    def reset(self, **kwargs: Any) -> tuple[MultiAgentDict, MultiAgentDict]:
        """Resets the env and begins to count."""
        observations, infos = self.env.reset(**kwargs)
        self._num_steps = 0
        # A copy: envs may use their arrays again.
        self._seen = deepcopy(observations)
        return observations, infos

    @override(gym.Wrapper)
    def step(self, action: MultiAgentDict) -> tuple[MultiAgentDict, ...]:
        """Steps the env, and cuts the episode if it is time and the env goes on."""
        observations, rewards, terminateds, truncateds, infos = self.env.step(action)
        self._num_steps += 1
        self._seen |= deepcopy(observations)
        there = [a for a in self._seen if not (terminateds.get(a) or truncateds.get(a))]
        # RLlib ends an episode whose agents are all done, if there have been any.
        all_done = bool(self._seen) and not there
        is_over = terminateds.get("__all__") or truncateds.get("__all__") or all_done
        if self._num_steps >= self._max_episode_steps and not is_over:
            truncateds = {**truncateds, "__all__": True}
            # Also for those that leave at this very step.
            observations = {**self._seen, **observations}
            # RLlib also wants a reward for an agent that has acted and is shown something.
            rewards = {**dict.fromkeys(self._seen, 0.0), **rewards}
        self._seen = {agent: self._seen[agent] for agent in there}
        return observations, rewards, terminateds, truncateds, infos
