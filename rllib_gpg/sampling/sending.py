"""Says what it is that an env runner can't send to the algorithm."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ray import cloudpickle
from ray.rllib.env.multi_agent_episode import MultiAgentEpisode
from ray.rllib.utils.typing import EpisodeType


def check_can_be_sent(episodes: list[EpisodeType]) -> None:
    """Refuses episodes that can't be pickled; of these, Ray only says that the task failed.

    Raises:
        TypeError: Names what can't be pickled: most likely something in an info.
    """
    error = _pickling_error(episodes)
    if error is None:
        return
    for where, value in _named_values(episodes):
        reason = _pickling_error(value)
        if reason is not None:
            raise TypeError(
                f"{where} can't be sent from a remote env runner, because it can't be pickled: "
                f"{value!r} ({reason}). Take it out in the env or in a wrapper around it."
            ) from reason
    raise TypeError(f"The episodes can't be pickled: {error}.") from error


def what_can_be_sent(info: dict[str, Any]) -> dict[str, Any]:
    """Returns an info without what can't be pickled: a group that goes on from it must be."""
    if _pickling_error(info) is None:
        return info
    return {key: value for key, value in info.items() if _pickling_error(value) is None}


def _named_values(episodes: list[EpisodeType]) -> Iterator[tuple[str, Any]]:
    for episode in episodes:
        alone = not isinstance(episode, MultiAgentEpisode)
        for part in [episode] if alone else episode.agent_episodes.values():
            for t, info in enumerate(part.get_infos()):
                for key, value in info.items():
                    yield f"The info {key!r} at step {t} of episode {episode.id_}", value
        for key, value in episode.custom_data.items():
            yield f"The `custom_data` {key!r} of episode {episode.id_}", value


def _pickling_error(value: Any) -> Exception | None:
    try:
        cloudpickle.dumps(value)
    except Exception as error:  # Objects raise whatever they like when they are pickled.
        return error
    return None
