"""Everything random in a run derives from its seed, by a key that says what for."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

# What a seed is for. It is part of the seed, so that no two uses ever draw the same numbers.
GROUP = 0
SAMPLE_CALL = 1
SHUFFLE = 2
EVALUATION = 3

# Envs may pass their seed on to generators that take 32 bits, some of them signed.
MAX_SEED = 2**31 - 1


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
