"""GPG on LunarLander-v3 with a million env steps: 4 episodes, compared by a regression.

What it shows: `baseline="ridge"` with `lambda_` below 1 makes much of few episodes, which last from
60 to 1,000 steps. gamma is 0.999: what a landing brings comes late. No entropy bonus: with
`entropy_coeff=0.01` and groups of 32 the policy learned to hover until the time limit and stayed at
a return of 160 (seed 0, 150 iterations).

How to run it::

    python tuned_examples/lunar_lander_gpg.py
    # All of the million env steps:
    python tuned_examples/lunar_lander_gpg.py --stop-reward inf --stop-timesteps 1000000

What to expect: docs/results/ppo.md has the returns of these settings with a million env steps, and
PPO's, seed by seed. A mean return of 200 in the last 100 episodes came after 284,000 env steps
(seed 100, half a minute on one core).
"""

from run_example import example_parser, run_example

from rllib_gpg import GPGConfig, presets

parser = example_parser(reward=200.0, iterations=1000)

config = (
    GPGConfig()
    .environment("LunarLander-v3")
    .env_runners(num_envs_per_env_runner=4)
    .training(
        group_size=4,
        **presets.RIDGE,
        lr=[[0, 1e-3], [1_000_000, 0.0]],
        gamma=0.999,
    )
    .rl_module(model_config={"fcnet_hiddens": [64, 64]})
)

if __name__ == "__main__":
    run_example(config, parser.parse_args())
