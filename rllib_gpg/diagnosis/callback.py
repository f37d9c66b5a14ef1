"""`DiagnosisCallback`: the picture of a group every so many iterations, while a run goes on."""

from __future__ import annotations

from typing import Any

from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.utils.annotations import override
from ray.rllib.utils.typing import ResultDict

from rllib_gpg.diagnosis.figure import check_matplotlib, draw
from rllib_gpg.diagnosis.picture import Picture

# In the results: a dict, module -> the picture of its group.
DIAGNOSIS = "diagnosis"


class DiagnosisCallback(RLlibCallback):
    """Puts a picture of the group into the results, where Tune's loggers find it.

    The group is the one that the iteration learned from: nothing is sampled for the picture, and
    the run is the same as without it. The figures behind it are in `algorithm.group_reports`.

        config.callbacks(DiagnosisCallback)
        config.callbacks(functools.partial(DiagnosisCallback, every=50))

    TensorBoard shows it under "Images", as `ray/tune/diagnosis/<module>`.
    """

    def __init__(self, every: int = 10):
        """Takes how often.

        Args:
            every: A picture in iteration 1, 1 + `every`, 1 + 2 `every`, .. Default 10: one takes
                about a second.

        Raises:
            ValueError: If it is no integer above 0.
        """
        super().__init__()
        if not isinstance(every, int) or every < 1:
            raise ValueError(f"every must be an integer above 0, got {every!r}.")
        self._every = every

    def is_due(self, iteration: int) -> bool:
        """Whether there is to be a picture of an iteration's group.

        Args:
            iteration: How many iterations there have been before it.
        """
        return iteration % self._every == 0

    @override(RLlibCallback)
    def on_algorithm_init(self, *, algorithm: Algorithm, **kwargs: Any) -> None:
        """Finds out at once whether pictures can be drawn.

        Raises:
            ModuleNotFoundError: If there is no matplotlib.
        """
        check_matplotlib()

    @override(RLlibCallback)
    def on_train_result(self, *, algorithm: Algorithm, result: ResultDict, **kwargs: Any) -> None:
        """Draws what was reported on the iteration's group."""
        if algorithm.group_reports:
            result[DIAGNOSIS] = {
                module_id: Picture.of(draw({module_id: report}))
                for module_id, report in algorithm.group_reports.items()
            }
