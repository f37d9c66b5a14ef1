"""GPG on LunarLander-v3: groups of 32 episodes of very different length.

What it shows: minibatches of a fixed size (`minibatch_size` in place of `num_minibatches`), because
a group has between 2,000 and 30,000 steps. No entropy bonus: with `entropy_coeff=0.01` this policy
learned to hover until the time limit and stayed at a return of 160 (seed 0, 150 iterations).

How to run it::

    python tuned_examples/lunar_lander_gpg.py

What to expect: a mean return of 200 in a group after 77, 41 and 47 iterations (seeds 0, 1, 2; 1.6,
0.8 and 0.9 million env steps, 60 to 120 s on one core), and 238, 268 and 269 after 150 (1.8 to 2.4
million env steps; best groups 267, 278 and 278). The paper reports 170 ± 21 after 200 iterations
with 32 rollouts.
"""

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
