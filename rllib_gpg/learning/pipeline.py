"""From the episodes of a group to what each learner gets, by RLlib's learner connector pipeline.

RLlib's learners would each run their own pipeline, over slices of episodes: returns would break
off, and bins would be those of a shard. Here the first learner runs its own, over the whole group.
It is the learner that has what pieces may ask for: the module with the weights in force and all of
its state, and the pieces that its `build` has added.
"""

from __future__ import annotations

import copy
import traceback
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch
import tree
from ray.rllib.connectors.connector_pipeline_v2 import ConnectorPipelineV2
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.learner import Learner
from ray.rllib.core.learner.learner_group import LearnerGroup
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModule
from ray.rllib.core.rl_module.torch.torch_rl_module import TorchRLModule
from ray.rllib.policy.sample_batch import MultiAgentBatch
from ray.rllib.utils.metrics.metrics_logger import MetricsLogger
from ray.rllib.utils.typing import EpisodeType, ModuleID

from rllib_gpg.learning.batch import (
    MinibatchPlan,
    ModuleBatch,
    Rows,
    deal,
    multi_agent_batch,
    plan_minibatches,
    select_modules,
    shard,
)
from rllib_gpg.learning.rl_module import ObservationMoments, ObservationNormalizer
from rllib_gpg.nested import map_leaves
from rllib_gpg.seeding import MAX_SEED, seeded_globally

# In a pipeline's `shared_data`: a function that reports on a module's group, to be called by the
# piece that has it; and a dict, module -> what it has reported.
REPORT, REPORTS = "report", "reports"

_DEFAULT_NUM_MINIBATCHES = 4


@dataclass(frozen=True)
class PreparedGroup:
    """A group as learners take it. Its episodes are no longer needed.

    Attributes:
        shards: One batch per learner; of remote learners, a reference to it in Ray's object store.
            Of a single remote learner None: it has made the batch, and keeps it where it is, as it
            would have to come back to its device. Empty if no module is to be trained.
        order: In which order a single learner goes through the rows at first: dealing them out to
            itself would copy all of them. None: shards are in order.
        plan: How the learners go through their shards.
        seed: The seed of what is random in the update.
        moments: The moments of the group's observations, for each module that normalises these.
        metrics: What the pieces have logged, reduced.
        reports: What was reported on the group, by module, if that was asked for.
    """

    shards: list[Any]
    order: Rows | None
    plan: MinibatchPlan
    seed: int
    moments: dict[ModuleID, ObservationMoments]
    metrics: dict[str, Any]
    reports: dict[ModuleID, Any]


def prepare_group(
    learner_group: LearnerGroup,
    episodes: Sequence[EpisodeType],
    *,
    shared_data: dict[str, Any],
    generator: np.random.Generator,
) -> PreparedGroup:
    """Has the first learner make shards of a group.

    Args:
        learner_group: The learners.
        episodes: The whole group.
        shared_data: What pieces are told beside it.
        generator: The source of the order of the steps, and of the update's seed.

    Raises:
        Exception: What a piece raised.
    """
    (result,) = learner_group.foreach_learner(
        _try_to_prepare,
        remote_actor_ids=[0],
        healthy_only=False,
        episodes=episodes,
        shared_data=shared_data,
        generator=generator,
    )
    prepared = result.get()
    if isinstance(prepared, Exception):
        raise prepared
    return prepared


def recurrent_modules(learner_group: LearnerGroup) -> set[ModuleID]:
    """Asks the first learner which modules are recurrent."""
    (result,) = learner_group.foreach_learner(
        lambda learner: {mid for mid, m in learner.module.items() if m.unwrapped().is_stateful()},
        remote_actor_ids=[0],
    )
    found: set[ModuleID] = result.get()
    return found


def run_together(learner_group: LearnerGroup) -> bool:
    """Asks the first learner whether its modules have one forward pass, as of a shared encoder."""
    (result,) = learner_group.foreach_learner(
        lambda learner: type(learner.module)._forward_train is not MultiRLModule._forward_train,
        remote_actor_ids=[0],
    )
    together: bool = result.get()
    return together


def run_pipeline(
    learner: Learner,
    episodes: Sequence[EpisodeType],
    metrics: MetricsLogger,
    shared_data: dict[str, Any] | None = None,
) -> dict[ModuleID, ModuleBatch]:
    """Runs a learner's connector pipeline over a whole group."""
    # Here, where they are read, they become objects.
    episodes = list(episodes)
    _make_writable(episodes)
    return learner._learner_connector(
        rl_module=_without_ddp(learner),
        batch={},
        episodes=episodes,
        shared_data=shared_data or {},
        metrics=metrics,
    )


def _try_to_prepare(learner: Learner, **kwargs: Any) -> PreparedGroup | Exception:
    """Returns what a piece raises as a value: RLlib takes learners that raise out of service."""
    try:
        return _prepare(learner, **kwargs)
    except Exception as error:
        if learner.config.num_learners > 0:
            error.add_note(f"On the first learner:\n{traceback.format_exc()}")
        return error


def _prepare(
    learner: Learner,
    *,
    episodes: Sequence[EpisodeType],
    shared_data: dict[str, Any],
    generator: np.random.Generator,
) -> PreparedGroup:
    config = learner.config
    learner.kept_batch = None
    metrics = MetricsLogger(root=False, stats_cls_lookup=config.stats_cls_lookup)
    # Pieces may draw from global generators, whose state is in no checkpoint.
    (source,) = generator.spawn(1)
    with seeded_globally(int(source.integers(MAX_SEED)), learner._device):
        group = run_pipeline(learner, episodes, metrics, shared_data)
    # The learner's own, which callbacks may change.
    group = select_modules(group, config.policies_to_train)
    shards: list[MultiAgentBatch] = []
    order = None
    if group and config.num_learners > 1:
        group = {module_id: _on_cpu(columns) for module_id, columns in group.items()}
        shards = shard(group, config.num_learners, generator)
    elif group:
        shards = [multi_agent_batch(group)]
        (order,) = deal(group, 1, generator)
    return PreparedGroup(
        shards=_for_learners(learner, shards),
        order=order,
        plan=plan_minibatches(
            shards,
            num_epochs=config.num_epochs,
            num_minibatches=config.num_minibatches or _DEFAULT_NUM_MINIBATCHES,
            minibatch_size=config.minibatch_size,
        ),
        seed=int(generator.integers(MAX_SEED)),
        moments={
            module_id: ObservationMoments.of(columns[Columns.OBS], columns.get(Columns.LOSS_MASK))
            for module_id, columns in group.items()
            if _normalizes(learner.module[module_id].unwrapped())
        },
        metrics=metrics.reduce(),
        reports=shared_data.get(REPORTS, {}),
    )


def _normalizes(module: TorchRLModule) -> bool:
    # A module of the user's may have something else of that name.
    return isinstance(getattr(module, "observation_normalizer", None), ObservationNormalizer)


def _for_learners(learner: Learner, shards: list[MultiAgentBatch]) -> list[Any]:
    """Returns how the shards get to the learners; see `PreparedGroup`."""
    if learner.config.num_learners == 0:
        return shards
    if learner.config.num_learners > 1:
        return [ray.put(batch) for batch in shards]
    learner.kept_batch = next(iter(shards), None)
    return [None for _ in shards]


def _make_writable(episodes: list[EpisodeType]) -> None:
    """Copies the data of episodes that Ray has brought from elsewhere, for pieces to change."""
    for episode in ConnectorV2.single_agent_episode_iterator(episodes, False):
        columns = [episode.observations, episode.actions, episode.rewards]
        for column in (*columns, *episode.extra_model_outputs.values()):
            if column.finalized:
                column.data = map_leaves(
                    lambda array: array if array.flags.writeable else array.copy(), column.data
                )


def _without_ddp(learner: Learner) -> MultiRLModule:
    """Returns the learner's module; in it, a forward pass doesn't wait for the other learners."""
    if learner.config.num_learners < 2:
        return learner.module
    module = copy.copy(learner.module.unwrapped())
    module._rl_modules = {module_id: part.unwrapped() for module_id, part in module.items()}
    return module


def _on_cpu(columns: ModuleBatch) -> ModuleBatch:
    """Brings columns to where they can be sent from."""
    return {
        name: column if name == Columns.INFOS else tree.map_structure(torch.Tensor.cpu, column)
        for name, column in columns.items()
    }


# What pieces remember.


def get_pieces_state(pipeline: ConnectorPipelineV2) -> dict[str, list[Any]]:
    """Returns the states of a pipeline's pieces, per class in their order.

    RLlib's own `ConnectorPipelineV2.get_state` keeps one state per class.
    """
    states = defaultdict(list)
    for piece in _pieces(pipeline):
        states[type(piece).__name__].append(piece.get_state())
    return {name: of_class for name, of_class in states.items() if any(of_class)}


def set_pieces_state(pipeline: ConnectorPipelineV2, state: dict[str, list[Any]]) -> None:
    """Restores what `get_pieces_state` returned; a piece that has no state there stays as it is."""
    states = {name: iter(of_class) for name, of_class in state.items()}
    for piece in _pieces(pipeline):
        of_piece = next(states.get(type(piece).__name__, iter(())), None)
        if of_piece:
            piece.set_state(of_piece)


def forget_module(pipeline: ConnectorPipelineV2, module_id: ModuleID) -> None:
    """Has the pieces that remember something of a module forget it."""
    for piece in _pieces(pipeline):
        if hasattr(piece, "forget"):
            piece.forget(module_id)


def _pieces(pipeline: ConnectorPipelineV2) -> Iterator[ConnectorV2]:
    """Goes through all pieces, also those of a user's pipeline within the pipeline."""
    for piece in pipeline.connectors:
        if isinstance(piece, ConnectorPipelineV2):
            yield from _pieces(piece)
        else:
            yield piece
