"""Where the env of a rollout stands between two groups, and how any env gets there."""

from __future__ import annotations

import copy
import logging
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import tree
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from rllib_gpg.nested import row
from rllib_gpg.sampling.rollout.schedule import Rollouts
from rllib_gpg.sampling.rollout.vector_env import SubEnvs
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
        actions: The actions that the env has taken since, as it took them: a batch per group.
        episode: The episode from here on: without steps, but for those that connectors look back
            at. What the env shows is its last observation, as it was before connectors saw it.
        earned: The sum of the env's rewards so far.
        earlier_return: The same of what connectors have made of them, which metrics are of.
        token: Tells it from any other, also from where the same episode has stood in another run.
    """

    seed: int | None
    actions: tuple[Any, ...]
    episode: SingleAgentEpisode
    earned: float
    earlier_return: float
    token: str = field(default_factory=lambda: uuid.uuid4().hex)

    def brings(self, envs: SubEnvs, index: int) -> bool:
        """Repeats the episode in an env; says whether that comes to the same.

        It doesn't if an env draws from other random numbers than those that its seed is for.
        """
        # Copies, which envs may write into.
        actions = (row(batch, t) for batch in self.actions for t in range(_length(batch)))
        shown = envs.repeat(index, self.seed, actions)
        if shown is None or not np.isclose(shown[1], self.earned, rtol=1e-9):
            return False
        mine = tree.flatten(self.episode.get_observations(-1))
        return all(map(_equal, mine, tree.flatten(shown[0])))

    def get_state(self) -> dict[str, Any]:
        """Returns it in plain types."""
        # RLlib leaves out the state of a column that has nothing but steps to look back at.
        outputs = {k: v.get_state() for k, v in self.episode.extra_model_outputs.items()}
        episode = {**self.episode.get_state(), "extra_model_outputs": outputs}
        return {**vars(self), "actions": list(self.actions), "episode": episode}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        """Restores what `get_state` returned."""
        episode = SingleAgentEpisode.from_state(state["episode"])
        # Older ones have one sum.
        earned = state.get("earned", state["earlier_return"])
        changed = {"actions": tuple(state["actions"]), "episode": episode, "earned": earned}
        return cls(**{**state, **changed})


def _length(batch: Any) -> int:
    return len(tree.flatten(batch)[0])


def _equal(one: Any, other: Any) -> bool:
    one, other = np.asarray(one), np.asarray(other)
    return np.array_equal(one, other, equal_nan=one.dtype.kind == "f" == other.dtype.kind)


def take_up(share: Share, envs: Any, stands: dict[int, Standing], episodes: list[Any]) -> Rollouts:
    """Brings envs to where the rollouts of a share stand.

    Args:
        share: The share.
        envs: The envs of the env runner.
        stands: Where some of them are known to stand.
        episodes: Gets the episodes that go on.

    Raises:
        ValueError: If the envs can't be reset and stepped one by one.
    """
    if not isinstance(envs, SubEnvs):
        raise ValueError(
            "`batch_mode='truncate_episodes'` needs envs that gymnasium steps one by one, without "
            f"a vector wrapper around them; got {type(envs).__name__}."
        )
    seeds, going_on = {}, []
    for index, number, standing in zip(share.envs, share.rollouts, share.standing, strict=True):
        seeds[index] = seeds_of_rollout(share.run_seed, share.group, number)
        if standing is None:
            continue
        is_there = index in stands and stands[index].token == standing.token
        if is_there or standing.brings(envs, index):
            # A copy: the share may have to be sampled again.
            episodes[index] = copy.deepcopy(standing.episode)
            going_on.append(index)
        else:
            logger.warning(
                f"The episode of rollout {number} can't be taken up where it was cut: with the "
                "same seed and the same actions its env does something else. Another episode "
                "begins in its place."
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
    for index, before in zip(share.envs, share.standing, strict=True):
        if index not in cut:
            continue
        seed, taken, earned = rollouts.steps_of(index)
        actions: tuple[Any, ...] = (tree.map_structure(lambda *leaves: np.stack(leaves), *taken),)
        earlier_return = 0.0
        if index in rollouts.going_on and not rollouts.has_begun(index):
            assert before is not None
            seed, earlier_return = before.seed, before.earlier_return
            actions, earned = (*before.actions, *actions), before.earned + earned
        earlier_return += float(episodes[index].get_return())
        standing[index] = Standing(seed, actions, cut[index], earned, earlier_return)
    return standing
