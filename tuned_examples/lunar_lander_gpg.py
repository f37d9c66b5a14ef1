"""GPG on LunarLander-v3: groups of 8 episodes, compared by a regression inside the bins.

What it shows: `baseline="ridge"` with `lambda_` below 1 makes much of few episodes, which last from
60 to 1,000 steps. No entropy bonus: with `entropy_coeff=0.01` and groups of 32 the policy learned
to hover until the time limit and stayed at a return of 160 (seed 0, 150 iterations).

How to run it::

    python tuned_examples/lunar_lander_gpg.py

What to expect: a mean return of 200 in a group after 54, 62 and 91 iterations (seeds 0, 1, 2;
222,000, 263,000 and 449,000 env steps, half a minute on one core). The last tenth of 1,000,000 env
steps has 194, 240 and 206. With the paper's bins and 32 episodes it takes longer, 0.7 to 1.5
million env steps, and ends higher: 262, 272 and 263 after 150 iterations. With
`minibatch_size=256`, whose updates grow with the episodes, one of the three runs fell back to 37.
The paper reports 170 ± 21 after 200 iterations with 32 rollouts.
"""

from progress import example_parser, run_example

from rllib_gpg import GPGConfig

parser = example_parser(reward=200.0, iterations=500)

config = (
    GPGConfig()
    .environment("LunarLander-v3")
    .env_runners(num_envs_per_env_runner=8)
    .training(group_size=8, baseline="ridge", lambda_=0.98, lr=1e-3, gamma=0.99)
    .rl_module(model_config={"fcnet_hiddens": [64, 64]})
)

if __name__ == "__main__":
    run_example(config, parser.parse_args())
