"""`MultiAgentGroupEnvRunner`: exactly k started episodes of a multi-agent env, all finished."""

from __future__ import annotations

import random
import time
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import numpy as np
from ray.rllib.core.columns import Columns
from ray.rllib.env.multi_agent_env_runner import MultiAgentEnvRunner
from ray.rllib.utils.annotations import override
from ray.rllib.utils.metrics import (
    ENV_RESET_TIMER,
    ENV_STEP_TIMER,
    NUM_AGENT_STEPS_SAMPLED,
    NUM_AGENT_STEPS_SAMPLED_LIFETIME,
    NUM_ENV_STEPS_SAMPLED,
    NUM_ENV_STEPS_SAMPLED_LIFETIME,
    NUM_EPISODES,
    NUM_EPISODES_LIFETIME,
    NUM_MODULE_STEPS_SAMPLED,
    NUM_MODULE_STEPS_SAMPLED_LIFETIME,
    WEIGHTS_SEQ_NO,
)

from rllib_gpg.sampling.module_pipeline import ModulePipeline
from rllib_gpg.sampling.ordered_episode import OrderedMultiAgentEpisode
from rllib_gpg.sampling.share import Seeds
from rllib_gpg.sampling.share_sampling import ShareSamplingEnvRunner
from rllib_gpg.sampling.watch import Watch, blame_observations


class MultiAgentGroupEnvRunner(ShareSamplingEnvRunner, MultiAgentEnvRunner):
    """RLlib's env runner for several agents, with unbiased sampling of whole episodes.

    What `GroupEnvRunner` does for one agent: exactly the episodes that were started are finished
    and returned. It does what RLlib's `MultiAgentEnvRunner` does, in its order, for the envs that
    still run, through any connectors.

    An episode is over when the env says so for "__all__" agents or, as RLlib has it, when all
    agents that have been in it are done; the env is reset then, also if agents might still have
    joined.

    With seeds, Python's and NumPy's global random generators are seeded while it samples, and set
    back afterwards: a `policy_mapping_fn` that draws from them maps the same agents to the same
    modules when a share is sampled again. One that goes by the episode's id does not.
    """

    @override(ShareSamplingEnvRunner)
    def _sample_episodes(
        self, num_episodes: int, seeds: Seeds | None, explore: bool, random_actions: bool
    ) -> list[OrderedMultiAgentEpisode]:
        rollout = _Rollout(self, explore=explore, random_actions=random_actions)
        if seeds is None:
            return self._run(rollout, [None] * num_episodes)
        if random_actions:
            rollout.seed_action_spaces(seeds.actions)
        with _seeded_globally(seeds.actions):
            return self._run(rollout, seeds.episodes)

    def _run(
        self, rollout: _Rollout, seeds: Sequence[int | None]
    ) -> list[OrderedMultiAgentEpisode]:
        """Starts one episode per seed and finishes them all; returns them as they were started."""
        episodes: list[Any] = [None] * self.num_envs
        self._ongoing_episodes = episodes
        waiting = deque(seeds)
        started: list[OrderedMultiAgentEpisode] = []

        def start(env_indices: Sequence[int]) -> list[int]:
            starting = list(env_indices[: len(waiting)])
            for index in starting:
                self._new_episode(index, episodes)
                started.append(episodes[index])
            for index in starting:
                with self.metrics.log_time(ENV_RESET_TIMER):
                    observations, infos = self.env.envs[index].reset(seed=waiting.popleft())
                episodes[index].add_env_reset(observations=deepcopy(observations), infos=infos)
            self._call_back("on_episode_start", starting)
            return starting

        running = start(range(self.num_envs))
        rollout.see(running)
        step_times: list[float] = []
        watch = Watch("build it into the env")
        while running:
            actions = self._act(rollout, running)
            start_time = time.perf_counter()
            steps = [
                self.env.envs[index].step(action)
                for index, action in zip(running, actions, strict=True)
            ]
            step_times.append(time.perf_counter() - start_time)
            rollout.record(running, steps)
            self._call_back("on_episode_step", running)

            ended = [index for index in running if episodes[index].is_done]
            self._call_back("on_episode_end", ended)
            for index in ended:
                self._prune_zero_len_sa_episodes(episodes[index])
            rollout.finish(ended)
            running = sorted({*running} - {*ended} | {*start(ended)})
            rollout.see(running)
            watch.step(any_ended=bool(ended))
        if step_times:
            self.metrics.log_value(ENV_STEP_TIMER, sum(step_times) / len(step_times))
        self._count(started, rollout.counts)
        return started

    def _act(self, rollout: _Rollout, running: list[int]) -> list[dict[Any, Any]]:
        try:
            return rollout.act(running)
        except Exception as error:
            blame_observations(
                (
                    (
                        f"agent {agent_id!r} of episode {self._ongoing_episodes[index].id_}",
                        agent_episode.t,
                        agent_episode.get_observations(-1),
                    )
                    for index in running
                    for agent_id, agent_episode in (
                        self._ongoing_episodes[index].agent_episodes.items()
                    )
                ),
                error,
            )
            raise

    @override(MultiAgentEnvRunner)
    def _new_episode(self, env_index: int, episodes: list[Any] | None = None) -> None:
        # As RLlib's, but for the class.
        episodes = self._ongoing_episodes if episodes is None else episodes
        env = self.env.envs[env_index].unwrapped
        agents = env.possible_agents
        episodes[env_index] = OrderedMultiAgentEpisode(
            observation_space={agent: env.get_observation_space(agent) for agent in agents},
            action_space={agent: env.get_action_space(agent) for agent in agents},
            agent_to_module_mapping_fn=self.config.policy_mapping_fn,
        )
        self._make_on_episode_callback("on_episode_created", env_index, episodes)

    def _count(self, episodes: list[OrderedMultiAgentEpisode], counts: _StepCounts) -> None:
        """Logs what RLlib's env runner logs about a `sample` call.

        Once per call: a metrics logger takes longer than a small simulator.
        """
        num_steps = sum(map(len, episodes))
        if num_steps > 0:
            self._log_env_steps(metric=self._metrics_num_env_steps_sampled, num_steps=num_steps)
        self.metrics.log_value(NUM_ENV_STEPS_SAMPLED, num_steps, reduce="sum")
        self.metrics.log_value(
            NUM_ENV_STEPS_SAMPLED_LIFETIME, num_steps, reduce="lifetime_sum", with_throughput=True
        )
        counted: list[tuple[Any, Any, int]] = [(NUM_EPISODES, NUM_EPISODES_LIFETIME, len(episodes))]
        for agent, steps in counts.per_agent.items():
            keys = (NUM_AGENT_STEPS_SAMPLED, agent), (NUM_AGENT_STEPS_SAMPLED_LIFETIME, agent)
            counted.append((*keys, steps))
        for module, steps in counts.per_module.items():
            keys = (NUM_MODULE_STEPS_SAMPLED, module), (NUM_MODULE_STEPS_SAMPLED_LIFETIME, module)
            counted.append((*keys, steps))
        for key, lifetime_key, count in counted:
            self.metrics.log_value(key, count, reduce="sum")
            self.metrics.log_value(lifetime_key, count, reduce="lifetime_sum")


class _Rollout(ModulePipeline):
    """What `MultiAgentGroupEnvRunner` does at one step of the running envs."""

    def __init__(self, runner: MultiAgentGroupEnvRunner, *, explore: bool, random_actions: bool):
        super().__init__(runner, explore=explore)
        self._random_actions = random_actions
        # What the module sees next; nothing if no agent is to act.
        self._to_module: Any = None
        # What the last `act` computed, waiting for the steps it led to: per running env one dict.
        self._actions: list[dict[Any, Any]] = []
        self._outputs: dict[str, list[dict[Any, Any]]] = {}
        self.counts = _StepCounts()

    def seed_action_spaces(self, seed: int) -> None:
        envs = [env.unwrapped for env in self._runner.env.envs]
        agents = [(env, agent) for env in envs for agent in env.possible_agents]
        for offset, (env, agent) in enumerate(agents):
            env.get_action_space(agent).seed(seed + offset)

    def see(self, running: list[int]) -> None:
        """Prepares the module's input from what the running envs have shown."""
        self._to_module = self._env_to_module(self._episodes(running))

    def finish(self, ended: list[int]) -> None:
        """Brings episodes that are done into the form in which they are handed on."""
        # Connectors may write into an episode: final observations must pass them as well.
        self._env_to_module(self._episodes(ended))
        if self._runner.episodes_to_numpy:
            for episode in self._episodes(ended):
                episode.to_numpy()

    def act(self, running: list[int]) -> list[dict[Any, Any]]:
        """Returns, per running env, the actions of the agents that are to act."""
        episodes = self._episodes(running)
        outputs: dict[str, Any] = {}
        if self._random_actions:
            outputs[Columns.ACTIONS] = [self._random(index) for index in running]
        elif self._to_module:
            outputs = self._module_to_env(self._forward(self._to_module), episodes)
        self._actions = outputs.pop(Columns.ACTIONS, [{} for _ in running])
        for_env: list[dict[Any, Any]] = outputs.pop(Columns.ACTIONS_FOR_ENV, self._actions)
        self._outputs = outputs
        return for_env

    def record(self, running: list[int], steps: list[tuple[dict[Any, Any], ...]]) -> None:
        """Adds what the running envs returned to their episodes."""
        for row, episode in enumerate(self._episodes(running)):
            observations, rewards, terminateds, truncateds, infos = steps[row]
            outputs: dict[Any, dict[str, Any]] = defaultdict(dict)
            for column, per_env in self._outputs.items():
                for agent, value in per_env[row].items():
                    outputs[agent][column] = value
                    outputs[agent][WEIGHTS_SEQ_NO] = self._runner.weights_seq_no
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
        env = self._runner.env.envs[index].unwrapped
        agents = self._runner.ongoing_episodes[index].get_agents_to_act()
        return {agent: env.get_action_space(agent).sample() for agent in agents}

    def _episodes(self, env_indices: list[int]) -> list[OrderedMultiAgentEpisode]:
        return [self._runner.ongoing_episodes[index] for index in env_indices]


class _StepCounts:
    """How often agents and modules have been shown an observation that followed a step."""

    def __init__(self) -> None:
        self.per_agent: Counter[str] = Counter()
        self.per_module: Counter[str] = Counter()

    def add(self, episode: OrderedMultiAgentEpisode, agents: Iterable[Any]) -> None:
        for agent in agents:
            self.per_agent[str(agent)] += 1
            self.per_module[episode.module_for(agent)] += 1


@contextmanager
def _seeded_globally(seed: int) -> Iterator[None]:
    """Seeds Python's and NumPy's global generators, and sets them back in the end."""
    states = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
