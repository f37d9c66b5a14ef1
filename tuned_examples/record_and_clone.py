"""Records a trained policy on CartPole-v1, clones it with RLlib's BC, and trains the clone on.

What it shows: `offline_data(output=..)` records the groups that GPG trains on, in RLlib's columns
for offline data. A first algorithm learns to balance; a second one starts from its policy, keeps it
(`lr=0`) and records; BC learns from the recording alone; and a third GPG starts from the clone.

How to run it::

    python tuned_examples/record_and_clone.py
    python tuned_examples/record_and_clone.py --as-test

`--as-test` fails unless the clone's mean return reaches `--stop-reward`.

What to expect: 450 in one group after 12 iterations, 29,000 recorded steps with a mean return of
460, and a clone whose likeliest actions return 500, 500 and 477 (three runs; in which order BC sees
the recorded steps is left to Ray Data).
"""

import argparse
import tempfile

import gymnasium as gym
import torch
from ray.rllib.algorithms.bc import BCConfig
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.rl_module import RLModule, RLModuleSpec

from rllib_gpg import GPGConfig
from rllib_gpg.progress import progress

ENV = "CartPole-v1"
NET = {"fcnet_hiddens": [64, 64]}
POLICY = f"learner_group/learner/rl_module/{DEFAULT_MODULE_ID}"


def gpg_config() -> GPGConfig:
    """Returns what the algorithm that learns and the one that records have in common."""
    return (
        GPGConfig()
        .environment(ENV)
        .env_runners(num_envs_per_env_runner=32)
        .training(group_size=32)
        .rl_module(model_config=NET)
    )


def train(stop_reward: float, stop_iters: int) -> str:
    """Trains until a group reaches a mean return; returns the path of the policy."""
    algo = gpg_config().build_algo()
    stop = {"group_return_mean": stop_reward, "training_iteration": stop_iters}
    for _ in progress(algo, stop):
        pass
    checkpoint = algo.save_to_path()
    algo.stop()
    return f"{checkpoint}/{POLICY}"


def record(policy: str, folder: str, num_groups: int) -> None:
    """Records groups of a policy without changing it."""
    config = gpg_config().training(lr=0.0, num_epochs=1)
    config.rl_module(rl_module_spec=RLModuleSpec(load_state_path=policy))
    # One row per step.
    config.offline_data(output=folder, output_write_episodes=False)
    algo = config.build_algo()
    for _ in range(num_groups):
        group = algo.train()["learners"][DEFAULT_MODULE_ID]
        print(
            f"recorded: {group['group_num_env_steps']:.0f} steps, "
            f"mean return {group['group_return_mean']:.1f}",
            flush=True,
        )
    algo.stop()


def clone(folder: str, num_iterations: int) -> tuple[RLModule, str]:
    """Returns the policy that BC learned from the recording, and its path."""
    env = gym.make(ENV)
    bc = (
        BCConfig()
        .environment(observation_space=env.observation_space, action_space=env.action_space)
        .offline_data(
            input_=[folder],
            # As it was recorded.
            input_compress_columns=[Columns.OBS, Columns.NEXT_OBS],
            dataset_num_iters_per_learner=1,
            map_batches_kwargs={"concurrency": 1},
        )
        .training(lr=3e-3, train_batch_size_per_learner=1024)
        .rl_module(model_config=NET)
        .debugging(seed=0)
    ).build_algo()
    for _ in range(num_iterations):
        bc.train()
    [module] = bc.learner_group.foreach_learner(lambda learner: learner.module[DEFAULT_MODULE_ID])
    checkpoint = bc.save_to_path()
    bc.stop()
    return module.get(), f"{checkpoint}/{POLICY}"


def go_on(policy: str, num_iterations: int) -> None:
    """Trains on from a policy."""
    config = gpg_config().rl_module(rl_module_spec=RLModuleSpec(load_state_path=policy))
    algo = config.build_algo()
    for _ in progress(algo, {"training_iteration": num_iterations}):
        pass
    algo.stop()


@torch.no_grad()
def mean_return(module: RLModule, num_episodes: int) -> float:
    """Returns the mean return of a policy's likeliest actions."""
    env, total = gym.make(ENV), 0.0
    for seed in range(num_episodes):
        observation, _ = env.reset(seed=seed)
        is_over = False
        while not is_over:
            batch = {Columns.OBS: torch.from_numpy(observation)[None]}
            logits = module.forward_inference(batch)[Columns.ACTION_DIST_INPUTS]
            observation, reward, terminated, truncated, _ = env.step(int(logits.argmax()))
            total += float(reward)
            is_over = terminated or truncated
    return total / num_episodes


parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("--stop-reward", type=float, default=450.0)
parser.add_argument("--stop-iters", type=int, default=100, help="of GPG, at most")
parser.add_argument("--record-groups", type=int, default=2)
parser.add_argument("--clone-iters", type=int, default=100, help="of BC")
parser.add_argument("--go-on-iters", type=int, default=3, help="of GPG, from the clone")
parser.add_argument("--as-test", action="store_true")


def main() -> None:
    """Trains, records, clones, says how good the clone is, and trains it on."""
    args = parser.parse_args()
    policy = train(args.stop_reward, args.stop_iters)
    folder = tempfile.mkdtemp(prefix="recorded_")
    record(policy, folder, args.record_groups)
    print(f"recording: {folder}", flush=True)
    module, path = clone(folder, args.clone_iters)
    return_of_clone = mean_return(module, num_episodes=20)
    print(f"mean return of the clone: {return_of_clone:.1f}", flush=True)
    go_on(path, args.go_on_iters)
    if args.as_test and return_of_clone < args.stop_reward:
        raise AssertionError(f"`stop-reward` of {args.stop_reward} not reached!")


if __name__ == "__main__":
    main()
