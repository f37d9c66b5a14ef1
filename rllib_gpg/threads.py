"""As many threads of torch and of NumPy as Ray gives its workers, while an algorithm works."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from threadpoolctl import ThreadpoolController


@contextmanager
def threads_of_main_process(config: AlgorithmConfig) -> Iterator[None]:
    """Gives torch and NumPy one thread per CPU of the algorithm's own process; then back again.

    Ray sees to that in its workers (`OMP_NUM_THREADS`), so also in Ray Tune. In a script of one's
    own both would take all cores, and their threads spend their time waiting for each other: a
    minibatch of a small network is too little work to share out, and so are a ridge's matrices,
    which take ten times as long where other processes keep the cores busy.

    torch's setting belongs to the thread that makes it, and to those that begin later; that of
    NumPy's BLAS to the process. So what runs in parallel in here, as training does to evaluation,
    has both too, and nothing of them stays.

    Args:
        config: The algorithm's config, for `num_cpus_for_main_process` and, with a learner in this
            process, `num_cpus_per_learner`: by default one CPU.
    """
    num_cpus = config.num_cpus_for_main_process
    if config.num_learners == 0 and config.num_cpus_per_learner != "auto":
        num_cpus = max(num_cpus, config.num_cpus_per_learner)
    num_threads, before = max(1, math.floor(num_cpus)), torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        # Of two threads that do this at a time, the first one's setting is in force.
        with _libraries().limit(limits=num_threads, user_api="blas"):
            yield
    finally:
        torch.set_num_threads(before)


@cache
def _libraries() -> ThreadpoolController:
    # It goes through all that is loaded, which takes milliseconds.
    return ThreadpoolController()
