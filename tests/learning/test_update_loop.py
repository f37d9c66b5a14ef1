"""The update goes through a group as RLlib's own does: the same minibatches, the same weights."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.learner import Learner
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.core.learner.training_data import TrainingData
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch
from ray.rllib.utils.minibatch_utils import MiniBatchCyclicIterator

from rllib_gpg.learning import GPGTorchLearner
from rllib_gpg.learning.batch import multi_agent_batch, plan_minibatches, take_rows
from rllib_gpg.learning.minibatches import Minibatches
from rllib_gpg.learning.update_loop import UpdateLoop
from tests.envs import Identity, MultiIdentity, ShortOrLong
from tests.helpers import SMALL_NET, built, module_results, small_config

pytestmark = pytest.mark.usefixtures("ray_session")

LSTM = {**SMALL_NET, "use_lstm": True, "lstm_cell_size": 4, "max_seq_len": 4}


def of_steps(num_rows: int) -> SampleBatch:
    return SampleBatch({"x": torch.arange(num_rows), "nested": {"y": torch.arange(num_rows) * 2}})


def of_sequences(num_rows: int) -> SampleBatch:
    columns = {
        "x": torch.arange(num_rows * 4).reshape(num_rows, 4),
        "nested": {"y": torch.arange(num_rows)},
        Columns.SEQ_LENS: torch.arange(num_rows) % 4 + 1,
    }
    batch = SampleBatch(columns, _zero_padded=True)
    batch.enable_slicing_by_batch_id()
    return batch


@pytest.mark.parametrize("num_total", [0, 9])
@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize(
    ("make", "size"),
    # A minibatch holds at least one sequence, here of 2.5 steps on average.
    [*((of_steps, n) for n in (1, 3, 7, 10, 13)), *((of_sequences, n) for n in (3, 7, 13, 30))],
)
def test_minibatches_are_rllibs(make: Any, size: int, shuffle: bool, num_total: int) -> None:
    """Two modules, the second of which has fewer rows and goes round more often."""

    def drawn(of: Any) -> list[dict[str, Any]]:
        state = np.random.get_state()
        np.random.seed(5)
        batch = MultiAgentBatch({"a": make(13), "b": make(5)}, env_steps=13)
        minibatches = [
            {mid: plain(columns) for mid, columns in getattr(m, "policy_batches", m).items()}
            for m in of(batch)
        ]
        np.random.set_state(state)
        return minibatches

    def plain(columns: Any) -> dict[str, Any]:
        leaves = {name: columns[name] for name in columns if name != "nested"}
        return {n: v.tolist() for n, v in {**leaves, "y": columns["nested"]["y"]}.items()}

    theirs = drawn(
        lambda batch: MiniBatchCyclicIterator(
            batch,
            num_epochs=3,
            minibatch_size=size,
            shuffle_batch_per_epoch=shuffle,
            num_total_minibatches=num_total,
        )
    )
    ours = drawn(
        lambda batch: Minibatches(
            batch, size=size, num_epochs=3, num_total=num_total, shuffle=shuffle
        )
    )
    assert ours == theirs
    assert len(ours) == num_total or num_total == 0


def test_an_order_is_that_of_a_batch_whose_rows_were_taken_in_it() -> None:
    columns, order = of_steps(10), np.random.default_rng(0).permutation(10)
    runs = []
    for batch, first in ((take_rows(columns, order), None), (columns, {"a": order})):
        np.random.seed(0)
        minibatches = Minibatches(
            multi_agent_batch({"a": batch}),
            size=4,
            num_epochs=3,
            num_total=0,
            shuffle=True,
            order=first,
        )
        runs.append([minibatch["a"]["x"].tolist() for minibatch in minibatches])
    assert runs[0] == runs[1]


@pytest.mark.parametrize("make", [of_steps, of_sequences])
def test_infos_stay_with_their_rows_when_these_are_shuffled(make: Any) -> None:
    """They are a list without padding, which RLlib's own shuffle leaves as it is."""
    columns = dict(make(9))
    lengths = columns.get(Columns.SEQ_LENS, torch.ones(9, dtype=torch.int64)).tolist()
    of_steps_by_row = [row for row, length in enumerate(lengths) for _ in range(length)]
    columns[Columns.INFOS] = [{"row": row} for row in of_steps_by_row]
    columns["row"] = torch.arange(9)
    batch = multi_agent_batch({"a": columns})
    minibatches = Minibatches(batch, size=6, num_epochs=3, num_total=0, shuffle=True)
    orders = set()
    for minibatch in minibatches:
        rows = minibatch["a"]["row"].tolist()
        orders.add(tuple(rows))
        infos = [info["row"] for info in minibatch["a"][Columns.INFOS]]
        assert infos == [row for row in rows for _ in range(lengths[row])]
    assert len(orders) == minibatches.count > 3


def test_a_module_of_few_long_sequences_gives_one_at_a_time() -> None:
    """However few of its steps a minibatch of the module with the most steps has."""
    long = SampleBatch(
        {"x": torch.arange(600).reshape(3, 200), Columns.SEQ_LENS: torch.tensor([200] * 3)},
        _zero_padded=True,
    )
    batch = MultiAgentBatch({"a": of_steps(700), "b": long}, env_steps=700)
    minibatches = list(Minibatches(batch, size=175, num_epochs=1, num_total=4, shuffle=False))
    assert [len(minibatch["b"]["x"]) for minibatch in minibatches] == [1] * 4


def test_epochs_of_small_groups_are_as_many_as_were_asked_for() -> None:
    """4 passes over 130 steps are 520 steps, or 5 minibatches of 128; an epoch each would be 8."""
    for num_steps, expected in ((130, 5), (128, 4), (512, 16), (20, 4)):
        shard = MultiAgentBatch({"a": of_steps(num_steps)}, env_steps=num_steps)
        plan = plan_minibatches([shard], num_epochs=4, num_minibatches=4, minibatch_size=128)
        assert plan.num_total_minibatches == expected, num_steps


def test_the_last_epoch_is_known() -> None:
    batch = MultiAgentBatch({"a": of_steps(10)}, env_steps=10)
    minibatches = Minibatches(batch, size=4, num_epochs=3, num_total=9, shuffle=True)
    assert [minibatches.in_last_epoch for _ in minibatches] == [False] * 6 + [True] * 3
    assert minibatches.count == 9 and minibatches.num_steps == {"a": 36}


def test_without_a_size_each_minibatch_is_the_whole_batch() -> None:
    batch = MultiAgentBatch({"a": of_steps(4), "b": of_sequences(6)}, env_steps=6)
    minibatches = Minibatches(batch, size=None, num_epochs=2, num_total=0, shuffle=True)
    seen = [{mid: columns["x"] for mid, columns in m.items()} for m in minibatches]
    assert len(seen) == 2
    assert all(m["a"] is batch["a"]["x"] and len(m["b"]) == 6 for m in seen)
    assert minibatches.num_steps == {"a": 8, "b": 2 * (1 + 2 + 3 + 4 + 1 + 2)}


class RLlibsLoop(GPGTorchLearner):
    """GPG's loss in RLlib's own update, with RLlib's optimizer."""

    configure_optimizers_for_module = TorchLearner.configure_optimizers_for_module
    _uncompiled_update = TorchLearner._uncompiled_update
    postprocess_gradients_for_module = Learner.postprocess_gradients_for_module
    apply_gradients = TorchLearner.apply_gradients

    def after_gradient_based_update(self, **kwargs: Any) -> None:
        # RLlib's loop doesn't say which epoch it is in.
        for module_id, rows in self._loss_stats.items():
            self._loss_stats[module_id] = rows[-len(rows) // self.config.num_epochs :]
        super().after_gradient_based_update(**kwargs)


def rllibs_update(learner: Any, *, training_data: Any, order: Any, **kwargs: Any) -> Any:
    """RLlib's loop goes through a batch as it is."""
    modules = training_data.batch.policy_batches.items()
    ordered = multi_agent_batch({mid: take_rows(columns, order[mid]) for mid, columns in modules})
    return Learner.update(learner, training_data=TrainingData(batch=ordered), **kwargs)


COUNTED = (
    "num_module_steps_trained",
    "num_module_steps_trained_lifetime",
    "module_train_batch_size_mean",
    "weights_seq_no",
    "diff_num_grad_updates_vs_sampler_policy",
)
MEASURED = (
    "policy_loss",
    "total_loss",
    "entropy",
    "mean_kl_loss",
    "clip_fraction",
    "gradients_default_optimizer_global_norm",
)


@pytest.mark.parametrize(
    ("settings", "model"),
    [
        pytest.param({}, SMALL_NET, id="clipped-by-global-norm"),
        pytest.param({"grad_clip": 1e-3}, SMALL_NET, id="clipped-hard"),
        pytest.param({"grad_clip": None}, SMALL_NET, id="not-clipped"),
        pytest.param({"grad_clip": 0.01, "grad_clip_by": "value"}, SMALL_NET, id="by-value"),
        pytest.param({"num_minibatches": 1}, SMALL_NET, id="whole-group"),
        pytest.param({"entropy_coeff": 0.01, "use_kl_loss": True}, SMALL_NET, id="entropy-and-kl"),
        pytest.param({}, LSTM, id="recurrent"),
    ],
)
def test_the_policy_moves_as_in_rllibs_loop(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], model: dict[str, Any]
) -> None:
    """Up to rounding: Adam's operations are fused, and norms added up in another order."""
    results, weights = [], []
    for learner_class in (GPGTorchLearner, RLlibsLoop):
        with monkeypatch.context() as patch:
            if learner_class is RLlibsLoop:
                patch.setattr(UpdateLoop, "update", rllibs_update)
            config = small_config(ShortOrLong, learner_class=learner_class, lr=0.01, **settings)
            config.rl_module(model_config=model)
            with built(config) as algo:
                results.append([algo.train() for _ in range(2)])
                weights.append(algo.get_module().state_dict())
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], rtol=1e-3, atol=1e-4)
    for ours, theirs in zip(*results, strict=True):
        ours, theirs = module_results(ours), module_results(theirs)
        assert set(ours) == set(theirs)
        for name in set(COUNTED) & set(theirs):
            assert ours[name] == pytest.approx(theirs[name]), name
        for name in set(MEASURED) & set(theirs):
            assert ours[name] == pytest.approx(theirs[name], rel=0.01, abs=1e-4), name
    for name in ("num_env_steps_trained", "num_module_steps_trained"):
        first, second = (run[-1]["learners"]["__all_modules__"][name] for run in results)
        assert first == second, name


def test_gradients_that_are_not_finite_are_set_to_zero(caplog: pytest.LogCaptureFixture) -> None:
    """As RLlib says it does, with its warning."""

    class Broken(GPGTorchLearner):
        def compute_loss_for_module(self, **kwargs: Any) -> torch.Tensor:
            return super().compute_loss_for_module(**kwargs) * float("nan")

    with built(small_config(Identity, learner_class=Broken)) as algo:
        before = algo.get_module().state_dict()
        before = {name: value.clone() for name, value in before.items()}
        algo.train()
        after = algo.get_module().state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert "nan/inf" in caplog.text


class Solvable(Identity):
    """From `is_solved` on every action gets the same reward, which binary numbers don't have."""

    is_solved = False

    def step(self, action: int) -> Any:
        observation, reward, *rest = super().step(action)
        return observation, 0.1 if self.is_solved else reward, *rest


@pytest.mark.parametrize(
    ("training", "num_learners", "schedulers"),
    [
        ({}, 0, None),
        ({"binning": "universal", "credit": "outcome"}, 0, None),
        ({}, 2, None),
        # RLlib's own way of applying gradients.
        ({}, 0, [partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.9)]),
    ],
)
def test_a_group_of_equal_returns_moves_nothing(
    training: dict[str, Any],
    num_learners: int,
    schedulers: list[Any] | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Adam's momentum would, and has destroyed policies that had solved their task."""
    config = small_config(Solvable, lr=0.01, **training).learners(num_learners=num_learners)
    config.experimental(_torch_lr_scheduler_classes=schedulers)
    with built(config) as algo:
        algo.train()
        before = algo.learner_group.get_weights()["default_policy"]
        algo.train()
        after = algo.learner_group.get_weights()["default_policy"]
        assert any(not np.array_equal(after[name], before[name]) for name in before)
        monkeypatch.setattr(Solvable, "is_solved", True)
        results = module_results(algo.train())
        assert results["group_advantage_std"] == 0.0
        again = algo.learner_group.get_weights()["default_policy"]
        assert all(np.array_equal(again[name], after[name]) for name in after)


def test_a_bonus_moves_the_policy_without_a_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Solvable, "is_solved", True)
    with built(small_config(Solvable, lr=0.1, entropy_coeff=0.1)) as algo:
        entropies = [module_results(algo.train())["entropy"] for _ in range(3)]
    assert entropies[-1] > entropies[0]


class OneOptimizer(GPGTorchLearner):
    """RLlib's recipe for encoders that modules share."""

    def configure_optimizers(self) -> None:
        parameters = [p for module in self.module.values() for p in module.parameters()]
        self.register_optimizer(
            optimizer_name="shared",
            optimizer=torch.optim.Adam(parameters),
            params=parameters,
            lr_or_lr_schedule=self.config.lr,
        )


@pytest.mark.parametrize("learner_class", [GPGTorchLearner, OneOptimizer])
@pytest.mark.parametrize("log_gradients", [False, True])
@pytest.mark.parametrize("grad_clip", [None, 0.5])
def test_who_owns_optimizers_and_who_logs_gradients_learns(
    learner_class: Any, log_gradients: bool, grad_clip: float | None
) -> None:
    config = small_config(Identity, lr=0.01, grad_clip=grad_clip, learner_class=learner_class)
    with built(config.reporting(log_gradients=log_gradients)) as algo:
        before = algo.learner_group.get_weights()["default_policy"]
        before = {name: value.copy() for name, value in before.items()}
        algo.train()
        after = algo.learner_group.get_weights()["default_policy"]
    assert any(not np.array_equal(after[name], before[name]) for name in before)


def test_an_optimizer_of_all_modules_goes_on_without_one_of_them() -> None:
    config = small_config(MultiIdentity, lr=0.01, learner_class=OneOptimizer)
    config.environment(env_config={"num_agents": 2})
    config.multi_agent(
        policies={"a", "b"}, policy_mapping_fn=lambda agent, episode: "ab"[int(agent)]
    )
    with built(config) as algo:
        algo.train()
        algo.remove_module("b", new_agent_to_module_mapping_fn=lambda agent, episode: "a")
        before = algo.learner_group.get_weights()["a"]
        before = {name: value.copy() for name, value in before.items()}
        algo.train()
        after = algo.learner_group.get_weights()["a"]
    assert any(not np.array_equal(after[name], before[name]) for name in before)


def test_clipping_is_of_the_gradient_not_of_what_a_scaler_makes_of_it() -> None:
    """In mixed precision; its norm is logged as it is, too."""
    found = []
    for scaler in (None, partial(torch.amp.GradScaler, "cpu")):
        config = small_config(Identity, grad_clip=0.01)
        config.experimental(_torch_grad_scaler_class=scaler)
        with built(config) as algo:
            results = module_results(algo.train())
            norm = results["gradients_default_optimizer_global_norm"]
            module = algo.learner_group._learner.module["default_policy"]
            applied = [p.grad for p in module.parameters()]
        found.append([norm, *(g.norm().item() for g in applied if g is not None)])
    assert found[1] == pytest.approx(found[0], rel=0.01)


def test_a_batch_of_an_unknown_module_is_refused() -> None:
    with built(small_config(Identity)) as algo:
        learner = algo.learner_group._learner
        batch = MultiAgentBatch({"nobody": of_steps(3)}, env_steps=3)
        with pytest.raises(ValueError, match=r"doesn't have: .*nobody"):
            learner.update(batch=batch)
        with pytest.raises(ValueError, match="data_iterators"):
            learner.update(data_iterators=[1])


@pytest.mark.slow
# PyTorch's own compiler uses what PyTorch has deprecated.
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("what", ["forward_train", "complete_update"])
def test_a_compiled_learner_moves_the_policy_the_same(what: str) -> None:
    """RLlib's `torch_compile_learner`, without a compiler to wait for."""
    weights = []
    for is_compiled in (False, True):
        config = small_config(ShortOrLong, lr=0.01).framework(
            torch_compile_learner=is_compiled,
            torch_compile_learner_what_to_compile=what,
            torch_compile_learner_dynamo_backend="eager",
        )
        with built(config) as algo:
            for _ in range(2):
                algo.train()
            state = algo.learner_group.get_state()["learner"]["rl_module"]["default_policy"]
            weights.append({k.replace("_orig_mod.", ""): v for k, v in state.items()})
    assert weights[0].keys() == weights[1].keys()
    for name, value in weights[0].items():
        np.testing.assert_allclose(value, weights[1][name], rtol=1e-4, atol=1e-5)
