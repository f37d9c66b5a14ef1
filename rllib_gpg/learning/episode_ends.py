"""A learner connector piece that does in arrays what RLlib does step by step."""

from __future__ import annotations

from typing import Any

import numpy as np
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.rl_module import RLModule
from ray.rllib.utils.annotations import override
from ray.rllib.utils.typing import EpisodeType


class AddEpisodeEnds(ConnectorV2):
    """Adds the columns of terminated and truncated flags, one array per episode.

    RLlib's `AddColumnsFromEpisodesToTrainBatch` makes Python lists of them with one item per step,
    which takes longer than the rest of the pipeline; it leaves columns alone that are there.
    """

    reads_infos = False

    @override(ConnectorV2)
    def __call__(
        self,
        *,
        rl_module: RLModule,
        batch: dict[str, Any],
        episodes: list[EpisodeType],
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Adds both columns, unless an earlier piece has."""
        for column, name in (
            (Columns.TERMINATEDS, "is_terminated"),
            (Columns.TRUNCATEDS, "is_truncated"),
        ):
            if column in batch:
                continue
            for episode in self.single_agent_episode_iterator(
                episodes, agents_that_stepped_only=False
            ):
                flags = np.zeros(len(episode), np.bool_)
                flags[-1:] = getattr(episode, name)
                self.add_n_batch_items(
                    batch,
                    column,
                    items_to_add=flags,
                    num_items=len(episode),
                    single_agent_episode=episode,
                )
        return batch
