"""`GroupEnvRunner`: exactly k started episodes, all of them finished."""

from __future__ import annotations

import logging
import time
import traceback
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import ray
import torch
import tree
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.connectors.connector_pipeline_v2 import ConnectorPipelineV2
from ray.rllib.connectors.module_to_env import GetActions
from ray.rllib.core import COMPONENT_RL_MODULE
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.utils.annotations import override
from ray.rllib.utils.metrics import ENV_RESET_TIMER, ENV_STEP_TIMER
from ray.rllib.utils.typing import StateDict

from rllib_gpg.sampling.actions import DrawActions
from rllib_gpg.sampling.columns import ColumnarRollout, obstacle_to_columns
from rllib_gpg.sampling.pipeline import PipelineRollout
from rllib_gpg.sampling.share import Seeds, Share, ShareFailure, ShareResult, Weights
from rllib_gpg.sampling.vector_env import Seeded, adapt, limit_episodes

logger = logging.getLogger("ray.rllib")

# Vector steps without the end of any episode after which the runner says so; then after twice as
# many, and so on. Longer than an episode of any common benchmark but Atari's longest.
_STEPS_BEFORE_WARNING = 10_000


class GroupEnvRunner(SingleAgentEnvRunner):
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
        self._weights_version: int | None = None
        self._seeds: Seeds | None = None
        self._num_sample_calls = 0
        # Whether to sample in columns; decided at the first call.
        self._in_columns: bool | None = None
        # Whether the env raised; it is made anew then, in whatever state it is.
        self._is_env_broken = False

    @property
    def weights_seq_no(self) -> int:
        """The learner's sequence number of the weights this runner samples with."""
        return self._weights_seq_no

    @property
    def ongoing_episodes(self) -> list[Any]:
        """The episode now running in each env, or None."""
        return self._ongoing_episodes

    @property
    def device(self) -> Any:
        """The device on which the module computes actions."""
        return self._device

    @property
    def callbacks(self) -> list[RLlibCallback]:
        """The user's callback objects."""
        return self._callbacks

    @property
    def env_to_module(self) -> ConnectorPipelineV2:
        """The connector pipeline from episodes to the module's input."""
        return self._env_to_module

    @property
    def module_to_env(self) -> ConnectorPipelineV2:
        """The connector pipeline from the module's output to the env's actions."""
        return self._module_to_env

    @override(SingleAgentEnvRunner)
    def make_env(self) -> None:
        """Makes the vector env, its episodes cut after `config.max_episode_steps` steps."""
        super().make_env()
        max_episode_steps = self.config.get("max_episode_steps")
        if max_episode_steps is not None:
            limit_episodes(self.env, max_episode_steps)
        self._vector_env = adapt(self.env)

    def sample_share(self, share: Share, weights: Weights) -> ShareResult | ShareFailure:
        """Samples one share of a group with the given weights.

        Args:
            share: Which episodes to sample.
            weights: The weights to sample them with, loaded unless they are in place already.

        Returns:
            The share's episodes, and from a remote env runner its metrics; or what went wrong.
        """
        try:
            if self._is_env_broken:
                self.make_env()
                self._is_env_broken = False
            self.load(weights)
            self._seeds = share.seeds()
            episodes = self.sample(num_episodes=share.num_episodes)
        except Exception as error:  # Reported by the caller; see `ShareFailure`.
            self._is_env_broken = True
            return ShareFailure(
                share, f"{error!r} in env {self.config.env!r}", traceback.format_exc()
            )
        # The local env runner is asked for its metrics once per group.
        metrics = self.get_metrics() if self.worker_index else None
        # An evaluation's episodes are as large as a group's, and nobody asks for them.
        kept = [] if share.in_evaluation else episodes
        return ShareResult(share, weights.version, kept, metrics)

    def load(self, weights: Weights) -> None:
        """Puts weights in place, unless they are; also those of an older checkpoint.

        Args:
            weights: The weights that the next episodes are to be sampled with.
        """
        if self._weights_version == weights.version:
            return
        state = weights.state
        if isinstance(state, ray.ObjectRef):
            state = ray.get(state)
        self.set_state(state)
        self._weights_version = weights.version

    @override(SingleAgentEnvRunner)
    def set_state(self, state: StateDict) -> None:
        """Puts a state in place, with weights also of an older checkpoint."""
        if COMPONENT_RL_MODULE in state:
            # RLlib ignores weights older than those in place, and would so after going back.
            self._weights_seq_no = 0
            # From elsewhere than `load`, such as RLlib's own evaluation: of no known version.
            self._weights_version = None
        super().set_state(state)

    @override(SingleAgentEnvRunner)
    def _sample(
        self,
        *,
        num_timesteps: int | None = None,
        num_episodes: int | None = None,
        explore: bool,
        random_actions: bool = False,
        force_reset: bool = False,
    ) -> list[SingleAgentEpisode]:
        if num_episodes is None:
            return super()._sample(
                num_timesteps=num_timesteps,
                explore=explore,
                random_actions=random_actions,
                force_reset=force_reset,
            )
        # The envs are left in the middle of nowhere: sampling by timesteps must reset them.
        self._needs_initial_reset = True
        self._ongoing_episodes_for_metrics.clear()
        seeds = self._next_seeds(num_episodes)
        device = torch.device(self._device)
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            if seeds is not None:
                torch.manual_seed(seeds.actions)
                self.env.single_action_space.seed(seeds.actions)
            if isinstance(self.module, torch.nn.Module):
                self.module.eval()
            rollout = self._rollout(explore, random_actions)
            episodes = self._run(rollout, seeds.episodes if seeds else [None] * num_episodes)
        self._count(episodes)
        return episodes

    def _next_seeds(self, num_episodes: int) -> Seeds | None:
        """Returns the seeds of the share, or of this plain `sample` call, if it is seeded."""
        seeds, self._seeds = self._seeds, None
        if seeds is None and self.config.seed is not None:
            call = (int(self.config.in_evaluation), self.worker_index or 0, self._num_sample_calls)
            seeds = Seeds.for_sample_call(num_episodes, self.config.seed, *call)
            self._num_sample_calls += 1
        return seeds

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
        watch = _Watch()
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
            # What a policy makes of nan says nothing about where it comes from.
            for index in stepping:
                t, observation = rollout.last_observation(index)
                for leaf in map(np.asarray, tree.flatten(observation)):
                    if leaf.dtype.kind == "f" and not np.isfinite(leaf).all():
                        raise ValueError(
                            f"episode {self._ongoing_episodes[index].id_}: the observation at "
                            f"step {t} is not finite: {leaf}. Mend the environment."
                        ) from error
            raise

    def _call_back(self, which: str, env_indices: Iterable[int]) -> None:
        for index in env_indices:
            self._make_on_episode_callback(which, index, self._ongoing_episodes)

    def _count(self, episodes: list[SingleAgentEpisode]) -> None:
        """Logs what RLlib's env runner logs about a `sample` call."""
        self._done_episodes_for_metrics.extend(episodes)
        num_steps = sum(len(episode) for episode in episodes)
        if num_steps > 0:
            self._log_env_steps(metric=self._metrics_num_env_steps_sampled, num_steps=num_steps)
        self._increase_sampled_metrics(num_steps, len(episodes))


class _Watch:
    """Says so when no episode ends: an env without a time limit would hang in silence."""

    def __init__(self) -> None:
        self._num_steps = 0
        self._patience = _STEPS_BEFORE_WARNING

    def step(self, *, any_ended: bool) -> None:
        self._num_steps = 0 if any_ended else self._num_steps + 1
        if self._num_steps >= self._patience:
            logger.warning(
                f"No episode has ended in {self._num_steps} steps of every env. GPG waits for "
                "whole episodes. If this env has no time limit, set one: "
                "`config.env_runners(max_episode_steps=..)`."
            )
            self._patience *= 2
