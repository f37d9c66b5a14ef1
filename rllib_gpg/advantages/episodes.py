"""What RLlib's episodes, and the batch that is made of them, say of a group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ray.rllib.core.columns import Columns
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.utils.numpy import convert_to_numpy
from ray.rllib.utils.spaces.space_utils import batch as batch_items

from rllib_gpg.learning.columns import is_step


def rewards_of(group: Sequence[SingleAgentEpisode]) -> list[np.ndarray]:
    """Returns the episodes' rewards, in double precision."""
    return [np.asarray(e.get_rewards(slice(0, len(e))), np.float64) for e in group]


def rewards_left_in(
    columns: Mapping[str, Any], group: Sequence[SingleAgentEpisode]
) -> list[np.ndarray]:
    """Returns the rewards of a module's batch, in which other pieces may have changed them.

    Raises:
        ValueError: If the batch has other steps than the episodes.
    """
    lengths = [len(episode) for episode in group]
    of_batch = convert_to_numpy(columns[Columns.REWARDS])[is_step(columns)]
    if len(of_batch) != sum(lengths):
        raise ValueError(
            f"The rewards column has {len(of_batch)} steps, the episodes have {sum(lengths)}: a "
            "learner connector piece has added or removed some. GroupAdvantageEstimation needs all "
            "steps of its episodes."
        )
    _check_order(columns, group)
    of_episodes = np.concatenate(rewards_of(group))
    # The batch is in single precision. What it has of the episodes is taken from these.
    unchanged = of_batch.astype(np.float32) == of_episodes.astype(np.float32)
    rewards = np.where(unchanged, of_episodes, of_batch)
    return np.split(rewards, np.cumsum(lengths)[:-1])


def _check_order(columns: Mapping[str, Any], group: Sequence[SingleAgentEpisode]) -> None:
    """Refuses a batch that has the steps of the episodes in another order.

    Raises:
        ValueError: If its log-probabilities are those of the episodes, but not one by one.
    """
    if Columns.ACTION_LOGP not in columns or not all(
        Columns.ACTION_LOGP in episode.extra_model_outputs for episode in group
    ):
        return  # There is nothing to tell steps apart by.
    of_episodes = np.concatenate(
        [np.asarray(episode.get_extra_model_outputs(Columns.ACTION_LOGP)) for episode in group]
    )
    of_batch = convert_to_numpy(columns[Columns.ACTION_LOGP])[is_step(columns)]
    if not np.array_equal(of_batch, of_episodes) and np.array_equal(
        np.sort(of_batch), np.sort(of_episodes)
    ):
        raise ValueError(
            "The batch has the steps of its episodes in another order: a learner connector piece "
            "has moved them, and GroupAdvantageEstimation would give each step the advantage of "
            "another. Have that piece come after it, or leave the order as it is: minibatches are "
            "shuffled anyway."
        )


def observations_of(episode: SingleAgentEpisode) -> Any:
    """Returns the observations of the episode's steps, without the final one: [T, ...]."""
    return _as_array(episode.get_observations(slice(0, len(episode))))


def final_observations_of(group: Sequence[SingleAgentEpisode]) -> list[Any]:
    """Returns the observation after the last step, [1, ...], of truncated episodes; else None."""
    return [
        None
        if episode.is_terminated
        else _as_array(episode.get_observations(slice(len(episode), len(episode) + 1)))
        for episode in group
    ]


def _as_array(observations: Any) -> Any:
    return batch_items(observations) if isinstance(observations, list) else observations


def name_of_episode(episode: SingleAgentEpisode) -> str:
    """Returns words for an episode, for errors."""
    if episode.agent_id is None:
        return f"episode {episode.id_}"
    return f"agent {episode.agent_id!r} of episode {episode.multi_agent_episode_id}"


def check_whole(episode: SingleAgentEpisode) -> None:
    """Refuses pieces of episodes.

    Raises:
        ValueError: Says which steps it has.
    """
    if episode.t_started == 0 and episode.is_done:
        return
    name = name_of_episode(episode)
    raise ValueError(
        f"{name[0].upper()}{name[1:]} is a fragment (steps {episode.t_started} to {episode.t}, "
        f"done: {episode.is_done}). GroupAdvantageEstimation needs whole episodes: a return that "
        "stops at a fragment's end is wrong, and there is no critic to continue it with. Sample "
        "with `batch_mode='complete_episodes'`, and with one learner: RLlib slices episodes in "
        "order to share them out to several."
    )


def start_of_episode(episode_id: str, start_of: Mapping[str, int]) -> int:
    """Returns the number of an episode's start, also where RLlib has added numbers to its id.

    Raises:
        ValueError: If the episode isn't one of the group.
    """
    known = episode_id
    while known and known not in start_of:
        known = known.rpartition("_")[0]
    if not known:
        raise ValueError(
            f"Episode {episode_id} has no start: where episodes share their starts "
            "(`episodes_per_start`), learner connector pieces can't add others."
        )
    return start_of[known]
