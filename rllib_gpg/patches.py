"""What RLlib patches in other libraries."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import msgpack


@contextlib.contextmanager
def msgpack_as_it_is() -> Iterator[None]:
    """Undoes, at the end, what RLlib does to msgpack for checkpoints in that form.

    RLlib patches the whole module, so that it takes NumPy's arrays. Ray sends with it, and one
    process would get arrays as dicts from another which has been patched.
    """
    before = dict(vars(msgpack))
    try:
        yield
    finally:
        vars(msgpack).update(before)
