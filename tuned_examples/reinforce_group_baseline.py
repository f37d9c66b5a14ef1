"""REINFORCE with the group's baseline on CartPole-v1: one connector piece in another algorithm.

What it shows: `GroupAdvantageEstimation` needs nothing else of this package's algorithm. Below is
a plain critic-free RLlib `Algorithm`, REINFORCE: sample whole episodes, one gradient step on
`-log pi(a|s) * A`, give the weights back. The advantages come from the connector piece. The env
runner is `GroupEnvRunner`, because RLlib's own prefers short episodes; any that returns whole
episodes will do.

How to run it::

    python tuned_examples/reinforce_group_baseline.py

It takes RLlib's flags for example scripts; `--as-test` fails unless a group's mean return reaches
`--stop-reward`.

What to expect: a mean return of 475 in one group after 10, 12 and 15 iterations (seeds 0, 1, 2;
53,000 to 87,000 env steps, a few seconds).
"""

import math
from typing import Any

import torch
from ray.rllib.algorithms import Algorithm, AlgorithmConfig
from ray.rllib.algorithms.bc.torch.default_bc_torch_rl_module import DefaultBCTorchRLModule
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.utils.metrics import (
    ENV_RUNNER_RESULTS,
    LEARNER_RESULTS,
    NUM_ENV_STEPS_SAMPLED_LIFETIME,
)
from run_example import example_parser, run_example

from rllib_gpg.advantages import GroupAdvantageEstimation
from rllib_gpg.sampling import GroupEnvRunner


class ReinforceLearner(TorchLearner):
    """Takes one step along the gradient of log pi(a|s) * A."""

    def compute_loss_for_module(
        self, *, module_id: str, batch: dict[str, Any], fwd_out: dict[str, Any], **kwargs: Any
    ) -> torch.Tensor:
        """Returns the mean of -log pi(a|s) * A over the steps of the group."""
        distribution_class = self.module[module_id].unwrapped().get_train_action_dist_cls()
        policy = distribution_class.from_logits(fwd_out[Columns.ACTION_DIST_INPUTS])
        return -(policy.logp(batch[Columns.ACTIONS]) * batch[Columns.ADVANTAGES]).mean()


class ReinforceConfig(AlgorithmConfig):
    """The settings of `Reinforce`."""

    def __init__(self, algo_class: type | None = None):
        """Sets whole episodes, 32 of them per gradient step."""
        super().__init__(algo_class=algo_class or Reinforce)
        self.num_episodes = 32
        self.batch_mode = "complete_episodes"
        self.env_runner_cls = GroupEnvRunner

    def get_default_rl_module_spec(self) -> RLModuleSpec:
        """Returns a policy without a value function."""
        return RLModuleSpec(module_class=DefaultBCTorchRLModule)

    def get_default_learner_class(self) -> type[TorchLearner]:
        """Returns the learner above."""
        return ReinforceLearner


class Reinforce(Algorithm):
    """Samples, updates and syncs."""

    @classmethod
    def get_default_config(cls) -> ReinforceConfig:
        """Returns the default settings."""
        return ReinforceConfig()

    def training_step(self) -> None:
        """Runs one gradient step on one group of episodes."""
        num_remote = self.env_runner_group.num_remote_env_runners()
        share = math.ceil(self.config.num_episodes / max(1, num_remote))
        sampled = self.env_runner_group.foreach_env_runner(
            lambda runner: (runner.sample(num_episodes=share), runner.get_metrics()),
            local_env_runner=num_remote == 0,
        )
        episodes = [episode for group, _ in sampled for episode in group]
        self.metrics.aggregate([metrics for _, metrics in sampled], key=ENV_RUNNER_RESULTS)

        steps = self.metrics.peek((ENV_RUNNER_RESULTS, NUM_ENV_STEPS_SAMPLED_LIFETIME))
        results = self.learner_group.update(
            episodes=episodes, timesteps={NUM_ENV_STEPS_SAMPLED_LIFETIME: steps}
        )
        self.metrics.aggregate(results, key=LEARNER_RESULTS)
        self.env_runner_group.sync_weights(
            from_worker_or_learner_group=self.learner_group, inference_only=True
        )


parser = example_parser(reward=475.0, iterations=200)

config = (
    ReinforceConfig()
    .environment("CartPole-v1")
    .env_runners(num_env_runners=0, num_envs_per_env_runner=32)
    .training(lr=0.01, grad_clip=0.5)
    .learners(learner_connector=lambda obs_space, act_space: GroupAdvantageEstimation(gamma=0.99))
    .rl_module(model_config={"fcnet_hiddens": [64, 64]})
)

if __name__ == "__main__":
    run_example(config, parser.parse_args())
