"""Peak memory and time of sampling a group, over the data that it consists of.

    python -W ignore benchmarks/memory.py

Rows: 256 episodes of an untrained policy on CartPole-v1 and LunarLander-v3, and 32 episodes of
images of 42 x 42 bytes, one of 3,000 steps among 31 of 30. Contenders: `GroupEnvRunner` in columns
and step by step, and RLlib's env runner, as PPO uses it with `batch_mode="complete_episodes"`; all
with 32 envs, and each over the data of its own episodes: observations, actions, rewards and the
module's outputs. RLlib's returns the first episodes to finish, so it never sees the long one to its
end.

The peak is what Python and NumPy had allocated at most while sampling (`tracemalloc`), beyond what
they had before. Times are CPU seconds of calls without it, the best of 3.
"""

from __future__ import annotations

import time
import tracemalloc
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.core.rl_module.torch.torch_rl_module import TorchRLModule
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from rllib_gpg import GPGConfig
from rllib_gpg.sampling import GroupEnvRunner

_NUM_ENVS = 32


class Stragglers(gym.Env):
    """Images; in each 32 episodes begun, one of 3,000 steps among 31 of 30."""

    num_begun = 0

    def __init__(self, config: Any = None):
        """Takes no settings."""
        self.observation_space = gym.spaces.Box(0, 255, (42, 42), np.uint8)
        self.action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        """Begins an episode."""
        Stragglers.num_begun += 1
        self.length = 3000 if Stragglers.num_begun % _NUM_ENVS == 0 else 30
        self.t = 0
        return self._observation(), {}

    def step(self, action: int) -> Any:
        """Goes on, whatever the action."""
        self.t += 1
        return self._observation(), 1.0, self.t >= self.length, False, {}

    def _observation(self) -> np.ndarray:
        return np.full((42, 42), self.t % 256, np.uint8)


class LinearPolicy(TorchRLModule):
    """One layer on pixels."""

    def setup(self) -> None:
        """Builds the layer."""
        super().setup()
        self.policy = torch.nn.Linear(42 * 42, 2)

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return {Columns.ACTION_DIST_INPUTS: self.policy(batch[Columns.OBS].flatten(1).float())}


def make_runner(env: Any, how: str) -> SingleAgentEnvRunner:
    """Builds one contender."""
    config = GPGConfig().environment(env).env_runners(num_envs_per_env_runner=_NUM_ENVS)
    config.debugging(seed=1)
    if env is Stragglers:
        config.rl_module(rl_module_spec=RLModuleSpec(module_class=LinearPolicy))
    if how == "step by step":
        config.callbacks(on_episode_step=lambda **kwargs: None)
    runner_class = SingleAgentEnvRunner if how == "RLlib" else GroupEnvRunner
    return runner_class(config=config, worker_index=0)


def sample(runner: SingleAgentEnvRunner) -> list[SingleAgentEpisode]:
    """Samples one group, and drops what the env runner keeps for its metrics."""
    Stragglers.num_begun = 0
    is_image = runner.config.env is Stragglers
    episodes = runner.sample(num_episodes=_NUM_ENVS if is_image else 8 * _NUM_ENVS)
    runner.get_metrics()
    return episodes


def num_bytes(episode: SingleAgentEpisode) -> int:
    """Returns the size of the episode's arrays."""
    columns = [episode.get_observations(), episode.get_actions(), episode.get_rewards()]
    columns += [episode.get_extra_model_outputs(name) for name in episode.extra_model_outputs]
    return sum(column.nbytes for column in columns)


def main() -> None:
    """Prints the table."""
    torch.set_num_threads(1)
    print("| env | how | steps | data, MB | peak / data | CPU us per step |")
    print("|---|---|---|---|---|---|")
    for env in ("CartPole-v1", "LunarLander-v3", Stragglers):
        for how in ("columns", "step by step", "RLlib"):
            runner = make_runner(env, how)
            sample(runner)
            times = []
            for _ in range(3):
                start = time.process_time()
                num_steps = sum(map(len, sample(runner)))
                times.append((time.process_time() - start) / num_steps)
            tracemalloc.start()
            episodes = sample(runner)
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            data = sum(map(num_bytes, episodes))
            name = env if isinstance(env, str) else "images, 1 straggler"
            print(
                f"| {name} | {how} | {sum(map(len, episodes)):,} | {data / 1e6:.2f} "
                f"| {peak / data:.2f} | {min(times) * 1e6:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
