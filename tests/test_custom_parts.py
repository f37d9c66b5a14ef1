"""A user's own modules, catalogs, connectors, binnings, losses and callbacks."""

from __future__ import annotations

import copy
import inspect
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.algorithms.bc.bc_catalog import BCCatalog
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.connectors.env_to_module import FlattenObservations, PrevActionsPrevRewards
from ray.rllib.connectors.env_to_module.frame_stacking import FrameStackingEnvToModule
from ray.rllib.connectors.learner import AddInfosFromEpisodesToTrainBatch
from ray.rllib.connectors.learner.frame_stacking import FrameStackingLearner
from ray.rllib.core.columns import Columns
from ray.rllib.core.models.base import ENCODER_OUT
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.env.utils.infinite_lookback_buffer import InfiniteLookbackBuffer

from rllib_gpg import GPG, GPGConfig
from rllib_gpg.learning import DefaultGPGTorchRLModule, GPGCatalog, GPGTorchLearner
from tests.advantages.naive import naive_advantages
from tests.envs import DictIdentity, Identity, ShortOrLong, Slow
from tests.helpers import (
    SMALL_NET,
    LinearPolicy,
    built,
    module_results,
    run_pipeline,
    sample_group,
    small_config,
)

pytestmark = pytest.mark.usefixtures("ray_session")

LSTM = {**SMALL_NET, "use_lstm": True, "lstm_cell_size": 4, "max_seq_len": 4}


def assert_learns(config: GPGConfig) -> GPG:
    """`Identity` within 15 iterations: chance gives 5, the best return is 10."""
    config.training(group_size=16, lr=0.05).env_runners(num_envs_per_env_runner=16)
    with built(config) as algo:
        returns = [module_results(algo.train())["group_return_mean"] for _ in range(15)]
    assert returns[0] < 7.0
    assert max(returns) > 9.5
    return algo


def assert_first_ratio_is_1(config: GPGConfig) -> None:
    """What connectors make for the learner must be what they made for the env runner."""
    config.training(num_epochs=1, num_minibatches=1, use_kl_loss=True, clip_param=1e-4, lr=0.05)
    with built(config) as algo:
        for _ in range(3):
            results = module_results(algo.train())
            assert results["clip_fraction"] == 0.0
            assert abs(results["mean_kl_loss"]) < 1e-7


# Modules and catalogs.


def test_a_module_without_a_value_function_learns() -> None:
    assert_learns(
        small_config(Identity).rl_module(rl_module_spec=RLModuleSpec(module_class=LinearPolicy))
    )


class DiscreteIdentity(Identity):
    """The bit as a `Discrete` observation, which RLlib has no encoder for."""

    def __init__(self, config: dict[str, Any] | None = None):
        super().__init__(config)
        self.observation_space = gym.spaces.Discrete(2)

    def _observation(self) -> Any:
        super()._observation()
        return self.bit


class Embedding(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(2, 4)

    def forward(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {ENCODER_OUT: self.table(batch[Columns.OBS])}


class EmbeddingMixin:
    """What makes a catalog one that knows `Discrete` observations."""

    def _determine_components_hook(self) -> None:
        self._latent_dims = (4,)
        self._action_dist_class_fn = lambda framework: self._get_dist_cls_from_action_space(
            action_space=self.action_space, framework=framework
        )

    def build_encoder(self, framework: str) -> Any:
        return Embedding()


class EmbeddingGPGCatalog(EmbeddingMixin, GPGCatalog):
    pass


class EmbeddingBCCatalog(EmbeddingMixin, BCCatalog):
    pass


@pytest.mark.parametrize("catalog_class", [EmbeddingGPGCatalog, EmbeddingBCCatalog])
def test_a_custom_catalog_builds_the_encoder(catalog_class: type) -> None:
    config = small_config(DiscreteIdentity)
    config.rl_module(rl_module_spec=RLModuleSpec(catalog_class=catalog_class))
    algo = assert_learns(config)
    assert isinstance(algo.get_module().encoder, Embedding)


class ReadsTheBit(DefaultGPGTorchRLModule):
    """Its networks are built for a part of the observation, as with action masks."""

    def __init__(self, *, observation_space: gym.spaces.Dict, **kwargs: Any):
        super().__init__(observation_space=observation_space["bit"], **kwargs)
        self.observation_space = observation_space

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return super()._forward({**batch, Columns.OBS: batch[Columns.OBS]["bit"]}, **kwargs)


def test_a_module_built_for_a_part_of_the_observation_learns(tmp_path: Path) -> None:
    config = small_config(DictIdentity)
    config.rl_module(rl_module_spec=RLModuleSpec(module_class=ReadsTheBit))
    module = assert_learns(config).get_module()
    module.save_to_path(tmp_path)
    batch = {Columns.OBS: {"bit": torch.ones(1, 1)}}
    logits = [m.forward_inference(batch) for m in (module, ReadsTheBit.from_checkpoint(tmp_path))]
    assert torch.equal(*(out[Columns.ACTION_DIST_INPUTS] for out in logits))


def test_a_part_of_the_observation_cannot_be_normalised() -> None:
    """Whose statistics are taken over the whole of it."""
    config = small_config(DictIdentity)
    spec = RLModuleSpec(
        module_class=ReadsTheBit, model_config={"normalize_observations": True, **SMALL_NET}
    )
    config.rl_module(rl_module_spec=spec)
    with built(config) as algo, pytest.raises(ValueError, match=r"observations that are one array"):
        algo.train()


class TwoRates(GPGTorchLearner):
    """The head stays as it is initialised."""

    def configure_optimizers_for_module(self, module_id: str, config: Any = None) -> None:
        module = self.module[module_id]
        for part, lr in ((module.encoder, config.lr), (module.pi, 0.0)):
            parameters = self.get_parameters(part)
            self.register_optimizer(
                module_id=module_id,
                optimizer_name="encoder" if part is module.encoder else "pi",
                optimizer=torch.optim.SGD(parameters, lr=1.0),
                params=parameters,
                lr_or_lr_schedule=lr,
            )


def test_encoder_and_head_can_have_optimizers_of_their_own() -> None:
    with built(small_config(Identity).training(learner_class=TwoRates, lr=0.05)) as algo:
        before = copy.deepcopy(algo.get_module().state_dict())
        algo.train()
        after = algo.get_module().state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.startswith("_encoder.") for name in changed)


# RLlib's dataclass of model settings.


def test_what_a_dataclass_of_model_settings_leaves_out_is_as_gpg_has_it() -> None:
    settings = DefaultModelConfig(
        fcnet_hiddens=[8], head_fcnet_kernel_initializer_kwargs={"gain": 0.5}
    )
    config = small_config(Identity).rl_module(model_config=settings)
    with built(config) as algo:
        given = algo.get_module().model_config
        weights = dict(algo.get_module().named_parameters())
    defaults = GPGConfig().model_config
    assert defaults.keys() >= {"fcnet_kernel_initializer", "head_fcnet_bias_initializer"}
    said = {
        "fcnet_hiddens": [8],
        "head_fcnet_kernel_initializer_kwargs": {"gain": 0.5},
        "fcnet_activation": DefaultModelConfig().fcnet_activation,
    }
    expected = {**defaults, **said}
    assert {name: given[name] for name in expected} == expected
    # Two orthogonal rows of 8 inputs, each as long as the gain.
    (head,) = (w for name, w in weights.items() if "_pi_head" in name and w.dim() == 2)
    torch.testing.assert_close(head @ head.T, 0.25 * torch.eye(2))


def test_a_dict_of_model_settings_can_ask_for_pytorchs_initialisers() -> None:
    config = small_config(Identity)
    config.rl_module(model_config={**SMALL_NET, "head_fcnet_kernel_initializer": None})
    assert config.model_config["head_fcnet_kernel_initializer"] is None


@pytest.mark.parametrize("kind", [dict, DefaultModelConfig])
def test_another_initialiser_does_not_get_the_arguments_of_gpgs(kind: Any) -> None:
    """Kaiming's takes no gain."""
    settings = {"fcnet_hiddens": [8], "fcnet_kernel_initializer": "kaiming_uniform_"}
    with built(small_config(Identity).rl_module(model_config=kind(**settings))) as algo:
        module_results(algo.train())


# Connectors on the way to the module and to the env.


class ImageIdentity(Identity):
    """The bit as an image of one grey."""

    def __init__(self, config: dict[str, Any] | None = None):
        super().__init__(config)
        self.observation_space = gym.spaces.Box(-1.0, 1.0, (10, 10, 1), np.float32)

    def _observation(self) -> np.ndarray:
        return np.full((10, 10, 1), super()._observation()[0], np.float32)


def frame_stacking(model_config: dict[str, Any]) -> GPGConfig:
    config = small_config(ImageIdentity).rl_module(model_config=model_config)
    config.env_runners(
        env_to_module_connector=lambda env, spaces, device: FrameStackingEnvToModule(num_frames=3)
    )
    return config.learners(
        learner_connector=lambda obs_space, act_space: FrameStackingLearner(num_frames=3)
    )


def test_frames_are_stacked_in_the_train_batch_and_single_in_the_bins() -> None:
    seen: list[np.ndarray] = []

    def spy(observations: np.ndarray, timesteps: np.ndarray) -> np.ndarray:
        seen.append(observations.copy())
        return timesteps

    with built(frame_stacking(SMALL_NET).training(binning=spy)) as algo:
        group = sample_group(algo)
        batch = run_pipeline(algo, group)
    single = [episode.get_observations()[:-1] for episode in group]
    for bins, frames in zip(seen, single, strict=True):
        np.testing.assert_array_equal(bins, frames)
    # Before the first frame there are zeros.
    padded = [np.concatenate([np.zeros_like(frames[:2]), frames]) for frames in single]
    expected = np.concatenate(
        [np.concatenate([p[:-2], p[1:-1], p[2:]], axis=-1) for p in padded], axis=0
    )
    np.testing.assert_array_equal(batch[Columns.OBS], expected)


def previous(model_config: dict[str, Any]) -> GPGConfig:
    return (
        small_config(Identity)
        .rl_module(model_config=model_config)
        .env_runners(
            env_to_module_connector=lambda env, spaces, device: [
                PrevActionsPrevRewards(),
                FlattenObservations(),
            ]
        )
    )


def test_previous_actions_and_rewards_are_in_the_train_batch() -> None:
    with built(previous(SMALL_NET)) as algo:
        group = sample_group(algo)
        batch = run_pipeline(algo, group)
    rows = []
    for episode in group:
        for t in range(len(episode)):
            action = np.eye(2)[episode.get_actions(t - 1)] if t else np.zeros(2)
            reward = episode.get_rewards(t - 1) if t else 0.0
            # The bit is -1 or 1, and the reward tells it from the action.
            bit = episode.get_observations(t)[0]
            assert episode.get_rewards(t) == float(episode.get_actions(t) == (bit + 1) / 2)
            rows.append([bit, *action, reward])
    np.testing.assert_array_equal(batch[Columns.OBS], rows)


@pytest.mark.parametrize("model_config", [SMALL_NET, LSTM], ids=["", "lstm"])
@pytest.mark.parametrize("config", [frame_stacking, previous])
def test_the_learner_sees_what_the_env_runner_saw(
    config: Callable[[dict[str, Any]], GPGConfig], model_config: dict[str, Any]
) -> None:
    assert_first_ratio_is_1(config(model_config))


class Flip(ConnectorV2):
    """Gives the env the other one of two actions."""

    def __call__(self, *, batch: Any, **kwargs: Any) -> Any:
        batch[Columns.ACTIONS_FOR_ENV] = copy.deepcopy(batch[Columns.ACTIONS])
        self.foreach_batch_item_change_in_place(
            batch, Columns.ACTIONS_FOR_ENV, lambda action, *ids: 1 - action
        )
        return batch


def test_a_module_to_env_connector_changes_what_the_env_gets_and_nothing_else() -> None:
    # RLlib's own piece for these two settings comes last, and starts from the module's actions.
    config = small_config(Identity).environment(normalize_actions=False, clip_actions=False)
    config.env_runners(module_to_env_connector=lambda env, spaces: Flip())
    with built(config) as algo:
        for episode in sample_group(algo):
            bits = (episode.get_observations()[:-1, 0] + 1) / 2
            np.testing.assert_array_equal(episode.get_rewards(), episode.get_actions() != bits)
    assert_learns(config)


# Infos, and columns of one's own.


class Rooms(ShortOrLong):
    """Walks through rooms at random; only the infos say which one a step is in."""

    def reset(self, **kwargs: Any) -> Any:
        observation, _ = super().reset(**kwargs)
        self.length = int(self.np_random.integers(3, 8))
        return observation, self._info()

    def step(self, action: int) -> Any:
        observation, _, terminated, truncated, _ = super().step(action)
        info = self._info()
        return observation, float(info["room"]), terminated, truncated, info

    def _info(self) -> dict[str, Any]:
        return {"room": int(self.np_random.integers(3)), "name": self.name, "t": self.t}


class BinsSeeRooms(ConnectorV2):
    """Puts the rooms where bins look, and the observations where the module looks."""

    def __call__(self, *, batch: Any, episodes: Any, **kwargs: Any) -> Any:
        for episode in self.single_agent_episode_iterator(episodes):
            self.add_n_batch_items(
                batch,
                Columns.OBS,
                items_to_add=episode.get_observations(slice(0, len(episode))),
                num_items=len(episode),
                single_agent_episode=episode,
            )
            rooms = np.array([info["room"] for info in episode.get_infos()])
            episode.observations = InfiniteLookbackBuffer(rooms)
        return batch


def test_a_binning_reads_infos_through_a_column() -> None:
    config = small_config(Rooms, binning=lambda rooms, t: rooms, normalize_advantages=False)
    config.learners(learner_connector=lambda obs_space, act_space: BinsSeeRooms())
    with built(config) as algo:
        group = sample_group(algo)
        rooms = [np.array([info["room"] for info in e.get_infos()[:-1]]) for e in group]
        observations = np.concatenate([e.get_observations()[:-1] for e in group])
        rewards = [e.get_rewards() for e in group]
        batch = run_pipeline(algo, group)
        assert module_results(algo.train())["group_num_bins"] == 3
    expected = naive_advantages(rooms, rewards, gamma=0.99, binning=lambda rooms, t: rooms)
    np.testing.assert_allclose(batch[Columns.ADVANTAGES], np.concatenate(expected), atol=1e-5)
    np.testing.assert_array_equal(batch[Columns.OBS], observations)


class ReadsInfos(GPGTorchLearner):
    """A user's own loss: compares infos with the rows of the batch, and weighs rooms."""

    def compute_loss_for_module(self, *, module_id: str, batch: Any, **kwargs: Any) -> torch.Tensor:
        mask = batch.get(Columns.LOSS_MASK)
        observations = batch[Columns.OBS] if mask is None else batch[Columns.OBS][mask]
        infos = batch[Columns.INFOS]
        told = torch.tensor([[info["name"], info["t"]] for info in infos])
        torch.testing.assert_close(told.to(observations), observations)
        self.metrics.log_value((module_id, "num_infos"), len(infos), window=1)
        return super().compute_loss_for_module(module_id=module_id, batch=batch, **kwargs)


@pytest.mark.parametrize("model_config", [SMALL_NET, LSTM], ids=["", "lstm"])
def test_a_custom_loss_reads_the_infos_of_its_rows(model_config: dict[str, Any]) -> None:
    config = small_config(Rooms, num_epochs=1, num_minibatches=1)
    config.rl_module(model_config=model_config).training(learner_class=ReadsInfos)
    config.learners(
        learner_connector=lambda obs_space, act_space: AddInfosFromEpisodesToTrainBatch()
    )
    with built(config) as algo:
        for _ in range(2):
            results = module_results(algo.train())
            assert results["num_infos"] == results["group_num_env_steps"]


# Callbacks.


HOOKS = {
    name for name, _ in inspect.getmembers(RLlibCallback, inspect.isfunction) if name[:3] == "on_"
}
OLD_STACK = "belongs to RLlib's old API stack"
RECORDED_DATA = "is about evaluation on recorded data, which GPG doesn't learn from"
NOT_CALLED = {
    "on_sub_environment_created": OLD_STACK,
    "on_postprocess_trajectory": OLD_STACK,
    "on_create_policy": OLD_STACK,
    "on_learn_on_batch": OLD_STACK,
    "on_evaluate_offline_start": RECORDED_DATA,
    "on_evaluate_offline_end": RECORDED_DATA,
    "on_offline_eval_runners_recreated": RECORDED_DATA,
}


def recording(path: Path) -> type[RLlibCallback]:
    """A callback class that leaves a file for each of its hooks that is called, anywhere."""

    def recorder(name: str) -> Callable[..., None]:
        def hook(self: Any, *args: Any, **kwargs: Any) -> None:
            (path / name).touch()

        return hook

    return type("Recording", (RLlibCallback,), {name: recorder(name) for name in HOOKS})


@pytest.mark.slow
def test_every_hook_is_called(tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    calls.mkdir()
    config = small_config(Identity).callbacks(recording(calls)).env_runners(num_env_runners=2)
    config.evaluation(evaluation_interval=1, evaluation_duration=2)
    with built(config) as algo:
        algo.train()
        algo.restore(algo.save_to_path(tmp_path / "checkpoint"))
        kill_one_env_runner(algo)
        while not (calls / "on_env_runners_recreated").exists():
            algo.train()
    assert {path.name for path in calls.iterdir()} == HOOKS - NOT_CALLED.keys()


def kill_one_env_runner(algo: GPG) -> None:
    pid, *_ = algo.env_runner_group.foreach_env_runner(
        lambda runner: os.getpid(), local_env_runner=False
    )
    os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
def test_env_runners_that_come_back_within_a_group_are_told_of(tmp_path: Path) -> None:
    config = small_config(Slow, group_size=4).env_runners(num_env_runners=1)
    with built(config.callbacks(recording(tmp_path))) as algo:
        algo.train()
        kill_one_env_runner(algo)
        # The group itself waits for the only env runner.
        sample_group(algo)
        assert (tmp_path / "on_env_runners_recreated").exists()
