from __future__ import annotations

from collections.abc import Iterator

import pytest
import ray
import torch

# As in Ray's own workers. Networks here are tiny: more threads only wait for each other.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One local Ray for all tests. Its CPUs are only numbers: actors here do next to nothing."""
    ray.init(address="local", num_cpus=8, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()
