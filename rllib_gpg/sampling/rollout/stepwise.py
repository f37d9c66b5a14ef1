"""Computes actions and records steps through RLlib's own connector pipelines, step by step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from typing import Any

import numpy as np
from ray.rllib.core.columns import Columns
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.utils.annotations import override
from ray.rllib.utils.metrics import WEIGHTS_SEQ_NO
from ray.rllib.utils.spaces.space_utils import unbatch

from rllib_gpg.nested import on_host
from rllib_gpg.sampling.rollout.base import PipelineRollout, Rollout, RunnerParts
from rllib_gpg.sampling.rollout.vector_env import Resets, Steps
from rllib_gpg.sampling.sending import what_can_be_sent


class StepwiseRollout(PipelineRollout):
    """What `GroupEnvRunner` does at one vector step, for any module and any connectors.

    It does what RLlib's `SingleAgentEnvRunner` does, in its order, for the envs that still run:
    nothing is computed for an env whose episode is over.
    """

    def __init__(self, parts: RunnerParts, *, random_actions: bool = False):
        """Prepares one `sample` call."""
        super().__init__(parts, random_actions=random_actions)
        self._to_module: Any = None

    @override(Rollout)
    def act(self, stepping: np.ndarray) -> Any:
        """Returns one action per stepping env, unsquashed and clipped."""
        episodes = self._episodes(stepping)
        if self._random_actions:
            space = self._parts.env.single_action_space
            outputs: dict[str, Any] = {Columns.ACTIONS: [space.sample() for _ in episodes]}
        else:
            outputs = self._module_to_env(self._forward(self._to_module), episodes)
        actions = outputs.pop(Columns.ACTIONS)
        for_env = outputs.pop(Columns.ACTIONS_FOR_ENV, actions)
        self._actions = actions if isinstance(actions, list) else unbatch(actions)
        self._outputs = outputs
        return for_env

    @override(Rollout)
    def begin(self, starting: list[int], resets: Resets, going_on: list[int]) -> None:
        """Begins episodes, and computes the module's first input."""
        self._add_resets(starting, resets)
        self._to_module = self._env_to_module(self._episodes(sorted([*starting, *going_on])))

    @override(Rollout)
    def record(
        self,
        stepping: np.ndarray,
        steps: Steps,
        starting: list[int],
        resets: Resets,
        last: np.ndarray,
    ) -> np.ndarray:
        """Adds what the envs returned to the episodes, and keeps the module's next input."""
        stepped = self._episodes(stepping)
        self._add_steps(stepped, steps)
        self._add_resets(starting, resets)
        done = np.array([episode.is_done for episode in stepped], np.bool_)
        # Connectors may write into the episode: final observations must pass them as well.
        self._env_to_module(self._episodes(stepping[done | last]))
        self._to_module = self._env_to_module(
            self._episodes(sorted([*stepping[~(done | last)], *starting]))
        )
        return done

    @override(Rollout)
    def cut(self, index: int, observation: Any) -> SingleAgentEpisode:
        """Returns the rest of an episode, with as many steps to look back at as RLlib has."""
        episode = self._parts.episodes[index]
        rest = episode.cut(len_lookback_buffer=self._parts.config.episode_lookback_horizon)
        # Connectors have seen the last one, may have changed it, and will see it again.
        rest.observations.data[-1] = observation
        rest.infos.data[:] = map(what_can_be_sent, rest.infos.data)
        return rest

    @override(Rollout)
    def finish(self, index: int) -> None:
        """Turns the episode's lists into arrays, if the config says so."""
        if self._parts.episodes_to_numpy:
            self._parts.episodes[index].to_numpy()

    @override(Rollout)
    def observed(self, index: int) -> Iterator[tuple[str, int, Any]]:
        """Yields what the module sees next of an env."""
        episode = self._parts.episodes[index]
        yield f"episode {episode.id_}", episode.t, episode.get_observations(-1)

    def seed_random_actions(self, seed: int) -> None:
        """Seeds the action space."""
        self._parts.env.single_action_space.seed(seed)

    def _add_resets(self, starting: list[int], resets: Resets) -> None:
        rows = _rows(self._episodes(starting), resets.observations)
        for row, (episode, observation) in enumerate(rows):
            episode.add_env_reset(
                observation=observation, infos=resets.infos[row] if resets.infos else {}
            )

    def _add_steps(self, stepped: list[SingleAgentEpisode], steps: Steps) -> None:
        rewards = on_host(steps.rewards)
        for row, (episode, observation) in enumerate(_rows(stepped, steps.observations)):
            outputs = {column: values[row] for column, values in self._outputs.items()}
            outputs[WEIGHTS_SEQ_NO] = self._parts.weights_seq_no
            episode.add_env_step(
                observation=observation,
                action=self._actions[row],
                reward=float(rewards[row]),
                infos=steps.infos[row] if steps.infos else {},
                terminated=bool(steps.terminateds[row]),
                truncated=bool(steps.truncateds[row]),
                extra_model_outputs=outputs,
            )


def _rows(
    episodes: Sequence[SingleAgentEpisode], observations: Any
) -> list[tuple[SingleAgentEpisode, Any]]:
    """Pairs every episode with a copy of its row of a batch of observations."""
    if not episodes:
        return []
    # Vector envs reuse their buffers; and a view would keep the rows of all envs in memory.
    rows = map(deepcopy, unbatch(on_host(observations)))
    return list(zip(episodes, rows, strict=True))
