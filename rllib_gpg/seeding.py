"""Everything random in a run derives from its seed, by a key that says what for."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import random
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch

# What a seed is for. It is part of the seed, so that no two uses ever draw the same numbers.
GROUP = 0
SAMPLE_CALL = 1
SHUFFLE = 2
EVALUATION = 3
ROLLOUT = 4
START = 5

# Envs may pass their seed on to generators that take 32 bits, some of them signed.
MAX_SEED = 2**31 - 1


@dataclass(frozen=True)
class RunSeed:
    """The seed of a run, and where it comes from.

    Attributes:
        value: What the seeds of all groups and evaluations of the run derive from.
        given: The seed that the config names. None: it names none, and `value` is random.
        trial: The Tune trial that the run is. None: it runs outside Tune.
    """

    value: int
    given: int | None
    trial: str | None

    @classmethod
    def draw(cls, given: int | None, trial: str | None) -> Self:
        """Returns the seed of a run that begins."""
        return cls(secrets.randbits(128) if given is None else given, given, trial)

    def get_state(self) -> tuple[str, int | None, str | None]:
        """Returns it in plain types; the value as text, since msgpack's integers have 64 bits."""
        return str(self.value), self.given, self.trial

    @classmethod
    def from_state(cls, state: Sequence[Any]) -> Self:
        """Restores what `get_state` returned."""
        value, given, trial = state
        return cls(int(value), given, trial)

    def going_on(self, saved: RunSeed) -> RunSeed:
        """Returns the seed with which this run goes on from a checkpoint.

        Only the run that saved it goes on as it would have. Others part from it, and from each
        other: runs that aren't seeded, or not with the same seed; and a trial that takes over the
        state of another, as population based training has it, also if all have one seed.

        Args:
            saved: The seed of the run that the checkpoint is of.
        """
        if self.given is None or self.given != saved.given:
            return self.draw(self.given, self.trial)
        if self.trial is None or saved.trial in (None, self.trial):
            return dataclasses.replace(saved, trial=self.trial)
        digest = hashlib.sha256(f"{saved.value} {self.trial}".encode()).digest()
        return dataclasses.replace(self, value=int.from_bytes(digest[:16], "big"))


def generator(run_seed: int, *key: int) -> np.random.Generator:
    """Returns the generator of one purpose: independent of that of any other key.

    Args:
        run_seed: The seed of the whole run.
        *key: One of the constants above, then what tells the draws of this purpose apart.
    """
    return np.random.default_rng(np.random.SeedSequence(run_seed, spawn_key=key))


@contextlib.contextmanager
def seeded_globally(seed: int, device: Any) -> Iterator[None]:
    """Seeds the global generators of Python, NumPy and PyTorch, and leaves them as they were.

    Connectors, modules and mapping functions of users may draw from any of them.

    Args:
        seed: Less than `MAX_SEED`.
        device: Where modules compute; a GPU has a generator of its own.
    """
    device = torch.device(device)
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
