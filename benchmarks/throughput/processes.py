"""A process for each contender."""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any

import torch

from benchmarks.throughput.contenders import Contender


class Process:
    """A contender in a process of its own; calls go there and back."""

    def __init__(self, contender: type[Contender], *args: Any):
        """Starts the process, and the contender with `args`, without waiting for it."""
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(1, mp_context=context)
        self._building = self._pool.submit(_build, contender, *args)

    def wait(self) -> None:
        """Waits until the contender is built."""
        self._building.result()

    def call(self, method: str, *args: Any) -> Any:
        """Calls a method of the contender."""
        future: Future[Any] = self._pool.submit(_call, method, *args)
        return future.result()

    def stop(self) -> None:
        """Ends the process."""
        self._pool.shutdown()


# The contender of a process that `Process` started.
_contender: Contender


def _build(contender: type[Contender], *args: Any) -> None:
    global _contender
    torch.set_num_threads(1)
    with contextlib.suppress(ImportError):
        # One warning per HalfCheetah, about a file of gymnasium's.
        import mujoco

        mujoco.set_mju_user_warning(lambda message: None)
    _contender = contender(*args)


def _call(method: str, *args: Any) -> Any:
    return getattr(_contender, method)(*args)


@contextlib.contextmanager
def processes(contenders: Sequence[type[Contender]], *args: Any) -> Iterator[list[Process]]:
    """Runs contenders side by side, each built with `args`."""
    started = [Process(contender, *args) for contender in contenders]
    try:
        for process in started:
            process.wait()
        yield started
    finally:
        for process in started:
            process.stop()
