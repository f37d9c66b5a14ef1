"""Packs what an env runner sends to the algorithm, and says what it is that can't be sent."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ray import cloudpickle
from ray.rllib.env.multi_agent_episode import MultiAgentEpisode
from ray.rllib.utils.typing import EpisodeType

from rllib_gpg.sampling.packing import PackedEpisodes, pack


def pack_to_send(episodes: list[EpisodeType], *, infos: bool) -> PackedEpisodes:
    """Packs the episodes of a share.

    Args:
        episodes: The episodes.
        infos: Whether infos are sent too.

    Raises:
        TypeError: Names what can't be pickled: most likely something in an info.
    """
    try:
        return pack(episodes, infos=infos)
    except Exception as raised:  # Objects raise whatever they like when they are pickled.
        error = raised
    for where, value in _named_values(episodes, infos=infos):
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


def _named_values(episodes: list[EpisodeType], *, infos: bool) -> Iterator[tuple[str, Any]]:
    for episode in episodes:
        alone = not isinstance(episode, MultiAgentEpisode)
        parts = [episode] if alone else episode.agent_episodes.values()
        for part in parts if infos else []:
            for t, info in enumerate(part.get_infos()):
                for key, value in info.items():
                    yield f"The info {key!r} at step {t} of episode {episode.id_}", value
        for key, value in episode.custom_data.items():
            yield f"The `custom_data` {key!r} of episode {episode.id_}", value


def _pickling_error(value: Any) -> Exception | None:
    try:
        cloudpickle.dumps(value)
    except Exception as error:
        return error
    return None
