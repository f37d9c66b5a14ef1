"""The loss by hand, and what moves along with it: schedules, KL coefficient, gradient clipping."""

from __future__ import annotations

import logging
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.rl_module import RLModuleSpec

from rllib_gpg import GPG, GPGConfig
from rllib_gpg.learning import GPGTorchLearner
from tests.envs import Identity
from tests.helpers import built, module_results, same, small_config, snapshot

pytestmark = pytest.mark.usefixtures("ray_session")

# Three steps with two actions each; clip_param 0.2.
#
#   step   old p       new p         action   A    ratio   surrogate
#     0    .5, .5    .75, .25 (ln 3)    0     +2    1.5    min(3.0, 1.2 * 2) = 2.4   clipped
#     1    .5, .5    .75, .25 (ln 3)    1     -1    0.5    min(-.5, -.8) = -.8       clipped
#     2    .5, .5    .5,  .5            0     +1    1.0    1.0
OLD_LOGITS = torch.zeros(3, 2)
NEW_LOGITS = torch.tensor([[math.log(3.0), 0.0], [math.log(3.0), 0.0], [0.0, 0.0]])
BATCH = {
    Columns.ACTION_DIST_INPUTS: OLD_LOGITS,
    Columns.ACTION_LOGP: torch.full((3,), math.log(0.5)),
    Columns.ACTIONS: torch.tensor([0, 1, 0]),
    Columns.ADVANTAGES: torch.tensor([2.0, -1.0, 1.0]),
}
POLICY_LOSS = -(2.4 - 0.8 + 1.0) / 3
# H(.75, .25) = -.75 ln .75 - .25 ln .25 = .562335 twice, H(.5, .5) = ln 2 = .693147
ENTROPY = (2 * 0.562335 + 0.693147) / 3
# KL((.5, .5), (.75, .25)) = .5 ln(.5/.75) + .5 ln(.5/.25) = .143841 twice, and 0
KL = 2 * 0.143841 / 3
CLIP_FRACTION = 2 / 3


def learner_and_config(**training: Any) -> tuple[GPGTorchLearner, GPGConfig]:
    config = small_config(Identity).training(clip_param=0.2, **training)
    return config.build_learner(env=Identity()), config


def loss(learner: GPGTorchLearner, config: GPGConfig, batch: Any, logits: Any) -> torch.Tensor:
    return learner.compute_loss_for_module(
        module_id=DEFAULT_MODULE_ID,
        config=config,
        batch=batch,
        fwd_out={Columns.ACTION_DIST_INPUTS: logits},
    )


def learner_of(algo: GPG) -> GPGTorchLearner:
    learners = algo.learner_group.foreach_learner(lambda learner: learner)
    return learners.result_or_errors[0].get()


# The loss of one minibatch.


@pytest.mark.parametrize(
    ("training", "expected"),
    [
        ({}, POLICY_LOSS),
        ({"entropy_coeff": 0.1}, POLICY_LOSS - 0.1 * ENTROPY),
        ({"use_kl_loss": True, "kl_coeff": 0.2}, POLICY_LOSS + 0.2 * KL),
        (
            {"entropy_coeff": 0.1, "use_kl_loss": True, "kl_coeff": 0.2},
            -0.908082,  # -.866667 - .060594 + .019179
        ),
        # Without `use_kl_loss` the coefficient means nothing.
        ({"kl_coeff": 100.0}, POLICY_LOSS),
    ],
    ids=["surrogate", "entropy", "kl", "all", "kl-off"],
)
def test_the_loss_of_a_minibatch(training: dict[str, Any], expected: float) -> None:
    learner, config = learner_and_config(**training)
    assert loss(learner, config, BATCH, NEW_LOGITS).item() == pytest.approx(expected, abs=1e-5)


def test_the_gradient_passes_only_steps_that_are_not_clipped() -> None:
    learner, config = learner_and_config()
    logits = NEW_LOGITS.clone().requires_grad_()
    loss(learner, config, BATCH, logits).backward()
    # Step 2: d loss / d logits = -A * d ratio / 3, d ratio / d logits = (1 - p, -p) = (.5, -.5).
    expected = torch.tensor([[0.0, 0.0], [0.0, 0.0], [-0.5 / 3, 0.5 / 3]])
    torch.testing.assert_close(logits.grad, expected)


def test_zero_padded_steps_count_nowhere() -> None:
    """The three steps as sequences of 2 and 1 steps, padded with numbers that would show."""
    learner, config = learner_and_config(entropy_coeff=0.1, use_kl_loss=True, kl_coeff=0.2)

    def padded(column: torch.Tensor, padding: float) -> torch.Tensor:
        filler = torch.full_like(column[:1], padding)
        return torch.cat([column, filler]).reshape(2, 2, *column.shape[1:])

    batch = {
        Columns.ACTION_DIST_INPUTS: padded(OLD_LOGITS, 7.0),
        Columns.ACTION_LOGP: padded(BATCH[Columns.ACTION_LOGP], -5.0),
        Columns.ACTIONS: padded(BATCH[Columns.ACTIONS], 1),
        Columns.ADVANTAGES: padded(BATCH[Columns.ADVANTAGES], 1000.0),
        Columns.LOSS_MASK: torch.tensor([[True, True], [True, False]]),
    }
    logits = NEW_LOGITS.clone()
    padded_logits = padded(logits, 0.0).clone()
    padded_logits[1, 1, 0] = 3.0
    padded_logits.requires_grad_()
    result = loss(learner, config, batch, padded_logits)
    result.backward()
    assert result.item() == pytest.approx(-0.908082, abs=1e-5)
    assert padded_logits.grad is not None
    assert padded_logits.grad[1, 1].tolist() == [0.0, 0.0]

    learner.after_gradient_based_update(timesteps={})
    assert logged(learner, "clip_fraction") == pytest.approx(CLIP_FRACTION)
    assert logged(learner, "entropy") == pytest.approx(ENTROPY, abs=1e-5)
    assert logged(learner, "mean_kl_loss") == pytest.approx(KL, abs=1e-5)


def logged(learner: GPGTorchLearner, name: str) -> float:
    return float(learner.metrics.peek((DEFAULT_MODULE_ID, name)))


def test_statistics_are_means_over_the_last_epoch() -> None:
    """Two epochs of two minibatches: the first epoch's are those of a policy long gone."""
    learner, config = learner_and_config(num_epochs=2, use_kl_loss=True)
    for number, logits in enumerate((NEW_LOGITS, NEW_LOGITS, NEW_LOGITS, OLD_LOGITS)):
        learner.in_last_epoch = number >= 2
        loss(learner, config, BATCH, logits)
    learner.after_gradient_based_update(timesteps={})
    # The last minibatch has ratio 1 throughout: surrogate (2 - 1 + 1) / 3, entropy ln 2, KL 0.
    assert logged(learner, "policy_loss") == pytest.approx((POLICY_LOSS - 2 / 3) / 2, abs=1e-5)
    assert logged(learner, "entropy") == pytest.approx((ENTROPY + 0.693147) / 2, abs=1e-5)
    assert logged(learner, "mean_kl_loss") == pytest.approx(KL / 2, abs=1e-5)
    assert logged(learner, "clip_fraction") == pytest.approx(CLIP_FRACTION / 2, abs=1e-5)


def test_statistics_begin_anew_with_each_update() -> None:
    learner, config = learner_and_config(num_epochs=1)
    for logits, clip_fraction in ((NEW_LOGITS, CLIP_FRACTION), (OLD_LOGITS, 0.0)):
        loss(learner, config, BATCH, logits)
        learner.after_gradient_based_update(timesteps={})
        assert logged(learner, "clip_fraction") == pytest.approx(clip_fraction)
        learner.metrics.reduce()


# Schedules. A group of 8 episodes of `Identity` has 80 env steps.


class Interrupted(GPGTorchLearner):
    """Ctrl+C comes with a minibatch of a number that a test chooses."""

    in_minibatch: int | None = None

    def before_gradient_based_update(self, **kwargs: Any) -> None:
        self.num_minibatches = 0
        super().before_gradient_based_update(**kwargs)

    def compute_loss_for_module(self, **kwargs: Any) -> torch.Tensor:
        if Interrupted.in_minibatch == self.num_minibatches:
            Interrupted.in_minibatch = None
            raise KeyboardInterrupt
        self.num_minibatches += 1
        return super().compute_loss_for_module(**kwargs)


@pytest.mark.usefixtures("ray_session")
def test_an_interrupted_update_leaves_no_statistics(tmp_path: Path) -> None:
    config = small_config(Identity, learner_class=Interrupted, use_kl_loss=True, lr=0.05)
    results = []
    for in_minibatch in (None, 14):
        with built(config) as algo:
            path = algo.save_to_path(tmp_path / str(in_minibatch))
            Interrupted.in_minibatch = in_minibatch
            if in_minibatch is not None:
                with pytest.raises(KeyboardInterrupt):
                    algo.train()
                algo.restore_from_path(path)
            results.append(module_results(algo.train()))
    for name in ("policy_loss", "mean_kl_loss", "entropy", "clip_fraction", "curr_kl_coeff"):
        assert results[0][name] == results[1][name], name


def test_a_group_whose_update_was_interrupted_is_not_remembered_twice() -> None:
    """It comes again; had the baseline learned from it before, it would know its returns."""
    config = small_config(
        Identity, learner_class=Interrupted, baseline="ridge", lambda_=0.9, num_epochs=1
    )
    ends = []
    for is_interrupted in (False, True):
        with built(config) as algo:
            algo.train()
            if is_interrupted:
                Interrupted.in_minibatch = 0
                with pytest.raises(KeyboardInterrupt):
                    algo.train()
            for _ in range(2):
                results = module_results(algo.train())
            state = algo.learner_group.get_state()["learner"]["connector_pieces"]
            ends.append((results["baseline_explained_variance"], results["policy_loss"], state))
    assert ends[0][:2] == ends[1][:2]
    assert same(ends[0][2], ends[1][2])


def test_the_entropy_coefficient_follows_the_env_steps() -> None:
    config = small_config(Identity, entropy_coeff=[[0, 0.1], [160, 0.02]])
    with built(config) as algo:
        learner = learner_of(algo)
        in_force = [learner.entropy_coeff(DEFAULT_MODULE_ID)]
        for _ in range(3):
            results = module_results(algo.train())
            in_force.append(learner.entropy_coeff(DEFAULT_MODULE_ID))
            assert results["curr_entropy_coeff"] == pytest.approx(in_force[-1])
    # After 0, 80, 160 and 240 steps.
    assert in_force == pytest.approx([0.1, 0.06, 0.02, 0.02])


def test_the_learning_rate_follows_the_env_steps() -> None:
    with built(small_config(Identity, lr=[[0, 0.01], [160, 0.0]])) as algo:
        learner = learner_of(algo)

        def lr() -> float:
            return float(learner.get_optimizer(DEFAULT_MODULE_ID).param_groups[0]["lr"])

        rates = [lr()]
        for _ in range(2):
            algo.train()
            rates.append(lr())
        assert rates == pytest.approx([0.01, 0.005, 0.0])
        before = snapshot(algo)["rl_module"]
        algo.train()
        assert same(before, snapshot(algo)["rl_module"])


class OwnLoss(GPGTorchLearner):
    """Takes nothing from GPG's loss but its coefficient."""

    def compute_loss_for_module(self, *, module_id: str, batch: Any, fwd_out: Any, **_: Any) -> Any:
        dist = self.module[module_id].get_train_action_dist_cls()
        new = dist.from_logits(fwd_out[Columns.ACTION_DIST_INPUTS])
        score = new.logp(batch[Columns.ACTIONS]) * batch[Columns.ADVANTAGES]
        return -(score + self.entropy_coeff(module_id) * new.entropy()).mean()


def test_schedules_move_on_beside_a_loss_of_ones_own() -> None:
    config = small_config(Identity, entropy_coeff=[[0, 0.1], [160, 0.02]])
    with built(config.training(learner_class=OwnLoss)) as algo:
        algo.train()
        assert learner_of(algo).entropy_coeff(DEFAULT_MODULE_ID) == pytest.approx(0.06)


def test_a_module_that_is_added_begins_where_schedules_are() -> None:
    lr, entropy_coeff = [[0, 0.01], [160, 0.0]], [[0, 0.1], [160, 0.02]]
    with built(small_config(Identity, lr=lr, entropy_coeff=entropy_coeff)) as algo:
        algo.train()
        learner = learner_of(algo)
        spec = RLModuleSpec.from_module(learner.module[DEFAULT_MODULE_ID].unwrapped())
        learner.add_module(module_id="late", module_spec=spec)
        assert learner.get_optimizer("late").param_groups[0]["lr"] == pytest.approx(0.005)
        assert learner.entropy_coeff("late") == pytest.approx(0.06)


@pytest.mark.parametrize(
    "scheduler",
    [
        partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=lambda update: 1.0 - update / 10),
        partial(torch.optim.lr_scheduler.CosineAnnealingWarmRestarts, T_0=2),
        partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.9),
    ],
)
def test_pytorchs_schedules_go_on_from_a_checkpoint(scheduler: Any, tmp_path: Path) -> None:
    def lr(algo: GPG) -> float:
        return float(learner_of(algo).get_optimizer(DEFAULT_MODULE_ID).param_groups[0]["lr"])

    config = small_config(Identity, lr=0.01)
    config.experimental(_torch_lr_scheduler_classes=[scheduler])
    with built(config) as algo:
        for _ in range(3):
            algo.train()
        checkpoint = algo.save_to_path(tmp_path)
        rates = [lr(algo)]
        for _ in range(2):
            algo.train()
            rates.append(lr(algo))
        again = snapshot(algo)["rl_module"]
        assert len(set(rates)) > 1
        # In place, where they have come further, and in a learner that hasn't made them yet.
        algo.restore_from_path(checkpoint)
        restored = GPG.from_checkpoint(checkpoint)
        for each in (algo, restored):
            found = [lr(each)]
            for _ in range(2):
                each.train()
                found.append(lr(each))
            assert found == pytest.approx(rates)
            assert same(snapshot(each)["rl_module"], again)
        restored.stop()


# The adaptive KL coefficient.


def test_another_kl_coeff_begins_anew_from_a_checkpoint(tmp_path: Path) -> None:
    """As in population based training; the same one goes on from where it was."""
    with built(kl_config(kl_target=1e-6)) as algo:
        algo.train()
        adapted = learner_of(algo).kl_coeff(DEFAULT_MODULE_ID)
        checkpoint = algo.save_to_path(tmp_path)
    assert adapted == pytest.approx(0.3)
    for kl_coeff, expected in ((0.2, adapted), (5.0, 5.0)):
        config = kl_config(kl_target=1e-6).training(kl_coeff=kl_coeff)
        restored = GPG.from_checkpoint(checkpoint, config=config)
        assert learner_of(restored).kl_coeff(DEFAULT_MODULE_ID) == expected
        restored.stop()


def first_kl() -> float:
    """KL(old, new) over the last epoch of the first update, the same in all tests below."""
    with built(kl_config(kl_target=1.0)) as algo:
        return float(module_results(algo.train())["mean_kl_loss"])


def kl_config(kl_target: float) -> GPGConfig:
    return small_config(Identity, lr=0.01, use_kl_loss=True, kl_coeff=0.2, kl_target=kl_target)


@pytest.mark.parametrize(
    ("kl_over_target", "coefficient"),
    [
        pytest.param(2.1, 0.3, id="above-twice-the-target"),
        pytest.param(1.9, 0.2, id="below-twice-the-target"),
        pytest.param(1.0, 0.2, id="on-target"),
        pytest.param(0.6, 0.2, id="above-half-the-target"),
        pytest.param(0.4, 0.1, id="below-half-the-target"),
    ],
)
def test_the_kl_coefficient_adapts(kl_over_target: float, coefficient: float) -> None:
    kl = first_kl()
    assert kl > 0.0
    with built(kl_config(kl_target=kl / kl_over_target)) as algo:
        results = module_results(algo.train())
        assert results["mean_kl_loss"] == pytest.approx(kl)
        assert results["curr_kl_coeff"] == pytest.approx(coefficient)
        assert learner_of(algo).kl_coeff(DEFAULT_MODULE_ID) == pytest.approx(coefficient)


def test_an_infinite_kl_leaves_the_coefficient_and_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    learner, config = learner_and_config(num_epochs=1, use_kl_loss=True, kl_coeff=0.2)
    logits = torch.tensor([[0.0, -torch.inf]]).expand(3, 2)
    loss(learner, config, BATCH, logits)
    logging.getLogger("ray.rllib").addHandler(caplog.handler)
    try:
        learner.after_gradient_based_update(timesteps={})
    finally:
        logging.getLogger("ray.rllib").removeHandler(caplog.handler)
    assert learner.kl_coeff(DEFAULT_MODULE_ID) == 0.2
    assert "use_kl_loss=False" in caplog.text


# Gradients.


class GradientNorms(GPGTorchLearner):
    """Writes down the norm of each minibatch's gradient, as the optimizer gets it."""

    def build(self) -> None:
        super().build()
        self.norms: list[float] = []

    def apply_gradients(self, gradients_dict: dict[Any, torch.Tensor]) -> None:
        squares = [gradient.square().sum() for gradient in gradients_dict.values()]
        self.norms.append(float(torch.stack(squares).sum().sqrt()))
        super().apply_gradients(gradients_dict)


def test_grad_clip_is_in_force_over_the_global_norm() -> None:
    norms = {}
    for grad_clip in (None, 0.05, 0.5):
        config = small_config(Identity, grad_clip=grad_clip).learners(learner_class=GradientNorms)
        with built(config) as algo:
            algo.train()
            norms[grad_clip] = learner_of(algo).norms  # type: ignore[attr-defined]
    # The first gradient is the same in all three.
    first = norms[None][0]
    assert first > 0.05
    assert norms[0.05][0] == pytest.approx(0.05, rel=1e-3)
    assert norms[0.5][0] == pytest.approx(min(first, 0.5), rel=1e-3)
    assert max(norms[0.05]) < 0.0501
    assert max(norms[0.5]) < 0.501


def test_gradients_are_clipped_by_default() -> None:
    # A gradient of 0.5 and more takes longer than one iteration of `Identity`: rewards count.
    config = small_config(Identity, normalize_advantages=False, gamma=1.0)
    with built(config.learners(learner_class=GradientNorms)) as algo:
        results = module_results(algo.train())
        norms = learner_of(algo).norms  # type: ignore[attr-defined]
    assert results["gradients_default_optimizer_global_norm"] > 0.5
    assert max(norms) < 0.501


# Subclassing.


class NoLoss(GPGTorchLearner):
    """A user's own loss."""

    def compute_loss_for_module(self, **kwargs: Any) -> torch.Tensor:
        return super().compute_loss_for_module(**kwargs) * 0.0


def test_a_subclass_changes_the_loss() -> None:
    with built(small_config(Identity).learners(learner_class=NoLoss)) as algo:
        before = snapshot(algo)["rl_module"]
        results = module_results(algo.train())
        assert same(before, snapshot(algo)["rl_module"])
        assert results["total_loss"] == 0.0
        # What `super()` logs is logged all the same.
        assert results["entropy"] > 0.0


def test_a_step_of_the_default_loss_improves_what_it_was_worth() -> None:
    """The probability of actions better than the baseline goes up, of worse ones down."""
    config = small_config(Identity, num_epochs=1, num_minibatches=1, lr=1e-3, grad_clip=None)
    with built(config) as algo:
        weights = algo._sync_weights()
        episodes = algo._sample_group(weights)
        group = algo._estimate_advantages(episodes)
        batch = group.shards[0].policy_batches[DEFAULT_MODULE_ID]
        policy = learner_of(algo).module[DEFAULT_MODULE_ID]

        def worth() -> float:
            logits = policy.forward_train(batch)[Columns.ACTION_DIST_INPUTS]
            dist = policy.get_train_action_dist_cls().from_logits(logits)
            return float((dist.logp(batch[Columns.ACTIONS]) * batch[Columns.ADVANTAGES]).mean())

        with torch.no_grad():
            before = worth()
        algo._update(group)
        with torch.no_grad():
            assert worth() > before


def test_results_are_there_from_the_first_iteration_and_finite() -> None:
    with built(small_config(Identity, use_kl_loss=True)) as algo:
        results = module_results(algo.train())
    names = ("policy_loss", "entropy", "mean_kl_loss", "clip_fraction", "curr_kl_coeff")
    assert all(np.isfinite(results[name]) for name in names)
    assert 0.0 <= results["clip_fraction"] <= 1.0
    assert 0.0 < results["entropy"] <= math.log(2.0) + 1e-6


def test_statistics_keep_no_graph_of_their_minibatches() -> None:
    """There are as many as minibatches, until the update ends."""
    learner, config = learner_and_config(entropy_coeff=0.1, use_kl_loss=True)
    logits = NEW_LOGITS.clone().requires_grad_()
    assert loss(learner, config, BATCH, logits).requires_grad
    (stats,) = learner._loss_stats[DEFAULT_MODULE_ID]
    assert not any(value.requires_grad for value in stats.values())
