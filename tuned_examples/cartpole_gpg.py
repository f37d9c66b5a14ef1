"""GPG on CartPole-v1: groups of 32 episodes, time bins, one process."""

from progress import example_parser, run_example

from rllib_gpg import GPGConfig

parser = example_parser(reward=475.0, iterations=100)

config = (
    GPGConfig()
    .environment("CartPole-v1")
    .env_runners(num_envs_per_env_runner=32)
    .training(group_size=32, lr=1e-3, gamma=0.99)
    .rl_module(model_config={"fcnet_hiddens": [64, 64]})
)

if __name__ == "__main__":
    run_example(config, parser.parse_args())
