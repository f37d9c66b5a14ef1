"""With several learners, advantages and gradients are those of one, and nothing ever hangs."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tree
from ray.rllib.core import DEFAULT_MODULE_ID

from rllib_gpg import GPGConfig, presets
from rllib_gpg.learning import GPGTorchLearner
from tests.envs import Identity, ShortOrLong
from tests.helpers import (
    SMALL_NET,
    PlusTheStep,
    Recorder,
    built,
    each_learner,
    guarded,
    module_results,
    same,
    sample_group,
    small_config,
    watchdog,
)

pytestmark = pytest.mark.usefixtures("ray_session")

LSTM = {**SMALL_NET, "use_lstm": True, "lstm_cell_size": 4, "max_seq_len": 16}
# Gradients of a nearly uniform first policy would be all but the same for all steps.
FIRST_POLICY = {"head_fcnet_kernel_initializer_kwargs": {"gain": 1.0}}


def one_update(config: GPGConfig, num_learners: int) -> tuple[np.ndarray, list[Any], Any]:
    """All steps that the learners saw in one full-batch update, gradients, and results."""
    config = config.copy(copy_frozen=False)
    config.training(num_epochs=1, num_minibatches=1, grad_clip=None)
    config.learners(num_learners=num_learners, learner_class=Recorder)
    with guarded(config) as algo:
        results = module_results(algo.train())
        recorded = each_learner(algo, lambda learner: (learner.steps, learner.gradients))
    assert len(recorded) == max(1, num_learners)
    assert all(len(steps) == len(gradients) == 1 for steps, gradients in recorded)
    steps = np.concatenate([steps[0] for steps, _ in recorded])
    # In an order of their own; a sequence that several learners got counts once.
    return np.unique(steps, axis=0), [gradients[0] for _, gradients in recorded], results


def uneven(*, shaped: bool = False, **training: Any) -> GPGConfig:
    """Episodes of 5 or 200 steps; 7 of them are an odd number of steps, as are 5."""
    config = small_config(ShortOrLong, **{"group_size": 7, **training})
    if shaped:
        config.learners(learner_connector=lambda obs_space, act_space: PlusTheStep())
    return config.rl_module(model_config={**SMALL_NET, **FIRST_POLICY})


@pytest.mark.parametrize(
    ("config", "num_learners"),
    [
        pytest.param(uneven(shaped=True), [2], id="uneven-lengths-and-shaped-rewards"),
        pytest.param(uneven(shaped=True), [1], id="one-remote-learner", marks=pytest.mark.slow),
        # Universal bins: with time bins, one episode is its own baseline.
        pytest.param(
            uneven(group_size=1, binning="universal"),
            [2],
            id="fewer-episodes-than-learners",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            uneven(shaped=True).rl_module(model_config={**LSTM, **FIRST_POLICY}),
            [1, 2],
            id="recurrent",
            marks=pytest.mark.slow,
        ),
        # Whole trajectories are dealt, and their steps don't all count the same.
        pytest.param(
            uneven(ratio_level="trajectory", loss_averaging="trajectories"),
            [1, 2],
            id="whole-trajectories",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            uneven(ratio_level="trajectory", loss_averaging=100).rl_module(
                model_config={**LSTM, **FIRST_POLICY}
            ),
            [2],
            id="whole-recurrent-trajectories",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            uneven(**{**presets.GRPO, "surrogate": "soft_gate"}),
            [2],
            id="reference",
            marks=pytest.mark.slow,
        ),
        # Episodes of 10 steps are one sequence each, of which each learner gets a copy.
        pytest.param(
            small_config(Identity, group_size=1, binning="universal").rl_module(
                model_config={**LSTM, **FIRST_POLICY}
            ),
            [2],
            id="fewer-sequences-than-learners",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_advantages_and_gradients_are_those_of_one_learner(
    config: GPGConfig, num_learners: list[int]
) -> None:
    steps, (gradient,), results = one_update(config, 0)
    assert len(steps) == results["group_num_env_steps"]
    assert steps[:, -1].std() > 0.1
    assert np.linalg.norm(gradient) > 0.0
    for number in num_learners:
        others, gradients, other_results = one_update(config, number)
        # The observations to the last bit, and the advantages.
        np.testing.assert_array_equal(others, steps)
        for other in gradients:
            # Sums of float32 in another order.
            distance = np.linalg.norm(other - gradient) / np.linalg.norm(gradient)
            assert distance < 1e-5
        for name in ("policy_loss", "entropy", "total_loss"):
            assert other_results[name] == pytest.approx(results[name], rel=1e-4, abs=1e-6), name


# What learners hold besides weights.


def with_two(num_iterations: int, kl_target: float) -> list[tuple[Any, list[Any]]]:
    """After each iteration of two learners, the results and what each learner holds."""
    config = small_config(Identity, lr=0.01, use_kl_loss=True, kl_target=kl_target, group_size=2)
    config.rl_module(model_config={**SMALL_NET, "normalize_observations": True})
    with guarded(config.learners(num_learners=2)) as algo:
        return [
            (module_results(algo.train()), each_learner(algo, held)) for _ in range(num_iterations)
        ]


@pytest.fixture(scope="module")
def run_of_two(ray_session: None) -> list[tuple[Any, list[Any]]]:
    """The first KL is twice the target: above it on one learner's steps, below on the other's."""
    ((results, _),) = with_two(1, kl_target=1.0)
    return with_two(6, kl_target=results["mean_kl_loss"] / 2.0)


def held(learner: GPGTorchLearner) -> Any:
    normalizer = learner.module[DEFAULT_MODULE_ID].unwrapped().observation_normalizer
    statistics = {name: value.numpy().copy() for name, value in normalizer.named_buffers()}
    return learner.kl_coeff(DEFAULT_MODULE_ID), statistics, learner.get_state()["rl_module"]


@pytest.mark.slow
def test_a_single_remote_learner_keeps_its_batch_and_learns_as_a_local_one() -> None:
    """It doesn't leave the device of the learner that has made it."""
    weights = []
    for num_learners in (0, 1):
        config = uneven(num_minibatches=3, num_epochs=2).learners(num_learners=num_learners)
        with guarded(config) as algo:
            algo.train()
            weights.append(algo.learner_group.get_weights())
            assert each_learner(algo, lambda learner: learner.kept_batch) == [None]
            group = algo._estimate_advantages(algo._sample_group(algo._policy.weights))
            kept = each_learner(algo, lambda learner: learner.kept_batch is not None)
            assert ([shard is None for shard in group.shards], kept) == ([num_learners == 1],) * 2
            # Another group takes its place.
            algo.train()
            assert each_learner(algo, lambda learner: learner.kept_batch) == [None]
    for local, remote in zip(*map(tree.flatten, weights), strict=True):
        np.testing.assert_allclose(local, remote, rtol=0, atol=1e-6)


def test_the_kl_coefficient_is_the_same_on_all_learners(run_of_two: Any) -> None:
    for results, ((one, *_), (other, *_)) in run_of_two:
        assert one == other == results["curr_kl_coeff"]
    assert len({one for _, ((one, *_), _) in run_of_two}) > 1


@pytest.mark.slow
def test_observation_statistics_are_the_same_on_all_learners(run_of_two: Any) -> None:
    total = 0
    for results, ((_, one, _), (_, other, _)) in run_of_two:
        assert same(one, other)
        total += results["group_num_env_steps"]
        assert one["count"] == total


@pytest.mark.slow
def test_weights_are_the_same_on_all_learners(run_of_two: Any) -> None:
    for _, ((*_, one), (*_, other)) in run_of_two:
        assert same(one, other)


# No hang.


@pytest.mark.slow
@pytest.mark.parametrize("model_config", [SMALL_NET, LSTM], ids=["stateless", "recurrent"])
@pytest.mark.parametrize("minibatches", [{"num_minibatches": 4}, {"minibatch_size": 7}], ids=str)
def test_groups_of_any_size_never_hang(
    model_config: dict[str, Any], minibatches: dict[str, int]
) -> None:
    config = small_config(ShortOrLong, group_size=6, num_epochs=3, **minibatches)
    config.rl_module(model_config=model_config).learners(num_learners=2)
    with guarded(config) as algo:
        episodes = sample_group(algo)
        assert len({len(episode) for episode in episodes}) == 2
        before = each_learner(algo, lambda learner: learner.get_state()["rl_module"])[0]
        for size in range(1, 7):
            algo._update(algo._estimate_advantages(episodes[:size]))
        after = each_learner(algo, lambda learner: learner.get_state()["rl_module"])
    assert same(after[0], after[1])
    assert not same(after[0], before)


class Dies(GPGTorchLearner):
    """The second of two learners dies in its third minibatch."""

    num_minibatches = 0

    def compute_loss_for_module(self, **kwargs: Any) -> torch.Tensor:
        self.num_minibatches += 1
        if self.num_minibatches == 3 and torch.distributed.get_rank() == 1:
            os._exit(1)
        return super().compute_loss_for_module(**kwargs)


class Raises(GPGTorchLearner):
    """The second of two learners raises, or both do."""

    def compute_loss_for_module(self, **kwargs: Any) -> torch.Tensor:
        if torch.distributed.get_rank() >= self.config.learner_config_dict["from"]:
            raise ArithmeticError("The loss can't be.")
        return super().compute_loss_for_module(**kwargs)


class Hangs(GPGTorchLearner):
    """The second of two learners hangs."""

    def compute_loss_for_module(self, **kwargs: Any) -> torch.Tensor:
        if torch.distributed.get_rank() == 1:
            time.sleep(3600)
        return super().compute_loss_for_module(**kwargs)


def two_learners(learner_class: type[GPGTorchLearner]) -> GPGConfig:
    return small_config(Identity).learners(num_learners=2, learner_class=learner_class)


@pytest.mark.slow
def test_a_learner_that_dies_ends_the_run_with_an_error() -> None:
    with guarded(two_learners(Dies)) as algo:
        start = time.monotonic()
        with pytest.raises(Exception, match=r"Connection (closed|reset) by peer"):
            algo.train()
        assert time.monotonic() - start < 30.0


@pytest.mark.slow
@pytest.mark.parametrize("first", [1, 0], ids=["alone", "both"])
def test_a_learner_that_raises_ends_the_run_with_its_error(first: int, tmp_path: Path) -> None:
    """And not after the half hour for which the other would wait for its gradients."""
    config = two_learners(Raises).training(learner_config_dict={"from": first})
    with guarded(config) as algo:
        path = algo.save_to_path(tmp_path / "before")
        start = time.monotonic()
        with pytest.raises(ArithmeticError, match="can't be") as caught:
            algo.train()
        assert time.monotonic() - start < 30.0
        notes = " ".join(caught.value.__notes__)
        if first == 1:
            assert "were stopped" in notes
        else:
            assert "On another learner" in notes and "were stopped" not in notes
            # Nobody was left waiting: all of them are still there.
            algo.save_to_path(tmp_path / "after")
    config.training(learner_class=GPGTorchLearner)
    with guarded(config) as algo:
        algo.restore_from_path(path)
        algo.train()


@pytest.mark.slow
def test_the_watchdog_ends_a_hang_and_leaves_no_learner_behind() -> None:
    with built(two_learners(Hangs)) as algo:
        pids = each_learner(algo, lambda learner: os.getpid())
        with pytest.raises(pytest.fail.Exception, match="It hangs"), watchdog(algo, 5.0):
            algo.train()
    deadline = time.monotonic() + 30.0
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.1)


# GPUs.


class OtherDevice(GPGTorchLearner):
    """To RLlib `cpu:0` is another device than that of the shards, `cpu`: it moves them."""

    def build(self) -> None:
        super().build()
        self._device = torch.device("cpu", 0)


@pytest.mark.parametrize("model_config", [SMALL_NET, LSTM], ids=["stateless", "recurrent"])
def test_shards_are_moved_to_the_learners_device(model_config: dict[str, Any]) -> None:
    """Two epochs, because RLlib shuffles between them, and sequences only if they are padded."""
    config = small_config(ShortOrLong, num_epochs=2).rl_module(model_config=model_config)
    entropies = []
    for learner_class in (GPGTorchLearner, OtherDevice):
        with built(config.copy(copy_frozen=False).learners(learner_class=learner_class)) as algo:
            entropies.append(module_results(algo.train())["entropy"])
    assert entropies[0] == entropies[1]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU on this machine")
@pytest.mark.parametrize("num_learners", [0, 1])
@pytest.mark.parametrize("model_config", [SMALL_NET, LSTM], ids=["stateless", "recurrent"])
def test_learners_on_a_gpu(num_learners: int, model_config: dict[str, Any]) -> None:
    config = small_config(ShortOrLong, use_kl_loss=True)
    config.rl_module(model_config={**model_config, "normalize_observations": True})
    results = []
    for num_gpus in (0, 1):
        config = config.copy(copy_frozen=False)
        config.learners(num_learners=num_learners, num_gpus_per_learner=num_gpus)
        with built(config) as algo:
            devices = each_learner(algo, device_of_parameters)
            assert devices == [{"cuda" if num_gpus else "cpu"}]
            results.append([module_results(algo.train()) for _ in range(2)])
    for on_cpu, on_gpu in zip(*results, strict=True):
        for name in ("entropy", "mean_kl_loss", "curr_kl_coeff"):
            assert on_gpu[name] == pytest.approx(on_cpu[name], rel=1e-2), name


def device_of_parameters(learner: GPGTorchLearner) -> set[str]:
    module = learner.module[DEFAULT_MODULE_ID]
    return {tensor.device.type for tensor in (*module.parameters(), *module.buffers())}
