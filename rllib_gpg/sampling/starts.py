"""Which start each episode of a group has, and by which starts those without a signal are replaced.

The episodes of a group are counted start by start: with G = `episodes_per_start`, those of start m
are m G, .., m G + G - 1. Axes: M = starts; G = episodes of one start.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.utils.metrics import EPISODE_RETURN_MEAN
from ray.rllib.utils.typing import EpisodeType

from rllib_gpg.advantages.returns import are_equal
from rllib_gpg.sampling.group import cut_into_shares
from rllib_gpg.sampling.messages import Share, ShareResult
from rllib_gpg.sampling.packing import ids_of

# A metric: how many starts were drawn beyond those of the group.
NUM_EXTRA_STARTS = "num_extra_starts"


def starts_of(episodes: Sequence[EpisodeType], config: AlgorithmConfig) -> dict[str, int] | None:
    """Returns the number of each episode's start, by its id; None if each has one of its own.

    Args:
        episodes: The group, in its order.
        config: The algorithm's config: `episodes_per_start`.
    """
    per_start: int = config.episodes_per_start
    if per_start == 1:
        return None
    return {id_: number // per_start for number, id_ in enumerate(ids_of(episodes))}


class StartsOfGroup:
    """The starts of one group, `group_size` / `episodes_per_start` of them.

    With `max_extra_starts`, one whose episodes all have equal returns gives its place to a further
    start, round by round (the dynamic sampling of DAPO, arXiv 2503.14476). Which starts these are
    and what becomes of them follows from the seed of the run, the number of the group and the
    weights, as for all others.
    """

    def __init__(self, config: AlgorithmConfig):
        """Takes the algorithm's config: `group_size` and the two settings named above."""
        self._config = config
        num_starts = config.group_size // config.episodes_per_start
        self._max_starts = num_starts + config.max_extra_starts
        # [M], the number of the start in each place of the group.
        self._in_place = np.arange(num_starts)
        self._num_sampled = num_starts

    @property
    def num_extra(self) -> int:
        """How many further starts have been drawn."""
        return self._num_sampled - len(self._in_place)

    def further(self, results: Sequence[ShareResult]) -> list[Share]:
        """Returns the shares of the next round; none if every start has a signal, or all are drawn.

        Args:
            results: What has come of all shares so far, in their order.
        """
        if self._num_sampled == self._max_starts:
            return []
        returns = [r for result in results for r in result.summaries[EPISODE_RETURN_MEAN,]]
        return_MG = np.reshape(returns, (-1, self._config.episodes_per_start))
        idle = [m for m, start in enumerate(self._in_place) if are_equal(return_MG[start])]
        idle = idle[: self._max_starts - self._num_sampled]
        if not idle:
            return []
        self._in_place[idle] = self._num_sampled + np.arange(len(idle))
        self._num_sampled += len(idle)
        return cut_into_shares(
            self._config,
            results[0].share.run_seed,
            results[0].share.group,
            len(idle) * self._config.episodes_per_start,
            after=[result.share for result in results],
        )

    def in_group(self, episodes: Sequence[Any]) -> Sequence[Any]:
        """Returns the episodes of the group, out of all that were sampled for it, in their order.

        What rollouts have given is returned as it is.
        """
        if self.num_extra == 0:
            return episodes
        per_start = self._config.episodes_per_start
        firsts = self._in_place * per_start
        return [e for first in firsts for e in episodes[first : first + per_start]]
