from __future__ import annotations

from collections.abc import Iterator

import pytest
import ray
import torch

from tests.helpers import start_ray

# As in Ray's own workers. Networks here are tiny: more threads only wait for each other.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One local Ray for all tests; each worker of pytest-xdist has one of its own."""
    start_ray()
    yield
    ray.shutdown()
