"""GPG on LunarLander-v3: groups of 32 episodes of very different length.

What it shows: the defaults of GPG, as on CartPole, on an env whose episodes last from 60 to 1,000
steps. No entropy bonus: with `entropy_coeff=0.01` the policy learned to hover until the time limit
and stayed at a return of 160 (seed 0, 150 iterations).

How to run it::

    python tuned_examples/lunar_lander_gpg.py

What to expect: a mean return of 200 in a group after 61, 69 and 46 iterations (seeds 0, 1, 2; 0.7
to 1.5 million env steps, a minute on one core), and 262, 272 and 263 after 150 (1.6 to 2.2 million
env steps). The paper reports 170 ± 21 after 200 iterations with 32 rollouts.
"""

from progress import example_parser, run_example

from rllib_gpg import GPGConfig

parser = example_parser(reward=200.0, iterations=150)

config = (
    GPGConfig()
    .environment("LunarLander-v3")
    .env_runners(num_envs_per_env_runner=32)
    .training(group_size=32, lr=1e-3, gamma=0.99)
    .rl_module(model_config={"fcnet_hiddens": [64, 64]})
)

if __name__ == "__main__":
    run_example(config, parser.parse_args())
