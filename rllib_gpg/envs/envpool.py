"""EnvPool's envs as native vector envs of RLlib: thousands of envs, stepped by a few C++ threads.

EnvPool is an optional extra, `pip install "rllib_gpg[envpool]"`::

    from rllib_gpg.envs.envpool import register_envpool

    config.environment(register_envpool("HalfCheetah-v5", num_threads=2)).env_runners(
        num_envs_per_env_runner=16, gym_env_vectorize_mode="vector_entry_point"
    )

What is different from gymnasium's env of the same id:

- An episode that terminates at its very last step is only truncated, not terminated as well. GPG
  makes no difference between the two.
- A few envs ignore `max_episode_steps` (CliffWalking), which is an error here, and a few have other
  observations (Blackjack's are one array).
- Infos are EnvPool's own, and rewards have the precision of float32.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import tree
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from ray.rllib.utils.spaces.space_utils import get_base_struct_from_space
from ray.tune import register_env

from rllib_gpg.nested import map_leaves

# What EnvPool adds to the infos of every env, for its own use.
_BOOKKEEPING = ("env_id", "players", "elapsed_step")


def register_envpool(env_id: str, *, num_threads: int = 1, **options: Any) -> str:
    """Registers one of EnvPool's envs with Ray.

    It must be run with `env_runners(gym_env_vectorize_mode="vector_entry_point")`.

    Args:
        env_id: The id of the env, one of `envpool.list_all_envs()`.
        num_threads: The threads that step the envs of each env runner. More than one pays off if
            the env runner has as many CPUs (`num_cpus_per_env_runner`) and a step takes long.
        options: Anything else that `envpool.make` takes for this env, `max_episode_steps` for
            instance. What `environment(env_config={..})` names goes before.

    Returns:
        The name to give to `config.environment`. It is made of the arguments, so that two
        registrations never get into each other's way.

    Raises:
        ImportError: If EnvPool isn't installed.
        ValueError: If EnvPool has no such env, or one that can't be run this way.
    """
    options["num_threads"] = num_threads
    _check(env_id, options)
    settings = "".join(f"-{name}={value}" for name, value in sorted(options.items()))
    name = f"EnvPool-{env_id}{settings}"
    register_env(name, partial(_create, env_id, options))
    return name


class EnvPoolVectorEnv(VectorEnv):
    """A pool of EnvPool's as a gymnasium vector env, which can also step only some of its envs.

    Spaces, and the dtypes of all that comes and goes, are those of gymnasium's env of the same id.
    An env whose episode is over begins the next one when it is stepped again; that step ignores
    the action and isn't a transition (`NEXT_STEP`).

    EnvPool takes seeds when a pool is made, and never again. So `reset(seed=..)` makes a new pool,
    and the same seed and actions always give the same episodes: a share of a group that is sent
    again after a fault is the same share, and no fault favours short episodes. A new pool costs as
    much as about 10 steps of all envs (less than 0.1 ms per env), for MuJoCo 5 to 40 (1 ms), for
    Atari 250 (75 ms). As in any native vector env, no episode has a seed of its own: which episodes
    a share holds depends on its seed and on the number of envs.
    """

    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012

    def __init__(self, env_id: str, *, num_envs: int, num_threads: int = 1, **options: Any):
        """Makes the spaces; the pool itself is made by the first `reset`.

        Args:
            env_id: The id of the env, one of `envpool.list_all_envs()`.
            num_envs: The number of envs.
            num_threads: The number of threads that step them.
            options: Anything else that `envpool.make` takes, but seeds and a batch size.
        """
        options["num_threads"] = num_threads
        envpool = _check(env_id, options)
        self._make = partial(envpool.make_gymnasium, env_id, **options)
        self._pool: Any = None
        spec = envpool.make_spec(env_id, **options)
        self.num_envs = num_envs
        with _silent_bounds():
            self.single_observation_space = _repaired(spec.observation_space)
            self.single_action_space = _single_precision(_repaired(spec.action_space))
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._dtypes = tree.map_structure(
            lambda space: space.dtype, get_base_struct_from_space(self.single_observation_space)
        )
        self._all = np.arange(num_envs)
        if "max_episode_steps" in options:
            self._check_limit(env_id)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begins an episode in every env.

        Args:
            seed: What the seeds of all envs are drawn from, or None to go on with their random
                numbers.
            options: None: EnvPool knows none.

        Returns:
            Observations and infos, as any vector env.
        """
        if options:
            raise ValueError(f"EnvPool's envs take no options to `reset`, but got {options}.")
        if seed is not None or self._pool is None:
            seeds = np.random.default_rng(seed).integers(2**31, size=self.num_envs)
            self._pool = None  # The old pool's threads and memory go before the new ones come.
            self._pool = self._make(num_envs=self.num_envs, seed=seeds)
        # Each new pool makes its spaces again.
        with _silent_bounds():
            observations, infos = self._pool.reset()
        return self._as_in_space(observations), self._vector_infos(infos)

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Steps every env, as any vector env."""
        *columns, infos = self._step(self._all, actions)
        return *columns, self._vector_infos(infos)

    def step_some(
        self, env_indices: Sequence[int], actions: Any
    ) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]] | None]:
        """Steps the envs `env_indices` only; see `StepsSome` in sampling/rollout/vector_env.py."""
        *columns, infos = self._step(np.asarray(env_indices), actions)
        if not infos:
            return *columns, None
        # Numbers of Python's own are faster to make and to pickle than NumPy's.
        values = (column.tolist() if column.ndim == 1 else column for column in infos.values())
        rows = zip(*values, strict=True)
        return *columns, [dict(zip(infos, row, strict=True)) for row in rows]

    def close_extras(self, **kwargs: Any) -> None:
        """Ends the pool's threads."""
        self._pool = None

    def _step(self, env_indices: np.ndarray, actions: Any) -> tuple[Any, ...]:
        observations, rewards, terminateds, truncateds, infos = self._pool.step(
            actions, env_indices
        )
        return (
            self._as_in_space(observations),
            rewards.astype(np.float64),
            terminateds,
            truncateds,
            _without_bookkeeping(infos),
        )

    def _as_in_space(self, observations: Any) -> Any:
        return map_leaves(
            lambda array, dtype: array.astype(dtype, copy=False), observations, self._dtypes
        )

    def _vector_infos(self, infos: dict[str, Any]) -> dict[str, Any]:
        infos = _without_bookkeeping(infos)
        return infos | {f"_{name}": np.ones(self.num_envs, np.bool_) for name in infos}

    def _check_limit(self, env_id: str) -> None:
        """Raises a `ValueError` if an episode goes on beyond its limit, as some envs let it."""
        pool = self._make(num_envs=1, max_episode_steps=1)
        with _silent_bounds():
            pool.reset()
        _, _, terminateds, truncateds, _ = pool.step(self.action_space.sample()[:1])
        if not (terminateds | truncateds).all():
            raise ValueError(
                f"EnvPool's {env_id} ignores `max_episode_steps`. Use gymnasium's env, with "
                "`config.env_runners(max_episode_steps=..)`."
            )


def _create(env_id: str, options: dict[str, Any], context: Mapping[str, Any]) -> VectorEnv:
    """Makes the env on an env runner; RLlib puts `num_envs` into the context of vector envs."""
    if "num_envs" not in context:
        raise ValueError(
            f"EnvPool's {env_id} is a vector env: it needs "
            "`config.env_runners(gym_env_vectorize_mode='vector_entry_point')`."
        )
    return EnvPoolVectorEnv(env_id, **{**options, **context})


def _check(env_id: str, options: dict[str, Any]) -> Any:
    """Returns the module `envpool`, if it has this env and can make it with these options."""
    try:
        import envpool
    except ImportError as error:
        raise ImportError(
            'EnvPool isn\'t installed. Install it with `pip install "rllib_gpg[envpool]"`.'
        ) from error
    known = envpool.list_all_envs()
    if env_id not in known:
        close = difflib.get_close_matches(env_id, known)
        raise ValueError(
            f"EnvPool has no env {env_id!r}."
            + (f" Did you mean {' or '.join(map(repr, close))}?" if close else "")
            + " `envpool.list_all_envs()` names all it has."
        )
    refused = {"num_envs", "batch_size", "seed", "env_seed"}.intersection(options)
    if refused:
        raise ValueError(
            f"{sorted(refused)} can't be set for EnvPool's {env_id}: the number of envs is "
            "`config.env_runners(num_envs_per_env_runner=..)`, seeds follow from "
            "`config.debugging(seed=..)`, and all envs asked for are waited for."
        )
    if envpool.make_spec(env_id, **options).config.max_num_players > 1:
        raise ValueError(f"EnvPool's {env_id} has several players; only single agents can run.")
    return envpool


@contextmanager
def _silent_bounds() -> Iterator[None]:
    """For where EnvPool makes spaces: gymnasium warns that it gives float32 bounds in float64."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*precision lowered by casting")
        yield


def _repaired(space: gym.Space) -> gym.Space:
    """Returns the space without bounds where EnvPool gives the limits of the C++ type.

    As the lowest number it gives the smallest above zero, so that observations of -1 would be out
    of bounds.
    """
    if isinstance(space, gym.spaces.Dict):
        return gym.spaces.Dict({name: _repaired(part) for name, part in space.items()})
    if not isinstance(space, gym.spaces.Box) or not np.issubdtype(space.dtype, np.floating):
        return space
    limits = np.finfo(space.dtype)
    low = np.where(space.low == limits.tiny, -np.inf, space.low)
    high = np.where(space.high == limits.max, np.inf, space.high)
    return gym.spaces.Box(low.astype(space.dtype), high.astype(space.dtype), dtype=space.dtype)


def _single_precision(space: gym.Space) -> gym.Space:
    """Returns a box of float32, as all of gymnasium's envs have for actions; others as they are."""
    if isinstance(space, gym.spaces.Box) and space.dtype == np.float64:
        return gym.spaces.Box(space.low.astype(np.float32), space.high.astype(np.float32))
    return space


def _without_bookkeeping(infos: dict[str, Any]) -> dict[str, Any]:
    return {name: column for name, column in infos.items() if name not in _BOOKKEEPING}
