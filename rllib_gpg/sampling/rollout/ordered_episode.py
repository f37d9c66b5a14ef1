"""`OrderedMultiAgentEpisode`: agents in one order, whatever Python's hash seed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from ray.rllib.env.multi_agent_episode import MultiAgentEpisode
from ray.rllib.utils.annotations import override
from ray.rllib.utils.typing import AgentID


class OrderedMultiAgentEpisode(MultiAgentEpisode):
    """RLlib's episode of several agents, whose sets of agents are gone through in one order.

    RLlib's connectors go through these sets to put rows together, and so the action that an agent
    draws depends on their order; and that of a plain set of names is another in each process.
    """

    @override(MultiAgentEpisode)
    def add_env_reset(self, *, observations: dict[AgentID, Any], **kwargs: Any) -> None:
        """Adds the first observations; agents are mapped to modules in order."""
        self._map_to_modules(observations)
        super().add_env_reset(observations=observations, **kwargs)

    @override(MultiAgentEpisode)
    def add_env_step(
        self,
        observations: dict[AgentID, Any],
        actions: dict[AgentID, Any],
        rewards: dict[AgentID, Any],
        infos: dict[AgentID, Any] | None = None,
        *,
        terminateds: dict[AgentID, bool] | None = None,
        truncateds: dict[AgentID, bool] | None = None,
        **kwargs: Any,
    ) -> None:
        """Adds what an env step returned; agents that are new are mapped to modules in order."""
        done = {*(terminateds or {}), *(truncateds or {})} - {"__all__"}
        self._map_to_modules({*observations, *rewards, *done})
        super().add_env_step(
            observations,
            actions,
            rewards,
            infos,
            terminateds=terminateds,
            truncateds=truncateds,
            **kwargs,
        )

    @property
    @override(MultiAgentEpisode)
    def agent_ids(self) -> set[AgentID]:
        """The agents that have been in the episode so far."""
        return _OrderedSet(super().agent_ids)

    @override(MultiAgentEpisode)
    def get_agents_to_act(self) -> set[AgentID]:
        """Returns the agents whose actions the next env step takes."""
        return _OrderedSet(super().get_agents_to_act())

    @override(MultiAgentEpisode)
    def get_agents_that_stepped(self) -> set[AgentID]:
        """Returns the agents that the last env step gave an observation to."""
        return _OrderedSet(super().get_agents_that_stepped())

    def _map_to_modules(self, agent_ids: Iterable[AgentID]) -> None:
        # A mapping function may draw random numbers.
        for agent_id in _OrderedSet(agent_ids):
            self.module_for(agent_id)


class _OrderedSet(set[AgentID]):
    def __iter__(self) -> Iterator[AgentID]:
        return iter(sorted(super().__iter__(), key=repr))
