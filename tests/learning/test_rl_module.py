"""The default module: a policy and nothing else, and the observation normaliser."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.algorithms.bc.bc_catalog import BCCatalog
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.core.models.base import ENCODER_OUT
from ray.rllib.core.rl_module.rl_module import RLModule, RLModuleSpec

from rllib_gpg import GPG
from rllib_gpg.learning import DefaultGPGTorchRLModule, GPGTRPOTorchLearner, rl_module
from rllib_gpg.learning.rl_module import ObservationMoments, ObservationNormalizer
from tests.envs import Identity, ShortOrLong
from tests.helpers import SMALL_NET, LinearPolicy, built, module_results, sample_group, small_config

pytestmark = pytest.mark.usefixtures("ray_session")

OBSERVATIONS = gym.spaces.Box(-1.0, 1.0, (4,), np.float32)
TWO_ACTIONS = gym.spaces.Discrete(2)
CONTINUOUS = gym.spaces.Box(-1.0, 1.0, (3,), np.float32)


def module(action_space: gym.Space = TWO_ACTIONS, seed: int = 0, **settings: Any) -> RLModule:
    torch.manual_seed(seed)
    catalog_class = settings.pop("catalog_class", None)
    return RLModuleSpec(
        module_class=DefaultGPGTorchRLModule,
        observation_space=OBSERVATIONS,
        action_space=action_space,
        model_config={**SMALL_NET, **settings},
        catalog_class=catalog_class,
    ).build()


def num_parameters(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def head(module: Any) -> dict[str, torch.Tensor]:
    """The parameters of the policy head."""
    head = {n: p.detach() for n, p in module.named_parameters() if "_pi_head" in n}
    assert head
    return head


# No value network.


@pytest.mark.parametrize(
    ("action_space", "settings", "expected"),
    [
        # Encoder 4 x 8 + 8 = 40; head 8 x 2 + 2 = 18.
        (TWO_ACTIONS, {}, 58),
        # Head 8 x 6 + 6 = 54: three means and three log-stds.
        (CONTINUOUS, {}, 94),
        # Head 8 x 3 + 3 = 27, and three free log-stds.
        (CONTINUOUS, {"free_log_std": True}, 70),
        # Encoder 4 x 8 + 8 and 8 x 6 + 6 = 94; head 6 x 5 + 5 and 5 x 2 + 2 = 47.
        (TWO_ACTIONS, {"fcnet_hiddens": [8, 6], "head_fcnet_hiddens": [5]}, 141),
        # An LSTM of 3 cells behind the encoder (40): 4 gates of (8 + 3) x 3 weights and 2 x 3
        # biases = 156; head 3 x 2 + 2 = 8.
        (TWO_ACTIONS, {"use_lstm": True, "lstm_cell_size": 3, "max_seq_len": 4}, 204),
        # The normaliser has buffers and no parameters.
        (TWO_ACTIONS, {"normalize_observations": True}, 58),
    ],
    ids=["discrete", "continuous", "free-log-std", "deep", "lstm", "normaliser"],
)
def test_parameters_are_those_of_encoder_and_policy_head(
    action_space: gym.Space, settings: dict[str, Any], expected: int
) -> None:
    assert num_parameters(module(action_space, **settings)) == expected


def test_ppo_has_a_value_network_more() -> None:
    config = PPOConfig().environment("CartPole-v1").rl_module(model_config=SMALL_NET)
    ppo = config.get_rl_module_spec(env=gym.make("CartPole-v1")).build()
    # Beside what GPG has: the critic's encoder, 4 x 8 + 8, and the value head, 8 x 1 + 1.
    assert num_parameters(ppo) == num_parameters(module()) + 40 + 9


def test_the_forward_passes_compute_no_values() -> None:
    batch = {Columns.OBS: torch.zeros(5, 4)}
    policy = module()
    for forward in (policy.forward_train, policy.forward_exploration, policy.forward_inference):
        assert set(forward(batch)) == {Columns.ACTION_DIST_INPUTS}


def test_the_optimizer_holds_two_moments_per_policy_parameter() -> None:
    with built(small_config("CartPole-v1")) as algo:
        algo.train()
        state = algo.learner_group.foreach_learner(
            lambda learner: learner.get_state(components="optimizer")["optimizer"]
        )
        (optimizer,) = state.result_or_errors[0].get().values()
        sizes = [
            {name: np.size(value) for name, value in entry.items()}
            for entry in optimizer["state"]["state"].values()
        ]
    # Encoder weights and biases, head weights and biases: 58 parameters.
    expected = [32, 8, 16, 2]
    assert sizes == [{"step": 1, "exp_avg": n, "exp_avg_sq": n} for n in expected]


# Its parts have the names of PPO's.


def test_encoder_and_head_have_public_names() -> None:
    policy = module()
    assert {id(p) for part in (policy.encoder, policy.pi) for p in part.parameters()} == {
        id(p) for p in policy.parameters()
    }
    # The names in checkpoints are those of RLlib's BC.
    assert {name.split(".")[0] for name in policy.state_dict()} == {"_encoder", "_pi_head"}


class Half(torch.nn.Module):
    """An encoder of one's own: half of the observation."""

    def forward(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {ENCODER_OUT: batch[Columns.OBS] / 2}


class ReplacesItsParts(DefaultGPGTorchRLModule):
    def setup(self) -> None:
        super().setup()
        self.encoder = Half()
        self.pi = torch.nn.Linear(4, 2, bias=False)


class BuildsItsParts(DefaultGPGTorchRLModule):
    """As RLlib's MobileNet example does it: without the default parts, which may not exist."""

    def setup(self) -> None:
        self.encoder = Half()
        self.pi = torch.nn.Linear(4, 2, bias=False)


@pytest.mark.parametrize("module_class", [ReplacesItsParts, BuildsItsParts])
def test_a_subclass_sets_the_parts_by_their_public_names(module_class: type) -> None:
    policy = RLModuleSpec(
        module_class=module_class,
        observation_space=OBSERVATIONS,
        action_space=TWO_ACTIONS,
        model_config=SMALL_NET,
    ).build()
    assert isinstance(policy.encoder, Half)
    assert policy.state_dict().keys() == {"_pi_head.weight"}
    logits = policy.forward_train({Columns.OBS: torch.ones(3, 4)})[Columns.ACTION_DIST_INPUTS]
    assert torch.equal(logits, policy.pi.weight.sum(1).expand(3, 2) / 2)


def test_an_encoder_of_ones_own_sees_integers_as_they_are() -> None:
    """RLlib's take floats only; an embedding takes integers only."""

    class Embeds(DefaultGPGTorchRLModule):
        def setup(self) -> None:
            super().setup()
            self.encoder = EmbeddingEncoder()

    class EmbeddingEncoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Embedding(5, 8)

        def forward(self, batch: dict[str, Any]) -> dict[str, Any]:
            return {ENCODER_OUT: self.table(batch[Columns.OBS][:, 0])}

    policy = RLModuleSpec(
        module_class=Embeds,
        observation_space=gym.spaces.Box(0, 4, (1,), np.int64),
        action_space=TWO_ACTIONS,
        model_config=SMALL_NET,
    ).build()
    policy.forward_inference({Columns.OBS: torch.tensor([[0], [4]])})


def test_the_head_has_layernorm_if_the_model_config_says_so() -> None:
    settings = {"head_fcnet_hiddens": [5], "head_fcnet_use_layernorm": True}
    # Head 8 x 5 + 5 and 5 x 2 + 2 = 57, and a scale and a shift for each of the 5.
    assert num_parameters(module(**settings)) == 40 + 57 + 10


# The head's initialisers.


ORTHOGONAL = {
    "head_fcnet_kernel_initializer": "orthogonal_",
    "head_fcnet_kernel_initializer_kwargs": {"gain": 0.01},
}


@pytest.mark.parametrize("free_log_std", [False, True])
def test_the_head_is_initialised_as_the_model_config_says(free_log_std: bool) -> None:
    policy = module(
        CONTINUOUS,
        free_log_std=free_log_std,
        head_fcnet_hiddens=[7],
        head_fcnet_bias_initializer="constant_",
        head_fcnet_bias_initializer_kwargs={"val": 0.25},
        **ORTHOGONAL,
    )
    weights = [p for p in head(policy).values() if p.dim() == 2]
    biases = [p for name, p in head(policy).items() if name.endswith("bias")]
    assert len(weights) == len(biases) == 2
    for weight in weights:
        # Orthogonal rows (or columns, if there are fewer) of length 0.01.
        short = weight if weight.shape[0] <= weight.shape[1] else weight.T
        torch.testing.assert_close(short @ short.T, 1e-4 * torch.eye(len(short)))
    for bias in biases:
        torch.testing.assert_close(bias, torch.full_like(bias, 0.25))


def test_a_head_with_a_small_gain_makes_a_nearly_uniform_first_policy() -> None:
    obs = {Columns.OBS: torch.randn(100, 4)}
    plain = module().forward_inference(obs)[Columns.ACTION_DIST_INPUTS]
    policy = module(head_fcnet_bias_initializer="zeros_", **ORTHOGONAL)
    small = policy.forward_inference(obs)[Columns.ACTION_DIST_INPUTS]
    assert small.abs().max() < 0.03 < plain.abs().max()


def test_without_the_setting_the_head_is_rllibs() -> None:
    for ours, theirs in zip(
        module().parameters(), module(catalog_class=BCCatalog).parameters(), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_the_heads_initialisers_leave_the_encoder_alone() -> None:
    changed = dict(module(**ORTHOGONAL).named_parameters())
    for name, plain in module().named_parameters():
        if "encoder" in name:
            assert torch.equal(plain, changed[name]), name


def test_a_weight_initialiser_alone_leaves_the_biases_as_they_were() -> None:
    """PyTorch draws them uniformly up to 1 / sqrt(8) for 8 inputs."""
    biases = torch.cat(
        [
            bias
            for seed in range(20)
            for name, bias in head(module(seed=seed, **ORTHOGONAL)).items()
            if name.endswith("bias")
        ]
    )
    assert 0.25 < biases.abs().max() < 8**-0.5


def logits_of_the_first_policy(**model_config: Any) -> np.ndarray:
    config = small_config("CartPole-v1").rl_module(model_config={**SMALL_NET, **model_config})
    with built(config) as algo:
        outputs = algo.get_module().forward_inference({Columns.OBS: torch.randn(100, 4)})
        return outputs[Columns.ACTION_DIST_INPUTS].numpy()


def test_gpgs_first_policy_is_nearly_uniform_unless_the_user_says_otherwise() -> None:
    assert np.abs(logits_of_the_first_policy()).max() < 0.05
    user = {"head_fcnet_kernel_initializer_kwargs": {"gain": 1.0}}
    assert np.abs(logits_of_the_first_policy(**user)).max() > 0.2


# The normaliser by itself.


def groups(*sizes: int, seed: int = 0) -> list[np.ndarray]:
    """Groups whose dimensions differ in mean and scale, and drift from one group to the next."""
    rng = np.random.default_rng(seed)
    return [
        (rng.normal(size=(size, 3)) * [0.1, 1.0, 50.0] + [5.0, 0.0, -300.0] + i).astype(np.float32)
        for i, size in enumerate(sizes)
    ]


def merged(observations: list[np.ndarray]) -> ObservationNormalizer:
    normalizer = ObservationNormalizer((3,))
    for group in observations:
        normalizer.update(ObservationMoments.of(torch.from_numpy(group)))
    return normalizer


def test_moments_of_one_group_are_its_mean_and_variance() -> None:
    (group,) = groups(50)
    moments = ObservationMoments.of(torch.from_numpy(group))
    np.testing.assert_allclose(moments.mean, group.astype(np.float64).mean(0))
    np.testing.assert_allclose(moments.var, group.astype(np.float64).var(0))
    assert moments.count == 50


def test_moments_skip_zero_padded_steps() -> None:
    """[B, T, D] with a mask [B, T]: 2 and 3 real steps; the padding is far away."""
    observations = torch.full((2, 3, 1), 1e6)
    observations[0, :2, 0] = torch.tensor([1.0, 3.0])
    observations[1, :3, 0] = torch.tensor([2.0, 4.0, 5.0])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    moments = ObservationMoments.of(observations, mask)
    # 1, 3, 2, 4, 5: mean 3, deviations -2, 0, -1, 1, 2, variance 10 / 5.
    assert (moments.mean.item(), moments.var.item(), moments.count) == (3.0, 2.0, 5)


@pytest.mark.parametrize("sizes", [(40,), (40, 7), (1, 40, 300, 1)])
def test_merged_moments_are_those_of_all_groups_together(sizes: tuple[int, ...]) -> None:
    observations = groups(*sizes)
    normalizer = merged(observations)
    together = np.concatenate(observations).astype(np.float64)
    np.testing.assert_allclose(normalizer.mean, together.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(normalizer.var, together.var(0), rtol=1e-4)
    assert int(normalizer.count) == sum(sizes)


def test_normalised_observations_have_mean_0_and_variance_1() -> None:
    observations = groups(2000)
    normalized = merged(observations)(torch.from_numpy(observations[0])).numpy()
    np.testing.assert_allclose(normalized.mean(0), 0.0, atol=1e-3)
    np.testing.assert_allclose(normalized.std(0), 1.0, atol=1e-3)


def test_a_dimension_that_never_changes_is_0_and_finite() -> None:
    normalizer = ObservationNormalizer((2,))
    group = torch.tensor([[0.1, 1.0], [0.1, 2.0]])
    normalizer.update(ObservationMoments.of(group))
    assert normalizer(group)[:, 0].tolist() == [0.0, 0.0]
    # And when it does change at last, it is cut off instead of exploding.
    assert normalizer(torch.tensor([[0.2, 1.0]]))[0, 0] == 10.0


def test_outliers_are_cut_off_at_ten_standard_deviations() -> None:
    normalizer = ObservationNormalizer((1,))
    normalizer.update(ObservationMoments.of(torch.tensor([[-1.0], [1.0]])))
    assert normalizer(torch.tensor([[-99.0], [-5.0], [99.0]])).flatten().tolist() == [
        -10.0,
        pytest.approx(-5.0),
        10.0,
    ]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU on this machine")
def test_moments_leave_the_gpu() -> None:
    """The algorithm's process, which they pass, may see none."""
    moments = ObservationMoments.of(torch.tensor([[-1.0], [1.0]], device="cuda"))
    assert moments.mean.device.type == moments.var.device.type == "cpu"
    normalizer = ObservationNormalizer((1,)).to("cuda")
    normalizer.update(moments)
    assert normalizer.mean.device.type == "cuda"


@pytest.mark.parametrize("observation", [0.0, -3.5, 9.5, 50.0, -400.0])
def test_before_the_first_update_observations_pass_as_they_are(observation: float) -> None:
    """There is no scale yet by which 50 would be an outlier."""
    assert ObservationNormalizer((1,))(torch.tensor([[observation]])).item() == observation


def test_the_count_is_an_integer_that_a_round_trip_through_rllibs_state_keeps() -> None:
    policy = module(normalize_observations=True)
    policy.observation_normalizer.count.fill_(25_600_001)  # float32 makes 25,600,000 of it
    other = module(normalize_observations=True)
    other.set_state(policy.get_state())
    count = other.observation_normalizer.count
    assert count.dtype == torch.int64
    assert int(count) == 25_600_001


# The normaliser in an algorithm.


NORMALIZED = {**SMALL_NET, "normalize_observations": True}


def statistics(module: Any) -> dict[str, np.ndarray]:
    normalizer = module.observation_normalizer
    return {name: getattr(normalizer, name).numpy().copy() for name in ("mean", "var", "count")}


def learner_module(algo: GPG) -> Any:
    learners = algo.learner_group.foreach_learner(lambda learner: learner.module[DEFAULT_MODULE_ID])
    return learners.result_or_errors[0].get()


def assert_same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    for name in ("mean", "var", "count"):
        np.testing.assert_array_equal(one[name], other[name])


def test_each_group_is_merged_in_once_and_bins_see_raw_observations() -> None:
    seen: list[np.ndarray] = []

    def spy(observations: np.ndarray, timesteps: np.ndarray) -> np.ndarray:
        seen.append(np.array(observations))
        return timesteps

    config = small_config("CartPole-v1", binning=spy).rl_module(model_config=NORMALIZED)
    with built(config) as algo:
        for iteration in range(3):
            algo.train()
            observations = np.concatenate(seen).astype(np.float64)
            assert len(seen) == 8 * (iteration + 1)
            learned = statistics(learner_module(algo))
            np.testing.assert_allclose(learned["mean"], observations.mean(0), atol=1e-6)
            np.testing.assert_allclose(learned["var"], observations.var(0), rtol=1e-4)
            assert learned["count"] == len(observations)


def test_the_padding_of_a_recurrent_module_is_not_merged_in() -> None:
    lstm = {**NORMALIZED, "use_lstm": True, "lstm_cell_size": 4, "max_seq_len": 4}
    with built(small_config(Identity).rl_module(model_config=lstm)) as algo:
        algo.train()
        learned = statistics(learner_module(algo))
    # 8 episodes of 10 steps; observations are -1 or 1, so E[x^2] = 1 if no zero is among them.
    assert learned["count"] == 80
    np.testing.assert_allclose(learned["var"] + learned["mean"] ** 2, 1.0, rtol=1e-5)


@pytest.fixture(
    scope="module",
    params=[0, pytest.param(1, marks=pytest.mark.slow)],
    ids=["local", "remote"],
)
def trained(request: pytest.FixtureRequest, ray_session: None) -> Iterator[GPG]:
    config = small_config(Identity).rl_module(model_config=NORMALIZED)
    with built(config.env_runners(num_env_runners=request.param)) as algo:
        algo.train()
        yield algo


def test_get_module_is_up_to_date_after_train(trained: GPG) -> None:
    """`algo.get_module()` is how users and evaluation scripts get at the trained policy."""
    ours, learned = trained.get_module().state_dict(), learner_module(trained).state_dict()
    assert "observation_normalizer.count" in ours
    assert all(torch.equal(ours[name], learned[name]) for name in ours)


def test_the_statistics_travel_to_the_env_runners(trained: GPG) -> None:
    sample_group(trained)
    (on_runner,) = trained.env_runner_group.foreach_env_runner(
        lambda runner: {
            name: getattr(runner.module.observation_normalizer, name).numpy().copy()
            for name in ("mean", "var", "count")
        },
        local_env_runner=trained.config.num_env_runners == 0,
    )
    assert_same(on_runner, statistics(learner_module(trained)))
    assert on_runner["count"] == 80


@pytest.mark.parametrize(
    "model_config",
    [
        SMALL_NET,
        NORMALIZED,
        {**NORMALIZED, "use_lstm": True, "lstm_cell_size": 4, "max_seq_len": 4},
    ],
    ids=["plain", "normalised", "normalised-lstm"],
)
@pytest.mark.parametrize("env", [Identity, ShortOrLong])
def test_the_first_ratio_of_a_group_is_1(model_config: dict[str, Any], env: Any) -> None:
    """The policy that sampled is the policy that learns, also once the statistics have moved."""
    config = small_config(env, lr=0.05, group_size=6).rl_module(model_config=model_config)
    config.training(num_epochs=1, num_minibatches=1, use_kl_loss=True, clip_param=1e-4)
    with built(config) as algo:
        for _ in range(3):
            # One gradient step, so these are the statistics of the first ratio.
            results = module_results(algo.train())
            assert results["clip_fraction"] == 0.0
            assert abs(results["mean_kl_loss"]) < 1e-7
    with built(config.training(num_epochs=2)) as algo:
        # The same after one step of this size is far from it.
        results = module_results(algo.train())
        assert results["clip_fraction"] > 0.0
        assert results["mean_kl_loss"] > 1e-6


class NormalizesItself(LinearPolicy):
    """A user's own module that has something of its own by that name."""

    def setup(self) -> None:
        super().setup()
        self.observation_normalizer = torch.nn.Identity()


def test_a_users_module_may_have_a_normalizer_of_its_own() -> None:
    config = small_config(Identity)
    with built(config.rl_module(rl_module_spec=RLModuleSpec(NormalizesItself))) as algo:
        assert np.isfinite(module_results(algo.train())["policy_loss"])


def test_moments_are_taken_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """In double precision a group of images takes eight times its memory at once."""
    observations = torch.from_numpy(np.random.default_rng(0).normal(5.0, 3.0, (103, 2, 3)))
    mask = torch.arange(103) % 5 > 0
    for chosen in (None, mask):
        whole = ObservationMoments.of(observations, chosen)
        with monkeypatch.context() as patch:
            patch.setattr(rl_module, "_NUMBERS_PER_BLOCK", 60)
            blocks = ObservationMoments.of(observations, chosen)
        assert blocks.count == whole.count
        torch.testing.assert_close(blocks.mean, whole.mean)
        torch.testing.assert_close(blocks.var, whole.var)


class ScalesInPlace(LinearPolicy):
    """Puts what its network sees into the batch, as some modules do with images."""

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        batch[Columns.OBS] = 0.5 * batch[Columns.OBS]
        return super()._forward(batch, **kwargs)


class Scales(LinearPolicy):
    """The same, without a trace."""

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return super()._forward({**batch, Columns.OBS: 0.5 * batch[Columns.OBS]}, **kwargs)


@pytest.mark.parametrize(
    "training",
    [
        {"num_epochs": 3, "num_minibatches": 1},
        {"learner_class": GPGTRPOTorchLearner, "num_epochs": 1, "num_minibatches": 1},
    ],
    ids=["whole", "trpo"],
)
def test_a_module_may_change_its_batch(training: dict[str, Any]) -> None:
    """What is gone through several times is the same each time."""
    found = []
    for module_class in (Scales, ScalesInPlace):
        config = small_config(Identity, **training)
        config.rl_module(rl_module_spec=RLModuleSpec(module_class))
        with built(config) as algo:
            algo.train()
            found.append(algo.get_module().get_state())
    for name, value in found[0].items():
        np.testing.assert_array_equal(found[1][name], value)
