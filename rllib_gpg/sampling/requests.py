"""What remote env runners have been asked for, and their answers as these come."""

from __future__ import annotations

import functools
import queue
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Self

from ray.rllib.env.env_runner_group import EnvRunnerGroup

from rllib_gpg.sampling.messages import Share, ShareFailure, ShareResult, Weights

# The attribute of an env runner group that remembers what its env runners still owe.
_OWED = "_owed_shares"

_Answers = queue.SimpleQueue[tuple["Request", "Future[Any]"]]


@dataclass(eq=False)
class Request:
    """What an env runner is busy with.

    Attributes:
        runner: The env runner.
        share: The share that it samples; None if nobody waits for it any more.
        answers: Where the answer goes; None if nobody waits for any.
        since: When it was asked.
        is_answered: Whether it has answered.
    """

    runner: int
    share: Share | None
    answers: _Answers | None
    since: float = field(default_factory=time.monotonic)
    is_answered: bool = False

    def take(self, answer: Future[Any]) -> None:
        """Is called when there is an answer, in a thread of Ray's."""
        # In this order: who begins to wait now says so first, and then looks whether it is.
        self.is_answered = True
        answers = self.answers
        if answers is not None:
            answers.put((self, answer))


@dataclass
class _Owed:
    """What outlives a call of `gather`: which env runners are busy. One call at a time."""

    open: dict[int, Request] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)


class Requests:
    """Asks the env runners of a group for shares, one share at a time each.

    RLlib's actor manager would have to be asked again and again whether there are answers, and
    goes through all requests each time. Ray tells when there is one, so that waiting costs nothing
    however many env runners there are.

    What is still owed when nobody waits for it any more, because a call was interrupted for
    instance, is remembered with the env runner group: an env runner is busy until it has answered.

    Attributes:
        open: What has been asked and not answered, by env runner.
    """

    def __init__(self, env_runner_group: EnvRunnerGroup, open_requests: dict[int, Request]):
        """Waits, from now on, also for what is still owed; see `of`."""
        self._manager = env_runner_group._worker_manager
        self._answers: _Answers = queue.SimpleQueue()
        self.open = open_requests
        for request in list(open_requests.values()):
            request.share, request.answers = None, self._answers
            if request.is_answered:
                del open_requests[request.runner]

    @classmethod
    @contextmanager
    def of(cls, env_runner_group: EnvRunnerGroup) -> Iterator[Self]:
        """Opens the requests to the env runners of a group, after anybody else's to the same."""
        owed: _Owed = vars(env_runner_group).setdefault(_OWED, _Owed())
        with owed.lock:
            requests = cls(env_runner_group, owed.open)
            try:
                yield requests
            finally:
                for request in owed.open.values():
                    request.answers = None

    def send(self, runner: int, share: Share, weights: Weights) -> None:
        """Asks an env runner, which must owe nothing, for a share."""
        # As one object, by the name of a function: what takes Ray least to send.
        sample = functools.partial(_sample_share, share=share, weights=weights)
        answer = self._manager.actors()[runner].apply.remote(sample).future()
        self.open[runner] = request = Request(runner, share, self._answers)
        answer.add_done_callback(request.take)

    def drop(self, runner: int) -> Request:
        """Forgets what an env runner owes: it is lost."""
        return self.open.pop(runner)

    def answered(self, until: float) -> Iterator[tuple[Request, Future[Any]]]:
        """Yields what has been answered, after waiting for something, but not beyond `until`."""
        try:
            answers = [self._answers.get(timeout=max(0.0, until - time.monotonic()))]
        except queue.Empty:
            return
        while not self._answers.empty():
            answers.append(self._answers.get())
        for request, answer in answers:
            # Not if it is of one that counts as lost.
            if self.open.get(request.runner) is request:
                del self.open[request.runner]
                yield request, answer


def _sample_share(env_runner: Any, share: Share, weights: Weights) -> ShareResult | ShareFailure:
    """Samples a share, where the env runner is."""
    result: ShareResult | ShareFailure = env_runner.sample_share(share, weights)
    return result
