"""`Level`: a second comparison, whose advantages are added to those of the first."""

from dataclasses import dataclass
from numbers import Real

import numpy as np

from rllib_gpg.advantages.binning import BinningFunction, resolve_binning
from rllib_gpg.advantages.credit import check_credit
from rllib_gpg.advantages.units import check_unit


@dataclass(frozen=True)
class Level:
    """A second comparison of the same group, with plain bins of returns that stop at a cut.

    A trajectory's own return is in their mean if it is in the first baseline. Where episodes share
    starts, bins are those of one start here too.

    GiGPO (Feng et al., 2025) compares whole trajectories first, and then what follows the same
    state in different trajectories: `credit="outcome"`, universal bins and `Level("state")`. As in
    all bins here, a trajectory enters a state's mean once, at its first visit; in GiGPO at each.

    Args:
        binning: Which steps are compared.
        credit: With what: "returns" (default), "outcome" or "process".
        normalize: The unit, as in `training(normalize_advantages=..)`. Default "bins": the standard
            deviation of each bin.
        weight: Of these advantages, added to the others, whose weight is 1. Default 1, as in GiGPO.

    Raises:
        ValueError: If one of them can't be meant.
        TypeError: If binning is neither a name nor a function.
    """

    binning: str | BinningFunction
    credit: str = "returns"
    normalize: bool | str = "bins"
    weight: float = 1.0

    def __post_init__(self) -> None:
        """Refuses what can't be meant."""
        resolve_binning(self.binning)
        check_credit(self.credit)
        check_unit(self.normalize)
        is_number = isinstance(self.weight, Real) and not isinstance(self.weight, bool)
        if not is_number or not np.isfinite(self.weight) or self.weight < 0.0:
            raise ValueError(f"weight must be a number >= 0, got {self.weight!r}.")


def check_level(level: object, *, bootstrap: bool = False, of_pieces: bool = False) -> None:
    """Refuses what is no second level, and one that would compare other returns than the first.

    Args:
        level: What may be one.
        bootstrap: Whether the returns of truncated trajectories are to be completed.
        of_pieces: Whether trajectories may be pieces of episodes.

    Raises:
        TypeError: If it is neither a level nor None.
        ValueError: If the returns of truncated trajectories are to be completed; or as
            `check_credit` does.
    """
    if level is None:
        return
    if not isinstance(level, Level):
        raise TypeError(f"it must be a rllib_gpg.advantages.Level or None, got {level!r}.")
    if bootstrap:
        raise ValueError(
            "a second level compares returns that stop at a cut, which `bootstrap_truncated` "
            "doesn't complete for it: leave one of the two out."
        )
    check_credit(level.credit, of_pieces=of_pieces)
