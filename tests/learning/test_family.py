"""The family's losses: against naive versions, with several learners, with a frozen reference."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModuleSpec
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.examples.envs.classes.multi_agent import MultiAgentCartPole
from ray.rllib.examples.rl_modules.classes.random_rlm import RandomRLModule
from ray.rllib.examples.rl_modules.classes.vpg_using_shared_encoder_rlm import (
    SHARED_ENCODER_ID,
    SharedEncoder,
    VPGMultiRLModuleWithSharedEncoder,
    VPGPolicyAfterSharedEncoder,
)

from rllib_gpg import GPG, presets
from rllib_gpg.advantages import GroupAdvantageEstimation, Level
from rllib_gpg.learning import GPGTRPOTorchLearner
from rllib_gpg.learning.surrogates import Clip, resolve_surrogate
from rllib_gpg.learning.trajectories import LOSS_WEIGHTS, TRAJECTORIES, loss_weights
from tests.envs import Identity, MultiIdentity, ShortOrLong
from tests.helpers import (
    SMALL_NET,
    LinearPolicy,
    built,
    each_learner,
    module_results,
    same,
    sample_group,
    small_config,
    snapshot,
    whole_group,
)

pytestmark = pytest.mark.usefixtures("ray_session")

ONE_MINIBATCH = {"num_minibatches": 1}


# The loss of a group.


def naive_loss(
    config: Any, lengths: list[int], logits: Any, old: Any, actions: Any, reference: Any, adv: Any
) -> torch.Tensor:
    """Trajectory by trajectory, step by step."""
    surrogate = resolve_surrogate(config.surrogate, config.clip_param)
    start, of_trajectories, num_steps = 0, [], sum(lengths)
    for length in lengths:
        steps = range(start, start + length)
        logps = [torch.log_softmax(logits[s], 0)[actions[s]] for s in steps]
        olds = [torch.log_softmax(old[s], 0)[actions[s]] for s in steps]
        ratios = [torch.exp(new - was) for new, was in zip(logps, olds, strict=True)]
        if config.ratio_level == "trajectory":
            product = torch.prod(torch.stack(ratios))
            ratios = [product ** (1.0 / length)] * length
        losses = []
        for s, logp, ratio in zip(steps, logps, ratios, strict=True):
            x = torch.exp(reference[s] - logp)
            kl = x - torch.log(x) - 1.0
            losses.append(-surrogate(ratio, adv[s]) + config.reference_kl_coeff * kl)
            if config.use_kl_loss:
                was, new = torch.log_softmax(old[s], 0), torch.log_softmax(logits[s], 0)
                losses[-1] = losses[-1] + config.kl_coeff * (was.exp() * (was - new)).sum()
        of_trajectories.append(torch.stack(losses))
        start += length
    if config.loss_averaging == "steps":
        return torch.cat(of_trajectories).sum() / num_steps
    if config.loss_averaging == "trajectories":
        return torch.stack([losses.mean() for losses in of_trajectories]).mean()
    sums = torch.stack([losses.sum() for losses in of_trajectories])
    return (sums / config.loss_averaging).mean()


@pytest.mark.parametrize(
    "surrogate", ["clip", "soft_gate", "clipped_weight", "unclipped", Clip(0.2, 0.3, 2.0)]
)
def test_losses_and_gradients_against_a_naive_version(
    surrogate: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = small_config(Identity).build_learner(env=Identity())
    rng = np.random.default_rng(0)
    levels, averagings = ("step", "trajectory"), ("steps", "trajectories", 7.0)
    for level, averaging, coeff in itertools.product(levels, averagings, (0.0, 0.5)):
        config = small_config(Identity).training(
            surrogate=surrogate,
            ratio_level=level,
            loss_averaging=averaging,
            reference_kl_coeff=coeff,
            use_kl_loss=coeff > 0.0,
            num_minibatches=1,
        )
        lengths = rng.integers(1, 6, size=5).tolist()
        num_steps = sum(lengths)
        logits, old = (torch.tensor(rng.normal(size=(num_steps, 3))) for _ in range(2))
        actions = torch.tensor(rng.integers(3, size=num_steps))
        reference = torch.tensor(rng.normal(size=num_steps) - 2.0)
        advantages = torch.tensor(rng.normal(size=num_steps))
        if level == "trajectory":
            # GSPO's gradient, without the stop that gives each step its own.
            advantages = torch.tensor(np.repeat(rng.normal(size=len(lengths)), lengths))
        logits.requires_grad_()
        old_logp = torch.log_softmax(old, 1)[torch.arange(num_steps), actions]
        batch = {
            Columns.ACTION_DIST_INPUTS: old,
            Columns.ACTION_LOGP: old_logp,
            Columns.ACTIONS: actions,
            Columns.ADVANTAGES: advantages,
        }
        if level == "trajectory":
            batch[TRAJECTORIES] = torch.repeat_interleave(torch.arange(5), torch.tensor(lengths))
        if averaging != "steps":
            weights = loss_weights(np.array(lengths), averaging)
            batch[LOSS_WEIGHTS] = torch.tensor(np.repeat(weights, lengths))
        monkeypatch.setattr(learner._references, "logp", lambda *_, logp=reference: logp)
        loss = learner.compute_loss_for_module(
            module_id=DEFAULT_MODULE_ID,
            config=config,
            batch=batch,
            fwd_out={Columns.ACTION_DIST_INPUTS: logits},
        )
        expected = naive_loss(config, lengths, logits, old, actions, reference, advantages)
        torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-9)
        ours, theirs = (torch.autograd.grad(x, logits)[0] for x in (loss, expected))
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_statistics_are_of_steps_however_the_loss_averages_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A constant of 1 makes a loss of sums, not a KL or a share of clipped steps of sums."""
    learner = small_config(Identity).build_learner(env=Identity())
    rng = np.random.default_rng(0)
    logits, old = (torch.tensor(rng.normal(size=(6, 2))) for _ in range(2))
    actions = torch.tensor(rng.integers(2, size=6))
    batch = {
        Columns.ACTION_DIST_INPUTS: old,
        Columns.ACTION_LOGP: torch.log_softmax(old, 1)[torch.arange(6), actions],
        Columns.ACTIONS: actions,
        Columns.ADVANTAGES: torch.tensor(rng.normal(size=6)),
    }
    reference = torch.tensor(rng.normal(size=6) - 2.0)
    monkeypatch.setattr(learner._references, "logp", lambda *_: reference)
    config = small_config(
        Identity, use_kl_loss=True, reference_kl_coeff=0.5, entropy_coeff=0.1
    ).copy()
    monkeypatch.setattr(learner, "entropy_coeff", lambda _: 0.1)
    found, losses = [], []
    for weights in ({}, {LOSS_WEIGHTS: torch.tensor([1.0, 1.0, 1.0, 9.0, 9.0, 9.0])}):
        loss = learner.compute_loss_for_module(
            module_id=DEFAULT_MODULE_ID,
            config=config,
            batch=batch | weights,
            fwd_out={Columns.ACTION_DIST_INPUTS: logits},
        )
        losses.append(float(loss))
        found.append(learner._means(learner._loss_stats.pop(DEFAULT_MODULE_ID)))
    assert losses[0] != losses[1]
    assert found[0].pop("policy_loss") != found[1].pop("policy_loss")
    assert set(found[0]) == {"clip_fraction", "entropy", "mean_kl_loss", "reference_kl"}
    assert found[1] == pytest.approx(found[0], rel=1e-9)


@pytest.mark.parametrize("recurrent", [False, True])
def test_the_batch_knows_its_trajectories(recurrent: bool) -> None:
    """Through the real pipeline, also in padded sequences."""
    lstm = {"use_lstm": True, "lstm_cell_size": 4, "max_seq_len": 16} if recurrent else {}
    config = small_config(
        ShortOrLong, ratio_level="trajectory", loss_averaging="trajectories", **ONE_MINIBATCH
    ).rl_module(model_config={**SMALL_NET, **lstm})
    with built(config) as algo:
        episodes = sample_group(algo)
        columns = whole_group(algo, episodes)[DEFAULT_MODULE_ID]
    is_step = columns.get(Columns.LOSS_MASK, torch.ones_like(columns[TRAJECTORIES]).bool())
    numbers = columns[TRAJECTORIES][is_step].numpy()
    lengths = [len(episode) for episode in episodes]
    np.testing.assert_array_equal(numbers, np.repeat(np.arange(8), lengths))
    weights = columns[LOSS_WEIGHTS][is_step].numpy()
    assert weights.mean() == pytest.approx(1.0, rel=1e-6)
    for n, length in enumerate(lengths):
        assert weights[numbers == n].sum() == pytest.approx(sum(lengths) / 8, rel=1e-5), length


def test_a_module_that_comes_later_has_a_loss_of_its_own() -> None:
    config = small_config(MultiIdentity, num_minibatches=1)
    config.environment(env_config={"num_agents": 2})
    config.multi_agent(policies={"a"}, policy_mapping_fn=lambda agent, episode: "a")

    def add(algo: Any, **overrides: Any) -> None:
        algo.add_module(
            "b",
            RLModuleSpec.from_module(algo.get_module("a")),
            config_overrides=overrides,
            new_agent_to_module_mapping_fn=lambda agent, episode: "ab"[int(agent)],
        )

    with built(config) as algo:
        for wrong, says in (
            ({"loss_averaging": "all"}, r"`loss_averaging` of module 'b'"),
            ({"num_epochs": 2}, "can't differ from module to module"),
            ({"los_averaging": "steps"}, "did you mean 'loss_averaging'"),
        ):
            with pytest.raises(ValueError, match=says):
                add(algo, **wrong)
        add(algo, loss_averaging="trajectories", ratio_level="trajectory")
        group = whole_group(algo, sample_group(algo))
        assert {LOSS_WEIGHTS, TRAJECTORIES} <= group["b"].keys()
        assert not {LOSS_WEIGHTS, TRAJECTORIES} & group["a"].keys()
        assert np.isfinite(algo.train()["learners"]["b"]["policy_loss"])


def test_all_modules_have_one_learner_class() -> None:
    config = small_config(MultiIdentity).environment(env_config={"num_agents": 2})
    config.multi_agent(policies={"a", "b"}, policy_mapping_fn=lambda agent, episode: "ab"[agent])
    of_b = {"learner_class": GPGTRPOTorchLearner}
    config.rl_module(algorithm_config_overrides_per_module={"b": of_b})
    with pytest.raises(ValueError, match="learner_class"):
        config.validate()


# A frozen reference.


def logits_of(module: Any) -> torch.Tensor:
    observations = torch.eye(2)[:, :1]
    with torch.no_grad():
        return module.forward_train({Columns.OBS: observations})[Columns.ACTION_DIST_INPUTS]


def test_the_policy_stays_near_its_reference() -> None:
    """Far from it with a small coefficient, near it with a large one."""
    found = {}
    for coeff in (0.001, 10.0):
        with built(small_config(Identity, reference_kl_coeff=coeff, lr=0.01)) as algo:
            for _ in range(10):
                results = module_results(algo.train())
            found[coeff] = results["reference_kl"]
    assert 0.0 <= found[10.0] < 0.1 * found[0.001]


def test_a_reference_has_no_dropout() -> None:
    with built(small_config(Identity, reference_kl_coeff=0.1)) as algo:
        algo.train()
        learner = each_learner(algo, lambda learner: learner)[0]
        assert learner.module[DEFAULT_MODULE_ID].training
        reference = learner._references.of(DEFAULT_MODULE_ID, None)
        assert not any(module.training for module in reference.modules())


def test_the_reference_is_the_policy_that_the_run_begins_with_until_it_is_refreshed() -> None:
    with built(small_config(Identity, reference_kl_coeff=0.1, reference_refresh=2)) as algo:
        (learner,) = each_learner(algo, lambda learner: learner)
        policy = learner.module[DEFAULT_MODULE_ID]
        first = logits_of(policy)
        algo.train()
        reference = learner._references.of(DEFAULT_MODULE_ID, policy)
        assert not any(weights.requires_grad for weights in reference.parameters())
        torch.testing.assert_close(logits_of(reference), first, rtol=0.0, atol=0.0)
        assert not torch.allclose(logits_of(policy), first)
        algo.train()
        reference = learner._references.of(DEFAULT_MODULE_ID, policy)
        second = logits_of(policy)
        torch.testing.assert_close(logits_of(reference), second, rtol=0.0, atol=0.0)
        algo.train()
        assert not torch.allclose(logits_of(policy), second)
        torch.testing.assert_close(logits_of(reference), second, rtol=0.0, atol=0.0)


def test_a_run_that_was_cut_keeps_its_reference(tmp_path: Path) -> None:
    """And its count of updates, to the last bit."""
    config = small_config(Identity, reference_kl_coeff=0.3, reference_refresh=3, lr=0.01)
    with built(config) as algo:
        for _ in range(2):
            algo.train()
        checkpoint = algo.save_to_path(tmp_path)
        for _ in range(3):
            algo.train()
        whole = snapshot(algo)
        # In place too, which is back from a later reference.
        algo.restore_from_path(checkpoint)
        for _ in range(3):
            algo.train()
        assert same(snapshot(algo), whole)
    restored = GPG.from_checkpoint(checkpoint)
    for _ in range(3):
        restored.train()
    assert same(snapshot(restored), whole)
    restored.stop()


def test_the_reference_may_be_that_of_a_checkpoint(tmp_path: Path) -> None:
    with built(small_config(Identity, lr=0.01)) as algo:
        for _ in range(5):
            algo.train()
        trained = logits_of(each_learner(algo, lambda x: x)[0].module[DEFAULT_MODULE_ID])
        checkpoint = str(algo.save_to_path(tmp_path))
    of_module = f"{checkpoint}/learner_group/learner/rl_module/{DEFAULT_MODULE_ID}"
    for path in (checkpoint, of_module):
        config = small_config(Identity, reference_kl_coeff=0.1, reference=path).debugging(seed=7)
        with built(config) as algo:
            (learner,) = each_learner(algo, lambda learner: learner)
            policy = learner.module[DEFAULT_MODULE_ID]
            reference = learner._references.of(DEFAULT_MODULE_ID, policy)
            torch.testing.assert_close(logits_of(reference), trained, rtol=0.0, atol=0.0)
            assert not torch.allclose(logits_of(policy), trained)
            algo.train()
    wider = small_config(ShortOrLong, reference_kl_coeff=0.1, reference=checkpoint)
    wider.rl_module(model_config={**SMALL_NET, "fcnet_hiddens": [5]})
    with pytest.raises(ValueError, match="is no checkpoint with a policy that fits"):
        wider.build_algo()


@pytest.mark.parametrize("num_learners", [0, 1])
def test_a_reference_that_is_gone_is_needed_by_a_new_run_only(
    num_learners: int, tmp_path: Path
) -> None:
    """The checkpoints of a run have its reference themselves."""
    with built(small_config(Identity)) as algo:
        reference = algo.save_to_path(tmp_path / "reference")
    config = small_config(Identity, reference_kl_coeff=0.3, reference=reference, lr=0.01)
    config.learners(num_learners=num_learners)
    with built(config) as algo:
        algo.train()
        checkpoint = algo.save_to_path(tmp_path / "run")
        results = module_results(algo.train())
        assert results["reference_kl"] > 0.0
    shutil.rmtree(reference)
    restored = GPG.from_checkpoint(checkpoint)
    assert module_results(restored.train())["reference_kl"] == results["reference_kl"]
    restored.stop()
    with built(config.copy(copy_frozen=False)) as algo:
        with pytest.raises(ValueError, match="is no checkpoint with a policy that fits"):
            algo.train()
        assert not algo.metrics.peek(("env_runners", "num_env_steps_sampled_lifetime"), default=0)


def test_a_reference_that_does_not_fit_a_users_own_module_is_refused(tmp_path: Path) -> None:
    """PyTorch says so with an error of its own."""

    def config_for(env: Any, **training: Any) -> Any:
        spec = RLModuleSpec(module_class=LinearPolicy)
        return small_config(env, **training).rl_module(rl_module_spec=spec, model_config={})

    with built(config_for(Identity)) as algo:
        checkpoint = str(algo.save_to_path(tmp_path))
    with pytest.raises(ValueError, match="is no checkpoint with a policy that fits"):
        config_for(ShortOrLong, reference_kl_coeff=0.1, reference=checkpoint).build_algo()


class Renamed(LinearPolicy):
    """The same network, its layer under another name."""

    def setup(self) -> None:
        super().setup()
        self.head = self.policy
        del self.policy

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return {Columns.ACTION_DIST_INPUTS: self.head(batch[Columns.OBS])}


def test_a_reference_under_other_names_is_refused(tmp_path: Path) -> None:
    """RLlib would leave the weights that the module was made with, without a word."""

    def config_for(module_class: type[LinearPolicy], **training: Any) -> Any:
        spec = RLModuleSpec(module_class=module_class)
        config = small_config(Identity, **training)
        return config.rl_module(rl_module_spec=spec, model_config={})

    with built(config_for(LinearPolicy)) as algo:
        checkpoint = str(algo.save_to_path(tmp_path))
    reference = {"reference_kl_coeff": 0.1, "reference": checkpoint}
    with pytest.raises(ValueError, match=r"it has no head\.weight, head\.bias"):
        config_for(Renamed, **reference).build_algo()
    with built(config_for(LinearPolicy, **reference)) as algo:
        algo.train()


def two_policies(**training: Any) -> Any:
    config = small_config(MultiIdentity, **training).environment(env_config={"num_agents": 2})
    return config.multi_agent(
        policies={"a", "b"}, policy_mapping_fn=lambda agent, episode: "ab"[int(agent)]
    )


def test_the_reference_of_a_compiled_module_is_not_the_module_itself() -> None:
    """RLlib's `compile` leaves the compiled forward passes on the module."""
    with built(two_policies(reference_kl_coeff=0.1)) as algo:
        (learner,) = each_learner(algo, lambda learner: learner)
        module = learner.module["a"].unwrapped()
        forward_train = module._forward_train
        module._forward_train = lambda batch: forward_train(batch)
        learner._references.refresh("a", module)
        reference = learner._references.of("a", module)
        batch = {Columns.OBS: torch.ones(1, *module.observation_space.shape)}
        before = reference._forward_train(batch)[Columns.ACTION_DIST_INPUTS].clone()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(1.0)
        assert torch.equal(reference._forward_train(batch)[Columns.ACTION_DIST_INPUTS], before)
        assert not torch.equal(module._forward_train(batch)[Columns.ACTION_DIST_INPUTS], before)


class KeepsItsLogits(LinearPolicy):
    """As some do, to look at them."""

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        outputs = super()._forward(batch, **kwargs)
        self.last_logits = outputs[Columns.ACTION_DIST_INPUTS]
        return outputs


def test_a_module_that_keeps_an_activation_has_a_reference() -> None:
    config = small_config(Identity, reference_kl_coeff=0.1, reference_refresh=1)
    with built(config.rl_module(rl_module_spec=RLModuleSpec(KeepsItsLogits))) as algo:
        for _ in range(2):
            assert np.isfinite(module_results(algo.train())["reference_kl"])


@pytest.mark.parametrize(
    "training",
    [
        {"reference_kl_coeff": 0.1},
        {"baseline": "optimal", "normalize_advantages": False},
        {"learner_class": GPGTRPOTorchLearner, "num_epochs": 1, "num_minibatches": 1},
        {},
    ],
    ids=["reference", "optimal", "trpo", "none"],
)
def test_what_runs_a_module_by_itself_is_refused_after_a_shared_encoder(
    training: dict[str, Any],
) -> None:
    """RLlib's example, whose policies find the encoder's output in their batch."""
    box = gym.spaces.Box(-1.0, 1.0, (4,))
    encoder = RLModuleSpec(
        SharedEncoder,
        observation_space=box,
        action_space=gym.spaces.Discrete(2),
        model_config={"embedding_dim": 8},
    )
    policy = RLModuleSpec(
        VPGPolicyAfterSharedEncoder, model_config={"embedding_dim": 8, "hidden_dim": 8}
    )
    config = small_config(MultiAgentCartPole, **training)
    config.environment(env_config={"num_agents": 2}).env_runners(max_episode_steps=20)
    config.multi_agent(
        policies={"p0", "p1"}, policy_mapping_fn=lambda agent, episode, **_: f"p{agent}"
    )
    specs = {SHARED_ENCODER_ID: encoder, "p0": policy, "p1": policy}
    config.rl_module(
        rl_module_spec=MultiRLModuleSpec(
            multi_rl_module_class=VPGMultiRLModuleWithSharedEncoder, rl_module_specs=specs
        )
    )
    if not training:
        with built(config) as algo:
            assert np.isfinite(algo.train()["learners"]["p0"]["policy_loss"])
        return
    with pytest.raises(ValueError, match=r"runs module 'p0' by itself.*shared encoder"):
        config.build_algo()


def test_a_policy_that_is_not_trained_needs_no_reference(tmp_path: Path) -> None:
    """The checkpoint may have none for it."""
    alone = small_config(MultiIdentity).environment(env_config={"num_agents": 1})
    alone.multi_agent(policies={"a"}, policy_mapping_fn=lambda agent, episode: "a")
    with built(alone) as algo:
        checkpoint = str(algo.save_to_path(tmp_path))
    config = two_policies(reference_kl_coeff=0.1, reference=checkpoint)
    with pytest.raises(ValueError, match="fits module 'b'"):
        config.copy().build_algo()
    with built(config.multi_agent(policies_to_train=["a"])) as algo:
        assert algo.train()["learners"]["a"]["reference_kl"] >= 0.0


def test_an_older_checkpoint_may_have_the_reference_of_a_module_that_was_removed(
    tmp_path: Path,
) -> None:
    """RLlib passes over the weights of such a module."""
    with built(two_policies(reference_kl_coeff=0.1)) as algo:
        algo.train()
        checkpoint = algo.save_to_path(tmp_path)
        algo.remove_module("b", new_agent_to_module_mapping_fn=lambda agent, episode: "a")
        algo.train()
        algo.restore_from_path(checkpoint)
        (learner,) = each_learner(algo, lambda learner: learner)
        assert learner._references.get_state().keys() == {"a"}
        assert np.isfinite(algo.train()["learners"]["a"]["reference_kl"])


@pytest.mark.parametrize(
    ("training", "says"),
    [
        ({"reference_kl_coeff": 0.1}, r"recurrent.*reference_kl_coeff=0"),
        (
            {"baseline": "optimal", "normalize_advantages": False},
            r"recurrent.*baseline='bins' or 'ridge'",
        ),
    ],
    ids=["reference", "optimal"],
)
def test_a_recurrent_module_that_comes_later_is_refused_before_it_is_there(
    training: dict[str, Any], says: str
) -> None:
    config = small_config(MultiIdentity, **training).environment(env_config={"num_agents": 2})
    config.multi_agent(policies={"a"}, policy_mapping_fn=lambda agent, episode: "a")
    with built(config) as algo:
        spec = RLModuleSpec.from_module(algo.get_module("a"))
        spec.model_config = {**SMALL_NET, "use_lstm": True, "lstm_cell_size": 4, "max_seq_len": 8}
        with pytest.raises(ValueError, match=says):
            algo.add_module(
                "b", spec, new_agent_to_module_mapping_fn=lambda agent, episode: "ab"[int(agent)]
            )
        assert algo.get_module("b") is None
        assert np.isfinite(algo.train()["learners"]["a"]["policy_loss"])


def test_a_module_that_comes_later_needs_a_reference_if_it_is_trained(tmp_path: Path) -> None:
    """The checkpoint has none for it, and no group is to be lost to that."""
    config = small_config(MultiIdentity).environment(env_config={"num_agents": 2})
    config.multi_agent(policies={"a"}, policy_mapping_fn=lambda agent, episode: "a")
    with built(config.copy()) as algo:
        checkpoint = str(algo.save_to_path(tmp_path))
    with built(config.training(reference_kl_coeff=0.1, reference=checkpoint)) as algo:
        spec = RLModuleSpec.from_module(algo.get_module("a"))
        mapping = {"new_agent_to_module_mapping_fn": lambda agent, episode: "ab"[int(agent)]}
        with pytest.raises(ValueError, match="fits module 'b'"):
            algo.add_module("b", spec, **mapping)
        algo.add_module("b", spec, **mapping, new_should_module_be_updated=["a"])
        assert np.isfinite(algo.train()["learners"]["a"]["reference_kl"])


# The presets.

METHODS = [name for name in vars(presets) if name.isupper() and name[0] != "_"]


# Its second level is for states that repeat exactly; those of this env do, though they are floats.
@pytest.mark.filterwarnings("ignore:StateBinning:UserWarning")
@pytest.mark.parametrize("name", METHODS)
def test_every_preset_trains(name: str) -> None:
    config = small_config(Identity, **getattr(presets, name), group_size=16)
    with built(config) as algo:
        (learner,) = each_learner(algo, lambda learner: learner)
        before = logits_of(learner.module[DEFAULT_MODULE_ID])
        results = module_results(algo.train())
        assert np.isfinite(results["policy_loss"])
        assert not torch.allclose(logits_of(learner.module[DEFAULT_MODULE_ID]), before)


def test_a_preset_takes_back_what_another_has_set() -> None:
    config = small_config(Identity, baseline_decay=0.9, leave_one_out=True)
    for preset in (presets.TRPO, presets.GSPO, presets.GIGPO, presets.PPO_PENALTY, presets.GRPO):
        plain = small_config(Identity).training(**preset)
        for each in (config.training(**preset), plain):
            each.validate()
        assert config.to_dict() == plain.to_dict()
    config.training(**presets.GPG)
    by_default = small_config(Identity)
    by_default.validate()
    assert config.to_dict() == by_default.to_dict()


def test_presets_have_the_same_keys() -> None:
    """So that a search can take them from one of several."""
    for name in METHODS:
        assert getattr(presets, name).keys() == presets.GPG.keys(), name


def test_policies_may_have_a_preset_each() -> None:
    """What a preset says of the whole update is nothing of its own where all agree."""
    config = small_config(Identity).multi_agent(policies={"a", "b"})
    config.rl_module(
        algorithm_config_overrides_per_module={"a": presets.GPG, "b": presets.REINFORCE_PP}
    )
    config.validate()
    config.rl_module(algorithm_config_overrides_per_module={"a": presets.DAPO})
    with pytest.raises(ValueError, match=r"module.*'a': episodes_per_start, max_extra_starts\."):
        config.validate()


def test_a_learner_by_name_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must be a class.*got 'TRPO'"):
        small_config(Identity, learner_class="TRPO").validate()


@pytest.mark.parametrize(
    ("training", "says"),
    [
        ({"ratio_level": "trajectory"}, "num_minibatches=1"),
        ({"ratio_level": "trajectory", "minibatch_size": 64}, "num_minibatches=1"),
        ({"ratio_level": "steps"}, "'step' or 'trajectory'"),
        ({"surrogate": "unclipped"}, "use_kl_loss=True"),
        ({"surrogate": "clipp"}, "nearest is 'clip'"),
        ({"surrogate": 3}, "derives from"),
        ({"clip_param": (0.2,)}, r"\(lower, upper\)"),
        ({"clip_param": (0.2, -1.0)}, r"\(lower, upper\)"),
        ({"loss_averaging": "all"}, "'steps', 'trajectories' or a number > 0"),
        ({"loss_averaging": 0.0}, "'steps', 'trajectories' or a number > 0"),
        ({"reference_kl_coeff": -0.1}, "`reference_kl_coeff` must be a number >= 0"),
        ({"reference": "runs/best", "reference_kl_coeff": 0.1}, r"did you mean '/.*runs/best'"),
        ({"reference_refresh": 0}, "`reference_refresh` must be an integer >= 1"),
        ({"normalize_advantages": "bin"}, "True, False or 'bins'"),
        ({"normalize_advantages": 1}, "True, False or 'bins'"),
        ({"second_level": "state"}, r"rllib_gpg\.advantages\.Level"),
        ({"credit": "total"}, "credit must be one of"),
        ({"credit": "outcome", "baseline": "ridge", "lambda_": 0.9}, "`lambda_` < 1"),
        ({"baseline": "none", "baseline_decay": 0.5}, "remembers nothing"),
        ({"baseline": "optimal"}, r"takes the mean.*normalize_advantages=False"),
        (
            {"baseline": "optimal", "normalize_advantages": "bins", "episodes_per_start": 2},
            "one for all starts",
        ),
        (
            {"baseline": "ridge", "bootstrap_truncated": True, "second_level": Level("time")},
            "`second_level`.*doesn't complete",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(training: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        small_config(Identity, **training).validate()


@pytest.mark.parametrize(
    ("training", "of"),
    [
        ({"credit": "outcome"}, "credit"),
        ({"second_level": Level("time", "outcome")}, "second_level"),
    ],
    ids=["first", "second"],
)
def test_pieces_of_episodes_have_no_outcome(training: dict[str, Any], of: str) -> None:
    """Those without the end would look like failures, and those from halfway on like others."""
    config = small_config(Identity, group_size=4, **training)
    config.env_runners(batch_mode="truncate_episodes", rollout_fragment_length=7)
    with pytest.raises(ValueError, match=rf"`{of}`: .*a piece has but a part.*credit='returns'"):
        config.validate()
    config.training(credit="process", second_level=Level("time")).validate()
    with pytest.raises(ValueError, match="a piece has but a part"):
        GroupAdvantageEstimation(gamma=1.0, fragments=True, **training)


@pytest.mark.parametrize("surrogate", ["soft_gate", Clip(dual=3.0)])
def test_bounds_that_do_nothing_are_warned_of(surrogate: Any) -> None:
    """A surrogate object has bounds of its own, and a gate has none."""
    with pytest.warns(UserWarning, match="`clip_param` does nothing with `surrogate="):
        small_config(Identity, surrogate=surrogate, clip_param=0.3).validate()


def test_shared_starts_that_nothing_compares_are_warned_of() -> None:
    starts = {**presets.REINFORCE_PP, "episodes_per_start": 4}
    with pytest.warns(
        UserWarning, match="`episodes_per_start` does nothing with `baseline='none'`"
    ):
        small_config(Identity, **starts).validate()
    # What makes them of use. Other warnings are errors here.
    for of_use in (
        {"max_extra_starts": 2},
        {"normalize_advantages": "bins"},
        {"second_level": Level("time")},
        {"credit": "process"},
        {"baseline": "bins"},
    ):
        small_config(Identity, **{**starts, **of_use}).validate()


def test_a_recurrent_module_has_no_reference() -> None:
    """Its states in the batch are the policy's, and mean nothing to another network."""
    config = small_config(Identity, reference_kl_coeff=0.1)
    config.rl_module(model_config={**SMALL_NET, "use_lstm": True, "max_seq_len": 8})
    with pytest.raises(ValueError, match=r"recurrent.*reference_kl_coeff=0"):
        config.build_algo()


def test_a_recurrent_module_has_no_optimal_constant() -> None:
    config = small_config(Identity, **presets.REINFORCE_BASELINE, group_size=2)
    config.rl_module(model_config={**SMALL_NET, "use_lstm": True, "max_seq_len": 8})
    with pytest.raises(ValueError, match=r"recurrent.*baseline='bins' or 'ridge'"):
        config.build_algo()


def test_the_optimal_constant_takes_the_policys_own_gradients() -> None:
    """Against gradients by backward, trajectory by trajectory."""
    config = small_config(
        ShortOrLong, baseline="optimal", credit="outcome", normalize_advantages=False
    )
    with built(config) as algo:
        (learner,) = each_learner(algo, lambda learner: learner)
        episodes = sample_group(algo)
        columns = whole_group(algo, episodes)[DEFAULT_MODULE_ID]
        module = learner.module[DEFAULT_MODULE_ID]
        squares, totals = [], []
        for episode in episodes:
            module.zero_grad()
            batch = {Columns.OBS: torch.tensor(episode.get_observations()[:-1])}
            logits = module.forward_train(batch)[Columns.ACTION_DIST_INPUTS]
            actions = torch.tensor(episode.get_actions())
            torch.log_softmax(logits, 1)[torch.arange(len(actions)), actions].sum().backward()
            grads = [w.grad.double().square().sum() for w in module.parameters()]
            squares.append(float(sum(grads)))
            totals.append(episode.get_return())
    ours = torch.split(columns[Columns.ADVANTAGES], [len(episode) for episode in episodes])
    for n, advantages in enumerate(ours):
        others = [m for m in range(len(episodes)) if m != n]
        best = sum(squares[m] * totals[m] for m in others) / sum(squares[m] for m in others)
        np.testing.assert_allclose(advantages, totals[n] - best, rtol=1e-4, atol=1e-3)


class ReadsItsBatch(LinearPolicy):
    """A user's own, which looks at more than observations when it learns."""

    def _forward_train(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        assert len(batch[Columns.ACTION_LOGP]) == len(batch[Columns.OBS])
        return self._forward(batch)


class Frozen(LinearPolicy):
    def setup(self) -> None:
        super().setup()
        self.requires_grad_(False)


@pytest.mark.parametrize("module_class", [ReadsItsBatch, Frozen, RandomRLModule])
def test_the_optimal_constant_of_any_module(module_class: Any) -> None:
    """Also of one that isn't trained, which has no gradients: of it, it is 0."""
    config = two_policies(**presets.REINFORCE_BASELINE)
    specs = {
        "a": RLModuleSpec(module_class=LinearPolicy),
        "b": RLModuleSpec(module_class=module_class),
    }
    config.rl_module(rl_module_spec=MultiRLModuleSpec(rl_module_specs=specs), model_config={})
    if module_class is not ReadsItsBatch:
        config.multi_agent(policies_to_train=["a"])
    with built(config) as algo:
        results = algo.train()["learners"]
    assert results["a"]["baseline_constant"] != 0.0
    assert (results["b"]["baseline_constant"] != 0.0) == (module_class is ReadsItsBatch)
