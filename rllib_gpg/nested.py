"""Arrays, or dicts and tuples of arrays, by one name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import tree


def map_leaves(function: Callable[..., Any], first: Any, *others: Any) -> Any:
    """Applies a function to each array of one or more structs of the same form.

    As `tree.map_structure`, which costs as much as a small network's forward pass even where
    there is no structure at all: most observations and actions are one array.
    """
    if isinstance(first, np.ndarray | torch.Tensor):
        return function(first, *others)
    return tree.map_structure(function, first, *others)


def fresh(columns: dict[str, Any]) -> dict[str, Any]:
    """Returns the same arrays in a dict of their own: a module may put others in their place."""
    return {name: fresh(each) if isinstance(each, dict) else each for name, each in columns.items()}


def on_host(arrays: Any) -> Any:
    """Returns what may be tensors, on any device, as NumPy's arrays."""
    return map_leaves(_on_host, arrays)


def row(batch: Any, index: int) -> Any:
    """Returns one item of a list, or a copy of one row of a batch: vector envs reuse theirs."""
    if isinstance(batch, list):
        return batch[index]
    # `copy` keeps what is a scalar a scalar: envs look actions up in dicts.
    return map_leaves(lambda array: _on_host(array[index]).copy(), batch)


def _on_host(array: Any) -> Any:
    return array.cpu().numpy() if isinstance(array, torch.Tensor) else array
