"""Where lines go: a terminal with a live line at its bottom, or anything else."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rllib_gpg.sampling.progress import heard_by

if TYPE_CHECKING:
    from rich.console import Console


class Display:
    """Prints lines; on a terminal, with `rich`, it also shows what is waited for."""

    def __init__(self) -> None:
        """Finds out whether there is a terminal."""
        self._terminal = _terminal()

    def say(self, line: str) -> None:
        """Prints a line, at once."""
        print(line, flush=True)

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Shows meanwhile what is waited for, and how many episodes of the group are in."""
        if self._terminal is None:
            yield
            return
        with (
            self._terminal.status(what) as status,
            heard_by(lambda said: status.update(f"{what} | {said}")),
        ):
            yield


def _terminal() -> Console | None:
    # An extra.
    if importlib.util.find_spec("rich") is None:
        return None
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else None
