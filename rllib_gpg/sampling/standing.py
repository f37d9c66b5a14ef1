"""Where the env of a rollout stands between two groups, and how any env gets there."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import tree
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

logger = logging.getLogger("ray.rllib")


@dataclass(frozen=True, eq=False)
class Standing:
    """An episode that the end of a group cut, and with which its rollout goes on in the next one.

    Enough to bring any env to where this one stands: an env runner that was lost takes no group
    with it, and a checkpoint goes on as the run would have.

    Attributes:
        seed: What the env was reset with.
        actions: The actions that the env has taken since, one per step, as it took them.
        observation: What the env shows, before any connector saw it.
        episode: The episode from here on: without steps, but for those that connectors look back
            at.
        earlier_return: The sum of the rewards so far.
    """

    seed: int | None
    actions: list[Any]
    observation: Any
    episode: SingleAgentEpisode
    earlier_return: float

    def brings(self, env: Any) -> bool:
        """Resets an env and repeats the actions; says whether it shows what it did then.

        It doesn't if an env draws from other random numbers than those that its seed is for.
        """
        observation, _ = env.reset(seed=self.seed)
        for action in self.actions:
            observation, *_ = env.step(action)
        mine, its = tree.flatten(self.observation), tree.flatten(observation)
        return all(np.array_equal(a, b) for a, b in zip(mine, its, strict=True))
