"""What the loss needs to know of trajectories: which one a step is of, how much a step counts.

Both are columns, made once over the whole group, before it is shuffled and shared out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.rl_module.rl_module import RLModule
from ray.rllib.utils.annotations import override
from ray.rllib.utils.typing import EpisodeType, ModuleID

from rllib_gpg.learning.columns import as_column

TRAJECTORIES, LOSS_WEIGHTS = "trajectories", "loss_weights"
STEP, TRAJECTORY = "step", "trajectory"
OVER_STEPS, OVER_TRAJECTORIES = "steps", "trajectories"


class AddTrajectories(ConnectorV2):
    """Adds the columns of trajectory numbers and of loss weights, where the loss asks for them."""

    reads_infos = False

    def __init__(
        self,
        *args: Any,
        ratio_level: str,
        loss_averaging: str | float,
        module_overrides: Mapping[ModuleID, Mapping[str, Any]],
    ):
        """Takes the settings of `GPGConfig.training`, and what modules have in place of them."""
        super().__init__(*args)
        self._settings = {"ratio_level": ratio_level, "loss_averaging": loss_averaging}
        self._module_overrides = module_overrides

    @override(ConnectorV2)
    def __call__(
        self,
        *,
        rl_module: RLModule,
        batch: dict[str, Any],
        episodes: list[EpisodeType],
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Adds what each module's loss asks for."""
        lengths: dict[ModuleID, list[int]] = defaultdict(list)
        for episode in self.single_agent_episode_iterator(episodes, agents_that_stepped_only=False):
            lengths[episode.module_id or DEFAULT_MODULE_ID].append(len(episode))
        for module_id, of_module in lengths.items():
            settings = {**self._settings, **self._module_overrides.get(module_id, {})}
            level, averaging = settings["ratio_level"], settings["loss_averaging"]
            if (level, averaging) == (STEP, OVER_STEPS):
                continue
            columns, length_N = batch[module_id], np.array(of_module)
            if level == TRAJECTORY:
                number_S = np.repeat(np.arange(len(length_N)), length_N)
                columns[TRAJECTORIES] = as_column([number_S], columns, np.int64)
            if averaging != OVER_STEPS:
                weight_N = loss_weights(length_N, averaging)
                columns[LOSS_WEIGHTS] = as_column([np.repeat(weight_N, length_N)], columns)
        return batch


def loss_weights(length_N: np.ndarray, averaging: str | float) -> np.ndarray:
    """Returns [N], how much each step of a trajectory counts in the mean over all steps.

    Args:
        length_N: [N], the steps of each trajectory.
        averaging: "trajectories": the mean over trajectories of the mean over their steps, so that
            a step of a long one counts less (GRPO). A number c: the mean over trajectories of the
            sum over their steps, over c (Dr. GRPO). "steps": all steps count the same.
    """
    num_steps, num = length_N.sum(), len(length_N)
    if averaging == OVER_STEPS:
        return np.ones(num)
    if averaging == OVER_TRAJECTORIES:
        # 1/N sum_n 1/T_n sum_t x = 1/S sum_(n,t) S / (N T_n) x
        return num_steps / (num * length_N)
    # 1/N sum_n 1/c sum_t x = 1/S sum_(n,t) S / (N c) x
    return np.full(num, num_steps / (num * float(averaging)))
