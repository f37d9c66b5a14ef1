"""GPG on LunarLander-v3."""

from progress import example_parser, run_example

from rllib_gpg import GPGConfig

parser = example_parser(reward=200.0, iterations=150)

config = (
    GPGConfig()
    .environment("LunarLander-v3")
    .env_runners(num_envs_per_env_runner=32)
    .training(group_size=32, lr=1e-3, gamma=0.99, minibatch_size=256)
    .rl_module(model_config={"fcnet_hiddens": [64, 64]})
)

if __name__ == "__main__":
    run_example(config, parser.parse_args())
