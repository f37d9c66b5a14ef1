"""RLlib's example of intrinsic curiosity, moved from PPO to GPG: a goal that chance doesn't find.

What it shows: a second module, trained beside the policy and with a loss of its own, and learner
connectors that a learner adds to its pipeline. A frozen lake of 12 x 12 fields without holes gives
a reward of 1 in the opposite corner, which is 22 moves away, and an episode ends after 22 moves: at
random one in 25 million arrives. RLlib's `IntrinsicCuriosityModel` learns what comes of an action,
and the policy is rewarded for what the model didn't foresee.

It is RLlib's `intrinsic_curiosity_model_based_curiosity.py` with GPG's learner in place of PPO's as
the base of `LearnerWithCuriosity`, without the critic's setting, and with a group of 91 episodes
(2,002 steps) in place of 2,000 steps. The model, its settings, the learning rates and the number of
epochs are RLlib's.

How to run it::

    python tuned_examples/curiosity_gpg.py

`--no-curiosity` leaves the curiosity out; nothing is learned then.

What to expect: a mean return of 0.9 (of the env; the group's has the intrinsic rewards in it) after
60,060, 52,052 and 50,050 env steps (seeds 1, 2, 3; a minute on one core). RLlib's PPO with the
same settings takes 72,000, 102,000 and 70,000.
"""

from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.connectors.env_to_module import FlattenObservations
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModuleSpec
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.examples.learners.classes.intrinsic_curiosity_learners import (
    ICM_MODULE_ID,
    add_intrinsic_curiosity_connectors,
)
from ray.rllib.examples.rl_modules.classes.intrinsic_curiosity_model_rlm import (
    IntrinsicCuriosityModel,
)
from run_example import EPISODE_RETURN, example_parser, run_example

from rllib_gpg import GPGConfig
from rllib_gpg.learning import GPGTorchLearner

parser = example_parser(reward=0.9, iterations=100)
parser.add_argument("--no-curiosity", action="store_true", help="Reward the goal only.")


class LearnerWithCuriosity(GPGTorchLearner):
    """Adds the intrinsic rewards to those of the batch, before the advantages are estimated."""

    def build(self) -> None:
        """Builds the learner; its pieces run once per group, whatever the number of learners."""
        super().build()
        add_intrinsic_curiosity_connectors(self)


config = (
    GPGConfig()
    .environment(
        "FrozenLake-v1",
        env_config={
            "desc": ["S" + 11 * "F", *10 * [12 * "F"], 11 * "F" + "G"],
            "is_slippery": False,
            "max_episode_steps": 22,
        },
    )
    .env_runners(
        num_envs_per_env_runner=16,
        env_to_module_connector=lambda env, spaces, device: FlattenObservations(),
    )
    .training(group_size=91, num_epochs=6, lr=0.0003)
)

curiosity = RLModuleSpec(
    module_class=IntrinsicCuriosityModel,
    # Env runners don't need it.
    learner_only=True,
    model_config={
        "feature_dim": 288,
        "feature_net_hiddens": (256, 256),
        "feature_net_activation": "relu",
        "inverse_net_hiddens": (256, 256),
        "inverse_net_activation": "relu",
        "forward_net_hiddens": (256, 256),
        "forward_net_activation": "relu",
    },
)

if __name__ == "__main__":
    args = parser.parse_args()
    if not args.no_curiosity:
        config.learners(learner_class=LearnerWithCuriosity)
        config.training(
            learner_config_dict={"intrinsic_reward_coeff": 0.05, "forward_loss_weight": 0.2}
        )
        config.rl_module(
            rl_module_spec=MultiRLModuleSpec(
                rl_module_specs={DEFAULT_MODULE_ID: RLModuleSpec(), ICM_MODULE_ID: curiosity}
            ),
            algorithm_config_overrides_per_module={
                ICM_MODULE_ID: AlgorithmConfig.overrides(lr=5e-4)
            },
        )
    run_example(config, args, metric=EPISODE_RETURN)
