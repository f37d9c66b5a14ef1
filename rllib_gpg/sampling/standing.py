"""Where the env of a rollout stands between two groups, and how any env gets there."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import tree
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from rllib_gpg.sampling.rollout.schedule import Rollouts
from rllib_gpg.sampling.seeds import seeds_of_rollout

if TYPE_CHECKING:
    from rllib_gpg.sampling.messages import Share

logger = logging.getLogger("ray.rllib")


@dataclass(frozen=True, eq=False)
class Standing:
    """An episode that the end of a group cut, and with which its rollout goes on in the next one.

    Enough to bring any env to where this one stands: an env runner that was lost takes no group
    with it, and a checkpoint goes on as the run would have.

    Attributes:
        seed: What the env was reset with.
        actions: The actions that the env has taken since, one per step, as it took them.
        episode: The episode from here on: without steps, but for those that connectors look back
            at. What the env shows is its last observation, as it was before connectors saw it.
        earlier_return: The sum of the rewards so far.
    """

    seed: int | None
    actions: list[Any]
    episode: SingleAgentEpisode
    earlier_return: float

    def is_where(self, other: Standing | None) -> bool:
        """Whether an env that stands at `other` needn't be brought here."""
        if other is None:
            return False
        return (self.episode.id_, self.episode.t) == (other.episode.id_, other.episode.t)

    def brings(self, env: Any) -> bool:
        """Resets an env and repeats the actions; says whether it shows what it did then.

        It doesn't if an env draws from other random numbers than those that its seed is for.
        """
        observation, _ = env.reset(seed=self.seed)
        for action in self.actions:
            observation, *_ = env.step(action)
        mine, its = tree.flatten(self.episode.get_observations(-1)), tree.flatten(observation)
        return all(np.array_equal(a, b) for a, b in zip(mine, its, strict=True))


def take_up(
    share: Share, envs: Sequence[Any], stands: dict[int, Standing], episodes: list[Any]
) -> Rollouts:
    """Brings envs to where the rollouts of a share stand.

    A rollout has the same env, by its number, on every env runner: the actions drawn, for all envs
    together, are then the same as well.

    Args:
        share: The share.
        envs: The envs, which can be reset and stepped one by one.
        stands: Where some of them are known to stand.
        episodes: Gets the episodes that go on.
    """
    seeds, going_on = {}, []
    for number, standing in zip(share.rollouts, share.standing, strict=True):
        index = number % len(envs)
        seeds[index] = seeds_of_rollout(share.run_seed, share.group, number)
        if standing is None:
            continue
        if standing.is_where(stands.get(index)) or standing.brings(envs[index]):
            # A copy: the share may have to be sampled again.
            episodes[index] = copy.deepcopy(standing.episode)
            going_on.append(index)
        else:
            logger.warning(
                f"The episode of rollout {number} can't be taken up where it was cut: with the "
                f"same seed and the same actions {envs[index]} shows something else. Another "
                "episode begins in its place."
            )
    return Rollouts(seeds, share.num_steps, going_on)


def standing_after(
    share: Share, rollouts: Rollouts, cut: dict[int, SingleAgentEpisode], episodes: list[Any]
) -> dict[int, Standing]:
    """Returns, by env, where the rollouts of a share have come to.

    Args:
        share: The share.
        rollouts: What `take_up` returned, run to its end.
        cut: The rests of the episodes that were cut, by env.
        episodes: What has been sampled of them, by env.
    """
    standing = {}
    for number, before in zip(share.rollouts, share.standing, strict=True):
        index = number % len(episodes)
        if index not in cut:
            continue
        seed, actions, earlier_return = *rollouts.actions_of(index), 0.0
        if index in rollouts.going_on and not rollouts.has_begun(index):
            assert before is not None
            seed, earlier_return = before.seed, before.earlier_return
            actions = [*before.actions, *actions]
        earlier_return += float(episodes[index].get_return())
        standing[index] = Standing(seed, actions, cut[index], earlier_return)
    return standing
