"""GPG on LunarLander-v3 with a million env steps: 4 episodes, compared by a regression.

What it shows: `baseline="ridge"` with `lambda_` below 1 makes much of few episodes, which last from
60 to 1,000 steps. gamma is 0.999: what a landing brings comes late. No entropy bonus: with
`entropy_coeff=0.01` and groups of 32 the policy learned to hover until the time limit and stayed at
a return of 160 (seed 0, 150 iterations).

How to run it::

    python tuned_examples/lunar_lander_gpg.py
    # All of the million env steps:
    python tuned_examples/lunar_lander_gpg.py --stop-reward inf --stop-timesteps 1000000

What to expect: a group with a mean return of 200 after 256,000, 115,000 and 389,000 env steps
(seeds 100, 101, 102). After a million, in two minutes and a half on one core, 20 episodes have 223,
264 and 268; docs/results/ppo.md has that beside PPO's.
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
