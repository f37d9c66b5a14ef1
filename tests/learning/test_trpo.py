"""TRPO: the direction is F^-1 g, no step passes the bound on the KL, and learners agree."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ray import tune
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from torch import Tensor

from rllib_gpg import GPG, GPGConfig
from rllib_gpg.learning import GPGTorchLearner, GPGTRPOTorchLearner
from rllib_gpg.learning.natural_gradient import conjugate_gradient, hessian_product, line_search
from tests.envs import Identity, MultiIdentity, ShortOrLong
from tests.helpers import (
    SMALL_NET,
    LinearPolicy,
    PlusTheStep,
    built,
    each_learner,
    fingerprint,
    guarded,
    logged_warnings,
    module_results,
    same,
    sample_group,
    small_config,
    snapshot,
)
from tests.test_spaces import ACTIONS, config_for

pytestmark = pytest.mark.usefixtures("ray_session")

TRPO = {"learner_class": GPGTRPOTorchLearner, "num_epochs": 1, "num_minibatches": 1}
LSTM = {**SMALL_NET, "use_lstm": True, "lstm_cell_size": 4, "max_seq_len": 16}
# A first policy that isn't all but uniform: its Fisher matrix differs from state to state.
FIRST_POLICY = {"head_fcnet_kernel_initializer_kwargs": {"gain": 1.0}}
STATS = ("policy_loss", "entropy", "mean_kl_loss", "trpo_step_size", "trpo_rejected_steps")


def trpo_config(env: Any = ShortOrLong, **training: Any) -> GPGConfig:
    config = small_config(env, **{**TRPO, **training})
    return config.rl_module(model_config={**SMALL_NET, **FIRST_POLICY})


def few_steps(**training: Any) -> GPGConfig:
    """8 episodes of 5 steps, few enough for a dense Fisher matrix; see `random_advantages`."""
    return trpo_config(**training).env_runners(max_episode_steps=5)


def random_advantages(batch: dict[str, Any]) -> None:
    """In place of those of `ShortOrLong`, which are 0 where all episodes are of one length."""
    advantages = batch[Columns.ADVANTAGES]
    advantages.copy_(torch.randn(len(advantages), generator=torch.Generator().manual_seed(0)))


def update(algo: GPG, change: Any = lambda batch: None) -> tuple[dict[str, Any], Any, Any]:
    """Makes one update: the group's steps, as changed, and the module before and after it."""
    group = algo._estimate_advantages(algo._sample_group(algo._sync_weights()))
    (batch,) = group.shards
    batch = batch.policy_batches[DEFAULT_MODULE_ID]
    change(batch)
    (learner,) = each_learner(algo, lambda learner: learner)
    before = copy.deepcopy(learner.module[DEFAULT_MODULE_ID])
    algo._update(group)
    return batch, before, learner.module[DEFAULT_MODULE_ID]


def vector(module: Any) -> Tensor:
    """All parameters, [P]."""
    return torch.cat([parameter.detach().flatten().double() for parameter in module.parameters()])


def mean_kl(batch: dict[str, Any], before: Any, after: Any) -> float:
    """The mean over steps of KL(old, new) between categorical policies, in float64."""
    old, new = (log_probabilities(copy.deepcopy(m).double(), batch) for m in (before, after))
    return (old.exp() * (old - new)).sum(-1).mean().item()


def log_probabilities(module: Any, batch: dict[str, Any]) -> Tensor:
    outputs = module.forward_train({Columns.OBS: batch[Columns.OBS].double()})
    return torch.log_softmax(outputs[Columns.ACTION_DIST_INPUTS], -1)


def naive_gradient_and_fisher(module: Any, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """From the score of each action in each state: g = E[A grad log p], F = E[score score']."""
    parameters = list(module.parameters())
    num_steps = len(batch[Columns.OBS])
    gradient = torch.zeros(sum(p.numel() for p in parameters), dtype=torch.float64)
    fisher = torch.zeros(len(gradient), len(gradient), dtype=torch.float64)
    for step, log_p in enumerate(log_probabilities(module, batch)):
        for action, of_action in enumerate(log_p):
            score = torch.autograd.grad(of_action, parameters, retain_graph=True)
            score = torch.cat([part.flatten() for part in score])
            fisher += of_action.exp().detach() * torch.outer(score, score) / num_steps
            if action == batch[Columns.ACTIONS][step]:
                gradient += batch[Columns.ADVANTAGES][step].double() * score / num_steps
    return gradient, fisher


# The direction.


def test_the_hessian_of_the_kl_is_the_fisher_matrix() -> None:
    with built(few_steps()) as algo:
        batch, _, module = update(algo)
    module = copy.deepcopy(module).double()
    _, fisher = naive_gradient_and_fisher(module, batch)
    new = torch.distributions.Categorical(logits=log_probabilities(module, batch))
    old = torch.distributions.Categorical(logits=new.logits.detach())
    kl = torch.distributions.kl_divergence(old, new).mean()
    product = hessian_product(kl, list(module.parameters()))
    columns = [product(unit) for unit in torch.eye(len(fisher), dtype=torch.float64)]
    assert fisher.abs().max() > 0.01
    torch.testing.assert_close(torch.stack(columns), fisher, rtol=0.0, atol=1e-9)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_conjugate_gradients_solve_what_a_dense_solver_solves(scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(20, 12, generator=generator, dtype=torch.float64)
    # Singular but for the damping, as Fisher matrices are.
    matrix = root @ root.T / 20 + 0.1 * torch.eye(20)
    target = scale * torch.randn(20, generator=generator, dtype=torch.float64)
    solution = conjugate_gradient(lambda v: matrix @ v, target, 20)
    expected = torch.linalg.solve(matrix, target)
    assert float((solution - expected).norm() / expected.norm()) < 1e-4
    # One iteration is a step of steepest descent, (g.g / g.Fg) g.
    first = conjugate_gradient(lambda v: matrix @ v, target, 1)
    torch.testing.assert_close(first, target @ target / (target @ matrix @ target) * target)


def test_conjugate_gradients_of_nothing_are_nothing() -> None:
    assert conjugate_gradient(lambda v: v, torch.zeros(3), 10).tolist() == [0.0] * 3


@pytest.mark.parametrize("entropy_coeff", [0.0, 0.5])
def test_the_step_is_that_of_a_dense_solver(entropy_coeff: float) -> None:
    config = few_steps(cg_iterations=200, cg_damping=0.05, entropy_coeff=entropy_coeff)
    with built(config) as algo:
        batch, before, after = update(algo, random_advantages)
    moved = vector(after) - vector(before)
    module = copy.deepcopy(before).double()
    gradient, fisher = naive_gradient_and_fisher(module, batch)
    log_p = log_probabilities(module, batch)
    entropy = -(log_p.exp() * log_p).sum(-1).mean()
    of_entropy = torch.autograd.grad(entropy, list(module.parameters()))
    gradient += entropy_coeff * torch.cat([part.flatten() for part in of_entropy])
    damped = fisher + 0.05 * torch.eye(len(fisher))
    direction = torch.linalg.solve(damped, gradient)
    # b = sqrt(2 max_kl / s.Fs)
    full = math.sqrt(2 * 0.01 / float(direction @ damped @ direction)) * direction
    # The natural gradient, not the plain one.
    assert torch.cosine_similarity(gradient, full, 0) < 0.9
    assert float((moved - full).norm() / full.norm()) < 1e-3


# The line search.


@pytest.mark.parametrize(
    ("max_kl", "expected", "end"),
    [
        # From x = 0 by 4, 2, 1: the loss (x - 1)^2 is 9, 1 (no better than at 0), 0.
        pytest.param(9.0, (0.25, 2), 1.0, id="by-the-loss"),
        # And by 0.5: the KL x^2 of 1 is too much, 0.25 is just within the bound.
        pytest.param(0.25, (0.125, 3), 0.5, id="by-the-kl"),
        # 4 / 2^9 is the last one tried, with a KL of 6.1e-5.
        pytest.param(7e-5, (2**-9, 9), 4 / 2**9, id="the-last"),
        pytest.param(6e-5, (0.0, 10), 0.0, id="none"),
    ],
)
def test_the_line_search_takes_the_largest_step_that_is_good(
    max_kl: float, expected: tuple[float, int], end: float
) -> None:
    x = torch.zeros(1, requires_grad=True)

    def loss_and_kl() -> Tensor:
        return torch.cat([(x - 1.0) ** 2, x**2])

    assert line_search([x], torch.tensor([4.0]), loss_and_kl, max_kl=max_kl) == expected
    assert x.item() == end


def test_a_line_search_that_sees_nan_goes_on() -> None:
    x = torch.zeros(1)

    def loss_and_kl() -> Tensor:
        return torch.cat([(x - 1.0) ** 2, x**2]) if x < 3.0 else torch.full((2,), math.nan)

    assert line_search([x], torch.tensor([4.0]), loss_and_kl, max_kl=9.0) == (0.25, 2)


@pytest.mark.parametrize("gain", [0.01, 30.0])
@pytest.mark.parametrize("max_kl", [1e-3, 0.5])
def test_no_step_passes_the_bound(gain: float, max_kl: float) -> None:
    """Whatever the advantages; with a gain of 30, some actions have next to no probability."""
    config = trpo_config(max_kl=max_kl, cg_damping=1e-3)
    initializer = {"head_fcnet_kernel_initializer_kwargs": {"gain": gain}}
    config.rl_module(model_config={**SMALL_NET, **initializer})
    with built(config) as algo:
        for scale in (1e-20, 1.0, 1e6, 1e25):

            def change(batch: dict[str, Any], scale: float = scale) -> None:
                # The last steps may have left nothing but episodes of one length.
                random_advantages(batch)
                batch[Columns.ADVANTAGES] *= scale

            kls = [mean_kl(*update(algo, change)) for _ in range(2)]
            # To what float32 tells of it.
            assert 0.0 < max(kls) <= 1.001 * max_kl + 1e-6


class Uphill(GPGTRPOTorchLearner):
    """Its gradient points the wrong way: each step makes the loss larger."""

    def compute_loss_for_module(self, **kwargs: Any) -> Tensor:
        loss = super().compute_loss_for_module(**kwargs)
        return -loss if torch.is_grad_enabled() else loss


@pytest.mark.parametrize("averaging", ["trajectories", 1000.0, 1.0])
def test_the_bound_is_on_the_kl_of_steps_however_the_loss_averages_them(averaging: Any) -> None:
    """Divided by a constant, as the loss is, a KL of 100 times the bound would pass."""
    with built(trpo_config(Identity, loss_averaging=averaging)) as algo:
        kl = mean_kl(*update(algo))
    assert 0.001 < kl <= 0.01 * (1.0 + 1e-4)


def test_a_step_that_no_backtracking_makes_good_is_not_made() -> None:
    with built(trpo_config(learner_class=Uphill)) as algo:
        before = snapshot(algo)["rl_module"]
        results = module_results(algo.train())
        assert same(before, snapshot(algo)["rl_module"])
    assert results["trpo_rejected_steps"] == 10
    assert results["trpo_step_size"] == results["mean_kl_loss"] == 0.0


@pytest.mark.parametrize("value", [0.0, math.nan])
def test_without_a_direction_there_is_no_step(value: float) -> None:
    def change(batch: dict[str, Any]) -> None:
        batch[Columns.ADVANTAGES].fill_(value)

    with built(trpo_config()) as algo, logged_warnings() as warnings:
        _, before, after = update(algo, change)
    assert same(vector(before), vector(after))
    assert any("No step: the gradient" in message for message in warnings) == math.isnan(value)


class Interrupted(GPGTRPOTorchLearner):
    """Ctrl+C comes when the loss is computed for the third time without gradients."""

    def compute_loss_for_module(self, **kwargs: Any) -> Tensor:
        if not torch.is_grad_enabled():
            self.calls = getattr(self, "calls", 0) + 1
            if self.calls == 3:
                raise KeyboardInterrupt
        loss = super().compute_loss_for_module(**kwargs)
        # No step is good, so that the second one is being tried by then.
        return loss if torch.is_grad_enabled() else torch.zeros_like(loss)


def test_an_interrupted_line_search_leaves_the_parameters() -> None:
    with built(trpo_config(learner_class=Interrupted)) as algo:
        before = snapshot(algo)["rl_module"]
        with pytest.raises(KeyboardInterrupt):
            algo.train()
        assert same(before, snapshot(algo)["rl_module"])


# What is logged.


def test_what_is_logged_is_how_things_are_after_the_step() -> None:
    with built(few_steps(max_kl=0.5, cg_damping=0.001, cg_iterations=200)) as algo:
        batch, before, after = update(algo, random_advantages)
        logged = algo.metrics.peek(("learners", DEFAULT_MODULE_ID))
        results = {name: float(logged[name]) for name in (*STATS, "total_loss")}
    old, new = (log_probabilities(copy.deepcopy(m).double(), batch) for m in (before, after))
    actions = batch[Columns.ACTIONS].long()[:, None]
    ratio = (new - old).gather(1, actions)[:, 0].exp()
    surrogate = (ratio * batch[Columns.ADVANTAGES]).mean().item()
    assert results["policy_loss"] == pytest.approx(-surrogate, rel=1e-3)
    assert results["total_loss"] == pytest.approx(-surrogate, rel=1e-3)
    entropy = -(new.exp() * new).sum(-1).mean().item()
    assert results["entropy"] == pytest.approx(entropy, rel=1e-4)
    assert results["mean_kl_loss"] == pytest.approx(mean_kl(batch, before, after), rel=1e-3)
    assert 0.01 < results["mean_kl_loss"] <= 0.5
    # The step is as long as it says: step size times F^-1 g, halved as often as it says.
    gradient, fisher = naive_gradient_and_fisher(copy.deepcopy(before).double(), batch)
    direction = torch.linalg.solve(fisher + 0.001 * torch.eye(len(fisher)), gradient)
    full = math.sqrt(2 * 0.5 / float(direction @ gradient))
    assert results["trpo_rejected_steps"] >= 1
    fraction = 0.5 ** results["trpo_rejected_steps"]
    assert results["trpo_step_size"] == pytest.approx(fraction * full, rel=0.05)


@pytest.mark.filterwarnings("ignore:.*does nothing with `GPGTRPO:UserWarning")
def test_a_step_is_judged_by_the_ratios_of_steps() -> None:
    """A trajectory's would have the line search look at the sum of its advantages alone."""
    steps = []
    for level in ("step", "trajectory"):
        with built(few_steps(ratio_level=level)) as algo:
            _, before, after = update(algo, random_advantages)
        steps.append(vector(after) - vector(before))
    assert steps[0].norm() > 0.0
    torch.testing.assert_close(*steps, rtol=0.0, atol=0.0)


# Modules of every kind.


@pytest.mark.parametrize("actions", ACTIONS)
@pytest.mark.parametrize("free_log_std", [False, True])
def test_any_actions(actions: str, free_log_std: bool) -> None:
    if free_log_std and actions not in ("bounded", "unbounded"):
        pytest.skip("RLlib has it for `Box` only")
    model_config = {**SMALL_NET, "free_log_std": free_log_std, "normalize_observations": True}
    config = config_for(action_space=ACTIONS[actions], **TRPO)
    config.rl_module(model_config=model_config)
    with built(config) as algo:
        for _ in range(3):
            before = snapshot(algo)["rl_module"]
            results = module_results(algo.train())
            assert 0.0 < results["mean_kl_loss"] <= 0.01
            # The surrogate was 0: advantages are normalised.
            assert results["policy_loss"] < -1e-3
            after = snapshot(algo)["rl_module"]
            assert not same(before, after)


class Awkward(LinearPolicy):
    """Has a parameter that the loss doesn't depend on, one that is frozen, and dropout."""

    def setup(self) -> None:
        super().setup()
        self.idle = torch.nn.Parameter(torch.ones(3))
        self.frozen = torch.nn.Parameter(torch.ones(2), requires_grad=False)
        self.dropout = torch.nn.Dropout(0.5)

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        outputs = super()._forward(batch, **kwargs)
        logits = self.frozen * outputs[Columns.ACTION_DIST_INPUTS]
        return {Columns.ACTION_DIST_INPUTS: self.dropout(logits)}


def with_module(config: GPGConfig, module_class: Any) -> GPGConfig:
    # Not the small net's settings, which aren't for it.
    return config.rl_module(rl_module_spec=RLModuleSpec(module_class=module_class), model_config={})


def test_idle_and_frozen_parameters_stay_and_dropout_is_no_obstacle() -> None:
    with built(with_module(trpo_config(Identity), Awkward)) as algo:
        before = snapshot(algo)["rl_module"][DEFAULT_MODULE_ID]
        results = module_results(algo.train())
        after = snapshot(algo)["rl_module"][DEFAULT_MODULE_ID]
    assert 0.0 < results["mean_kl_loss"] <= 0.01
    assert same(before["idle"], after["idle"])
    assert same(before["frozen"], after["frozen"])
    assert not same(before["policy.weight"], after["policy.weight"])


class AllFrozen(LinearPolicy):
    def setup(self) -> None:
        super().setup()
        self.requires_grad_(False)


def test_a_module_without_anything_to_move_stays() -> None:
    with built(with_module(trpo_config(Identity), AllFrozen)) as algo:
        before = snapshot(algo)["rl_module"]
        results = module_results(algo.train())
        assert same(before, snapshot(algo)["rl_module"])
    assert results["trpo_step_size"] == 0.0


class HeadOnly(GPGTRPOTorchLearner):
    def get_parameters(self, module: Any) -> Any:
        return list(module.pi.parameters())


def test_a_subclass_chooses_what_is_moved() -> None:
    with built(trpo_config(Identity, learner_class=HeadOnly)) as algo:
        before = snapshot(algo)["rl_module"][DEFAULT_MODULE_ID]
        algo.train()
        after = snapshot(algo)["rl_module"][DEFAULT_MODULE_ID]
    moved = {name for name in before if not same(before[name], after[name])}
    assert moved
    assert all(name.startswith("_pi_head") for name in moved)


def after_one_step(max_seq_len: int) -> dict[str, np.ndarray]:
    config = trpo_config(Identity)
    config.rl_module(model_config={**LSTM, **FIRST_POLICY, "max_seq_len": max_seq_len})
    with built(config) as algo:
        before = snapshot(algo)["rl_module"][DEFAULT_MODULE_ID]
        results = module_results(algo.train())
        after = snapshot(algo)["rl_module"][DEFAULT_MODULE_ID]
    assert 0.0 < results["mean_kl_loss"] <= 0.01
    return {name: after[name] - before[name] for name in before}


def test_the_step_of_a_recurrent_module_does_not_depend_on_the_padding() -> None:
    """Episodes of 10 steps: no padding, or three steps of it to each real one."""
    steps, of_padded = after_one_step(10), after_one_step(40)
    for name, step in steps.items():
        assert np.linalg.norm(step - of_padded[name]) <= 1e-3 * np.linalg.norm(step), name


# Several policies.


def two_policies(**overrides: Any) -> GPGConfig:
    config = small_config(MultiIdentity, **TRPO).environment(env_config={"num_agents": 2})
    return config.multi_agent(
        policies={"a", "b"},
        policy_mapping_fn=lambda agent, episode: "ab"[int(agent)],
        algorithm_config_overrides_per_module=overrides,
    )


def test_each_policy_makes_a_step_of_its_own() -> None:
    with built(two_policies(b={"max_kl": 0.001})) as algo:
        results = algo.train()["learners"]
    assert 0.005 < results["a"]["mean_kl_loss"] <= 0.01
    assert 0.0005 < results["b"]["mean_kl_loss"] <= 0.001


def test_a_policy_that_is_not_to_be_trained_stays() -> None:
    with built(two_policies().multi_agent(policies_to_train=["a"])) as algo:
        before = snapshot(algo)["rl_module"]
        algo.train()
        after = snapshot(algo)["rl_module"]
    assert same(before["b"], after["b"])
    assert not same(before["a"], after["a"])


def test_policies_come_and_go() -> None:
    config = small_config(MultiIdentity, **TRPO).environment(env_config={"num_agents": 2})
    config.multi_agent(policies={"a"}, policy_mapping_fn=lambda agent, episode: "a")
    with built(config) as algo:
        spec = RLModuleSpec.from_module(algo.get_module("a"))
        algo.add_module(
            "b", spec, new_agent_to_module_mapping_fn=lambda agent, episode: "ab"[int(agent)]
        )
        for module_id in "ab":
            assert algo.train()["learners"][module_id]["trpo_step_size"] > 0.0
        algo.remove_module("b", new_agent_to_module_mapping_fn=lambda agent, episode: "a")
        assert algo.train()["learners"]["a"]["trpo_step_size"] > 0.0


# Several learners.


def steps_of(config: GPGConfig, num_learners: int) -> tuple[list[Any], dict[str, float]]:
    """The module of each learner after two updates, and the results of the first."""
    config = config.copy(copy_frozen=False).learners(num_learners=num_learners)
    with guarded(config) as algo:
        first = module_results(algo.train())
        after_first = each_learner(algo, lambda learner: learner.get_state()["rl_module"])
        algo.train()
        after = each_learner(algo, lambda learner: learner.get_state()["rl_module"])
    assert all(same(after[0], other) for other in after)
    return after_first[0][DEFAULT_MODULE_ID], {name: first[name] for name in STATS}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "num_learners"),
    [
        # Episodes of 5 or 200 steps, an odd number in all.
        pytest.param(trpo_config(group_size=7), [1, 2], id="uneven"),
        pytest.param(
            trpo_config(group_size=7).rl_module(model_config={**LSTM, **FIRST_POLICY}),
            [2],
            id="recurrent",
        ),
        # A trial is rejected. More iterations would make much of how float32 is rounded.
        pytest.param(
            trpo_config(max_kl=0.5, cg_damping=0.001, cg_iterations=2), [2], id="backtracking"
        ),
    ],
)
def test_the_step_is_that_of_one_learner(config: GPGConfig, num_learners: list[int]) -> None:
    config.learners(learner_connector=lambda *spaces: PlusTheStep())
    one, results = steps_of(config, 0)
    assert results["trpo_rejected_steps"] > 0 or config.max_kl < 0.5
    for number in num_learners:
        several, other_results = steps_of(config, number)
        for name, values in one.items():
            np.testing.assert_allclose(several[name], values, rtol=1e-3, atol=1e-4)
        for name in STATS:
            assert other_results[name] == pytest.approx(results[name], rel=1e-2, abs=1e-5), name


# Checkpoints.


@pytest.mark.parametrize("model_config", [SMALL_NET, LSTM], ids=["stateless", "recurrent"])
def test_a_run_cut_in_two_equals_the_run_in_one_piece(
    tmp_path: Path, model_config: dict[str, Any]
) -> None:
    config = trpo_config(Identity, entropy_coeff=[[0, 0.1], [600, 0.01]], baseline="ridge")
    config.training(lambda_=0.9).rl_module(
        model_config={**model_config, "normalize_observations": True}
    )

    def rest(algo: GPG) -> Any:
        results = [module_results(algo.train()) for _ in range(2)][-1]
        end = {name: results[name] for name in STATS}
        return end, snapshot(algo), fingerprint(sample_group(algo))

    with built(config) as algo:
        for _ in range(2):
            algo.train()
        path = algo.save_to_path(tmp_path)
        whole = rest(algo)
    algo = GPG.from_checkpoint(path)
    try:
        cut = rest(algo)
    finally:
        algo.stop()
    assert cut[0] == whole[0]
    assert same(cut[1], whole[1])
    assert cut[2] == whole[2]


@pytest.mark.parametrize("first", [TRPO, {}], ids=["trpo-first", "ppo-first"])
def test_a_run_goes_on_with_the_other_update(tmp_path: Path, first: dict[str, Any]) -> None:
    with built(small_config(Identity, **first)) as algo:
        algo.train()
        path = algo.save_to_path(tmp_path)
    with built(small_config(Identity, **({} if first else TRPO))) as algo:
        algo.restore_from_path(path)
        before = snapshot(algo)["rl_module"]
        algo.train()
        assert not same(before, snapshot(algo)["rl_module"])


# Settings.


def cartpole(**training: Any) -> GPGConfig:
    return GPGConfig().environment("CartPole-v1").training(**training)


@pytest.mark.parametrize(
    "settings",
    [{"num_epochs": 4}, {"num_minibatches": None}, {"num_minibatches": 2}, {"minibatch_size": 64}],
    ids=str,
)
def test_the_group_is_one_minibatch(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"TRPO makes one step per group.*`num_epochs=1`"):
        cartpole(**{**TRPO, **settings}).validate()


def test_compiled_modules_are_refused() -> None:
    config = cartpole(**TRPO).framework(torch_compile_learner=True)
    with pytest.raises(ValueError, match="can't differentiate compiled modules twice"):
        config.validate()


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("max_kl", [0.0, -1.0, math.inf, "0.01", None], "must be a number > 0"),
        ("cg_damping", [-0.1, math.nan, True], "must be a number >= 0"),
        ("cg_iterations", [0, 2.5, True], "must be an integer >= 1"),
    ],
)
def test_the_settings_have_ranges(name: str, values: list[Any], message: str) -> None:
    for value in values:
        with pytest.raises(ValueError, match=f"`{name}` {message}"):
            cartpole(**TRPO, **{name: value}).validate()
    cartpole(**TRPO, cg_damping=0, cg_iterations=1, max_kl=1).validate()


@pytest.mark.parametrize(
    "setting",
    [
        {"lr": 0.1},
        {"grad_clip": 1.0},
        {"clip_param": 0.1},
        {"use_kl_loss": True},
        {"ratio_level": "trajectory"},
    ],
    ids=str,
)
def test_settings_of_ppo_are_warned_of(setting: dict[str, Any]) -> None:
    with pytest.warns(UserWarning, match=f"^`{next(iter(setting))}` does nothing with `GPGTRPO"):
        cartpole(**TRPO, **setting).validate()


@pytest.mark.parametrize("setting", [{"max_kl": 0.1}, {"cg_damping": 0.2}, {"cg_iterations": 2}])
def test_settings_of_trpo_without_it_are_warned_of(setting: dict[str, Any]) -> None:
    with pytest.warns(UserWarning, match="does nothing without `learner_class=GPGTRPO"):
        cartpole(**setting).validate()


def test_there_is_no_learning_rate() -> None:
    with built(trpo_config(Identity)) as algo:
        results = module_results(algo.train())
    assert not [name for name in results if "learning_rate" in name or "optimizer" in name]


@pytest.mark.parametrize("way", ["training", "learners", "dict", "attribute"])
def test_the_learner_class_can_be_named_in_each_way(way: str) -> None:
    config = cartpole(num_epochs=1, num_minibatches=1)
    assert config.learner_class is GPGTorchLearner
    if way == "training":
        config.training(learner_class=GPGTRPOTorchLearner)
    elif way == "learners":
        config.learners(learner_class=GPGTRPOTorchLearner)
    elif way == "dict":
        config.update_from_dict({"learner_class": GPGTRPOTorchLearner})
    else:
        config.learner_class = GPGTRPOTorchLearner
    config.validate()
    assert config.learner_class is GPGTRPOTorchLearner


@pytest.mark.slow
def test_tune_takes_it_as_a_setting() -> None:
    config = trpo_config(Identity, learner_class=None)
    space = {**config.to_dict(), **TRPO, "max_kl": tune.grid_search([0.001, 0.01])}
    results = tune.Tuner(
        "GPG", param_space=space, run_config=tune.RunConfig(stop={"training_iteration": 1})
    ).fit()
    kls = sorted(module_results(result.metrics)["mean_kl_loss"] for result in results)
    assert 0.0 < kls[0] <= 0.001 < kls[1] <= 0.01


# Learning.


@pytest.mark.learning
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_cartpole_is_learned(seed: int) -> None:
    config = cartpole(**TRPO, group_size=16).debugging(seed=seed)
    config.env_runners(num_envs_per_env_runner=16)
    num_steps, best = 0, 0.0
    with built(config) as algo:
        while num_steps < 60_000 and best < 200.0:
            results = module_results(algo.train())
            assert results["mean_kl_loss"] <= 0.01
            num_steps += results["group_num_env_steps"]
            best = max(best, results["group_return_mean"])
    assert best >= 200.0
