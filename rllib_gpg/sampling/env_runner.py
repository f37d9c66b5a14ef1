"""`GroupEnvRunner`: exactly k started episodes, all of them finished."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
from ray.rllib.connectors.module_to_env import GetActions
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.utils.annotations import override
from ray.rllib.utils.metrics import ENV_RESET_TIMER, ENV_STEP_TIMER

from rllib_gpg.sampling.actions import DrawActions
from rllib_gpg.sampling.columns import ColumnarRollout, obstacle_to_columns
from rllib_gpg.sampling.pipeline import PipelineRollout
from rllib_gpg.sampling.share import Seeds
from rllib_gpg.sampling.share_sampling import ShareSamplingEnvRunner
from rllib_gpg.sampling.vector_env import Seeded, adapt, limit_episodes
from rllib_gpg.sampling.watch import Watch, blame_observations

logger = logging.getLogger("ray.rllib")


class GroupEnvRunner(ShareSamplingEnvRunner, SingleAgentEnvRunner):
    """RLlib's env runner for single agents, with unbiased sampling of whole episodes.

    `sample(num_episodes=k)` of RLlib's own env runner returns the first k episodes to *finish*
    among its parallel envs and drops the rest, so short episodes are over-represented. This one
    fixes which episodes are *started*, exactly k, and finishes every one of them.

    It also serves other algorithms. For RLlib's PPO, for instance::

        config.env_runners(env_runner_cls=GroupEnvRunner, batch_mode="complete_episodes")

    With `AlgorithmConfig.debugging(seed=..)`, each call begins its episodes from seeds of its own,
    different for any two calls, runners and episodes; the actions drawn are seeded as well.

    Sampling by timesteps (`sample(num_timesteps=..)`, for evaluation with a duration of "auto")
    is RLlib's own.
    """

    @override(SingleAgentEnvRunner)
    def __init__(self, **kwargs: Any):
        """Takes the arguments of `SingleAgentEnvRunner`."""
        super().__init__(**kwargs)
        pieces = self._module_to_env.connectors
        pieces[:] = [DrawActions() if type(piece) is GetActions else piece for piece in pieces]
        # Whether to sample in columns; decided at the first call.
        self._in_columns: bool | None = None

    @override(SingleAgentEnvRunner)
    def make_env(self) -> None:
        """Makes the vector env, its episodes cut after `config.max_episode_steps` steps."""
        super().make_env()
        max_episode_steps = self.config.get("max_episode_steps")
        if max_episode_steps is not None:
            limit_episodes(self.env, max_episode_steps)
        self._vector_env = adapt(self.env)

    @override(ShareSamplingEnvRunner)
    def _sample_episodes(
        self, num_episodes: int, seeds: Seeds | None, explore: bool, random_actions: bool
    ) -> list[SingleAgentEpisode]:
        if seeds is not None:
            self.env.single_action_space.seed(seeds.actions)
        rollout = self._rollout(explore, random_actions)
        episodes = self._run(rollout, seeds.episodes if seeds else [None] * num_episodes)
        self._count(episodes)
        return episodes

    def _rollout(self, explore: bool, random_actions: bool) -> ColumnarRollout | PipelineRollout:
        if self._in_columns is None:
            obstacle = obstacle_to_columns(self)
            self._in_columns = obstacle is None
            how = "in columns" if self._in_columns else f"step by step, because {obstacle}"
            logger.info(f"{type(self).__name__} samples {how}.")
        if self._in_columns and not random_actions:
            return ColumnarRollout(self, explore=explore)
        return PipelineRollout(self, explore=explore, random_actions=random_actions)

    def _run(
        self, rollout: ColumnarRollout | PipelineRollout, seeds: Sequence[int | None]
    ) -> list[SingleAgentEpisode]:
        """Starts one episode per seed and finishes them all; returns them as they were started."""
        episodes: list[Any] = [None] * self.num_envs
        self._ongoing_episodes = episodes
        waiting = deque(seeds)
        started: list[SingleAgentEpisode] = []

        def start(env_indices: Sequence[int]) -> Seeded:
            starting = {index: waiting.popleft() for index in env_indices[: len(waiting)]}
            for index in starting:
                self._new_episode(index, episodes)
                started.append(episodes[index])
            return starting

        starting = start(range(self.num_envs))
        with self.metrics.log_time(ENV_RESET_TIMER):
            resets = self._vector_env.reset(starting)
        rollout.record(np.array([], np.int64), None, list(starting), resets)
        self._call_back("on_episode_start", starting)
        stepping = np.array(list(starting), np.int64)
        starting = {}
        step_times: list[float] = []
        watch = Watch("`config.env_runners(max_episode_steps=..)`")
        while len(stepping) > 0 or starting:
            actions = self._act(rollout, stepping) if len(stepping) > 0 else []
            start_time = time.perf_counter()
            steps, resets = self._vector_env.step(stepping, actions, starting)
            step_times.append(time.perf_counter() - start_time)
            rollout.record(stepping, steps, list(starting), resets)
            self._call_back("on_episode_start", starting)
            if rollout.sees_every_step:
                self._call_back("on_episode_step", stepping.tolist())

            done = steps.terminateds | steps.truncateds
            any_ended = bool(done.any())
            if any_ended or starting:
                ended = stepping[done].tolist()
                self._call_back("on_episode_end", ended)
                for index in ended:
                    rollout.finish(index)
                # In order, whoever began when: all envs together are then one block of memory.
                begun = np.array(list(starting), np.int64)
                stepping = np.sort(np.concatenate([stepping[~done], begun]))
                starting = start(ended)
            watch.step(any_ended=any_ended)
        if step_times:
            # Once per call: a metrics logger takes longer than a small simulator.
            self.metrics.log_value(ENV_STEP_TIMER, sum(step_times) / len(step_times))
        return started

    def _act(self, rollout: ColumnarRollout | PipelineRollout, stepping: np.ndarray) -> Any:
        try:
            return rollout.act(stepping)
        except Exception as error:
            names = (f"episode {self._ongoing_episodes[index].id_}" for index in stepping)
            observed = map(rollout.last_observation, stepping)
            blame_observations(
                ((name, *seen) for name, seen in zip(names, observed, strict=True)), error
            )
            raise

    def _count(self, episodes: list[SingleAgentEpisode]) -> None:
        """Logs what RLlib's env runner logs about a `sample` call."""
        num_steps = sum(len(episode) for episode in episodes)
        if num_steps > 0:
            self._log_env_steps(metric=self._metrics_num_env_steps_sampled, num_steps=num_steps)
        self._increase_sampled_metrics(num_steps, len(episodes))
