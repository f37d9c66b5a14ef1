"""The policy in force, as it is handed to env runners: weights, and all that goes with them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import ray
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.core import COMPONENT_LEARNER, COMPONENT_RL_MODULE
from ray.rllib.core.rl_module.rl_module import RLModule, RLModuleSpec
from ray.rllib.env.env_runner_group import EnvRunnerGroup
from ray.rllib.utils.metrics import ENV_RUNNER_RESULTS, NUM_ENV_STEPS_SAMPLED_LIFETIME
from ray.rllib.utils.typing import ModuleID, StateDict

from rllib_gpg.learning.infos import reads_infos
from rllib_gpg.sampling.connector_states import Connectors
from rllib_gpg.sampling.messages import ModuleChanges, Weights


class PolicyInForce:
    """What the learners hold, what connectors remember, and which agents are mapped to what."""

    def __init__(self, algorithm: Algorithm):
        """Takes the algorithm, which may still be without learners and env runners."""
        self._algorithm = algorithm
        self._version = 0
        self._weights: Weights | None = None
        self.training_changes = ModuleChanges()
        self.evaluation_changes = ModuleChanges()

    @property
    def weights(self) -> Weights:
        """What the env runners for training sample with."""
        return self._weights or self.take()

    def for_evaluation(self, weights: Weights) -> Weights:
        """Returns weights as the env runners for evaluation take them."""
        return dataclasses.replace(weights, changes=self.evaluation_changes)

    @functools.cached_property
    def connectors(self) -> Connectors:
        """The connectors that checkpoints have: the local env runner's, or if none the driver's."""
        algorithm = self._algorithm
        if algorithm.env_runner is not None:
            return algorithm.env_runner.connectors
        return Connectors(algorithm.env_to_module_connector, algorithm.module_to_env_connector)

    def take(self) -> Weights:
        """Takes what the learners hold now, also for the local env runner."""
        algorithm = self._algorithm
        steps = (ENV_RUNNER_RESULTS, NUM_ENV_STEPS_SAMPLED_LIFETIME)
        state = {
            **self._learned(),
            # For modules that explore by a schedule.
            NUM_ENV_STEPS_SAMPLED_LIFETIME: int(algorithm.metrics.peek(steps, default=0)),
        }
        self._version += 1
        weights = Weights(self._version, state, self.connectors.get_states(), self.training_changes)
        if algorithm.env_runner is not None:
            algorithm.env_runner.load(weights)
        self._weights = self._for_env_runners(weights)
        return self._weights

    def _for_env_runners(self, weights: Weights) -> Weights:
        algorithm = self._algorithm
        groups = filter(None, (algorithm.env_runner_group, algorithm.eval_env_runner_group))
        if any(group.num_remote_env_runners() > 0 for group in groups):
            # Once in the object store; each env runner fetches it with its first share.
            state, infos = ray.put(weights.state), reads_infos(algorithm)
            return dataclasses.replace(weights, state=state, infos=infos)
        return weights

    @staticmethod
    def state_of(weights: Weights | None) -> StateDict | None:
        """Returns the module's state in weights, for a checkpoint."""
        state = weights and weights.state
        return ray.get(state) if isinstance(state, ray.ObjectRef) else state

    def of_state(self, state: StateDict) -> Weights:
        """Returns weights of a module's state from a checkpoint, with what connectors remember."""
        self._version += 1
        return self._for_env_runners(
            Weights(self._version, state, self.connectors.get_states(), self.training_changes)
        )

    def forget(self) -> None:
        """Has it taken anew when it is needed next."""
        self._weights = None

    def build_module(self, module_id: ModuleID) -> RLModule | None:
        """Builds a module as the learners hold it; returns None if there is no such module."""
        algorithm = self._algorithm
        spec = algorithm.config.get_multi_rl_module_spec(
            spaces=algorithm.spaces, inference_only=True
        )
        modules = spec.build()
        modules.set_state(self._learned()[COMPONENT_RL_MODULE])
        return modules.get(module_id)

    def add_module(
        self, module_id: ModuleID, spec: RLModuleSpec, arguments: Mapping[str, Any]
    ) -> None:
        """Takes note of a call of `Algorithm.add_module` with these keyword arguments."""
        if arguments.get("add_to_env_runners", True):
            self.training_changes = self.training_changes.add(module_id, spec, arguments)
        if arguments.get("add_to_eval_env_runners", True):
            self.evaluation_changes = self.evaluation_changes.add(module_id, spec, arguments)
        self.forget()

    def remove_module(self, module_id: ModuleID, arguments: Mapping[str, Any]) -> None:
        """Takes note of a call of `Algorithm.remove_module` with these keyword arguments."""
        if arguments.get("remove_from_env_runners", True):
            self.training_changes = self.training_changes.remove(module_id, arguments)
        if arguments.get("remove_from_eval_env_runners", True):
            self.evaluation_changes = self.evaluation_changes.remove(module_id, arguments)
        self.forget()

    def make_changes(
        self, env_runner_group: EnvRunnerGroup, indices: list[int], timeout_seconds: float
    ) -> None:
        """Has remote env runners make what `add_module` and `remove_module` changed."""
        if not indices or not self._algorithm.config.is_multi_agent:
            return
        changes = self.training_changes
        if env_runner_group is self._algorithm.eval_env_runner_group:
            changes = self.evaluation_changes
        env_runner_group.foreach_env_runner(
            lambda runner: runner.make_changes(changes),
            local_env_runner=False,
            healthy_only=False,
            remote_worker_ids=indices,
            timeout_seconds=timeout_seconds,
        )

    def _learned(self) -> StateDict:
        """Returns the state of the learners' modules, with its sequence number."""
        return self._algorithm.learner_group.get_state(
            components=f"{COMPONENT_LEARNER}/{COMPONENT_RL_MODULE}", inference_only=True
        )[COMPONENT_LEARNER]
