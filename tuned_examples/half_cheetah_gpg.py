"""GPG on HalfCheetah-v5: continuous actions, observations normalised inside the module.

What it shows: `normalize_observations` keeps a running mean and variance as part of the module, so
that they travel with its weights; `free_log_std` learns one standard deviation per action. All
episodes last 1,000 steps.

How to run it::

    python tuned_examples/half_cheetah_gpg.py

A larger group is worth more here: see `--num-env-runners`, and the paper's 2,774 with 128 episodes.
With few env steps, rollouts learn most: docs/baselines.md has 1,863 ± 486 of them, in the last 10 %
of 280,000. A group has 8 of 64 steps, with minibatches of 64, a ridge with λ 0.95 and
`bootstrap_truncated`.

What to expect: a mean return of 700 in a group after 98, 84 and 91 iterations, and 831, 1,087 and
817 after 120 (seeds 0, 1, 2; 1.9 million env steps, 260 s on one core). The paper reports 1,000 ±
130 after 200 iterations with 16 rollouts, and its PPO 736 ± 150.
"""

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
