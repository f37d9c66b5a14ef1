"""Stand-ins for env runners: they sample nothing, and their answers come due on a clock.

So the driver can be measured with more env runners than a machine has room for.
"""

from __future__ import annotations

import dataclasses
import functools
import heapq
import itertools
import pickle
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import ray
from ray import cloudpickle
from ray.exceptions import ActorDiedError

from rllib_gpg.sampling.messages import Share, ShareResult, Weights


class Prepared:
    """What an env runner of this package would answer, made beforehand."""

    def __init__(self, result: ShareResult):
        """Takes the result of some share."""
        buffers: list[pickle.PickleBuffer] = []
        self._pickled = cloudpickle.dumps(result, protocol=5, buffer_callback=buffers.append)
        self._buffers = [bytes(buffer.raw()) for buffer in buffers]

    @property
    def num_bytes(self) -> int:
        """How many bytes travel."""
        return len(self._pickled) + sum(map(len, self._buffers))

    def answer(self, share: Share) -> ShareResult:
        """Unpickles the result, as the driver does with one that has travelled, for a share."""
        result: ShareResult = pickle.loads(self._pickled, buffers=self._buffers)
        return dataclasses.replace(result, share=share)


class StandIn:
    """In the place of an actor: answers after a while, in the thread of a clock."""

    def __init__(self, clock: Clock, prepared: Prepared, share_s: float):
        """Takes what it answers, and after how many seconds."""
        self._clock, self._prepared, self._share_s = clock, prepared, share_s
        self.dies_at: float | None = None
        # What `actor.apply.remote` is.
        self.apply = SimpleNamespace(remote=self._remote)

    def _remote(self, function: functools.partial[Any]) -> Any:
        answer: Future[Any] = Future()
        due = time.monotonic() + self._share_s

        def set_answer() -> None:
            if self.dies_at is not None:
                answer.set_exception(ActorDiedError())
            else:
                answer.set_result(function(self))

        self._clock.call(min(due, self.dies_at or due), set_answer)
        return SimpleNamespace(future=lambda: answer)

    def sample_share(self, share: Share, weights: Weights) -> ShareResult:
        """Answers at once: the time for it is over."""
        return self._prepared.answer(share)


class Clock(threading.Thread):
    """Calls functions when they are due."""

    def __init__(self) -> None:
        """Starts the thread."""
        super().__init__(daemon=True)
        self._due: list[tuple[float, int, Any]] = []
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._ends = False
        self.start()

    def call(self, when: float, function: Any) -> None:
        """Has a function called at a time of `time.monotonic`."""
        with self._changed:
            first = (when, next(self._numbers), function)
            heapq.heappush(self._due, first)
            if self._due[0] is first:
                self._changed.notify()

    def run(self) -> None:
        """Waits for what is due next."""
        while True:
            with self._changed:
                while not self._ends and (not self._due or self._due[0][0] > time.monotonic()):
                    wait = self._due[0][0] - time.monotonic() if self._due else None
                    self._changed.wait(wait)
                if self._ends:
                    return
                _, _, function = heapq.heappop(self._due)
            function()

    def end(self) -> None:
        """Ends the thread."""
        with self._changed:
            self._ends = True
            self._changed.notify()


@ray.remote(num_cpus=0)
class PreparedActor:
    """A real actor that answers with what was made beforehand: what Ray itself costs."""

    def __init__(self, prepared: Prepared, share_s: float):
        """Takes what it answers, and after how many seconds."""
        self._prepared, self._share_s = prepared, share_s

    def apply(self, function: Any) -> Any:
        """Calls a function with itself, as RLlib's env runners do."""
        return function(self)

    def sample_share(self, share: Share, weights: Weights) -> ShareResult:
        """Waits, and answers."""
        time.sleep(self._share_s)
        return self._prepared.answer(share)


class RunnerGroup:
    """What `gather` asks of RLlib's `EnvRunnerGroup` and its actor manager."""

    def __init__(self, actors: Mapping[int, Any]):
        """Takes the actors by their ids."""
        self._actors = dict(actors)
        self._healthy = dict.fromkeys(actors, True)
        self._worker_manager = self
        self._ignore_ray_errors_on_env_runners = True

    def num_remote_env_runners(self) -> int:
        """How many there are."""
        return len(self._actors)

    def healthy_env_runner_ids(self) -> list[int]:
        """Those that aren't lost."""
        return [runner for runner, healthy in self._healthy.items() if healthy]

    def actors(self) -> dict[int, Any]:
        """All of them, by their ids."""
        return self._actors

    def actor_ids(self) -> list[int]:
        """Their ids."""
        return list(self._actors)

    def is_actor_healthy(self, runner: int) -> bool:
        """Whether one isn't lost."""
        return self._healthy[runner]

    def set_actor_state(self, runner: int, *, healthy: bool) -> None:
        """Takes one out of service, or back."""
        self._healthy[runner] = healthy
