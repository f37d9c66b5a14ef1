"""A start from the policy of another RLlib algorithm: the same policy, without its critic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
import tree
from ray.rllib.algorithms.bc import BCConfig
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core import DEFAULT_MODULE_ID, Columns
from ray.rllib.core.rl_module.rl_module import RLModule, RLModuleSpec

from rllib_gpg import GPG, GPGConfig
from tests.envs import Identity
from tests.helpers import SMALL_NET, built, sample_group, small_config

pytestmark = pytest.mark.usefixtures("ray_session")

COMPONENT = f"learner_group/learner/rl_module/{DEFAULT_MODULE_ID}"
LSTM = {"use_lstm": True, "lstm_cell_size": 4, "max_seq_len": 5}


def ppo_checkpoint(path: Path, env: Any = Identity, **model_config: Any) -> Path:
    """The module's part of the checkpoint of a PPO that has trained a little."""
    config = (
        PPOConfig()
        .environment(env)
        .env_runners(num_env_runners=0)
        .training(train_batch_size_per_learner=40, minibatch_size=20, num_epochs=1)
        .rl_module(model_config={**SMALL_NET, **model_config})
        .debugging(log_sys_usage=False)
    )
    with built(config) as ppo:
        ppo.train()
        ppo.save_to_path(path)
    return path / COMPONENT


def bc_checkpoint(path: Path) -> Path:
    """The module's part of the checkpoint of a BC, as it is initialised."""
    env = Identity()
    steps = pyarrow.table({"obs": [[1.0], [-1.0]], "actions": [1, 0]})
    path.mkdir()
    pyarrow.parquet.write_table(steps, path / "steps.parquet")
    config = (
        BCConfig()
        .environment(observation_space=env.observation_space, action_space=env.action_space)
        .offline_data(input_=[str(path)], dataset_num_iters_per_learner=1)
        .rl_module(model_config=SMALL_NET)
        .debugging(log_sys_usage=False)
    )
    with built(config) as bc:
        bc.save_to_path(path / "checkpoint")
    return path / "checkpoint" / COMPONENT


def starting_from(path: Path, env: Any = Identity, **model_config: Any) -> GPGConfig:
    return small_config(env).rl_module(
        model_config={**SMALL_NET, **model_config},
        rl_module_spec=RLModuleSpec(load_state_path=str(path)),
    )


def logits(module: Any) -> torch.Tensor:
    """The inputs of the action distribution on some observations, of recurrent modules too."""
    generator = torch.Generator().manual_seed(0)
    shape = module.observation_space.shape
    batch: dict[str, Any] = {Columns.OBS: torch.randn(64, *shape, generator=generator)}
    if module.is_stateful():
        batch[Columns.OBS] = batch[Columns.OBS].reshape(8, 8, *shape)
        # PPO's holds a state per encoder, if these are two.
        batch[Columns.STATE_IN] = tree.map_structure(
            lambda value: value.expand(8, *value.shape), module.get_initial_state()
        )
    return module.forward_inference(batch)[Columns.ACTION_DIST_INPUTS]


def learner_module(algo: GPG) -> Any:
    modules = algo.learner_group.foreach_learner(lambda learner: learner.module[DEFAULT_MODULE_ID])
    return modules.result_or_errors[0].get()


@pytest.mark.parametrize(
    ("env", "model_config", "of_critic"),
    [
        (Identity, {"vf_share_layers": False}, ("encoder.critic_encoder.", "vf.")),
        (Identity, {"vf_share_layers": True}, ("vf.",)),
        (Identity, {"vf_share_layers": False, **LSTM}, ("encoder.critic_encoder.", "vf.")),
        (Identity, {"vf_share_layers": True, **LSTM}, ("vf.",)),
        ("Pendulum-v1", {"free_log_std": True}, ("encoder.critic_encoder.", "vf.")),
        (Identity, {"head_fcnet_hiddens": [4]}, ("encoder.critic_encoder.", "vf.")),
        (
            Identity,
            {"head_fcnet_hiddens": [4], "head_fcnet_use_layernorm": True},
            ("encoder.critic_encoder.", "vf."),
        ),
    ],
    ids=[
        "separate",
        "shared",
        "separate lstm",
        "shared lstm",
        "continuous",
        "hidden head",
        "layernorm in the head",
    ],
)
def test_the_policy_of_ppo(
    env: Any,
    model_config: dict[str, Any],
    of_critic: tuple[str, ...],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = ppo_checkpoint(tmp_path, env, **model_config)
    ppo = RLModule.from_checkpoint(path)
    model_config.pop("vf_share_layers", None)
    with built(starting_from(path, env, **model_config)) as algo:
        for module in (learner_module(algo), algo.get_module()):
            assert torch.equal(logits(module), logits(ppo))
        algo.train()
    (message,) = (r.getMessage() for r in caplog.records if "are left out" in r.getMessage())
    named = message.partition("left out: ")[2].rstrip(".").split(", ")
    assert set(named) == {name for name in ppo.state_dict() if name.startswith(of_critic)}


def test_the_policy_of_bc(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = bc_checkpoint(tmp_path / "bc")
    with built(starting_from(path)) as algo:
        assert torch.equal(logits(learner_module(algo)), logits(RLModule.from_checkpoint(path)))
    assert "left out" not in caplog.text


@pytest.mark.parametrize(
    ("how", "num_env_runners"),
    [
        ("restore_from_path", 0),
        pytest.param("restore_from_path", 1, marks=pytest.mark.slow),
        ("set_state", 0),
        ("on_algorithm_init", 0),
        pytest.param("on_algorithm_init", 1, marks=pytest.mark.slow),
    ],
)
def test_into_a_built_algorithm(how: str, num_env_runners: int, tmp_path: Path) -> None:
    """By RLlib's other ways, and the next group is sampled with it."""
    path = ppo_checkpoint(tmp_path)
    ppo = RLModule.from_checkpoint(path)
    config = small_config(Identity).env_runners(num_env_runners=num_env_runners)
    if how == "on_algorithm_init":
        config.callbacks(
            on_algorithm_init=lambda algorithm, **_: algorithm.restore_from_path(
                path, component=COMPONENT
            )
        )
    with built(config) as algo:
        if how == "restore_from_path":
            algo.train()
            algo.restore_from_path(path, component=COMPONENT)
        elif how == "set_state":
            algo.train()
            modules = {DEFAULT_MODULE_ID: ppo.get_state()}
            algo.set_state({"learner_group": {"learner": {"rl_module": modules}}})
        assert torch.equal(logits(learner_module(algo)), logits(ppo))
        for episode in sample_group(algo):
            observations = torch.tensor(np.array(episode.get_observations()[:-1]))
            expected = ppo.forward_inference({Columns.OBS: observations})
            np.testing.assert_allclose(
                episode.get_extra_model_outputs(Columns.ACTION_DIST_INPUTS),
                expected[Columns.ACTION_DIST_INPUTS],
                # Batches of another size are summed up in another order.
                atol=1e-6,
            )


@pytest.mark.parametrize(
    ("env", "model_config", "complaint"),
    [
        (Identity, {"fcnet_hiddens": [4]}, r"_pi_head.net.mlp.0.weight has the shape \(2, 8\)"),
        (Identity, {"fcnet_hiddens": [8, 8]}, r"_encoder.net.mlp.2.weight is missing"),
        (Identity, {"head_fcnet_hiddens": [8]}, r"_pi_head.net.mlp.2.weight is missing"),
        (Identity, {"normalize_observations": True}, r"observation_normalizer.mean is missing"),
        (
            "CartPole-v1",
            {},
            r"_encoder.net.mlp.0.weight has the shape \(8, 1\) instead of \(8, 4\)",
        ),
    ],
)
def test_a_policy_that_does_not_fit_is_refused(
    env: Any, model_config: dict[str, Any], complaint: str, module_path: Path
) -> None:
    """RLlib itself leaves parameters of other names as they are initialised, without a word."""
    with pytest.raises(ValueError, match=complaint):
        starting_from(module_path, env, **model_config).build_algo()


def test_an_unknown_parameter_is_refused() -> None:
    with built(small_config(Identity)) as algo:
        module = algo.get_module()
        with pytest.raises(ValueError, match=r"_encoder\.net\.mlp\.2\.weight is unknown"):
            module.set_state({**module.get_state(), "_encoder.net.mlp.2.weight": np.zeros((8, 8))})


@pytest.fixture(scope="module")
def module_path(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ppo_checkpoint(tmp_path_factory.mktemp("ppo"))
