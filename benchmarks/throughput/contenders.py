"""Who is measured: GPG, the bare loop, RLlib's PPO and Stable-Baselines3's."""

from __future__ import annotations

import time

import gymnasium as gym
import numpy as np
import ray
import torch
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns

from benchmarks.throughput.configs import (
    EPOCHS,
    HIDDENS,
    MINIBATCHES,
    SEED,
    gpg_config,
    ppo_config,
)
from benchmarks.throughput.policies import Policy, actor_parameters, load
from benchmarks.throughput.rows import Row
from benchmarks.throughput.turns import (
    Clock,
    Memory,
    StepCounter,
    Turn,
    peak_megabytes,
    resident_megabytes,
)

# Iterations after which the policy is taken as it is, long or not.
MAX_TRAINING_ITERATIONS = 100


class RLlib:
    """A contender built with RLlib, here its PPO."""

    def __init__(self, row: Row, policy: Policy, batch_size: int):
        """Builds the algorithm and gives it the policy.

        Args:
            row: What to measure.
            policy: The weights of the policy; an empty list leaves the first ones.
            batch_size: Env steps per iteration.
        """
        start_ray(1 + row.num_env_runners)
        self._algo: Algorithm = self._config(row, batch_size).build_algo()
        if policy:
            learners = self._algo.learner_group
            learners.foreach_learner(
                lambda learner: load(learner.module[DEFAULT_MODULE_ID], policy)
            )
        self._look_at_sampling(policy)
        self._memory_before = resident_megabytes()

    def _look_at_sampling(self, policy: Policy) -> None:
        runner = self._algo.env_runner
        if policy:
            load(runner.module, policy)
        runner.sample = self._sampling = Clock(runner.sample)
        self._counter = StepCounter(runner.env.unwrapped)

    def _config(self, row: Row, batch_size: int) -> AlgorithmConfig:
        return ppo_config(row, batch_size)

    def turn(self, iterations: int) -> Turn:
        """Trains for some iterations."""
        steps, sampling = self._num_env_steps(), self._sampling.seconds
        simulated = self._counter.num_steps
        start = time.perf_counter()
        for _ in range(iterations):
            self._algo.train()
        return Turn(
            seconds=time.perf_counter() - start,
            sampling_seconds=self._sampling.seconds - sampling,
            num_steps=self._num_env_steps() - steps,
            num_simulated=self._counter.num_steps - simulated,
        )

    def _num_env_steps(self) -> int:
        return self._algo.metrics.peek(("env_runners", "num_env_steps_sampled_lifetime"), default=0)

    def memory(self) -> Memory:
        """Returns what the process has needed so far."""
        return Memory(self._memory_before, peak_megabytes())


class GPG(RLlib):
    """GPG; it also runs the bare loop, on its own env and module."""

    def _config(self, row: Row, batch_size: int) -> AlgorithmConfig:
        return gpg_config(row)

    def train_to_length(self, length: int) -> tuple[Policy, float]:
        """Trains until episodes are as long; returns the policy and their mean length now."""
        group_size = self._algo.config.group_size
        for _ in range(MAX_TRAINING_ITERATIONS if length else 0):
            if self.turn(1).num_steps >= length * group_size:
                break
        runner = self._algo.env_runner
        episodes = [e for _ in range(4) for e in runner.sample(num_episodes=group_size)]
        policy = [p.detach().numpy().copy() for p in actor_parameters(runner.module)]
        return policy, sum(map(len, episodes)) / len(episodes)

    @torch.no_grad()
    def bare_loop(self, num_simulated: int) -> Turn:
        """Steps all envs with actions of the module, and does nothing else."""
        runner, module = self._algo.env_runner, self._algo.env_runner.module.eval()
        env, counter = runner.env.unwrapped, self._counter
        get_distribution = module.get_exploration_action_dist_cls().from_logits
        box = env.single_action_space
        is_box = isinstance(box, gym.spaces.Box)
        observations, _ = env.reset()
        first = counter.num_steps
        start = time.perf_counter()
        while counter.num_steps < first + num_simulated:
            batch = {Columns.OBS: torch.from_numpy(observations).to(torch.float32)}
            outputs = module.forward_exploration(batch)
            actions = get_distribution(outputs[Columns.ACTION_DIST_INPUTS]).sample().numpy()
            observations, *_ = env.step(np.clip(actions, box.low, box.high) if is_box else actions)
        seconds = time.perf_counter() - start
        num_simulated = counter.num_steps - first
        return Turn(num_simulated, seconds, seconds, num_simulated)


class RidgeGPG(GPG):
    """GPG with the ridge, on the same groups."""

    def _config(self, row: Row, batch_size: int) -> AlgorithmConfig:
        return gpg_config(row).training(baseline="ridge", lambda_=0.95)


class RemoteRLlib(RLlib):
    """RLlib's PPO with remote env runners, which have the policy after the first iteration."""

    def _look_at_sampling(self, policy: Policy) -> None:
        """Sampling is elsewhere: all of an iteration counts as its update."""

    def turn(self, iterations: int) -> Turn:
        """Trains for some iterations."""
        steps, start = self._num_env_steps(), time.perf_counter()
        for _ in range(iterations):
            self._algo.train()
        seconds = time.perf_counter() - start
        return Turn(self._num_env_steps() - steps, seconds, sampling_seconds=0.0)


class RemoteGPG(RemoteRLlib):
    """The same of GPG."""

    def _config(self, row: Row, batch_size: int) -> AlgorithmConfig:
        return gpg_config(row)


class RemoteGPGAhead(RemoteRLlib):
    """GPG that samples while it learns."""

    def _config(self, row: Row, batch_size: int) -> AlgorithmConfig:
        return gpg_config(row).training(sample_ahead=1)


class StableBaselines3:
    """Stable-Baselines3's PPO."""

    def __init__(self, row: Row, policy: Policy, batch_size: int):
        """Builds the model and gives it the policy."""
        # Here, so that the others' processes are without it.
        from stable_baselines3 import PPO
        from stable_baselines3.common.env_util import make_vec_env

        self._batch_size = batch_size
        self._model = PPO(
            "MlpPolicy",
            # By default it sets a render mode, for which LunarLander simulates its exhaust.
            make_vec_env(row.env, row.num_envs, seed=SEED, env_kwargs={"render_mode": None}),
            learning_rate=0.0,
            n_steps=batch_size // row.num_envs,
            batch_size=batch_size // MINIBATCHES,
            n_epochs=EPOCHS,
            policy_kwargs={"net_arch": HIDDENS},
            seed=SEED,
            device="cpu",
        )
        load(self._model.policy, policy)
        self._model.collect_rollouts = self._sampling = Clock(self._model.collect_rollouts)
        self._memory_before = resident_megabytes()

    def turn(self, iterations: int) -> Turn:
        """Trains for some iterations."""
        sampling, num_steps = self._sampling.seconds, iterations * self._batch_size
        start = time.perf_counter()
        self._model.learn(num_steps, reset_num_timesteps=False)
        seconds = time.perf_counter() - start
        return Turn(num_steps, seconds, self._sampling.seconds - sampling)

    def memory(self) -> Memory:
        """Returns what the process has needed so far."""
        return Memory(self._memory_before, peak_megabytes())


def start_ray(num_cpus: int) -> None:
    """Starts a small Ray of this process's own."""
    ray.init(
        "local",
        num_cpus=num_cpus,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
    )


class TrainingGPG(GPG):
    """GPG as it learns, for the policy that all contenders get."""

    def _config(self, row: Row, batch_size: int) -> AlgorithmConfig:
        return gpg_config(row, lr=1e-3)


Contender = RLlib | StableBaselines3
OWN: dict[str, type[Contender]] = {"GPG": GPG, "ridge": RidgeGPG}
PEERS: dict[str, type[Contender]] = {"RLlib": RLlib, "SB3": StableBaselines3}
REMOTE: dict[str, type[Contender]] = {"GPG": RemoteGPG, "RLlib": RemoteRLlib}
