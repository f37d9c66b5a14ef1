"""The picture of a group: one row of panels over the other for each module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rllib_gpg.diagnosis.report import GroupReport, Histogram

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BLUE, _ORANGE, _GREY, _RED = "#1f6fb4", "#e07b00", "#90a4ae", "#c62828"
_INCHES = (13.0, 6.6)
_DPI = 80


def check_matplotlib() -> None:
    """Refuses to go on without it.

    Raises:
        ModuleNotFoundError: Says how to install it.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "The picture of a group is drawn by matplotlib, which isn't installed: pip install "
            '"rllib-gpg[diagnosis]", or pip install matplotlib.'
        ) from error


def draw(reports: Mapping[str, GroupReport]) -> Figure:
    """Draws the groups of some modules, one below the other.

    Args:
        reports: One report per module.

    Returns:
        A figure of matplotlib's that no window and no global state knows of: `savefig` writes it.

    Raises:
        ModuleNotFoundError: If there is no matplotlib.
    """
    check_matplotlib()
    from matplotlib.figure import Figure

    width, height = _INCHES
    figure = Figure((width, height * len(reports)), dpi=_DPI, layout="constrained")
    parts = figure.subfigures(len(reports), 1, squeeze=False)[:, 0]
    for part, (module_id, report) in zip(parts, reports.items(), strict=True):
        part.suptitle(
            f"{module_id}: {report.num_trajectories} trajectories, {report.num_steps:,} steps, "
            f"return {report.return_mean:.4g} ± {report.return_std:.3g}; {report.settings}"
        )
        axes = part.subplot_mosaic([["time", "time", "bins"], ["before", "after", "explained"]])
        _draw_time(axes["time"], report)
        _draw_bins(axes["bins"], report)
        _draw_advantages(axes["before"], report.before, "Advantages, before normalisation")
        _draw_advantages(axes["after"], report.after, "Advantages, as learned from")
        _draw_explained(axes["explained"], report)
    return figure


def _draw_time(axes: Any, report: GroupReport) -> None:
    over = report.over_time
    low, mean, high = over.returns
    survivors = axes.twinx()
    survivors.fill_between(over.timesteps, over.survivors, color=_GREY, alpha=0.25, linewidth=0)
    survivors.set_ylim(0, 1.05 * report.num_trajectories)
    survivors.set_ylabel("trajectories still going", color="#546e7a")
    axes.set_zorder(survivors.get_zorder() + 1)
    axes.patch.set_visible(False)
    axes.fill_between(over.timesteps, low, high, color=_BLUE, alpha=0.25, linewidth=0)
    marker = "o" if len(over.timesteps) == 1 else None
    axes.plot(
        over.timesteps, mean, color=_BLUE, marker=marker, label="returns-to-go: mean, 10 to 90 %"
    )
    axes.plot(
        over.timesteps, over.values, color=_ORANGE, marker=marker, linestyle="--", label="baseline"
    )
    axes.set(title="Returns-to-go and baseline over time", xlabel="timestep")
    axes.legend(loc="best")


def _draw_bins(axes: Any, report: GroupReport) -> None:
    entries, bins = [*report.entries], [*report.entries.values()]
    colors = [_RED if entry == 1 else _BLUE for entry in entries]
    axes.bar(entries, bins, width=0.9, color=colors)
    alone = f"{report.singleton_fraction:.0%} of first visits alone"
    axes.set(title=f"Entries per bin: {alone}", xlabel="entries", ylabel="bins")
    axes.set_xlim(0.4, max(entries) + 0.6)
    axes.xaxis.get_major_locator().set_params(integer=True)


def _draw_advantages(axes: Any, spread: Histogram, title: str) -> None:
    axes.stairs(spread.counts, spread.edges, fill=True, color=_BLUE)
    axes.axvline(0.0, color=_GREY, linewidth=1)
    # A mean of 0, but for rounding errors.
    mean = spread.mean if abs(spread.mean) > 1e-9 * spread.std else 0.0
    axes.set(title=title, xlabel=f"mean {mean:.3g}, std {spread.std:.3g}", ylabel="steps")


def _draw_explained(axes: Any, report: GroupReport) -> None:
    """Bars to the right; what is below -1 is cut off there, with its number beside it."""
    rows = report.explained[::-1]
    lowest = min([row.share for row in rows if row.share is not None], default=0.0)
    left = max(-1.0, min(lowest, 0.0)) - 0.02
    for y, row in enumerate(rows):
        if row.share is None:
            axes.text(left + 0.03, y, row.note[:46], va="center", fontsize=7, color=_RED)
            continue
        shown = max(row.share, -1.0)
        axes.barh(y, shown, color=_ORANGE if row.name == "in force" else _BLUE)
        words = f"{row.share:.2f}  {row.note}".rstrip()
        axes.text(max(shown, 0.0) + 0.02, y, words, va="center", fontsize=8)
    axes.axvline(0.0, color=_GREY, linewidth=1)
    axes.set_yticks(range(len(rows)), [row.name for row in rows], fontsize=8)
    axes.set_xticks([x for x in (-1.0, -0.5, 0.0, 0.5, 1.0) if x >= left])
    axes.set(xlim=(left, 1.5), ylim=(-0.6, len(rows) - 0.4))
    axes.set_title("Explained variance, own return left out")
