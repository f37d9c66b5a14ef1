"""How fast GPG trains and samples, beside RLlib's PPO, Stable-Baselines3's PPO and a bare loop.

Run on a quiet machine with 2 cores, with the extras `examples`, `envpool` and `benchmarks`::

    python -m benchmarks.throughput                     # everything
    python -m benchmarks.throughput --rows cartpole-32  # one row
    python -m benchmarks.throughput --without-peers     # what the ridge costs

What is compared, with the same network (64-64 tanh), env steps per iteration, epochs (4) and
minibatches (4), on one torch thread, as env runners and learners in Ray's workers have:

- GPG: one group per iteration. Groups vary in length; steps/s are of the steps they really have.
- GPG with the ridge as its baseline, and lambda 0.95: the same groups.
- RLlib's PPO, new API stack, no remote env runners, the same kind of vector env, without its KL
  term, which the others don't have either.
- Stable-Baselines3's PPO, as its users run it: `make_vec_env`, which is a `DummyVecEnv`; it has no
  native vector envs.
- The bare loop: GPG's own vector env and module in a loop of forward pass, action sampling and
  `env.step`, over as many *simulated* steps as GPG's sampling just took. It is the limit: it keeps
  nothing, and all its envs run all the time.

The policy decides how long episodes are, and so what there is to do: with an untrained policy
CartPole ends after 20 steps, so that a group of 32 would have 700 steps and everybody would be
measured by what an iteration costs without any. So each row names a mean length to which GPG
trains a policy first, in the middle of what a training run goes through. Then everybody gets this
policy's weights, and a learning rate of 0: all work is done, but the policy, and with it the
lengths of episodes, stay the same for all contenders and repetitions.

Where episodes differ in length, the group has 8 times as many episodes as there are envs: an env
whose episode is over begins the next, and only at the end of the group do envs wait for the
longest. With as many episodes as envs they wait most of the time: compare `--group-size`.

Rows that end in `-runners-2` have two remote env runners with so many envs each and a learner in a
process of its own, GPG's and RLlib's PPO alike; then GPG with `sample_ahead=1`, alone.

Each contender has a process of its own. All take turns (GPG, bare loop, ridge, RLlib, SB3, GPG,
..); the figures are medians over the turns. Sampling is the time within `EnvRunner.sample` and
`collect_rollouts`, update all the rest: advantages, epochs, weights to the env runner, metrics.
Memory is how much the process grew at most, from before its first iteration on, and what it had
then.
"""
