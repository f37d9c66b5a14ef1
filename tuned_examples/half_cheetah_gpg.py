"""GPG on HalfCheetah-v5: groups of rollouts, completed by a regression.

What it shows: episodes last 1,000 steps whatever happens, so that a group of them is long in
coming. Here it is 8 rollouts of 64 steps, which go on in the next group; `baseline="ridge"`
completes their returns where they are cut. `normalize_observations` keeps a running mean and
variance as part of the module, so that they travel with its weights; `free_log_std` learns one
standard deviation per action. Minibatches have 64 steps, as in PPO's published settings.

How to run it::

    python tuned_examples/half_cheetah_gpg.py

What to expect: episodes that end with a mean return of 1,000 after 469, 266 and 188 iterations
(seeds 0, 1, 2; 240,000, 136,000 and 96,000 env steps), and of 1,154, 2,572 and 2,821 in the last
tenth of 500,000: seeds differ that much (three minutes on one core). docs/baselines.md has four
more, PPO and groups of episodes. The paper reports 1,000 ± 130 with 16 rollouts of 2,048 steps,
after 200 iterations of these, and 2,774 with 128.
"""

from progress import EPISODE_RETURN, example_parser, run_example

from rllib_gpg import GPGConfig

parser = example_parser(reward=1000.0, iterations=1000)

config = (
    GPGConfig()
    .environment("HalfCheetah-v5")
    .env_runners(
        num_envs_per_env_runner=8, batch_mode="truncate_episodes", rollout_fragment_length=64
    )
    .training(
        group_size=8,
        baseline="ridge",
        lambda_=0.95,
        bootstrap_truncated=True,
        lr=3e-4,
        gamma=0.99,
        num_epochs=10,
        minibatch_size=64,
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
