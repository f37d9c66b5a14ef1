"""What a user may give as a baseline, and what goes together with it."""

import difflib
from numbers import Real
from typing import Any

from rllib_gpg.advantages.baselines.base import Baseline
from rllib_gpg.advantages.baselines.bins import BinBaseline
from rllib_gpg.advantages.baselines.constants import NoBaseline, OptimalBaseline
from rllib_gpg.advantages.baselines.ridge import RidgeBaseline
from rllib_gpg.advantages.binning import BinningFunction, keys_last, name_of

_NAMED: dict[str, type[Any]] = {
    "bins": BinBaseline,
    "ridge": RidgeBaseline,
    "none": NoBaseline,
    "optimal": OptimalBaseline,
}
_REMEMBER = ("bins", "ridge")
_KEYS_LAST = "If equal keys of two groups name the same bin, say so: `f.keys_last = True`."
_PER_START = (
    "bins that hold one start's episodes only (`episodes_per_start` > 1) don't last from group to "
    "group."
)


def resolve_baseline(
    baseline: str | Baseline, *, decay: float | None = None, leave_one_out: bool = False
) -> Baseline:
    """Turns what a user may give as a baseline into a baseline.

    Args:
        baseline: A baseline object (returned as is), or one of "bins", "ridge", "none", "optimal".
        decay: The decay of one that is given by name. None: its own default.
        leave_one_out: Whether "bins" leaves a trajectory's own return out; all others do anyway.

    Raises:
        ValueError: If the name is unknown; if the decay isn't in [0, 1); if `decay` or
            `leave_one_out` is given beside an object, whose own settings these are.
        TypeError: If it is neither a name nor a baseline, or one without a method `values`.
    """
    if isinstance(baseline, str):
        if baseline not in _NAMED:
            nearest = difflib.get_close_matches(baseline, _NAMED, n=1, cutoff=0.0)
            raise ValueError(
                f"Unknown baseline {baseline!r}. Known names: {', '.join(map(repr, _NAMED))}; "
                f"the nearest is {nearest[0]!r}."
            )
        if decay is not None and baseline not in _REMEMBER:
            raise ValueError(f"baseline={baseline!r} remembers nothing: remove `baseline_decay`.")
        settings: dict[str, Any] = {} if decay is None else {"decay": decay}
        if baseline == "bins":
            settings["leave_one_out"] = leave_one_out
        return _NAMED[baseline](**settings)
    if not isinstance(baseline, Baseline):
        raise TypeError(
            "baseline must be a name or an object of a class that derives from "
            f"rllib_gpg.advantages.Baseline, such as RidgeBaseline(), got {baseline!r}."
        )
    if type(baseline).values is Baseline.values:
        raise TypeError(
            f"{type(baseline).__name__} needs a method values(group, returns, memory) -> "
            "Valuation: what the return of each step is compared with."
        )
    if decay is not None:
        raise ValueError(
            f"The decay of {baseline} is its own setting: set it there instead of beside it, where "
            f"`baseline_decay={decay}` stands. For one module, `baseline_decay=None` takes that "
            "away."
        )
    if leave_one_out and baseline.keeps_own:
        raise ValueError(f"{baseline} keeps a trajectory's own return: set leave_one_out there.")
    return baseline


def check_uses(
    baseline: Baseline,
    binning: BinningFunction,
    *,
    lambda_: float,
    normalize: bool | str,
    bootstrap: bool = False,
    of_starts: bool = False,
) -> None:
    """Refuses what is not safe without a baseline that sees the state, or can't be meant.

    Args:
        baseline: The baseline.
        binning: The binning.
        lambda_: λ of the λ-returns, 1 for plain returns.
        normalize: The unit of advantages.
        bootstrap: Whether the returns of truncated trajectories are to be completed.
        of_starts: Whether bins hold the trajectories of one start only.

    Raises:
        ValueError: Says why, and the way out.
    """
    if not isinstance(lambda_, Real) or isinstance(lambda_, bool) or not 0.0 <= lambda_ <= 1.0:
        raise ValueError(f"lambda_ must be a number in [0, 1], got {lambda_!r}.")
    if lambda_ < 1.0 and not baseline.sees_state:
        raise ValueError(
            f"lambda_={lambda_} replaces what happened later by later values, and those of "
            f"{baseline} don't see the state: what an action led to would be lost. "
            f"{_way_out(baseline)} Or set lambda_ to 1 with it."
        )
    if isinstance(baseline, OptimalBaseline):
        _check_constant(baseline, normalize, of_starts)
    if isinstance(baseline, BinBaseline) and baseline.remembers and of_starts:
        raise ValueError(
            f"{baseline} compares with the bins of earlier groups, and {_PER_START} Leave the "
            "decay at 0, or take baseline='ridge', whose weights last."
        )
    if isinstance(baseline, BinBaseline) and baseline.remembers and not keys_last(binning):
        raise ValueError(
            f"{baseline} compares with the bins of earlier groups, and those of {name_of(binning)} "
            f"don't last from group to group. {_KEYS_LAST}"
        )
    if bootstrap:
        _check_completes(baseline, binning, of_starts)


def _check_completes(baseline: Baseline, binning: BinningFunction, of_starts: bool) -> None:
    if not baseline.sees_state:
        raise ValueError(
            f"A truncated episode can't be continued with the values of {baseline}, which don't "
            f"see the state. {_way_out(baseline)}"
        )
    if type(baseline).final_values is Baseline.final_values:
        raise ValueError(
            f"A truncated episode can't be continued with {baseline}: its class has no method "
            "`final_values`."
        )
    if of_starts:
        raise ValueError(
            f"A truncated episode is continued with what earlier groups taught, and {_PER_START} "
            "Leave returns as they are at the cut, without `bootstrap_truncated`."
        )
    if not keys_last(binning):
        raise ValueError(
            f"A truncated episode is continued with what earlier groups taught, and the bins of "
            f"{name_of(binning)} don't last from group to group. {_KEYS_LAST}"
        )


def _check_constant(baseline: Baseline, normalize: bool | str, of_starts: bool) -> None:
    if normalize is True:
        raise ValueError(
            f"{baseline} is a constant, and normalising advantages takes the mean of all away "
            "again, whatever the constant was. Set `normalize_advantages=False` with it, or 'bins'."
        )
    if of_starts:
        raise ValueError(
            f"{baseline} is a constant, one for all starts, and episodes that share one "
            "(`episodes_per_start` > 1) are to be compared with one another. Take baseline='bins'."
        )


def _way_out(baseline: Baseline) -> str:
    way_out = "Take one that does: baseline='ridge', with a decay above 0."
    if type(baseline) in _NAMED.values():
        return way_out
    return f"{way_out} If those of {type(baseline).__name__} do, it says so: `sees_state = True`."
