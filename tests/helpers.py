"""What several tests do: build an algorithm, sample a group, look at its episodes."""

from __future__ import annotations

import copy
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import ray
import torch
import tree
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.torch.torch_rl_module import TorchRLModule
from ray.rllib.utils.metrics.metrics_logger import MetricsLogger
from ray.rllib.utils.spaces.space_utils import flatten_space

from rllib_gpg import GPG, GPGConfig
from rllib_gpg.learning import GPGTorchLearner, pipeline

SMALL_NET = {"fcnet_hiddens": [8]}

# What docs/reference/metrics.md promises in the results of a module, from the first iteration.
GROUP_METRICS = {
    "group_num_episodes",
    "group_num_env_steps",
    "group_num_bins",
    "group_singleton_fraction",
    "baseline_explained_variance",
    "bins_explained_variance",
    "group_return_mean",
    "group_return_std",
    "group_return_p10",
    "group_return_p90",
    "clip_fraction",
    "policy_loss",
    "entropy",
    "mean_kl_loss",
}


def start_ray() -> None:
    """A Ray for tests. Its CPUs are only numbers: actors here do next to nothing.

    By default it takes a third of the memory for objects, as if it were alone on the machine.
    """
    ray.init(
        address="local",
        num_cpus=8,
        object_store_memory=256 * 2**20,
        include_dashboard=False,
        log_to_driver=False,
    )


def small_config(env: Any, **training: Any) -> GPGConfig:
    """A config with a small network and 4 envs in one process.

    Without RLlib's monitor of the machine, whose end takes up to 0.7 s.
    """
    return (
        GPGConfig()
        .environment(env)
        .env_runners(num_envs_per_env_runner=4)
        .training(**{"group_size": 8, **training})
        .rl_module(model_config=SMALL_NET)
        .debugging(seed=1, log_sys_usage=False)
    )


@contextmanager
def built(config: GPGConfig) -> Iterator[GPG]:
    algo = config.build_algo()
    try:
        yield algo
    finally:
        algo.stop()


@contextmanager
def watchdog(algo: GPG, seconds: float) -> Iterator[None]:
    """Fails the test if what is inside takes longer: kills the learners, which ends the waiting.

    No signal does: a driver that waits for its actors handles none.
    """
    hangs = threading.Event()

    def kill() -> None:
        hangs.set()
        for learner in algo.learner_group._workers:
            ray.kill(learner)

    timer = threading.Timer(seconds, kill)
    timer.start()
    try:
        yield
    except Exception:
        if hangs.is_set():
            pytest.fail(f"It hangs: nothing came of it within {seconds} s.")
        raise
    finally:
        timer.cancel()


@contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl+C raises `KeyboardInterrupt`, which whatever is inside must let through.

    A process that was started in the background of a script ignores it, and one that ran Tune
    keeps Tune's way of taking it.
    """
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            yield
    finally:
        signal.signal(signal.SIGINT, handler)


def interrupt(*_: Any) -> None:
    """Ctrl+C."""
    os.kill(os.getpid(), signal.SIGINT)


@contextmanager
def guarded(config: GPGConfig) -> Iterator[GPG]:
    """Far longer than any test here takes, far shorter than the half hour of DDP's own limit."""
    with built(config) as algo:
        if config.num_learners == 0:
            yield algo
        else:
            with watchdog(algo, 120.0):
                yield algo


def each_learner(algo: GPG, function: Callable[[Any], Any]) -> list[Any]:
    """What the function gives for each learner."""
    results = algo.learner_group.foreach_learner(function)
    return [result.get() for result in results.result_or_errors]


def sample_group(algo: GPG) -> list[Any]:
    """The next group, sampled as `training_step` samples it."""
    episodes = algo._sample_group(algo._policy.weights)
    algo._groups.take_note()
    return episodes


def run_pipeline(algo: GPG, episodes: list[Any], config: GPGConfig | None = None) -> dict[str, Any]:
    """RLlib's whole learner pipeline, as the config (by default the algorithm's) builds it."""
    connectors = (config or algo.config).build_learner_connector(None, None)
    learners = algo.learner_group.foreach_learner(lambda learner: learner.module)
    return connectors(
        rl_module=learners.result_or_errors[0].get(),
        batch={},
        episodes=episodes,
        shared_data={},
        metrics=MetricsLogger(root=False),
    )[DEFAULT_MODULE_ID]


def whole_group(algo: GPG, episodes: list[Any]) -> dict[str, Any]:
    """The batch of each module, as the pipeline of the first learner makes it."""
    (result,) = algo.learner_group.foreach_learner(
        lambda learner: pipeline.run_pipeline(learner, episodes, MetricsLogger(root=False)),
        remote_actor_ids=[0],
    )
    return result.get()


class PlusTheStep(ConnectorV2):
    """Shapes rewards: adds 1, 2, 3, .. to those of an episode."""

    def __call__(self, *, batch: Any, episodes: Any, **kwargs: Any) -> Any:
        for episode in self.single_agent_episode_iterator(episodes):
            shaped = episode.get_rewards() + np.arange(1, len(episode) + 1)
            episode.set_rewards(new_data=shaped)
        return batch


class LinearPolicy(TorchRLModule):
    """A user's own module: one layer on observations of any space, no value function."""

    def setup(self) -> None:
        super().setup()
        sizes = [int(np.prod(leaf.shape)) for leaf in flatten_space(self.observation_space)]
        self.policy = torch.nn.Linear(sum(sizes), self.action_space.n)

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        leaves = [
            leaf.flatten(1) if leaf.dim() > 1 else leaf[:, None]
            for leaf in tree.flatten(batch[Columns.OBS])
        ]
        return {Columns.ACTION_DIST_INPUTS: self.policy(torch.cat(leaves, 1).float())}


class Recorder(GPGTorchLearner):
    """Writes down the real steps of each minibatch, and the gradients as the optimizer gets them.

    A step is an observation, which names it, and its advantage.
    """

    def build(self) -> None:
        super().build()
        self.steps: list[np.ndarray] = []
        self.gradients: list[np.ndarray] = []

    def compute_loss_for_module(self, *, batch: dict[str, Any], **kwargs: Any) -> torch.Tensor:
        columns = torch.cat([batch[Columns.OBS], batch[Columns.ADVANTAGES][..., None]], -1)
        mask = batch.get(Columns.LOSS_MASK)
        self.steps.append((columns if mask is None else columns[mask]).cpu().numpy())
        return super().compute_loss_for_module(batch=batch, **kwargs)

    def apply_gradients(self, gradients_dict: dict[Any, torch.Tensor]) -> None:
        gradients = [gradient.flatten() for gradient in gradients_dict.values()]
        self.gradients.append(torch.cat(gradients).cpu().numpy())
        super().apply_gradients(gradients_dict)


def fingerprint(episodes: list[Any]) -> list[tuple[Any, ...]]:
    """What makes two episodes the same: observations, actions, rewards."""
    return [
        (
            np.asarray(e.get_observations()).tobytes(),
            np.asarray(e.get_actions()).tobytes(),
            np.asarray(e.get_rewards()).tobytes(),
        )
        for e in episodes
    ]


def module_results(result: dict[str, Any]) -> dict[str, Any]:
    return result["learners"][DEFAULT_MODULE_ID]


def snapshot(algo: GPG) -> dict[str, Any]:
    """Copies of all that learning changes: module, optimizer, what connector pieces remember.

    Copies, because a learner's state is a view of its live parameters.
    """
    state = algo.learner_group.foreach_learner(lambda learner: learner.get_state())
    state = state.result_or_errors[0].get()
    parts = ("rl_module", "optimizer", "connector_pieces")
    return copy.deepcopy({name: state[name] for name in parts})


def same(one: Any, other: Any) -> bool:
    """Whether two snapshots are equal to the last bit."""
    ones, others = (tree.flatten_with_path(nested) for nested in (one, other))
    return [path for path, _ in ones] == [path for path, _ in others] and all(
        np.array_equal(a, b) for (_, a), (_, b) in zip(ones, others, strict=True)
    )


@contextmanager
def logged_warnings() -> Iterator[list[str]]:
    """What is logged meanwhile as a warning of RLlib's or ours, each once.

    Whether `caplog` sees it once, twice or never depends on what Ray did to its loggers before.
    """
    messages: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())
    logger = logging.getLogger("ray.rllib")
    logger.addHandler(handler)
    try:
        yield messages
    finally:
        logger.removeHandler(handler)
