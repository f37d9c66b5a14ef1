"""Whether anything reads the infos of episodes once these have left their env runner.

Infos are Python objects, one dict per step, and often most of what an episode weighs. Callbacks
of episodes and `on_sample_end` see them where they were sampled. What comes later is asked here: by
default nothing reads them, and what somebody wrote himself is taken to, unless its class says
otherwise.
"""

from __future__ import annotations

from typing import Any

from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.connectors.common import (
    AddObservationsFromEpisodesToBatch,
    AddStatesFromEpisodesToBatch,
    AddTimeDimToBatchAndZeroPad,
    AgentToModuleMapping,
    BatchIndividualItems,
    NumpyToTensor,
)
from ray.rllib.connectors.connector_pipeline_v2 import ConnectorPipelineV2
from ray.rllib.connectors.learner import (
    AddColumnsFromEpisodesToTrainBatch,
    LearnerConnectorPipeline,
)
from ray.rllib.core.learner.learner import Learner

# RLlib's default pieces, which can't say it themselves. Another piece of RLlib's is one that
# somebody has added, perhaps for the infos.
_READ_NONE = frozenset(
    {
        AddColumnsFromEpisodesToTrainBatch,
        AddObservationsFromEpisodesToBatch,
        AddStatesFromEpisodesToBatch,
        AddTimeDimToBatchAndZeroPad,
        AgentToModuleMapping,
        BatchIndividualItems,
        ConnectorPipelineV2,
        LearnerConnectorPipeline,
        NumpyToTensor,
    }
)


def reads_infos(algorithm: Algorithm) -> bool:
    """Returns whether an algorithm reads infos: it itself, its recording, or its learners' pieces.

    The pieces are asked as they are now: a `Learner.build` may add some, and so may anybody later.

    Args:
        algorithm: The algorithm, with its learners.
    """
    config = algorithm.config
    if _may_read(algorithm) or (config.output and config.output_write_episodes):
        return True
    # The first one runs its pieces for all.
    answers = algorithm.learner_group.foreach_learner(_pieces_read, remote_actor_ids=[0])
    return any(answer.get() for answer in answers)


def _pieces_read(learner: Learner) -> bool:
    def read(piece: Any) -> bool:
        inner = piece.connectors if isinstance(piece, ConnectorPipelineV2) else []
        return _may_read(piece) or any(map(read, inner))

    return read(learner._learner_connector)


def _may_read(thing: Any) -> bool:
    """Returns what a thing's own class says; a subclass of it may do something else."""
    kind = type(thing)
    says: bool = vars(kind).get("reads_infos", kind not in _READ_NONE)
    return says
