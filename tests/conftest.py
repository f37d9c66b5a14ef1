from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import ray
import torch
from ray.rllib.connectors import connector_v2

from tests.helpers import start_ray

# As in Ray's own workers. Networks here are tiny: more threads only wait for each other.
torch.set_num_threads(1)


def _stack() -> list[SimpleNamespace]:
    return [SimpleNamespace(frame=sys._getframe(depth)) for depth in (1, 2)]


# Each connector looks for its caller by a function that finds out the source of all frames on the
# stack. Those of pytest are many: it would take three quarters of the time of all local tests.
connector_v2.inspect = SimpleNamespace(stack=_stack, getargvalues=inspect.getargvalues)


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One local Ray for all tests; each worker of pytest-xdist has one of its own."""
    start_ray()
    yield
    ray.shutdown()
