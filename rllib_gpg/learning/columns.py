"""Numbers of steps, in the form of the columns of a finished batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from ray.rllib.core.columns import Columns
from ray.rllib.utils.numpy import convert_to_numpy


def as_column(
    parts: Sequence[np.ndarray], columns: Mapping[str, Any], dtype: Any = np.float32
) -> torch.Tensor:
    """Returns numbers of steps in the form of a module's other columns: [B], or padded [B, T]."""
    marks = is_step(columns)
    column = np.zeros(marks.shape, dtype)
    column[marks] = np.concatenate(parts)
    return torch.from_numpy(column).to(columns[Columns.REWARDS].device)


def is_step(columns: Mapping[str, Any]) -> np.ndarray:
    """Says which entries of [B], or [B, T], are steps of an episode and no padding."""
    shape = columns[Columns.REWARDS].shape
    if Columns.SEQ_LENS not in columns:
        return np.ones(shape, np.bool_)
    lengths_B = convert_to_numpy(columns[Columns.SEQ_LENS])
    return np.arange(shape[1]) < lengths_B[:, None]
