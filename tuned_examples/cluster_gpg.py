"""GPG on a Ray cluster: LunarLander-v3, groups of 128 episodes, on up to 32 env runners.

What it shows: a script for a laptop is a script for a cluster. Only the number of env runners
changes. A group is the same whatever that number is, because it is cut into shares by
`episodes_per_share` alone, here 32 of 4 episodes; env runners take the next share when they are
free.

How to run it on one machine (each env runner, and the algorithm itself, takes one CPU)::

    python tuned_examples/cluster_gpg.py --num-env-runners=1

On a cluster, start Ray on one head and any number of workers, each with Python and the dependencies
of this package installed (`pip install "ray[default]" ".[examples]"` in a checkout)::

    ray start --head --port=6379                    # on the head
    ray start --address=<the head's address>:6379   # on each worker

and submit the script from the checkout. The working directory, and with it the package, is sent to
every worker. Checkpoints go to what all nodes can write to, a bucket or a network drive::

    ray job submit --address=http://<the head's address>:8265 --working-dir=. \
        -- python tuned_examples/cluster_gpg.py --num-env-runners=16 --storage-path=/mnt/shared

Workers may come and go during the run: a share that is lost with its worker is sampled again with
the same seeds, so nothing is lost or biased. `num_episodes_redispatched`, among the results of the
env runners, counts such episodes.

What to expect: see docs/scaling.md for how far this scales, and docs/results/paper.md for what
groups of other sizes learn in 200 iterations. The paper reports 257 ± 1 with 128 rollouts.
"""

from run_example import example_parser, run_example

from rllib_gpg import GPGConfig

parser = example_parser(reward=250.0, iterations=200)
parser.set_defaults(num_env_runners=1)

config = (
    GPGConfig()
    .environment("LunarLander-v3")
    .env_runners(num_envs_per_env_runner=4, episodes_per_share=4)
    .training(group_size=128, lr=1e-3, gamma=0.99, minibatch_size=1024)
    .rl_module(model_config={"fcnet_hiddens": [64, 64]})
)

if __name__ == "__main__":
    run_example(config, parser.parse_args())
