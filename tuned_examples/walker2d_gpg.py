"""GPG on Walker2d-v5 with a million env steps: rollouts, completed by a regression.

What it shows: groups of 8 rollouts of 256 steps, whose episodes go on in the next group. A ridge
regression on 512 random features completes their returns where they are cut, and makes `lambda_`
below 1 safe. The learning rate falls to 0 over the million env steps, and minibatches have 64
steps, as in PPO's published settings.

How to run it::

    python tuned_examples/walker2d_gpg.py
    python tuned_examples/walker2d_gpg.py --stop-reward inf  # all of the million env steps

What to expect: the episodes that end in one iteration have a mean return of 2,000 after 606,000,
326,000 and 397,000 env steps (seeds 100, 101, 102). After a million, 8 minutes on one core, 20
episodes have 2,192, 3,438 and 1,977; docs/results/ppo.md has that beside PPO's.
"""

from run_example import EPISODE_RETURN, example_parser, run_example

from rllib_gpg import GPGConfig, presets

# 490 groups of 2,048 env steps.
parser = example_parser(reward=2000.0, iterations=490)

config = (
    GPGConfig()
    .environment("Walker2d-v5")
    .env_runners(
        num_envs_per_env_runner=8, batch_mode="truncate_episodes", rollout_fragment_length=256
    )
    .training(
        **presets.RIDGE_CONTINUOUS,
        group_size=8,
        lr=[[0, 3e-4], [1_000_000, 0.0]],
        gamma=0.99,
    )
    .rl_module(
        model_config={
            "fcnet_hiddens": [64, 64],
            "free_log_std": True,
            "normalize_observations": True,
        }
    )
)

if __name__ == "__main__":
    # A group has pieces of episodes.
    run_example(config, parser.parse_args(), metric=EPISODE_RETURN)
