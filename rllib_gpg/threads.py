"""As many torch threads as Ray gives its workers, for as long as an algorithm works."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig


@contextmanager
def threads_of_main_process(config: AlgorithmConfig) -> Iterator[None]:
    """Gives torch one thread per CPU of the algorithm's own process; then back to what it had.

    Ray sees to that in its workers (`OMP_NUM_THREADS`), so also in Ray Tune. In a script of one's
    own torch would take all cores, and its threads spend their time waiting for each other: a
    minibatch of a small network is too little work to share out.

    A setting belongs to the thread that makes it, and to those that begin later. So what runs in
    parallel in here, as training does to evaluation, has it too, and nothing of it stays.

    Args:
        config: The algorithm's config, for `num_cpus_for_main_process` and, with a learner in this
            process, `num_cpus_per_learner`: by default one CPU.
    """
    num_cpus = config.num_cpus_for_main_process
    if config.num_learners == 0 and config.num_cpus_per_learner != "auto":
        num_cpus = max(num_cpus, config.num_cpus_per_learner)
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, math.floor(num_cpus)))
    try:
        yield
    finally:
        torch.set_num_threads(before)
