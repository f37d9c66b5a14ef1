"""GPG on HalfCheetah-v5."""

from progress import example_parser, run_example

from rllib_gpg import GPGConfig

parser = example_parser(reward=700.0, iterations=120)

config = (
    GPGConfig()
    .environment("HalfCheetah-v5")
    .env_runners(num_envs_per_env_runner=16)
    .training(group_size=16, lr=3e-4, gamma=0.99, num_epochs=10, num_minibatches=32)
    .rl_module(
        model_config={
            "fcnet_hiddens": [64, 64],
            "free_log_std": True,
            "normalize_observations": True,
        }
    )
)

if __name__ == "__main__":
    run_example(config, parser.parse_args())
