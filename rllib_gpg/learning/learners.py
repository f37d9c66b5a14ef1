"""The update on all learners of a group; one that fails alone ends it for all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError, RayTaskError
from ray.rllib.core.learner.learner_group import LearnerGroup
from ray.rllib.core.learner.training_data import TrainingData
from ray.rllib.utils.typing import ResultDict

# How long learners may still take to fail of themselves, once one has: those that wait for its
# gradients would do so for half an hour, the limit of `torch.distributed`.
_PATIENCE_S = 5.0


def update_learners(
    learner_group: LearnerGroup, shards: Sequence[Any], **settings: Any
) -> list[ResultDict]:
    """Has every learner go through its shard.

    Args:
        learner_group: The learners.
        shards: The one of a local learner, or references to those of remote ones, in their order;
            None if it is the one that the learner keeps.
        **settings: What `UpdateLoop.update` takes.

    Raises:
        Exception: What a learner raised, in notes what others did. Remote learners that were left
            waiting for it have been stopped.
    """
    if learner_group.is_local:
        results: list[ResultDict] = learner_group.update(batch=shards[0], **settings)
        return results
    learners = list(learner_group._worker_manager.actors().values())
    # RLlib's `LearnerGroup.update` asks for all results before it looks at any.
    requests = {
        learner.update.remote(**_data(shard), **settings): learner
        for learner, shard in zip(learners, shards, strict=True)
    }
    _wait_for(requests)
    return ray.get(list(requests))


def _data(shard: ray.ObjectRef | None) -> dict[str, Any]:
    return {"kept": True} if shard is None else {"training_data": TrainingData(batch_refs=[shard])}


def _wait_for(requests: dict[Any, ActorHandle]) -> None:
    errors: list[RayError] = []
    waiting = list(requests)
    while waiting:
        done, waiting = ray.wait(waiting, timeout=_PATIENCE_S if errors else None)
        if not done:
            break
        try:
            ray.get(done)
        except RayError as raised:
            errors.append(raised)
    if not errors:
        return
    for request in waiting:
        ray.kill(requests[request])
    first, *others = errors
    # What was raised there, since Ray's own error loses its notes where Tune passes it on.
    error = first.cause if isinstance(first, RayTaskError) else first
    if error is not first:
        error.add_note(f"On a learner:\n{first}")
    for other in others:
        error.add_note(f"On another learner: {str(other).strip().splitlines()[-1]}")
    if waiting:
        error.add_note(
            f"Of {len(requests)} learners {len(waiting)} waited for the gradients of one that "
            "failed, and were stopped. Go on from a checkpoint."
        )
    raise error
