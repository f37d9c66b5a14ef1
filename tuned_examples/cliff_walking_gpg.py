"""GPG on CliffWalking-v1."""

from progress import example_parser, run_example
from ray.rllib.connectors.env_to_module import FlattenObservations

from rllib_gpg import GPGConfig

parser = example_parser(reward=-13.0, iterations=300)

config = (
    GPGConfig()
    .environment("CliffWalking-v1")
    .env_runners(
        num_envs_per_env_runner=32,
        max_episode_steps=1000,
        env_to_module_connector=lambda env, spaces, device: FlattenObservations(),
    )
    .training(group_size=32, lr=2.5e-4, gamma=1.0, entropy_coeff=0.01)
    .rl_module(model_config={"fcnet_hiddens": [64, 64]})
)

if __name__ == "__main__":
    run_example(config, parser.parse_args())
