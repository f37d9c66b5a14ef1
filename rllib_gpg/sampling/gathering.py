"""How shares are spread over remote env runners, whatever happens to these."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, defaultdict
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
# How long an env runner rests that has failed twice in a row, and at most, if it goes on failing.
_REST_S, _MAX_REST_S = 1.0, 32.0
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
        tell_of_new_env: Callable[[int], Any],
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
        self._tell_of_new_env = tell_of_new_env
        self._cancelled = cancelled
        self._timeout_setting = ledger.waiting[0].timeout_setting
        self._duplicates: bool = config.duplicate_last_shares
        # The indices of the shares that have been given their second copy, since they last failed.
        self._duplicated: set[int] = set()
        self._runners = sorted(self._manager.actor_ids())
        self._healthy: set[int] = set()
        self._idle: list[int] = []
        self._failures = _Failures()
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
        self._healthy = healthy
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
        ready = self._ready()
        for runner in list(ready):
            share = next((s for s in waiting if self._may_sample(runner, s, ready)), None)
            if share is not None:
                ready.remove(runner)
                self._idle.remove(runner)
                waiting.remove(share)
                self._requests.send(runner, share, self._weights)

    def _ready(self) -> list[int]:
        """Returns the idle env runners, but for those that fail while others don't."""
        resting = self._failures.resting()
        return [r for r in self._idle if r not in resting or resting >= self._healthy]

    def _may_sample(self, runner: int, share: Share, ready: list[int]) -> bool:
        """Whether a share is for this one of the ready env runners.

        Not if it has failed there and another one is ready on which it hasn't.
        """
        failed = self._failures.of(share)
        if runner in failed and not failed.issuperset(ready):
            return False
        return self._home(share) in (None, runner)

    def _duplicate(self) -> None:
        """Gives idle env runners second copies of the shares that have been out for longest."""
        ready = self._ready()
        if not ready:
            return
        requests = sorted(self._requests.open.values(), key=lambda request: request.since)
        out = [request.share for request in requests if request.share is not None]
        once = [share for share in out if share.index not in self._duplicated]
        for runner, share in zip(ready, once, strict=False):
            self._idle.remove(runner)
            self._requests.send(runner, share, self._weights)
            self._duplicated.add(share.index)
            self._ledger.num_duplicated += 1

    def _home(self, share: Share) -> int | None:
        """Returns the env runner that has the envs of a share's rollouts; None: any will do.

        Another one would have to repeat their episodes.
        """
        if not share.num_steps:
            return None
        home = self._runners[share.index % len(self._runners)]
        fails = self._failures.of(share) | self._failures.suspects()
        return home if self._manager.is_actor_healthy(home) and home not in fails else None

    def _collect(self) -> None:
        for request, answer in self._requests.answered(self._next_look):
            error = answer.exception()
            if isinstance(error, RayError):
                self._take_out_of_service(request.runner, error)
                self._fail(request.share, f"env runner {request.runner} is lost")
                continue
            result = answer.result()
            if isinstance(result, ShareFailure) and result.has_new_env:
                self._tell_of_new_env(request.runner)
            self._idle.append(request.runner)
            if request.share is not None:
                self._enter(request.runner, request.share, result)

    def _enter(self, runner: int, share: Share, result: ShareResult | ShareFailure) -> None:
        if isinstance(result, ShareFailure):
            self._failures.add(runner, share)
            suspects = self._failures.suspects()
            # It is the share's fault rather than the env runner's, or everybody's.
            counts = runner not in suspects or suspects >= self._healthy
            self._fail(share, result.error, result.traceback, counts=counts)
            return
        self._failures.end(runner)
        self._ledger.enter(result)
        for copy in self._copies(share):
            # Both are the same; the env runner is busy with it until it is done.
            copy.share = None

    def _fail(
        self, share: Share | None, why: str, traceback: str = "", counts: bool = True
    ) -> None:
        """Books a share as failed, unless nobody waits for it or a copy of it may still come."""
        if share is not None and not self._copies(share):
            self._duplicated.discard(share.index)
            self._ledger.fail(share, why, traceback, counts=counts)

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
        self._failures.end(runner)
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
        self._failures.end(runner)
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


class _Failures:
    """What env runners have failed at in a group, so that one that is broken doesn't end the run.

    It is free again at once, and would be given the same share until that has failed too often.
    """

    def __init__(self) -> None:
        self._runners: defaultdict[int, set[int]] = defaultdict(set)
        self._in_a_row: Counter[int] = Counter()
        self._rest_s: dict[int, float] = {}
        self._rests_until: dict[int, float] = {}

    def add(self, runner: int, share: Share) -> None:
        """Takes note of a failure; one that isn't the first in a row has the env runner rest."""
        self._runners[share.index].add(runner)
        self._in_a_row[runner] += 1
        if runner in self.suspects():
            # 1 s, 2 s, 4 s, ..
            self._rest_s[runner] = min(2.0 * self._rest_s.get(runner, _REST_S / 2.0), _MAX_REST_S)
            self._rests_until[runner] = time.monotonic() + self._rest_s[runner]

    def end(self, runner: int) -> None:
        """Takes note that an env runner has sampled a share, or is another process from now on."""
        self._in_a_row.pop(runner, None)
        self._rest_s.pop(runner, None)

    def of(self, share: Share) -> set[int]:
        """Returns the env runners on which a share has failed."""
        return self._runners[share.index]

    def suspects(self) -> set[int]:
        """Returns the env runners that have failed more than once in a row."""
        return {runner for runner, in_a_row in self._in_a_row.items() if in_a_row > 1}

    def resting(self) -> set[int]:
        """Returns those of them that are to be left alone for a while."""
        now = time.monotonic()
        return {runner for runner in self.suspects() if self._rests_until[runner] > now}
