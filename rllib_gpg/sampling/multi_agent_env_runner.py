"""`MultiAgentGroupEnvRunner`: exactly k started episodes of a multi-agent env, all finished."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

from ray.rllib.core.rl_module.rl_module import RLModule
from ray.rllib.env.multi_agent_env_runner import MultiAgentEnvRunner
from ray.rllib.utils.annotations import override
from ray.rllib.utils.metrics import (
    NUM_AGENT_STEPS_SAMPLED,
    NUM_AGENT_STEPS_SAMPLED_LIFETIME,
    NUM_ENV_STEPS_SAMPLED,
    NUM_ENV_STEPS_SAMPLED_LIFETIME,
    NUM_EPISODES,
    NUM_EPISODES_LIFETIME,
    NUM_MODULE_STEPS_SAMPLED,
    NUM_MODULE_STEPS_SAMPLED_LIFETIME,
)

from rllib_gpg.sampling.messages import ModuleChanges, Weights
from rllib_gpg.sampling.rollout.base import RunnerParts
from rllib_gpg.sampling.rollout.multi_agent import MultiAgentEnvs, MultiAgentRollout, StepCounts
from rllib_gpg.sampling.rollout.ordered_episode import OrderedMultiAgentEpisode
from rllib_gpg.sampling.rollout.schedule import Schedule
from rllib_gpg.sampling.rollout.time_limit import MultiAgentTimeLimit
from rllib_gpg.sampling.seeds import Seeds
from rllib_gpg.sampling.share_runner import ShareSamplingEnvRunner


class MultiAgentGroupEnvRunner(ShareSamplingEnvRunner, MultiAgentEnvRunner):
    """RLlib's env runner for several agents, with unbiased sampling of whole episodes.

    What `GroupEnvRunner` does for one agent: exactly the episodes that were started are finished
    and returned. It does what RLlib's `MultiAgentEnvRunner` does, in its order, for the envs that
    still run, through any connectors.

    An episode is over when the env says so for "__all__" agents or, as RLlib has it, when all
    agents that have been in it are done; the env is reset then, also if agents might still have
    joined.

    With seeds, a `policy_mapping_fn` that draws from Python's or NumPy's global generators maps the
    same agents to the same modules when a share is sampled again. One that goes by the episode's id
    does not.
    """

    @override(MultiAgentEnvRunner)
    def make_env(self) -> None:
        """Makes the envs, their episodes cut after `config.max_episode_steps` steps."""
        try:
            super().make_env()
        except BaseException:
            # RLlib has deleted the one before, and would again.
            self.env: Any = None
            raise
        limit = self.config.get("max_episode_steps")
        if limit is not None:
            self.env.envs = [MultiAgentTimeLimit(env, limit) for env in self.env.envs]

    @override(MultiAgentEnvRunner)
    def make_module(self) -> None:
        """Makes the modules that the config names."""
        super().make_module()
        # How many of `ModuleChanges` have been made.
        self._num_changes = 0
        # The how many-th of them a module comes from; 0: from none.
        self._numbers = WeakKeyDictionary[RLModule, int]()
        if self.module is not None:
            self._numbers.update(dict.fromkeys(self.module.values(), 0))

    @override(ShareSamplingEnvRunner)
    def load(self, weights: Weights) -> None:
        """Puts weights in place, and before them the modules and mapping that they are for."""
        if weights.version != self._weights_version:
            self.make_changes(weights.changes)
        super().load(weights)

    def make_changes(self, changes: ModuleChanges) -> None:
        """Makes what `add_module` and `remove_module` changed, as far as it isn't done yet."""
        for module_id in changes.removed & self.module.keys():
            self.module.remove_module(module_id)
        for module_id, (spec, number) in changes.added.items():
            module = self.module.get(module_id)
            # One that isn't known here was put in place by RLlib, when it was added.
            if module is None or self._numbers.setdefault(module, number) < number:
                module = spec.build()
                self.module.add_module(module_id, module, override=True)
                self._numbers[module] = number
        if changes.number != self._num_changes:
            self.config.multi_agent(**changes.multi_agent)
            self._num_changes = changes.number

    @override(ShareSamplingEnvRunner)
    def _sample_by(
        self, schedule: Schedule, seeds: Seeds | None, parts: RunnerParts, random_actions: bool
    ) -> tuple[list[OrderedMultiAgentEpisode], dict[int, Any]]:
        rollout = MultiAgentRollout(parts, random_actions=random_actions)
        if random_actions and seeds is not None:
            rollout.seed_random_actions(seeds.actions)
        envs = MultiAgentEnvs(self.env.envs)
        episodes, cut = self._run(rollout, envs, schedule, parts)
        self._count(episodes, rollout.counts)
        return episodes, cut

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

    def _count(self, episodes: list[OrderedMultiAgentEpisode], counts: StepCounts) -> None:
        """Logs what RLlib's env runner logs about a `sample` call.

        Once per call: a metrics logger takes longer than a small simulator.
        """
        num_steps = sum(map(len, episodes))
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
