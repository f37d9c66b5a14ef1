"""The state of PyTorch's learning rate schedulers, which RLlib's learners leave out of theirs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


def lr_schedulers_state(
    schedulers: Mapping[str, Mapping[str, Sequence[LRScheduler]]],
) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Returns the states of each optimizer's schedulers, by module and by optimizer."""
    return {
        module_id: {
            name: [each.state_dict() for each in own] for name, own in of_optimizers.items()
        }
        for module_id, of_optimizers in schedulers.items()
    }


def restored_lr_schedulers(
    optimizer: Optimizer,
    classes: Sequence[Callable[[Optimizer], LRScheduler]],
    states: Sequence[dict[str, Any]],
) -> list[LRScheduler]:
    """Makes an optimizer's schedulers again, as they were when their states were taken.

    Args:
        optimizer: With the learning rates it was saved with.
        classes: The config's `_torch_lr_scheduler_classes`. Those beyond the saved ones begin anew.
        states: What `lr_schedulers_state` returned of the optimizer.
    """
    rates = [group["lr"] for group in optimizer.param_groups]
    schedulers = [make(optimizer) for make in classes]
    for scheduler, state in zip(schedulers, states, strict=False):
        scheduler.load_state_dict(state)
    # Making a scheduler has set the first learning rate.
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    return schedulers
