"""What env runners can't do. They would refuse it too, but remote ones only in their logs."""

from __future__ import annotations

import importlib.util
import logging
import math
from collections.abc import Iterator

import gymnasium as gym
import ray
from ray.exceptions import GetTimeoutError, RayActorError
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

from rllib_gpg.sampling import GroupEnvRunner, MultiAgentGroupEnvRunner
from rllib_gpg.sampling.group import episodes_per_share, num_envs_of_rollouts
from rllib_gpg.validation.checks import is_count

logger = logging.getLogger("ray.rllib")

_SECONDS_TO_START = 120.0
# RLlib takes both.
_SYNC = ("sync", gym.VectorizeMode.SYNC)


def problems(config: AlgorithmConfig) -> Iterator[str]:
    """Yields what is wrong with how the group is to be sampled, and recorded."""
    yield from _sampling(config)
    if config.output:
        yield from _recording(config)


def warn_of_idle_runners(config: AlgorithmConfig, evaluation_config: AlgorithmConfig) -> None:
    """Says so if a group, or an evaluation, has fewer shares than there are env runners."""
    group_size = config.group_size
    _warn_of_idle(config, "group", group_size, config.num_env_runners, "`episodes_per_share`")
    duration = config.evaluation_duration
    if config.evaluates_exactly and is_count(duration):
        num_env_runners = config.evaluation_num_env_runners
        setting = "`evaluation(evaluation_config={'episodes_per_share': ..})`"
        _warn_of_idle(evaluation_config, "evaluation", duration, num_env_runners, setting)


def _warn_of_idle(
    config: AlgorithmConfig, what: str, num_episodes: int, num_env_runners: int, setting: str
) -> None:
    size = episodes_per_share(config, num_episodes, num_env_runners)
    busy = math.ceil(num_episodes / size)
    # With duplicates, they sample second copies.
    if busy < num_env_runners and not config.duplicate_last_shares:
        smaller = f"lower {setting}, now {size}, or " * (size > 1)
        logger.warning(
            f"{what.capitalize()}s of {num_episodes} episodes are cut into {busy} "
            f"{'shares' if busy > 1 else 'share'}, so that "
            f"{num_env_runners - busy} of {num_env_runners} env runners have nothing to do: "
            f"{smaller}take {busy} env runners, or more episodes."
        )


def why_none_starts(config: AlgorithmConfig) -> Exception:
    """Returns what a remote env runner raises as it is made; asked when all have failed.

    An env that can't be made, mostly. RLlib logs it and goes on, in vain.
    """
    # Without resources of its own: those that failed may still hold theirs.
    runner = ray.remote(num_cpus=0)(config.env_runner_cls).remote(
        config=config, worker_index=1, num_workers=config.num_env_runners
    )
    try:
        ray.get(runner.assert_healthy.remote(), timeout=_SECONDS_TO_START)
    except RayActorError as error:
        # As RLlib takes it from there.
        return error.args[0].args[2] if error.actor_init_failed else error
    except GetTimeoutError as error:
        return error
    finally:
        ray.kill(runner)
    return RuntimeError("No remote env runner could be made; the log above says why.")


def _sampling(config: AlgorithmConfig) -> Iterator[str]:
    limit, mode = config.max_episode_steps, config.gym_env_vectorize_mode
    if config.is_multi_agent and mode not in _SYNC:
        yield (
            f"`gym_env_vectorize_mode={mode!r}` is for single-agent envs. RLlib steps multi-agent "
            "envs one by one ('sync'); remove the setting."
        )
    if limit is not None and mode not in _SYNC:
        yield (
            f"`max_episode_steps` can't cut the episodes of envs with `gym_env_vectorize_mode="
            f"{mode!r}`, only of those that gymnasium steps one by one ('sync'). Build the limit "
            "into the env. For an id that gymnasium or EnvPool knows: "
            f"`environment(env_config={{'max_episode_steps': {limit}}})`."
        )
    if config.episodes_per_start != 1:
        yield from _starts(config)
    if config.batch_mode == "truncate_episodes":
        yield from _rollouts(config)
    # Evaluation's config has the setting as well, and env runners of its own.
    if config.sample_ahead and config.num_env_runners == 0 and not config.in_evaluation:
        yield (
            "`sample_ahead=1` needs remote env runners, which sample while this process learns: "
            "set `env_runners(num_env_runners=..)` above 0, or leave `sample_ahead` at 0."
        )
    if not isinstance(config.duplicate_last_shares, bool):
        yield (
            f"`duplicate_last_shares` must be True or False, got {config.duplicate_last_shares!r}."
        )
    if config.use_env_runner_state_server:
        yield (
            "`use_env_runner_state_server=True` is for algorithms that sample while they learn "
            "(IMPALA, APPO). GPG sends weights and connector states along with each share of a "
            "group; remove the setting."
        )
    yield from of_failures(config)
    yield from of_the_class(config)


def of_failures(config: AlgorithmConfig) -> Iterator[str]:
    """Yields a sentence if episodes are to be replaced whose env has failed."""
    if config.restart_failed_sub_environments:
        yield (
            "`restart_failed_sub_environments=True` begins another episode where an env fails, "
            "which favours those that don't fail. GPG samples a share whose env has failed again, "
            "up to `max_share_failures` times; remove the setting."
        )


def of_the_class(config: AlgorithmConfig) -> Iterator[str]:
    """Yields a sentence if the class of env runners isn't one that samples groups."""
    needed = MultiAgentGroupEnvRunner if config.is_multi_agent else GroupEnvRunner
    runner_class = config.env_runner_cls
    if not (isinstance(runner_class, type) and issubclass(runner_class, needed)):
        yield (
            f"`env_runner_cls` must be {needed.__name__} or a subclass of it, got "
            f"{runner_class!r}: others return the episodes that end first, or that a client "
            "sends, and bias the group. A simulator in another process is reached through an env, "
            "see docs/from_ppo.md."
        )


def _starts(config: AlgorithmConfig) -> Iterator[str]:
    which = f"`episodes_per_start` = {config.episodes_per_start}"
    if config.gym_env_vectorize_mode not in _SYNC and not config.is_multi_agent:
        yield (
            f"{which} needs envs that gymnasium resets one by one "
            "(`gym_env_vectorize_mode='sync'`), since native and asynchronous vector envs begin "
            "all but the first episodes by themselves, from seeds of their own."
        )
    if config.batch_mode == "truncate_episodes":
        yield (
            f"{which} needs whole episodes: remove `batch_mode='truncate_episodes'`, whose "
            "rollouts go on from group to group and so don't start together."
        )


def _rollouts(config: AlgorithmConfig) -> Iterator[str]:
    if config.is_multi_agent:
        yield "`batch_mode='truncate_episodes'` is for single agents. Remove the setting."
    if config.gym_env_vectorize_mode not in _SYNC:
        yield (
            "`batch_mode='truncate_episodes'` needs envs that gymnasium steps one by one "
            "(`gym_env_vectorize_mode='sync'`): whichever env runner goes on with an episode must "
            "be able to bring an env to where that was cut."
        )
    if not config.episode_lookback_horizon:
        yield (
            "`batch_mode='truncate_episodes'` needs an `episode_lookback_horizon` of at least 1: a "
            "recurrent module goes on from the state that it had before the cut."
        )
    if config.duplicate_last_shares:
        yield (
            "`duplicate_last_shares` needs whole episodes: rollouts (`batch_mode="
            "'truncate_episodes'`) go on in envs of their own, and another env runner would have "
            "to repeat their episodes first. Remove one of the settings."
        )
    yield from _envs_of_rollouts(config)


def _envs_of_rollouts(config: AlgorithmConfig) -> Iterator[str]:
    per_share = config.episodes_per_share
    if not (is_count(config.group_size) and is_count(per_share or 1)):
        return  # That is said elsewhere.
    needed = num_envs_of_rollouts(config)
    if needed > config.num_envs_per_env_runner:
        shares = f", {per_share} in a share" if per_share else ""
        runner = (
            f"one of {config.num_env_runners} env runners"
            if config.num_env_runners
            else "this process"
        )
        yield (
            f"With `batch_mode='truncate_episodes'` each of the `group_size` = {config.group_size} "
            f"rollouts{shares} has an env of its own, which goes on from group to group: "
            f"{runner} needs {needed}, but `num_envs_per_env_runner` is "
            f"{config.num_envs_per_env_runner}. Raise it or `num_env_runners`"
            f"{', or remove `episodes_per_share`' if per_share else ''}."
        )


def _recording(config: AlgorithmConfig) -> Iterator[str]:
    if config.is_multi_agent:
        yield (
            f"`output={config.output!r}`: RLlib has no form for recorded episodes of several "
            "agents. Remove the setting from `offline_data(..)`, or record with single agents."
        )
    if config.output_write_episodes and importlib.util.find_spec("msgpack_numpy") is None:
        yield (
            f"`output={config.output!r}`: RLlib packs recorded episodes with the package "
            "`msgpack-numpy`. Install it, or record steps: `output_write_episodes=False`."
        )
