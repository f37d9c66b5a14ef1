"""How shares are spread over remote env runners, whatever happens to these."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayError
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.env.env_runner_group import EnvRunnerGroup

from rllib_gpg.sampling.ledger import CancelledSamplingError, Ledger, SamplingError
from rllib_gpg.sampling.messages import Share, ShareFailure, ShareResult, Weights
from rllib_gpg.sampling.requests import Request, Requests

logger = logging.getLogger("ray.rllib")

# How often to look whether an env runner is overdue, or was lost or has come back unnoticed: of one
# that dies while it samples, Ray tells at once.
_LOOK_S = 0.25
# How often to look whether a lost env runner has come back, when all of them are lost.
_RESTORE_S = 1.0


class RemoteGathering:
    """Hands the next share to whichever env runner is free, until all have come back."""

    def __init__(
        self,
        env_runner_group: EnvRunnerGroup,
        requests: Requests,
        ledger: Ledger,
        weights: Weights,
        *,
        config: AlgorithmConfig,
        restore: Callable[[], Any],
        cancelled: threading.Event | None = None,
    ):
        """Takes what `gather` takes, and the shares as a ledger."""
        self._group = env_runner_group
        self._manager = env_runner_group._worker_manager
        self._requests = requests
        self._ledger = ledger
        self._weights = weights
        self._config = config
        self._restore = restore
        self._cancelled = cancelled
        self._timeout_setting = ledger.waiting[0].timeout_setting
        self._duplicates: bool = config.duplicate_last_shares
        # The indices of the shares that have been given their second copy, since they last failed.
        self._duplicated: set[int] = set()
        self._runners = sorted(self._manager.actor_ids())
        self._idle: list[int] = []
        self._next_look = 0.0

    def run(self) -> None:
        """Has all shares sampled."""
        while not self._ledger.is_complete:
            self._check_is_wanted()
            if time.monotonic() >= self._next_look:
                self._look()
            self._dispatch()
            self._collect()

    def _look(self) -> None:
        """Goes through all env runners; nothing else does."""
        self._kill_overdue()
        healthy = set(self._group.healthy_env_runner_ids())
        for runner in self._requests.open.keys() - healthy:
            self._lose(runner, f"env runner {runner} is lost")
        if not healthy:
            self._wait_for_runners()
            healthy = set(self._group.healthy_env_runner_ids())
        self._idle = sorted(healthy - self._requests.open.keys())
        self._ledger.progress.say()
        self._next_look = time.monotonic() + _LOOK_S

    def _dispatch(self) -> None:
        """Gives idle env runners what waits or, if that is to be, copies of what is still out."""
        waiting = self._ledger.waiting
        if not waiting:
            if self._duplicates:
                self._duplicate()
            return
        still_idle = []
        for runner in self._idle:
            share = next((s for s in waiting if self._home(s) in (None, runner)), None)
            if share is None:
                still_idle.append(runner)
            else:
                waiting.remove(share)
                self._requests.send(runner, share, self._weights)
        self._idle = still_idle

    def _duplicate(self) -> None:
        """Gives idle env runners second copies of the shares that have been out for longest."""
        if not self._idle:
            return
        requests = sorted(self._requests.open.values(), key=lambda request: request.since)
        out = [request.share for request in requests if request.share is not None]
        once = [share for share in out if share.index not in self._duplicated]
        for share in once[: len(self._idle)]:
            self._requests.send(self._idle.pop(0), share, self._weights)
            self._duplicated.add(share.index)
            self._ledger.num_duplicated += 1

    def _home(self, share: Share) -> int | None:
        """Returns the env runner that has the envs of a share's rollouts; None: any will do.

        Another one would have to repeat their episodes.
        """
        if not share.num_steps:
            return None
        home = self._runners[share.index % len(self._runners)]
        return home if self._manager.is_actor_healthy(home) else None

    def _collect(self) -> None:
        for request, answer in self._requests.answered(self._next_look):
            error = answer.exception()
            if isinstance(error, RayError):
                self._take_out_of_service(request.runner, error)
                self._fail(request.share, f"env runner {request.runner} is lost")
                continue
            self._idle.append(request.runner)
            if request.share is not None:
                self._enter(request.share, answer.result())

    def _enter(self, share: Share, result: ShareResult | ShareFailure) -> None:
        if isinstance(result, ShareFailure):
            self._fail(share, result.error, result.traceback)
            return
        self._ledger.enter(result)
        for copy in self._copies(share):
            # Both are the same; the env runner is busy with it until it is done.
            copy.share = None

    def _fail(self, share: Share | None, why: str, traceback: str = "") -> None:
        """Books a share as failed, unless nobody waits for it or a copy of it may still come."""
        if share is not None and not self._copies(share):
            self._duplicated.discard(share.index)
            self._ledger.fail(share, why, traceback)

    def _copies(self, share: Share) -> list[Request]:
        """Returns the requests for a share that are open."""
        if not self._duplicates:
            return []
        return [request for request in self._requests.open.values() if request.share == share]

    def _take_out_of_service(self, runner: int, error: RayError) -> None:
        """Has RLlib see to it that an env runner comes back, unless the config says otherwise.

        Raises:
            RayError: If the config says that a lost env runner ends the run.
        """
        if not self._group._ignore_ray_errors_on_env_runners:
            raise error
        logger.error(f"Env runner {runner} is taken out of service: {error}")
        self._manager.set_actor_state(runner, healthy=False)
        # Perhaps it was the last one.
        self._next_look = 0.0

    def _kill_overdue(self) -> None:
        limit = getattr(self._config, self._timeout_setting)
        if limit is None:
            return
        for runner, request in list(self._requests.open.items()):
            if time.monotonic() - request.since > limit:
                # A hanging env can't be stopped, only its process; Ray starts the actor again.
                ray.kill(self._manager.actors()[runner], no_restart=False)
                self._manager.set_actor_state(runner, healthy=False)
                self._lose(
                    runner,
                    f"env runner {runner} was killed, because the share took longer than "
                    f"`{self._timeout_setting}` = {limit} s",
                )

    def _lose(self, runner: int, why: str) -> None:
        self._fail(self._requests.drop(runner).share, why)

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
