"""What connectors such as `MeanStdFilter` remember: put in place, and merged after a group."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager

from ray.rllib.connectors.connector_pipeline_v2 import ConnectorPipelineV2
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.connectors.env_to_module import MeanStdFilter
from ray.rllib.core import COMPONENT_ENV_TO_MODULE_CONNECTOR, COMPONENT_MODULE_TO_ENV_CONNECTOR
from ray.rllib.utils.filter import RunningStat
from ray.rllib.utils.typing import StateDict

logger = logging.getLogger("ray.rllib")

ConnectorStates = dict[str, StateDict]
"""The name of a connector piece -> its state. Pieces without one are left out."""


class Connectors:
    """The pieces of the two connector pipelines of an env runner, and what they remember.

    RLlib's pipelines have methods of the same kind, which take a state to the wrong piece where the
    first pieces have none, and know pieces of one class by one name.
    """

    def __init__(self, env_to_module: ConnectorPipelineV2, module_to_env: ConnectorPipelineV2):
        """Takes the two pipelines."""
        self._pipelines = {
            COMPONENT_ENV_TO_MODULE_CONNECTOR: env_to_module,
            COMPONENT_MODULE_TO_ENV_CONNECTOR: module_to_env,
        }
        self._named_in_warning: set[str] = set()

    def get_states(self) -> ConnectorStates:
        """Returns copies of the states of all pieces that have one."""
        states = {name: (piece, piece.get_state()) for name, piece in self._pieces().items()}
        return {
            name: copy.deepcopy(state)
            for name, (piece, state) in states.items()
            if state or _takes_an_empty_state(piece)
        }

    def set_states(self, states: ConnectorStates) -> None:
        """Puts states in place; pieces that aren't named stay as they are."""
        for name, piece in self._pieces().items():
            if name in states:
                # A copy: a piece may go on writing into what it is given.
                piece.set_state(copy.deepcopy(states[name]))

    @contextmanager
    def beginning_with(self, states: ConnectorStates) -> Iterator[None]:
        """Puts states in place, also after what is inside, however that ends.

        Args:
            states: Those of all pieces that had one. The others are reset.
        """
        self._begin_with(states)
        try:
            yield
        finally:
            self._begin_with(states)

    def merge(self, before: ConnectorStates, after: list[ConnectorStates]) -> None:
        """Puts in place what several shares, which began with the same states, made of them.

        Args:
            before: The states that all shares began with.
            after: The states at the end of each share, in the order of the shares.
        """
        self._begin_with(before)
        for name, piece in self._pieces().items():
            states = [states[name] for states in after if name in states]
            if states:
                piece.set_state(self._merge(name, piece, before.get(name), states))

    def merged(self, before: ConnectorStates, after: list[ConnectorStates]) -> ConnectorStates:
        """Returns what `merge` would put in place; the pieces stay as they are."""
        with self.beginning_with(self.get_states()):
            self.merge(before, after)
            return self.get_states()

    def _merge(
        self, name: str, piece: ConnectorV2, before: StateDict | None, after: list[StateDict]
    ) -> StateDict:
        merge_states = type(piece).merge_states
        if merge_states is MeanStdFilter.merge_states and before is not None:
            return merge_mean_std_filters(before, after)
        if merge_states is not ConnectorV2.merge_states:
            return piece.merge_states(after)
        if len(after) > 1 and name not in self._named_in_warning:
            self._named_in_warning.add(name)
            logger.warning(
                f"{name} has a state, but no `merge_states`: of what the {len(after)} shares of a "
                "group add to it, only what the first one adds is kept. Implement `merge_states`; "
                "or, with a single env runner, leave `episodes_per_share` unset."
            )
        return after[0]

    def _begin_with(self, states: ConnectorStates) -> None:
        self.set_states(states)
        for name, piece in self._pieces().items():
            # It had no state then, but may have got one at its first call. A filter that is frozen,
            # in a pipeline for evaluation mostly, hasn't, and refuses to be reset.
            if name not in states and not _is_frozen(piece):
                piece.reset_state()

    def _pieces(self) -> dict[str, ConnectorV2]:
        """Returns the pieces by name: path and class, and a number from the second of a class on.

        Not by their places: with another config than a checkpoint's these may be others.
        """
        pieces: dict[str, ConnectorV2] = {}

        def add(path: str, piece: ConnectorV2) -> None:
            if isinstance(piece, ConnectorPipelineV2):
                for inner in piece.connectors:
                    add(f"{path}/{type(inner).__name__}", inner)
                return
            name, number = path, 1
            while name in pieces:
                number += 1
                name = f"{path}_{number}"
            pieces[name] = piece

        for path, pipeline in self._pipelines.items():
            add(path, pipeline)
        return pieces


def _is_frozen(piece: ConnectorV2) -> bool:
    return isinstance(piece, MeanStdFilter) and not piece._update_stats


def _takes_an_empty_state(piece: ConnectorV2) -> bool:
    """Whether an empty state is one to put back, as any other.

    Not for a piece without a state, nor for one that has a method to be as it was at first.
    """
    kind = type(piece)
    has_state = kind.get_state is not ConnectorV2.get_state
    return has_state and kind.reset_state is ConnectorV2.reset_state


def merge_mean_std_filters(before: StateDict, after: list[StateDict]) -> StateDict:
    """Merges states of `MeanStdFilter`: the statistics of all that was filtered.

    In the place of RLlib's own, which is right for the first merge only: from the second on it
    takes the change of a mean for the mean of what was added (observations around 5 get a mean of
    2.5), and it refuses images, and agents with different observations.

    Args:
        before: The state that all of `after` began with.
        after: The states to merge.

    Returns:
        The merged state.
    """
    return {
        agent_id: {
            **filter_state,
            "running_stats": [
                _merge_running_stats(stat, [s[agent_id]["running_stats"][leaf] for s in after])
                for leaf, stat in enumerate(filter_state["running_stats"])
            ],
        }
        for agent_id, filter_state in before.items()
    }


def _merge_running_stats(before: StateDict, after: list[StateDict]) -> StateDict:
    start, merged = RunningStat.from_state(before), RunningStat.from_state(before)
    # Nothing has come to the merged one since it was merged.
    merged.num_pushes_delta = 0
    merged.mean_delta_array[...] = 0.0
    merged.sum_sq_diff_delta_array[...] = 0.0
    for state in after:
        merged.update(_added(start, RunningStat.from_state(state)))
    return merged.to_state()


def _added(before: RunningStat, after: RunningStat) -> RunningStat:
    """Returns the statistics of what came between, where `RunningStat.update` looks for them.

    n, m and s are number, mean and sum of squared deviations; 1 before, 2 what came, and both:

        n = n1 + n2,   m = m1 + (m2 - m1) n2 / n,   s = s1 + s2 + (m2 - m1)^2 n1 n2 / n
    """
    n1, m1, s1 = before.num_pushes, before.mean_array, before.sum_sq_diff_array
    n, m, s = after.num_pushes, after.mean_array, after.sum_sq_diff_array
    added = RunningStat(after.shape)
    added.num_pushes_delta = n2 = n - n1
    if n2 > 0:
        m2_m1 = (m - m1) * n / n2
        added.mean_delta_array = m1 + m2_m1
        added.sum_sq_diff_delta_array = (s - s1 - m2_m1**2 * n1 * n2 / n).clip(min=0.0)
    return added
