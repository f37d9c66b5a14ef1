"""Which settings of the estimator go together."""

from rllib_gpg.advantages.baselines import Baseline
from rllib_gpg.advantages.baselines.choice import check_uses
from rllib_gpg.advantages.binning import BinningFunction
from rllib_gpg.advantages.credit import check_credit
from rllib_gpg.advantages.levels import Level, check_level
from rllib_gpg.advantages.units import check_unit


def check_settings(
    baseline: Baseline,
    binning: BinningFunction,
    *,
    lambda_: float,
    normalize: bool | str,
    credit: str,
    second_level: Level | None,
    bootstrap: bool,
    of_starts: bool = False,
    of_pieces: bool = False,
) -> None:
    """Refuses settings of `estimate_group` that don't go together.

    Args:
        baseline: The baseline.
        binning: The binning.
        lambda_: λ of the λ-returns.
        normalize: The unit of advantages.
        credit: What each step is credited with.
        second_level: A second comparison, or None.
        bootstrap: Whether the returns of truncated trajectories are to be completed.
        of_starts: Whether bins hold the trajectories of one start only.
        of_pieces: Whether trajectories may be pieces of episodes.

    Raises:
        ValueError, TypeError: Says which, why, and the way out.
    """
    check_unit(normalize)
    check_uses(
        baseline,
        binning,
        lambda_=lambda_,
        normalize=normalize,
        bootstrap=bootstrap,
        of_starts=of_starts,
    )
    check_credit(credit, lambda_=lambda_, bootstrap=bootstrap, of_pieces=of_pieces)
    check_level(second_level, bootstrap=bootstrap, of_pieces=of_pieces)
