"""Gathers a group: exactly N whole episodes, or N rollouts, whatever happens to env runners."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.env.env_runner_group import EnvRunnerGroup
from ray.rllib.utils.metrics.metrics_logger import MetricsLogger
from ray.rllib.utils.typing import ResultDict

from rllib_gpg.sampling.connector_states import ConnectorStates
from rllib_gpg.sampling.episode_metrics import keep_last_items, log_episodes
from rllib_gpg.sampling.gathering import RemoteGathering
from rllib_gpg.sampling.ledger import Ledger, SamplingError
from rllib_gpg.sampling.messages import Share, ShareResult, Weights
from rllib_gpg.sampling.packing import Episodes
from rllib_gpg.sampling.requests import Requests
from rllib_gpg.sampling.standing import Standing

logger = logging.getLogger("ray.rllib")

__all__ = ["Group", "SamplingError", "cut_into_shares", "gather"]

NUM_EPISODES_REDISPATCHED = "num_episodes_redispatched"
NUM_SHARES_DUPLICATED = "num_shares_duplicated"


@dataclass(frozen=True)
class Group:
    """The episodes of one group, in the order of the shares, whichever came first.

    Attributes:
        episodes: Exactly `group_size` of them, all sampled with the same weights, and those of
            further rounds; or the pieces of episodes of `group_size` rollouts; none of an
            evaluation. Those from other processes are packed until somebody looks at one.
        metrics: What to log: what the env runners logged meanwhile, and what becomes known here.
        connectors: What the connectors remembered at the end of each share.
        standing: Where each rollout stands, for the next group.
    """

    episodes: Episodes
    metrics: list[ResultDict]
    connectors: list[ConnectorStates]
    standing: tuple[Standing | None, ...]


def cut_into_shares(
    config: AlgorithmConfig,
    run_seed: int,
    group: int,
    num_episodes: int | None = None,
    *,
    num_env_runners: int | None = None,
    standing: tuple[Standing | None, ...] = (),
    after: Sequence[Share] = (),
) -> list[Share]:
    """Cuts a group, or the episodes of an evaluation, into shares, by the config alone.

    Neither which env runner was slow or lost, nor - with `episodes_per_share` set - how many there
    are, changes a group.

    Args:
        config: The algorithm's config: `group_size`, `episodes_per_start`, `episodes_per_share`,
            and the numbers of env runners and of envs per env runner, from which the default size
            of a share follows. For an evaluation, the evaluation config.
        run_seed: The seed of the whole run.
        group: The number of the group, or of the evaluation, in the run.
        num_episodes: How many episodes there are, by default `group_size`.
        num_env_runners: How many env runners there are, by default what the config says.
        standing: Where the rollouts stand, if the group is of those: after the group before.
        after: The shares of the group that these come on top of, none by default. Shares and
            episodes are counted on from there.

    Returns:
        The shares. Their numbers of episodes add up to `num_episodes`.
    """
    num_episodes = num_episodes or config.group_size
    size = episodes_per_share(config, num_episodes, num_env_runners)
    of_rollouts = config.batch_mode == "truncate_episodes" and not config.in_evaluation
    if of_rollouts and len(standing) != num_episodes:
        if standing:
            logger.warning(
                f"The {len(standing)} rollouts of the group before are dropped, and "
                f"{num_episodes} begin anew, because `group_size` has changed."
            )
        standing = (None,) * num_episodes
    sampled = sum(share.num_episodes for share in after)
    return [
        Share(
            run_seed,
            group,
            len(after) + index,
            min(size, num_episodes - first),
            config.in_evaluation,
            # The env runners for training may be asked for an evaluation.
            config.explore if config.in_evaluation else None,
            num_steps=config.rollout_fragment_length if of_rollouts else 0,
            first=sampled + first,
            standing=standing[first : first + size] if of_rollouts else (),
            first_env=_first_env(config, index, size) if of_rollouts else 0,
            per_start=1 if config.in_evaluation else config.episodes_per_start,
        )
        for index, first in enumerate(range(0, num_episodes, size))
    ]


def num_envs_of_rollouts(config: AlgorithmConfig) -> int:
    """Returns how many envs an env runner needs, so that each of its rollouts has its own."""
    size = episodes_per_share(config)
    last = math.ceil(config.group_size / size) - 1
    # The last share may be smaller than those beside it.
    before = last - last % max(1, config.num_env_runners)
    beside = min(size, config.group_size - before * size)
    return _first_env(config, last, size) + beside


def _first_env(config: AlgorithmConfig, index: int, size: int) -> int:
    # Shares go round the env runners; each round takes the envs after those of the one before.
    return index // max(1, config.num_env_runners) * size


def episodes_per_share(
    config: AlgorithmConfig, num_episodes: int | None = None, num_env_runners: int | None = None
) -> int:
    """Returns how many episodes a share has: what the config says, or what follows from it.

    Args:
        config: As for `cut_into_shares`.
        num_episodes: How many episodes there are, by default `group_size`.
        num_env_runners: How many env runners there are, by default what the config says.
    """
    if config.episodes_per_share is not None:
        return config.episodes_per_share
    num_episodes = num_episodes or config.group_size
    num_env_runners = config.num_env_runners if num_env_runners is None else num_env_runners
    # Alone, an env runner has nobody to share the load with, and keeps its envs busy longest with
    # the whole group at once.
    size = math.ceil(num_episodes / max(1, num_env_runners))
    return size if num_env_runners <= 1 else min(size, config.num_envs_per_env_runner)


def gather(
    env_runner_group: EnvRunnerGroup,
    shares: list[Share],
    weights: Weights,
    *,
    config: AlgorithmConfig,
    restore: Callable[[], Any],
    tell_of_new_env: Callable[[int], Any] = lambda runner: None,
    further: Callable[[list[ShareResult]], list[Share]] = lambda results: [],
    cancelled: threading.Event | None = None,
) -> Group:
    """Has every share sampled, by the remote env runners or, if there are none, the local one.

    A share that is lost with its env runner, fails, or exceeds `sample_timeout_s` (in evaluation,
    `evaluation_sample_timeout_s`) is sent out again as it was, and so gives the same episodes.

    Args:
        env_runner_group: The env runners, all of them `GroupEnvRunner`s.
        shares: The shares of one group, or of one evaluation.
        weights: The weights to sample them with.
        config: The algorithm's config: the two timeouts, `max_share_failures`,
            `duplicate_last_shares` and `env_runner_restore_timeout_s`.
        restore: Tries to bring lost env runners back; called when all are lost.
        tell_of_new_env: Called with the index of a remote env runner whose env was made anew,
            before it samples again; by default nobody is told.
        further: Returns what else to sample, given the results of all shares so far; asked until
            there is nothing. By default there is nothing.
        cancelled: Is set when nobody wants the group any more, by another thread than the one that
            gathers. Default None: it is wanted. Only for remote env runners.

    Raises:
        SamplingError: If a share failed too often, or no env runner comes back.
        CancelledSamplingError: If the group was cancelled.
    """
    results: list[ShareResult] = []
    num_redispatched = num_duplicated = 0
    while shares:
        ledger = Ledger(shares, config.max_share_failures)
        if env_runner_group.num_remote_env_runners() == 0:
            runner = env_runner_group.local_env_runner
            while ledger.waiting:
                share = ledger.waiting.popleft()
                ledger.enter(runner.sample_share(share, weights, ledger.progress))
        else:
            with Requests.of(env_runner_group) as requests:
                RemoteGathering(
                    env_runner_group,
                    requests,
                    ledger,
                    weights,
                    config=config,
                    restore=restore,
                    tell_of_new_env=tell_of_new_env,
                    cancelled=cancelled,
                ).run()
        results += [ledger.results[share.index] for share in shares]
        num_redispatched += ledger.num_redispatched
        num_duplicated += ledger.num_duplicated
        shares = further(results)
    # Over the episodes of all rounds.
    metrics = MetricsLogger(root=False, stats_cls_lookup=config.stats_cls_lookup)
    log_episodes((result.summaries for result in results), metrics)
    counts = {NUM_EPISODES_REDISPATCHED: num_redispatched}
    if config.duplicate_last_shares:
        counts[NUM_SHARES_DUPLICATED] = num_duplicated
    for key, count in counts.items():
        metrics.log_value(key, count, reduce="sum")
        metrics.log_value(f"{key}_lifetime", count, reduce="lifetime_sum")
    return Group(
        Episodes([result.episodes for result in results]),
        [*keep_last_items([result.metrics for result in results]), metrics.reduce()],
        [result.connectors for result in results],
        tuple(standing for result in results for standing in result.standing),
    )
