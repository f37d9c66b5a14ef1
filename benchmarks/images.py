"""Peak memory of an iteration on images, over the bytes of the frames that it learns from.

    python -W ignore -m benchmarks.images

The task is a small one of frames of 84 x 84 x 4 bytes, in groups of 16 episodes of 256 steps: 116
MB. GPG and RLlib's PPO have the same env steps, the same convolutional network and one epoch of
minibatches of 128 steps, in one process. RLlib's networks take no bytes, so PPO's frames are floats
as in RLlib's own examples; GPG's network makes floats of a minibatch at a time. Each runs in a
process of its own; what is measured is how far its resident memory grew at most in the second
iteration, beyond what it had before.
"""

from __future__ import annotations

import gc
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.algorithms.ppo import PPOConfig

from rllib_gpg import GPGConfig

NUM_EPISODES, NUM_STEPS, NUM_ENVS = 16, 256, 8
SHAPE = (84, 84, 4)


class Frames(gym.Env):
    """Frames of random bytes, or as many floats; the reward is 1 for one of the two actions."""

    def __init__(self, config: Any = None):
        """Takes `config["dtype"]`."""
        self.dtype = config["dtype"]
        self.observation_space = gym.spaces.Box(0, 255, SHAPE, self.dtype)
        self.action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        """Begins an episode."""
        super().reset(seed=seed)
        self.t = 0
        return self._frame(), {}

    def step(self, action: int) -> Any:
        """Goes on."""
        self.t += 1
        return self._frame(), float(action), False, self.t >= NUM_STEPS, {}

    def _frame(self) -> np.ndarray:
        return self.np_random.integers(0, 256, SHAPE, np.uint8).astype(self.dtype)


def with_network(config: AlgorithmConfig, dtype: Any) -> AlgorithmConfig:
    """What both contenders share."""
    config.environment(Frames, env_config={"dtype": dtype})
    config.debugging(seed=1, log_level="ERROR", log_sys_usage=False)
    config.env_runners(num_env_runners=0, num_envs_per_env_runner=NUM_ENVS)
    config.rl_module(
        model_config={
            "conv_filters": [[16, 8, 4], [32, 4, 2]],
            "fcnet_hiddens": [64],
            "head_fcnet_hiddens": [],
        }
    )
    return config.training(num_epochs=1, minibatch_size=128)


def gpg() -> AlgorithmConfig:
    """GPG with a group of episodes."""
    return with_network(GPGConfig().training(group_size=NUM_EPISODES), np.uint8)


def ppo() -> AlgorithmConfig:
    """RLlib's PPO with as many steps, of whole episodes too."""
    config = PPOConfig().training(train_batch_size_per_learner=NUM_EPISODES * NUM_STEPS)
    return with_network(config.env_runners(batch_mode="complete_episodes"), np.float32)


CONTENDERS: dict[str, Callable[[], AlgorithmConfig]] = {
    "GPG": gpg,
    "RLlib's PPO, frames as floats": ppo,
}


def resident(which: str) -> int:
    """Returns the process's resident memory: now ("VmRSS"), or at most so far ("VmHWM")."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(which))


def grown(part: Callable[[], Any]) -> int:
    """Returns by how many bytes resident memory grew at most during a call."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = resident("VmRSS")
    part()
    return resident("VmHWM") - before


def measure(name: str) -> int:
    """Returns the growth in a contender's second iteration."""
    algo: Algorithm = CONTENDERS[name]().build_algo()
    algo.train()
    peak = grown(algo.train)
    algo.stop()
    return peak


def main() -> None:
    """Prints the table."""
    frames = NUM_EPISODES * NUM_STEPS * int(np.prod(SHAPE))
    print(f"Frames of a group: {frames / 1e6:.0f} MB\n")
    print("| | peak, MB | peak / frames |\n|---|---|---|")
    for name in CONTENDERS:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            peak = pool.submit(measure, name).result()
        print(f"| {name} | {peak / 1e6:.0f} | {peak / frames:.2f} |", flush=True)


if __name__ == "__main__":
    main()
