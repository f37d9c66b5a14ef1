"""Steps multi-agent envs one by one, and computes actions through RLlib's connector pipelines."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from copy import deepcopy
from typing import Any

import numpy as np
from ray.rllib.core.columns import Columns
from ray.rllib.env.multi_agent_env import MultiAgentEnv
from ray.rllib.utils.annotations import override
from ray.rllib.utils.metrics import WEIGHTS_SEQ_NO

from rllib_gpg.sampling.rollout.base import PipelineRollout, Rollout, RunnerParts
from rllib_gpg.sampling.rollout.ordered_episode import OrderedMultiAgentEpisode
from rllib_gpg.sampling.rollout.schedule import Seeded
from rllib_gpg.sampling.rollout.vector_env import kept


class MultiAgentEnvs:
    """Steps any subset of the envs of RLlib's multi-agent vector env."""

    def __init__(self, envs: list[MultiAgentEnv]):
        """Takes the envs."""
        self._envs = envs

    def reset(self, starting: Seeded) -> list[tuple[dict[Any, Any], dict[Any, Any]]]:
        """Resets each env in `starting` with its own seed."""
        resets = [self._envs[index].reset(seed=seed) for index, seed in starting.items()]
        return [(observations, kept(infos)) for observations, infos in resets]

    def step(
        self, stepping: np.ndarray, actions: Any, starting: Seeded
    ) -> tuple[list[tuple[dict[Any, Any], ...]], list[tuple[dict[Any, Any], dict[Any, Any]]]]:
        """Steps the envs `stepping` and resets those in `starting`."""
        steps = [
            self._envs[index].step(action)
            for index, action in zip(stepping.tolist(), actions, strict=True)
        ]
        return [(*step, kept(infos)) for *step, infos in steps], self.reset(starting)


class MultiAgentRollout(PipelineRollout):
    """What `MultiAgentGroupEnvRunner` does at one step of the running envs.

    An episode is over when the env says so for "__all__" agents or, as RLlib has it, when all
    agents that have been in it are done. It begins when the first of them are there.
    """

    def __init__(self, parts: RunnerParts, *, random_actions: bool = False):
        """Prepares one `sample` call."""
        super().__init__(parts, random_actions=random_actions)
        self.counts = StepCounts()

    @override(Rollout)
    def act(self, stepping: np.ndarray) -> list[dict[Any, Any]]:
        """Returns, per running env, the actions of the agents that are to act."""
        episodes = self._episodes(stepping)
        to_module = self._env_to_module(episodes)
        outputs: dict[str, Any] = {}
        if self._random_actions:
            outputs[Columns.ACTIONS] = [self._random(index) for index in stepping]
        elif to_module:  # There is nothing in it if no agent is to act.
            outputs = self._module_to_env(self._forward(to_module), episodes)
        self._actions = outputs.pop(Columns.ACTIONS, [{} for _ in stepping])
        for_env: list[dict[Any, Any]] = outputs.pop(Columns.ACTIONS_FOR_ENV, self._actions)
        self._outputs = outputs
        return for_env

    @override(Rollout)
    def begin(self, starting: list[int], resets: Any, going_on: list[int]) -> None:
        """Begins episodes; none goes on."""
        for episode, (observations, infos) in zip(self._episodes(starting), resets, strict=True):
            episode.add_env_reset(observations=deepcopy(observations), infos=infos)

    @override(Rollout)
    def record(
        self,
        stepping: np.ndarray,
        steps: Any,
        starting: list[int],
        resets: Any,
        last: np.ndarray,
    ) -> np.ndarray:
        """Adds what the envs returned to their episodes."""
        stepped = self._episodes(stepping)
        for row, episode in enumerate(stepped):
            self._add_step(row, episode, *steps[row])
        self.begin(starting, resets, [])
        return np.array([episode.is_done for episode in stepped], np.bool_)

    @override(Rollout)
    def finish(self, index: int) -> None:
        """Drops agents that never acted, and turns lists into arrays if the config says so."""
        episode = self._parts.episodes[index]
        for agent_id, agent_episode in list(episode.agent_episodes.items()):
            if len(agent_episode) == 0:
                del episode.agent_episodes[agent_id]
        # Connectors may write into the episode: final observations must pass them as well.
        self._env_to_module([episode])
        if self._parts.episodes_to_numpy:
            episode.to_numpy()

    @override(Rollout)
    def observed(self, index: int) -> Iterator[tuple[str, int, Any]]:
        """Yields what the modules see next of an env, agent by agent."""
        episode = self._parts.episodes[index]
        for agent_id, agent_episode in episode.agent_episodes.items():
            name = f"agent {agent_id!r} of episode {episode.id_}"
            yield name, agent_episode.t, agent_episode.get_observations(-1)

    def seed_random_actions(self, seed: int) -> None:
        """Seeds the action spaces of all agents of all envs."""
        envs = [env.unwrapped for env in self._parts.env.envs]
        agents = [(env, agent) for env in envs for agent in env.possible_agents]
        for offset, (env, agent) in enumerate(agents):
            env.get_action_space(agent).seed(seed + offset)

    def _add_step(
        self,
        row: int,
        episode: OrderedMultiAgentEpisode,
        observations: dict[Any, Any],
        rewards: dict[Any, Any],
        terminateds: dict[Any, bool],
        truncateds: dict[Any, bool],
        infos: dict[Any, Any],
    ) -> None:
        is_over = terminateds.get("__all__") or truncateds.get("__all__")
        if not episode.is_reset and not is_over:
            # Nobody was there to act; of all agents that there have been, all would be done.
            episode.add_env_reset(observations=deepcopy(observations), infos=infos)
            return
        outputs: dict[Any, dict[str, Any]] = defaultdict(dict)
        for column, per_env in self._outputs.items():
            for agent, value in per_env[row].items():
                outputs[agent][column] = value
                outputs[agent][WEIGHTS_SEQ_NO] = self._parts.weights_seq_no
        episode.add_env_step(
            # Envs may use their arrays again.
            observations=deepcopy(observations),
            actions=self._actions[row],
            rewards=rewards,
            infos=infos,
            terminateds=terminateds,
            truncateds=truncateds,
            extra_model_outputs=dict(outputs),
        )
        self.counts.add(episode, observations)

    def _random(self, index: int) -> dict[Any, Any]:
        env = self._parts.env.envs[index].unwrapped
        agents = self._parts.episodes[index].get_agents_to_act()
        return {agent: env.get_action_space(agent).sample() for agent in agents}


class StepCounts:
    """How often agents and modules have been shown an observation that followed a step."""

    def __init__(self) -> None:
        """Starts at nothing."""
        self.per_agent: Counter[str] = Counter()
        self.per_module: Counter[str] = Counter()

    def add(self, episode: OrderedMultiAgentEpisode, agents: Iterable[Any]) -> None:
        """Counts one env step that showed these agents an observation."""
        for agent in agents:
            self.per_agent[str(agent)] += 1
            self.per_module[episode.module_for(agent)] += 1
