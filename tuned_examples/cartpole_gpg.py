"""GPG on CartPole-v1, with GPG's defaults: groups of 32 whole episodes, time bins.

What it shows: a first run. One process steps 32 envs; each iteration learns from 32 episodes. The
balance is learned within 450 to 700 episodes.

How to run it::

    python tuned_examples/cartpole_gpg.py

It takes RLlib's flags for example scripts: `--num-env-runners=2 --num-envs-per-env-runner=16`
gathers the 32 episodes with two remote env runners; `--as-test` fails unless a group's mean return
reaches `--stop-reward`.

What to expect: a mean return of 475 in one group after 19, 14 and 20 iterations (seeds 0, 1, 2;
104,000 to 147,000 env steps, under 10 s on 2 cores), 500 after 22, 23 and 26. The paper reports 481
± 11 after 200 iterations.
"""

from run_example import example_parser, run_example

from rllib_gpg import GPGConfig

parser = example_parser(reward=475.0, iterations=100)

config = (
    GPGConfig()
    .environment("CartPole-v1")
    .env_runners(num_envs_per_env_runner=32)
    .training(group_size=32, lr=1e-3, gamma=0.99)
    .rl_module(model_config={"fcnet_hiddens": [64, 64]})
)

if __name__ == "__main__":
    run_example(config, parser.parse_args())
