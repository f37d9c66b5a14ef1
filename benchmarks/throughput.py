"""How fast GPG trains and samples, beside RLlib's PPO, Stable-Baselines3's PPO and a bare loop.

Run on a quiet machine with 2 cores, with the extras `examples`, `envpool` and `benchmarks`::

    python benchmarks/throughput.py                     # everything
    python benchmarks/throughput.py --rows cartpole-32  # one row
    python benchmarks/throughput.py --without-peers     # what the ridge costs

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

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import gymnasium as gym
import numpy as np
import ray
import torch
from gymnasium.vector import SyncVectorEnv, VectorEnv
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns

from rllib_gpg import GPGConfig
from rllib_gpg.envs.envpool import register_envpool
from rllib_gpg.sampling.rollout.vector_env import StepsSome

HIDDENS = [64, 64]
EPOCHS = MINIBATCHES = 4
SEED = 0
# Iterations after which the policy is taken as it is, long or not.
MAX_TRAINING_ITERATIONS = 100

Policy = list[np.ndarray]
"""Weights and biases from the first layer to the last, and log standard deviations if any."""


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        env: The gymnasium id.
        num_envs: Parallel envs.
        group_size: Episodes per group.
        episode_length: The mean length of an episode to which the policy is trained; 0: not at all.
        iterations: Iterations per repetition.
        vectorize: `gym_env_vectorize_mode` of GPG and RLlib's PPO on gymnasium's env.
        envpool_threads: With how many threads GPG runs on EnvPool; 0: on gymnasium.
        targets: What the ratios should be at least: to RLlib's PPO and to SB3's end to end, and to
            the bare loop in sampling. None: only simulated steps are counted.
        episodes_per_share: GPG's setting; None: its default.
        num_env_runners: Remote ones, each with so many envs, and then the learner is in a process
            of its own as well; 0: everything is in one process. What is compared is how fast
            iterations are; the target is the first.
    """

    env: str
    num_envs: int
    group_size: int
    episode_length: int
    iterations: int
    vectorize: str = "sync"
    envpool_threads: int = 0
    targets: tuple[float, ...] | None = None
    episodes_per_share: int | None = None
    num_env_runners: int = 0

    def __str__(self) -> str:
        """Names the row in tables."""
        simulator = "EnvPool" if self.envpool_threads else "gymnasium"
        simulator = "native" if self.vectorize == "vector_entry_point" else simulator
        runners = f", {self.num_env_runners} env runners" if self.num_env_runners else ""
        return f"{self.env}, {self.num_envs} envs, {simulator}{runners}"

    @property
    def is_continuous(self) -> bool:
        """Whether actions are continuous."""
        return isinstance(gym.make(self.env).action_space, gym.spaces.Box)


RATIOS = (
    "vs RLlib PPO",
    "vs SB3 PPO",
    "sampling vs bare",
    "update vs RLlib",
    "memory vs RLlib",
    "ridge vs bins",
)
# What the last three should be, in all rows: there is no critic, and a ridge costs little.
COST_TARGETS = ("<= 0.5", "< 1", ">= 0.95")
NATIVE = "vector_entry_point"
ROWS = {
    "cartpole-32": Row("CartPole-v1", 32, 256, 200, 1, NATIVE, targets=(4.0, 1.8, 0.9)),
    "cartpole-128": Row("CartPole-v1", 128, 1024, 200, 1, NATIVE, targets=(4.5, 2.3, 0.9)),
    "halfcheetah-16": Row("HalfCheetah-v5", 16, 16, 0, 1, targets=(1.7, 1.0, 0.9)),
    "halfcheetah-64": Row(
        "HalfCheetah-v5", 64, 64, 0, 1, envpool_threads=2, targets=(3.5, 2.0, 0.85)
    ),
    "lunarlander-64": Row(
        "LunarLander-v3", 64, 512, 300, 1, envpool_threads=2, targets=(2.5, 3.5, 0.8)
    ),
    "lunarlander-32": Row("LunarLander-v3", 32, 32, 300, 1),
    "lunarlander-32-envpool": Row("LunarLander-v3", 32, 32, 300, 1, envpool_threads=2),
    # As one env runner, whose share is the whole group: its vector env moves as a whole.
    "cartpole-32-runners-2": Row(
        "CartPole-v1",
        32,
        512,
        200,
        1,
        NATIVE,
        targets=(5.0,),
        episodes_per_share=256,
        num_env_runners=2,
    ),
    "halfcheetah-16-runners-2": Row(
        "HalfCheetah-v5", 16, 32, 0, 1, targets=(3.0,), num_env_runners=2
    ),
}


@dataclass(frozen=True)
class Turn:
    """What one contender did in one repetition.

    `num_simulated` counts every step of every env, also those that belong to no episode.
    """

    num_steps: int
    seconds: float
    sampling_seconds: float
    num_simulated: int = 0

    @property
    def update_seconds(self) -> float:
        """Seconds in which no env was stepped."""
        return self.seconds - self.sampling_seconds


@dataclass(frozen=True)
class Memory:
    """Megabytes of a process before its first iteration, and at its peak."""

    before: float
    peak: float

    @property
    def grown(self) -> float:
        """How much the iterations needed."""
        return self.peak - self.before


class Clock:
    """Wraps a function and adds up the seconds spent in it."""

    def __init__(self, function: Callable[..., Any]):
        """Takes the function to call."""
        self._function = function
        self.seconds = 0.0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the function."""
        start = time.perf_counter()
        try:
            return self._function(*args, **kwargs)
        finally:
            self.seconds += time.perf_counter() - start


class StepCounter:
    """Counts the steps that the envs of a vector env take, where the simulator is called."""

    def __init__(self, env: VectorEnv):
        """Puts the counter in place of the env's own methods."""
        self.num_steps = 0
        if isinstance(env, SyncVectorEnv):
            for sub_env in env.envs:
                self._count(sub_env, "step", lambda action: 1)
            return
        self._count(env, "step", lambda actions: env.num_envs)
        if isinstance(env, StepsSome):
            self._count(env, "step_some", lambda env_indices, actions: len(env_indices))

    def _count(self, env: Any, name: str, num_steps: Callable[..., int]) -> None:
        step = getattr(env, name)

        def counting(*args: Any) -> Any:
            self.num_steps += num_steps(*args)
            return step(*args)

        setattr(env, name, counting)


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
        config = PPOConfig().training(
            train_batch_size_per_learner=batch_size,
            minibatch_size=batch_size // MINIBATCHES,
            use_kl_loss=False,
        )
        config.environment(row.env).env_runners(gym_env_vectorize_mode=row.vectorize)
        return common_config(config, row, vf_share_layers=False)

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


def gpg_config(row: Row, lr: float = 0.0) -> GPGConfig:
    """Returns GPG's config for a row."""
    config = GPGConfig().training(group_size=row.group_size, num_minibatches=MINIBATCHES)
    if row.envpool_threads:
        config.environment(register_envpool(row.env, num_threads=row.envpool_threads))
        config.env_runners(gym_env_vectorize_mode=NATIVE)
    else:
        config.environment(row.env).env_runners(gym_env_vectorize_mode=row.vectorize)
    config.env_runners(episodes_per_share=row.episodes_per_share)
    return common_config(config, row).training(lr=lr)


def common_config(config: AlgorithmConfig, row: Row, **model_config: Any) -> Any:
    """Sets what GPG and RLlib's PPO have in common."""
    return (
        config.env_runners(
            num_env_runners=row.num_env_runners, num_envs_per_env_runner=row.num_envs
        )
        .learners(num_learners=1 if row.num_env_runners else 0)
        .training(lr=0.0, num_epochs=EPOCHS)
        .rl_module(
            model_config={
                "fcnet_hiddens": HIDDENS,
                "fcnet_activation": "tanh",
                "free_log_std": row.is_continuous,
                **model_config,
            }
        )
        .debugging(seed=SEED, log_level="ERROR")
    )


def actor_parameters(module: torch.nn.Module) -> list[torch.nn.Parameter]:
    """Returns a policy's parameters in the order of `Policy`, for any of the contenders."""
    named = [
        (name, parameter)
        for name, parameter in module.named_parameters()
        if not any(part in name for part in ("critic", "vf", "value"))
    ]
    return [parameter for _, parameter in sorted(named, key=lambda item: "log_std" in item[0])]


def load(module: torch.nn.Module, policy: Policy) -> None:
    """Puts a policy into a contender's module."""
    with torch.no_grad():
        for parameter, value in zip(actor_parameters(module), policy, strict=True):
            parameter.copy_(torch.from_numpy(value))


def start_ray(num_cpus: int) -> None:
    """Starts a small Ray of this process's own."""
    ray.init(
        "local",
        num_cpus=num_cpus,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
    )


def resident_megabytes() -> float:
    """Returns the memory that the process has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def peak_megabytes() -> float:
    """Returns the most memory that the process ever had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


class TrainingGPG(GPG):
    """GPG as it learns, for the policy that all contenders get."""

    def _config(self, row: Row, batch_size: int) -> AlgorithmConfig:
        return gpg_config(row, lr=1e-3)


Contender = RLlib | StableBaselines3


class Process:
    """A contender in a process of its own; calls go there and back."""

    def __init__(self, contender: type[Contender], *args: Any):
        """Starts the process, and the contender with `args`, without waiting for it."""
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(1, mp_context=context)
        self._building = self._pool.submit(_build, contender, *args)

    def wait(self) -> None:
        """Waits until the contender is built."""
        self._building.result()

    def call(self, method: str, *args: Any) -> Any:
        """Calls a method of the contender."""
        future: Future[Any] = self._pool.submit(_call, method, *args)
        return future.result()

    def stop(self) -> None:
        """Ends the process."""
        self._pool.shutdown()


# The contender of a process that `Process` started.
_contender: Contender


def _build(contender: type[Contender], *args: Any) -> None:
    global _contender
    torch.set_num_threads(1)
    # Ray's workers can't import a script.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with contextlib.suppress(ImportError):
        # One warning per HalfCheetah, about a file of gymnasium's.
        import mujoco

        mujoco.set_mju_user_warning(lambda message: None)
    _contender = contender(*args)


def _call(method: str, *args: Any) -> Any:
    return getattr(_contender, method)(*args)


@contextlib.contextmanager
def processes(contenders: Sequence[type[Contender]], *args: Any) -> Iterator[list[Process]]:
    """Runs contenders side by side, each built with `args`."""
    started = [Process(contender, *args) for contender in contenders]
    try:
        for process in started:
            process.wait()
        yield started
    finally:
        for process in started:
            process.stop()


def train_policy(row: Row, known: dict[tuple[str, int], tuple[Policy, float]]) -> tuple[Any, ...]:
    """Returns a row's policy and the mean length of its episodes, from `known` if it is there."""
    key = row.env, row.episode_length
    if key not in known:
        with processes([TrainingGPG], replace(row, num_env_runners=0), [], 0) as [trainer]:
            known[key] = trainer.call("train_to_length", row.episode_length)
    return known[key]


OWN: dict[str, type[Contender]] = {"GPG": GPG, "ridge": RidgeGPG}
PEERS: dict[str, type[Contender]] = {"RLlib": RLlib, "SB3": StableBaselines3}
REMOTE: dict[str, type[Contender]] = {
    "GPG": RemoteGPG,
    "RLlib": RemoteRLlib,
}


def measure(
    row: Row,
    policy: Policy,
    batch_size: int,
    repetitions: int,
    contenders: dict[str, type[Contender]],
) -> tuple[dict[str, list[Turn]], dict[str, Memory]]:
    """Lets all contenders take turns."""
    turns: dict[str, list[Turn]] = {"GPG": [], "bare loop": [], **{name: [] for name in contenders}}
    with processes([*contenders.values()], row, policy, batch_size) as started:
        for process in started:
            process.call("turn", 1)
        for _ in range(repetitions):
            for name, process in zip(contenders, started, strict=True):
                turn = process.call("turn", row.iterations)
                turns[name].append(turn)
                if name == "GPG" and not row.num_env_runners:
                    turns["bare loop"].append(process.call("bare_loop", turn.num_simulated))
        memory = {
            name: process.call("memory") for name, process in zip(contenders, started, strict=True)
        }
    return turns, memory


def per_second(turns: list[Turn], steps: str, seconds: str) -> float:
    """Returns the median over the turns of `steps` per `seconds`, both attributes of a turn."""
    return median(getattr(turn, steps) / getattr(turn, seconds) for turn in turns)


def update_microseconds(turns: list[Turn]) -> float:
    """Returns the median over the turns of the update's time per env step."""
    return median(turn.update_seconds / turn.num_steps for turn in turns) * 1e6


def print_contenders(turns: dict[str, list[Turn]], memory: dict[str, Memory]) -> None:
    """Prints one line per contender."""
    columns = ("steps/s", "sampling", "simulated", "update us/step", "MB before", "MB grown")
    print(f"{'':<12}" + "".join(f"{column:>16}" for column in columns))
    for name, own in turns.items():
        sampling = f"{per_second(own, 'num_steps', 'sampling_seconds'):,.0f}"
        if name == "bare loop":
            cells = ["-", sampling, sampling, "-", "-", "-"]
        else:
            simulated = per_second(own, "num_simulated", "sampling_seconds")
            cells = [
                f"{per_second(own, 'num_steps', 'seconds'):,.0f}",
                sampling,
                f"{simulated:,.0f}" if simulated else "-",
                f"{update_microseconds(own):.2f}",
                f"{memory[name].before:,.0f}",
                f"{memory[name].grown:,.0f}",
            ]
        print(f"{name:<12}" + "".join(f"{cell:>16}" for cell in cells))
    wasted = median(turn.num_simulated / turn.num_steps for turn in turns["GPG"])
    print(f"GPG: {wasted:.2f} steps simulated per step returned", flush=True)


def ratios(turns: dict[str, list[Turn]], memory: dict[str, Memory]) -> tuple[float, ...]:
    """Returns what `RATIOS` names."""
    gpg = per_second(turns["GPG"], "num_steps", "seconds")
    simulated = per_second(turns["GPG"], "num_simulated", "sampling_seconds")
    return (
        gpg / per_second(turns["RLlib"], "num_steps", "seconds"),
        gpg / per_second(turns["SB3"], "num_steps", "seconds"),
        simulated / per_second(turns["bare loop"], "num_simulated", "seconds"),
        update_microseconds(turns["GPG"]) / update_microseconds(turns["RLlib"]),
        memory["GPG"].grown / memory["RLlib"].grown,
        ridge_ratio(turns),
    )


def ridge_ratio(turns: dict[str, list[Turn]]) -> float:
    """Returns how fast GPG is with the ridge, relative to bins."""
    ridge, bins = (per_second(turns[name], "num_steps", "seconds") for name in ("ridge", "GPG"))
    return ridge / bins


def print_simulated(row: Row, policy: Policy, repetitions: int) -> None:
    """Prints how many steps GPG simulates for each step that it returns."""
    with processes([GPG], row, policy, 0) as [gpg]:
        turns = [gpg.call("turn", 1) for _ in range(repetitions)]
    ratios = [turn.num_simulated / turn.num_steps for turn in turns]
    print(
        f"steps simulated / steps returned: {median(ratios):.3f} (median of {len(turns)} groups, "
        f"at most {max(ratios):.3f}; to reach: at most 1.05)"
    )


def print_remote(
    row: Row, policy: Policy, batch_size: int, repetitions: int, *, peers: bool
) -> None:
    """Prints how fast iterations are with remote env runners and a remote learner."""
    contenders = {name: kind for name, kind in REMOTE.items() if peers or kind is not RemoteRLlib}
    turns, _ = measure(row, policy, batch_size, repetitions, contenders)
    with processes([RemoteGPGAhead], row, policy, batch_size) as [ahead]:
        # Alone: in the turns of others it would go on to sample.
        ahead.call("turn", 2)
        own = [ahead.call("turn", row.iterations) for _ in range(repetitions)]
    turns = {**{name: turns[name] for name in contenders}, "GPG ahead": own}
    speeds = {name: per_second(turns[name], "num_steps", "seconds") for name in turns}
    for name, speed in speeds.items():
        print(f"{name:<12}{speed:>10,.0f} steps/s")
    if peers and row.targets is not None:
        ratio = speeds["GPG"] / speeds["RLlib"]
        print(f"GPG / RLlib's PPO: {ratio:.2f} (to reach: >= {row.targets[0]:g})", flush=True)


def print_summary(reached: dict[str, tuple[float, ...]]) -> None:
    """Prints all ratios, each beside what is to be reached."""
    print(f"\n{'reached (to reach)':<34}" + "".join(f"{name:>20}" for name in RATIOS))
    for name, own in reached.items():
        targets = [f">= {target}" for target in ROWS[name].targets or ()]
        cells = zip(own, [*targets, *COST_TARGETS], strict=True)
        print(f"{ROWS[name]!s:<34}" + "".join(f"{f'{r:.2f} ({t})':>20}" for r, t in cells))


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--iterations", type=int, help="per repetition, instead of the row's")
    parser.add_argument("--group-size", type=int, help="instead of the row's")
    parser.add_argument("--episodes-per-share", type=int, help="instead of GPG's default")
    parser.add_argument(
        "--episode-length", type=int, help="to train the policy to, instead of the row's; 0: none"
    )
    parser.add_argument(
        "--without-peers", action="store_true", help="only GPG, with bins and with the ridge"
    )
    return parser.parse_args()


def adjusted(row: Row, args: argparse.Namespace) -> Row:
    """Returns the row with what the command line says instead."""
    given = {
        name: getattr(args, name)
        for name in ("iterations", "group_size", "episodes_per_share", "episode_length")
        if getattr(args, name) is not None
    }
    return replace(row, **given)


def main() -> None:
    """Measures all rows and prints their tables."""
    args = parse_args()
    known: dict[tuple[str, int], tuple[Policy, float]] = {}
    reached = {}
    for name in args.rows:
        row = adjusted(ROWS[name], args)
        policy, length = train_policy(row, known)
        # A multiple of envs and of minibatches, so that nothing is left over.
        unit = row.num_envs * MINIBATCHES
        batch_size = max(1, round(length * row.group_size / unit)) * unit
        print(
            f"\n{row}: {row.group_size} episodes of {length:.0f} steps in the mean, for PPO "
            f"batches of {batch_size:,}",
            flush=True,
        )
        if row.num_env_runners:
            peers = not args.without_peers
            print_remote(row, policy, batch_size, args.repetitions, peers=peers)
            continue
        if row.targets is None:
            print_simulated(row, policy, args.repetitions)
            continue
        contenders = OWN if args.without_peers else {**OWN, **PEERS}
        turns, memory = measure(row, policy, batch_size, args.repetitions, contenders)
        print_contenders(turns, memory)
        if args.without_peers:
            print(f"ridge / bins: {ridge_ratio(turns):.3f}", flush=True)
        else:
            reached[name] = ratios(turns, memory)
    if reached:
        print_summary(reached)


if __name__ == "__main__":
    main()
