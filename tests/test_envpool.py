"""EnvPool's envs behave as gymnasium's, and only those that still run are simulated."""

from __future__ import annotations

import sys
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers.vector import DictInfoToList
from ray.rllib.algorithms.ppo import PPOConfig
from scipy.stats import ks_2samp

from rllib_gpg import GPGConfig
from rllib_gpg.envs.envpool import EnvPoolVectorEnv, register_envpool
from rllib_gpg.sampling import GroupEnvRunner
from rllib_gpg.sampling.messages import Share, Weights
from rllib_gpg.sampling.rollout.vector_env import PartialVectorEnv, WholeVectorEnv, adapt
from tests.helpers import built, fingerprint, module_results, sample_group, small_config

pytest.importorskip("envpool", reason="EnvPool is an optional extra: rllib_gpg[envpool]")

pytestmark = pytest.mark.usefixtures("ray_session")


def config_of(env_id: str, *, num_envs: int = 4, group_size: int = 8, **options: Any) -> GPGConfig:
    return small_config(register_envpool(env_id, **options), group_size=group_size).env_runners(
        num_envs_per_env_runner=num_envs, gym_env_vectorize_mode="vector_entry_point"
    )


# --- the env itself ------------------------------------------------------------------------------


def bounds_of_cpp_types(env_id: str) -> bool:
    """Whether EnvPool leaves the bounds of the observations open where gymnasium has some."""
    return env_id.startswith(("LunarLander", "BipedalWalker"))


@pytest.mark.parametrize(
    "env_id",
    [
        "CartPole-v1",
        "Pendulum-v1",
        "Acrobot-v1",
        "LunarLander-v3",
        "BipedalWalker-v3",
        "HalfCheetah-v5",
        "Hopper-v5",
        "FrozenLake-v1",
        "CliffWalking-v1",
    ],
)
def test_spaces_and_dtypes_are_those_of_gymnasium(env_id: str) -> None:
    ours = EnvPoolVectorEnv(env_id, num_envs=3)
    theirs = gym.make_vec(env_id, num_envs=3, vectorization_mode="sync")
    for name in ("single_observation_space", "single_action_space"):
        space, expected = getattr(ours, name), getattr(theirs, name)
        assert type(space) is type(expected)
        assert (space.shape, space.dtype) == (expected.shape, expected.dtype)
        if not bounds_of_cpp_types(env_id):
            assert space == expected
    assert isinstance(ours.metadata["autoreset_mode"], AutoresetMode)
    assert ours.metadata["autoreset_mode"] == theirs.metadata["autoreset_mode"]

    arrays = []
    for env in (ours, theirs):
        observations, _ = env.reset(seed=1)
        assert observations in env.observation_space
        arrays.append([observations, *env.step(env.action_space.sample())[:4]])
    for a, b in zip(*arrays, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)


def test_nested_observations_fit_their_space() -> None:
    env = EnvPoolVectorEnv("WalkerRun-v1", num_envs=2)
    observations, _ = env.reset(seed=1)
    assert observations in env.observation_space
    assert env.step_some([1], env.action_space.sample()[:1])[0]["velocity"].shape == (1, 9)


def test_the_step_after_the_end_begins_the_next_episode() -> None:
    """Worked by hand: a limit of 5 steps, so the 6th returns the first observation again."""
    env = EnvPoolVectorEnv("Pendulum-v1", num_envs=2, max_episode_steps=5)
    env.reset(seed=1)
    truncated, rewards = [], []
    for _ in range(12):
        _, reward, terminateds, truncateds, _ = env.step(np.zeros((2, 1), np.float32))
        assert not terminateds.any()
        truncated.append(bool(truncateds.all()))
        rewards.append(reward[0])
    assert truncated == ([False] * 4 + [True, False]) * 2
    assert rewards[5] == rewards[11] == 0.0
    assert all(reward < 0.0 for step, reward in enumerate(rewards) if step not in (5, 11))


def test_only_the_named_envs_step_and_their_rows_come_in_that_order() -> None:
    env = EnvPoolVectorEnv("CartPole-v1", num_envs=5)
    first, _ = env.reset(seed=1)
    some, *_ = env.step_some([3, 0], np.array([1, 0]))
    # The cart was at rest; pushed to the right it is faster, to the left slower.
    assert some[0, 1] > first[3, 1] + 0.1
    assert some[1, 1] < first[0, 1] - 0.1
    # The others stand where they stood: one push moves them as it would have at first.
    twin = EnvPoolVectorEnv("CartPole-v1", num_envs=5)
    twin.reset(seed=1)
    np.testing.assert_array_equal(
        env.step_some([1, 2, 4], np.ones(3, np.int64))[0],
        twin.step(np.ones(5, np.int64))[0][[1, 2, 4]],
    )


def test_infos_are_what_the_simulator_says() -> None:
    env = EnvPoolVectorEnv("HalfCheetah-v5", num_envs=3)
    env.reset(seed=1)
    *_, infos = env.step_some([2, 1], env.action_space.sample()[:2])
    assert [set(info) for info in infos] == [
        {"reward_run", "reward_ctrl", "x_position", "x_velocity"}
    ] * 2
    wrapped = DictInfoToList(env)
    *_, all_infos = wrapped.step(env.action_space.sample())
    assert [set(info) for info in all_infos] == [set(infos[0])] * 3

    bare = EnvPoolVectorEnv("CartPole-v1", num_envs=2)
    assert bare.reset(seed=1)[1] == {}
    assert bare.step_some([1], np.array([0]))[-1] is None


def rollout(env: EnvPoolVectorEnv, seed: int | None) -> bytes:
    observations = [env.reset(seed=seed)[0]]
    env.action_space.seed(3)
    observations += [env.step(env.action_space.sample())[0] for _ in range(60)]
    return np.array(observations).tobytes()


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Hopper-v5"])
def test_a_seed_fixes_all_that_follows(env_id: str) -> None:
    env, twin = (EnvPoolVectorEnv(env_id, num_envs=4, num_threads=n) for n in (1, 2))
    one = rollout(env, seed=1)
    assert rollout(env, seed=2) != one
    assert rollout(env, seed=None) != one
    assert rollout(env, seed=1) == one  # also in an env that has been used
    assert rollout(twin, seed=1) == one
    assert len({first.tobytes() for first in env.reset(seed=1)[0]}) == 4


def test_without_a_seed_no_two_envs_are_alike() -> None:
    starts = {
        first.tobytes()
        for _ in range(3)
        for first in EnvPoolVectorEnv("CartPole-v1", num_envs=4).reset()[0]
    }
    assert len(starts) == 12


def returns_and_lengths(env: gym.vector.VectorEnv, num_episodes: int) -> np.ndarray:
    """Of the first episodes of each env, as many of each, with random actions."""
    env.reset(seed=7)
    env.action_space.seed(8)
    each = num_episodes // env.num_envs
    finished: list[list[tuple[float, int]]] = [[] for _ in range(env.num_envs)]
    totals, lengths = np.zeros(env.num_envs), np.zeros(env.num_envs, int)
    begins = np.zeros(env.num_envs, bool)
    while min(map(len, finished)) < each:
        _, rewards, terminateds, truncateds, _ = env.step(env.action_space.sample())
        totals, lengths = (totals + rewards) * ~begins, (lengths + 1) * ~begins
        begins = terminateds | truncateds
        for index in np.flatnonzero(begins):
            finished[index].append((totals[index], int(lengths[index])))
    return np.array([episode for episodes in finished for episode in episodes[:each]])


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Hopper-v5", "LunarLander-v3"])
def test_returns_and_lengths_have_the_distribution_of_gymnasium(env_id: str) -> None:
    ours = returns_and_lengths(EnvPoolVectorEnv(env_id, num_envs=20), 400)
    theirs = returns_and_lengths(gym.make_vec(env_id, num_envs=20, vectorization_mode="sync"), 400)
    for column in range(2):
        assert ks_2samp(ours[:, column], theirs[:, column]).pvalue > 1e-3


def test_the_comparison_of_distributions_sees_a_small_difference() -> None:
    """What the test above is worth: with the last fifth of each episode cut off it fails."""
    ours, others = (
        returns_and_lengths(EnvPoolVectorEnv("CartPole-v1", num_envs=20), num_episodes)[:, 0]
        for num_episodes in (400, 420)
    )
    assert ks_2samp(ours, np.ceil(0.8 * others)).pvalue < 1e-3


# --- whole episodes through GroupEnvRunner -------------------------------------------------------


def assert_follows_cart_pole(episode: Any) -> None:
    """Replays the episode's actions in gymnasium's env: each transition must be the same."""
    env = gym.make("CartPole-v1").unwrapped
    observations, actions = episode.get_observations(), episode.get_actions()
    for t in range(len(episode)):
        env.reset()
        env.state = observations[t].astype(np.float64)
        expected, reward, terminated, _, _ = env.step(actions[t])
        np.testing.assert_allclose(observations[t + 1], expected, rtol=1e-4, atol=1e-5)
        assert episode.get_rewards(t) == reward
        assert not terminated or t == len(episode) - 1
    # No equality: at the very limit EnvPool only says that the episode is truncated.
    assert terminated or not episode.is_terminated


@pytest.mark.parametrize("num_episodes", [3, 8, 30])
def test_episodes_are_whole_and_unmixed(num_episodes: int) -> None:
    """Every step of every episode is one of CartPole's dynamics, from a first observation on."""
    runner = GroupEnvRunner(
        config=config_of("CartPole-v1", num_envs=8, max_episode_steps=25), worker_index=0
    )
    episodes = runner.sample(num_episodes=num_episodes)
    assert runner._in_columns and isinstance(runner._envs, PartialVectorEnv)
    assert len(episodes) == num_episodes
    assert len({e.get_observations(0).tobytes() for e in episodes}) == num_episodes
    for episode in episodes:
        assert (np.abs(episode.get_observations(0)) <= 0.05).all()
        assert episode.is_done and len(episode) <= 25
        assert episode.is_truncated == (len(episode) == 25)
        assert_follows_cart_pole(episode)
    if num_episodes == 30:
        assert {episode.is_truncated for episode in episodes} == {True, False}


def test_a_share_sent_again_gives_the_same_episodes() -> None:
    """On another env runner, whatever that one did before; more episodes than envs."""
    config = config_of("LunarLander-v3", max_episode_steps=60)
    share, other = Share(1, 0, 0, 9), Share(1, 0, 1, 9)
    first, second = (GroupEnvRunner(config=config, worker_index=0) for _ in range(2))
    weights = Weights(1, first.get_state() | {"weights_seq_no": 1})
    once = first.sample_share(share, weights)
    second.sample_share(other, weights)
    again, different = (second.sample_share(s, weights) for s in (share, other))
    assert fingerprint(again.episodes) == fingerprint(once.episodes)
    assert not set(fingerprint(different.episodes)) & set(fingerprint(once.episodes))


def test_both_sampling_paths_give_the_same_episodes() -> None:
    config = config_of("Hopper-v5")
    columns, pipeline = (GroupEnvRunner(config=config, worker_index=0) for _ in range(2))
    pipeline.module.set_state(columns.module.get_state())
    pipeline._in_columns = False
    fast, slow = columns.sample(num_episodes=9), pipeline.sample(num_episodes=9)
    assert fingerprint(fast) == fingerprint(slow)
    assert [e.get_infos() for e in fast] == [e.get_infos() for e in slow]


class Counting:
    """Stands in for a pool and counts what is sent to it."""

    def __init__(self, pool: Any):
        self._pool = pool
        self.num_steps = 0

    def step(self, actions: np.ndarray, env_indices: np.ndarray) -> Any:
        assert len(actions) == len(env_indices) == len(set(env_indices.tolist()))
        self.num_steps += len(env_indices)
        return self._pool.step(actions, env_indices)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)


@pytest.mark.parametrize("num_episodes", [32, 96])
def test_envs_that_owe_nothing_are_not_simulated(
    num_episodes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lunar landers' episodes last 60 to 1,000 steps: stepping all would double the count."""
    config = config_of("LunarLander-v3", num_envs=32)
    runner = GroupEnvRunner(config=config, worker_index=0)
    env = runner.env.unwrapped
    pools: list[Counting] = []

    def counting(**kwargs: Any) -> Counting:
        pools.append(Counting(make(**kwargs)))
        return pools[-1]

    make = env._make
    monkeypatch.setattr(env, "_make", counting)
    num_steps = sum(map(len, runner.sample(num_episodes=num_episodes)))
    num_sent = sum(pool.num_steps for pool in pools)
    # Nothing but the transitions, and the steps that begin a second or third episode in an env.
    assert num_sent == num_steps + num_episodes - 32
    assert num_sent / num_steps <= 1.05


def test_an_env_behind_another_wrapper_moves_as_a_whole() -> None:
    """The wrapper must see every step."""
    env = EnvPoolVectorEnv("CartPole-v1", num_envs=2)
    assert type(adapt(DictInfoToList(env))) is PartialVectorEnv
    wrapped = gym.wrappers.vector.RecordEpisodeStatistics(env)
    assert type(adapt(DictInfoToList(wrapped))) is WholeVectorEnv


# --- algorithms ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_training_is_the_same_on_0_and_1_env_runners() -> None:
    groups = []
    for num_env_runners in (0, 1):
        config = config_of("CartPole-v1", max_episode_steps=100).env_runners(
            num_env_runners=num_env_runners, episodes_per_share=3
        )
        with built(config) as algo:
            for _ in range(2):
                results = module_results(algo.train())
                assert results["group_num_episodes"] == 8
            groups.append(fingerprint(sample_group(algo)))
    assert groups[0] == groups[1]


def test_gpg_learns_cart_pole() -> None:
    config = config_of("CartPole-v1", num_envs=16, group_size=32)
    config.rl_module(model_config={"fcnet_hiddens": [32]})
    returns = []
    with built(config) as algo:
        for _ in range(12):
            returns.append(module_results(algo.train())["group_return_mean"])
    assert np.mean(returns[-3:]) > 2.0 * np.mean(returns[:3])


@pytest.mark.parametrize("num_timesteps", [40, 41])
def test_sampling_by_timesteps_is_rllibs_own(num_timesteps: int) -> None:
    runner = GroupEnvRunner(config=config_of("HalfCheetah-v5"), worker_index=0)
    for _ in range(2):
        assert len(runner.sample(num_episodes=1)) == 1
        fragments = runner.sample(num_timesteps=num_timesteps)
        assert num_timesteps <= sum(map(len, fragments)) < num_timesteps + 4


def test_rllibs_own_ppo_runs_on_envpool() -> None:
    config = (
        PPOConfig()
        .environment(register_envpool("CartPole-v1"))
        .env_runners(
            num_env_runners=0,
            num_envs_per_env_runner=4,
            gym_env_vectorize_mode="vector_entry_point",
        )
        .training(train_batch_size=256, minibatch_size=64, num_epochs=1)
        .debugging(log_sys_usage=False)
    )
    with built(config) as algo:
        assert algo.train()["env_runners"]["num_env_steps_sampled"] >= 256


# --- mistakes ------------------------------------------------------------------------------------


def test_names_tell_registrations_apart() -> None:
    names = [
        register_envpool("CartPole-v1"),
        register_envpool("CartPole-v1", num_threads=2),
        register_envpool("CartPole-v1", max_episode_steps=7),
    ]
    assert len(set(names)) == 3
    for name, length in zip(names, (None, None, 7), strict=True):
        config = small_config(name).env_runners(gym_env_vectorize_mode="vector_entry_point")
        runner = GroupEnvRunner(config=config, worker_index=0)
        lengths = [len(episode) for episode in runner.sample(num_episodes=4)]
        assert (lengths == [7] * 4) == (length == 7)


def test_the_env_config_goes_before_what_was_registered() -> None:
    config = config_of("Pendulum-v1", max_episode_steps=7)
    config.environment(env_config={"max_episode_steps": 5})
    runner = GroupEnvRunner(config=config, worker_index=0)
    assert [len(episode) for episode in runner.sample(num_episodes=2)] == [5, 5]


def test_an_unknown_env_is_named_with_its_neighbours() -> None:
    with pytest.raises(ValueError, match=r"no env 'HalfCheetah-v6'.*'HalfCheetah-v5'"):
        register_envpool("HalfCheetah-v6")


@pytest.mark.parametrize("option", ["seed", "env_seed", "num_envs", "batch_size"])
def test_what_follows_from_the_config_is_refused(option: str) -> None:
    with pytest.raises(ValueError, match=f"'{option}'.*can't be set"):
        register_envpool("CartPole-v1", **{option: 3})


def test_a_game_of_two_is_refused() -> None:
    with pytest.raises(ValueError, match="several players"):
        register_envpool("TicTacToe-v1")


def test_a_limit_that_envpool_ignores_is_an_error() -> None:
    with pytest.raises(ValueError, match="CliffWalking-v1 ignores `max_episode_steps`"):
        EnvPoolVectorEnv("CliffWalking-v1", num_envs=2, max_episode_steps=10)


def test_other_vectorize_modes_say_which_to_use() -> None:
    config = config_of("CartPole-v1").env_runners(gym_env_vectorize_mode="sync")
    with pytest.raises(ValueError, match="gym_env_vectorize_mode='vector_entry_point'"):
        GroupEnvRunner(config=config, worker_index=0)


def test_max_episode_steps_of_the_config_says_where_the_limit_goes() -> None:
    config = config_of("CartPole-v1").env_runners(max_episode_steps=10)
    with pytest.raises(ValueError, match=r"EnvPool knows.*env_config=.'max_episode_steps': 10"):
        GroupEnvRunner(config=config, worker_index=0)


def test_without_envpool_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "envpool", None)  # makes `import envpool` fail
    with pytest.raises(ImportError, match=r'pip install "rllib_gpg\[envpool\]"'):
        register_envpool("CartPole-v1")


@pytest.mark.parametrize("options", [{}, {"max_episode_steps": 10}], ids=["", "limit"])
def test_a_new_pool_is_silent(options: Any, recwarn: pytest.WarningsRecorder) -> None:
    env = EnvPoolVectorEnv("CartPole-v1", num_envs=2, **options)
    for seed in (1, 2):
        env.reset(seed=seed)
    assert not recwarn.list
