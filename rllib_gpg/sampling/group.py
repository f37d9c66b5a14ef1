"""Gathers a group: exactly N whole episodes, or N rollouts, whatever happens to env runners."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.env.env_runner_group import EnvRunnerGroup
from ray.rllib.utils.metrics.metrics_logger import MetricsLogger
from ray.rllib.utils.typing import EpisodeType, ResultDict

from rllib_gpg.sampling.connector_states import ConnectorStates
from rllib_gpg.sampling.episode_metrics import log_episodes
from rllib_gpg.sampling.messages import Share, ShareFailure, ShareResult, Weights
from rllib_gpg.sampling.progress import Progress
from rllib_gpg.sampling.standing import Standing

logger = logging.getLogger("ray.rllib")

# Results are fetched together: one that has come waits for the others, but no longer than this.
_POLL_S = 0.005
# How often to look whether a lost env runner has come back, when all of them are lost.
_RESTORE_S = 1.0
_TAG = "sample_share"

NUM_EPISODES_REDISPATCHED = "num_episodes_redispatched"


class SamplingError(RuntimeError):
    """A group couldn't be completed."""


class CancelledSamplingError(SamplingError):
    """Nobody wants the group any more."""


@dataclass(frozen=True)
class Group:
    """The episodes of one group, in the order of the shares, whichever came first.

    Attributes:
        episodes: Exactly `group_size` of them, all sampled with the same weights, and those of
            further rounds; or the pieces of episodes of `group_size` rollouts; none of an
            evaluation.
        metrics: What to log: what the env runners logged meanwhile, and what becomes known here.
        connectors: What the connectors remembered at the end of each share.
        standing: Where each rollout stands, for the next group.
    """

    episodes: list[EpisodeType]
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
    num_env_runners = config.num_env_runners if num_env_runners is None else num_env_runners
    size = config.episodes_per_share
    if size is None:
        # Alone, an env runner has nobody to share the load with, and keeps its envs busy longest
        # with the whole group at once.
        size = math.ceil(num_episodes / max(1, num_env_runners))
        if num_env_runners > 1:
            size = min(size, config.num_envs_per_env_runner)
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
            per_start=1 if config.in_evaluation else config.episodes_per_start,
        )
        for index, first in enumerate(range(0, num_episodes, size))
    ]


def gather(
    env_runner_group: EnvRunnerGroup,
    shares: list[Share],
    weights: Weights,
    *,
    config: AlgorithmConfig,
    restore: Callable[[], Any],
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
        config: The algorithm's config: the two timeouts, `max_share_failures` and
            `env_runner_restore_timeout_s`.
        restore: Tries to bring lost env runners back; called when all are lost.
        further: Returns what else to sample, given the results of all shares so far; asked until
            there is nothing. By default there is nothing.
        cancelled: Is set when nobody wants the group any more, by another thread than the one that
            gathers. Default None: it is wanted. Only for remote env runners.

    Raises:
        SamplingError: If a share failed too often, or no env runner comes back.
        CancelledSamplingError: If the group was cancelled.
    """
    results: list[ShareResult] = []
    num_redispatched = 0
    while shares:
        ledger = _Ledger(shares, config.max_share_failures)
        if env_runner_group.num_remote_env_runners() == 0:
            runner = env_runner_group.local_env_runner
            while ledger.waiting:
                share = ledger.waiting.popleft()
                ledger.enter(runner.sample_share(share, weights, ledger.progress))
        else:
            _RemoteGathering(env_runner_group, ledger, weights, config, restore, cancelled).run()
        results += [ledger.results[share.index] for share in shares]
        num_redispatched += ledger.num_redispatched
        shares = further(results)
    # Over the episodes of all rounds.
    metrics = MetricsLogger(root=False)
    log_episodes((summary for result in results for summary in result.summaries), metrics)
    for name, reduce in (("", "sum"), ("_lifetime", "lifetime_sum")):
        key = f"{NUM_EPISODES_REDISPATCHED}{name}"
        metrics.log_value(key, num_redispatched, reduce=reduce)
    return Group(
        [episode for result in results for episode in result.episodes],
        [*(result.metrics for result in results), metrics.reduce()],
        [result.connectors for result in results],
        tuple(standing for result in results for standing in result.standing),
    )


class _Ledger:
    """Which shares of a group wait, which have come back, and how often each has failed."""

    def __init__(self, shares: list[Share], max_failures: int):
        self.waiting = deque(shares)
        self.results: dict[int, ShareResult] = {}
        self.num_redispatched = 0
        self.progress = Progress(shares)
        self._num_shares = len(shares)
        self._max_failures = max_failures
        self._failures: Counter[int] = Counter()

    @property
    def is_complete(self) -> bool:
        return len(self.results) == self._num_shares

    def enter(self, result: ShareResult | ShareFailure) -> None:
        """Books what an env runner returned for a share."""
        if isinstance(result, ShareFailure):
            self.fail(result.share, result.error, result.traceback)
        else:
            self.results[result.share.index] = result
            self.progress.share_is_in(result.share)

    def has_failed(self, share: Share) -> bool:
        """Whether an earlier attempt at the share failed."""
        return self._failures[share.index] > 0

    def fail(self, share: Share, why: str, traceback: str = "") -> None:
        """Books a share that has to be sent out again.

        Raises:
            SamplingError: If it has failed `max_failures` times.
        """
        self._failures[share.index] += 1
        if self._failures[share.index] >= self._max_failures:
            raise SamplingError(
                f"Share {share.index} of {'evaluation' if share.in_evaluation else 'group'} "
                f"{share.group} failed {self._max_failures} times "
                f"(`max_share_failures`), the last time with: {why}."
                + (f" It is sampled with {share.seeds()}." if not share.num_steps else "")
                + f"\n{traceback}"
            )
        logger.warning(f"Sampling {share} again, with the same seeds, because of: {why}")
        self.waiting.appendleft(share)
        self.num_redispatched += share.num_episodes


@dataclass(frozen=True)
class _InFlight:
    """What an env runner is busy with; no share: what a call that was interrupted asked for."""

    share: Share | None
    since: float


class _RemoteGathering:
    """Hands the next share to whichever env runner is free, until all have come back."""

    def __init__(
        self,
        env_runner_group: EnvRunnerGroup,
        ledger: _Ledger,
        weights: Weights,
        config: AlgorithmConfig,
        restore: Callable[[], Any],
        cancelled: threading.Event | None,
    ):
        self._cancelled = cancelled
        self._group = env_runner_group
        self._ledger = ledger
        self._weights = weights
        self._config = config
        self._restore = restore
        self._timeout_setting = ledger.waiting[0].timeout_setting
        self._in_flight: dict[int, _InFlight] = {}

    def run(self) -> None:
        while not self._ledger.is_complete:
            self._check_is_wanted()
            healthy = set(self._group.healthy_env_runner_ids())
            for runner in set(self._in_flight) - healthy:
                self._lose(runner, f"env runner {runner} is lost")
            if healthy:
                self._dispatch(sorted(healthy - set(self._in_flight)))
                self._collect()
                self._ledger.progress.say()
                self._kill_overdue()
            else:
                self._wait_for_runners()

    def _dispatch(self, idle: list[int]) -> None:
        waiting = self._ledger.waiting
        for runner in idle:
            share = next((s for s in waiting if self._home(s) in (None, runner)), None)
            if share is None:
                continue
            again = self._ledger.has_failed(share)
            # Nothing is sent to an env runner that still owes RLlib an answer.
            is_sent = self._group.foreach_env_runner_async(
                # Lists: RLlib pairs a scalar with the wrong runner once one is unhealthy.
                func=["sample_share"],
                kwargs=[{"share": share, "weights": self._weights, "again": again}],
                remote_worker_ids=[runner],
                tag=_TAG,
            )
            if is_sent:
                waiting.remove(share)
            self._in_flight[runner] = _InFlight(share if is_sent else None, time.monotonic())

    def _home(self, share: Share) -> int | None:
        """Returns the env runner that has the envs of a share's rollouts; None: any will do.

        Another one would have to repeat their episodes.
        """
        if not share.num_steps:
            return None
        runners = sorted(self._group._worker_manager.actor_ids())
        home = runners[share.first // self._config.num_envs_per_env_runner % len(runners)]
        return home if home in self._group.healthy_env_runner_ids() else None

    def _collect(self) -> None:
        ready = self._group.fetch_ready_async_reqs(tags=_TAG, timeout_seconds=_POLL_S)
        for runner, result in ready:
            in_flight = self._in_flight.pop(runner, None)
            if in_flight is None or in_flight.share is None:
                continue
            asked, got = in_flight.share, result.share
            if (asked, self._weights.version) == (got, result.weights_version):
                self._ledger.enter(result)
            else:
                # It was asked for by an earlier call; what this one asked for comes next.
                self._in_flight[runner] = _InFlight(asked, time.monotonic())

    def _kill_overdue(self) -> None:
        limit = getattr(self._config, self._timeout_setting)
        if limit is None:
            return
        for runner, in_flight in list(self._in_flight.items()):
            if time.monotonic() - in_flight.since > limit:
                # A hanging env can't be stopped, only its process; Ray starts the actor again.
                ray.kill(self._group._worker_manager.actors()[runner], no_restart=False)
                self._group._worker_manager.set_actor_state(runner, healthy=False)
                self._lose(
                    runner,
                    f"env runner {runner} was killed, because the share took longer than "
                    f"`{self._timeout_setting}` = {limit} s",
                )

    def _lose(self, runner: int, why: str) -> None:
        share = self._in_flight.pop(runner).share
        if share is not None:
            self._ledger.fail(share, why)

    def _wait_for_runners(self) -> None:
        limit = self._config.env_runner_restore_timeout_s
        logger.warning(f"All env runners are lost; waiting up to {limit} s for one to come back.")
        deadline = time.monotonic() + limit
        while not self._group.healthy_env_runner_ids():
            if time.monotonic() > deadline:
                raise SamplingError(
                    f"All {self._group.num_remote_env_runners()} env runners are lost, and none "
                    f"came back within `env_runner_restore_timeout_s` = {limit} s. Their logs say "
                    "why."
                )
            self._check_is_wanted()
            time.sleep(_RESTORE_S)
            self._restore()

    def _check_is_wanted(self) -> None:
        if self._cancelled is not None and self._cancelled.is_set():
            raise CancelledSamplingError("The group is no longer wanted.")
