"""Tables and pictures for the docs, made of cells."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from benchmarks.bootstrap import mean_and_error
from benchmarks.cells import Cell, env_steps, last_return

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

DOCS = Path(__file__).parent.parent / "docs"
# Okabe and Ito's: told apart by all kinds of colour vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#000000")
POINTS = 60

Results = dict[tuple[str, int, str], list[dict[str, Any]]]
"""(env, group size, contender) -> what the cells say that have been run, seed by seed."""


def results_of(cells: Iterable[Cell]) -> Results:
    """What there is of some cells."""
    results: Results = {}
    for cell in cells:
        if cell.is_done:
            key = (cell.env, cell.group_size, cell.contender)
            results.setdefault(key, []).append(cell.result())
    return results


def table(results: Results, contenders: Sequence[str], num_env_steps: dict[Any, int]) -> str:
    """Mean and standard error of the last returns: a row per task and group size.

    Rows and columns of which nothing has been run are left out.
    """
    contenders = [name for name in contenders if any(name == ran for *_, ran in results)]
    if not contenders:
        return "Nothing of it has been run yet."
    rows = []
    for (env, group_size), steps in num_env_steps.items():
        found = [results.get((env, group_size, contender), []) for contender in contenders]
        if any(found):
            returns = [[last_return(cell) for cell in cells] for cells in found]
            digits = 2 if max(abs(value) for values in returns for value in values) < 10 else 0
            spreads = (spread(values, digits) for values in returns)
            rows.append([env, f"{group_size}", f"{steps:,}", *spreads])
    return markdown(["task", "N", "env steps", *contenders], rows)


def spread(values: Sequence[float], digits: int = 0) -> str:
    """Mean and standard error of one value per seed, and how many there are."""
    if not values:
        return "not run"
    mean, error = mean_and_error(values)
    if len(values) == 1:
        return f"{mean:,.{digits}f} (1 seed)"
    return f"{mean:,.{digits}f} ± {error:,.{digits}f} ({len(values)})"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_table(page: Path, name: str, text: str) -> None:
    """Puts a table in place of the one that a page has between `<!-- name -->` marks."""
    marks = f"<!-- {name} -->", f"<!-- end of {name} -->"
    pattern = re.compile(f"{re.escape(marks[0])}.*?{re.escape(marks[1])}", re.DOTALL)
    old = page.read_text()
    if not pattern.search(old):
        raise ValueError(f"{page} has no {marks[0]} .. {marks[1]}.")
    page.write_text(pattern.sub(lambda _: f"{marks[0]}\n{text}\n{marks[1]}", old))


def write_pictures(page: Path, captions: Mapping[str, str]) -> None:
    """Shows the pictures that there are, by the names of their files, between `pictures` marks."""
    shown = [
        f"![{caption}](../images/{name}.png)"
        for name, caption in captions.items()
        if (DOCS / "images" / f"{name}.png").exists()
    ]
    write_table(page, "pictures", "\n\n".join(shown) or "Nothing to draw yet.")


Curve = tuple[np.ndarray, np.ndarray]
"""Env steps, and what is shown at each."""


def returns_curve(result: dict[str, Any]) -> Curve:
    """The mean return of the episodes that ended around each point."""
    curve = result["curve"]
    steps, weights = np.array(curve["steps"]), np.array(curve["episodes"], float)
    return _smooth(steps, np.array(curve["return"]), weights, env_steps(result))


def explained_curve(name: str) -> Callable[[dict[str, Any]], Curve]:
    """How much of the variance of returns is explained, by what the curve calls `name`."""

    def curve_of(result: dict[str, Any]) -> Curve:
        curve = result["curve"]
        # Nothing can be said of a group without variance; far below 0 is as bad as 0.
        values = np.clip(np.nan_to_num(curve[name]), -1.0, 1.0)
        return _smooth(np.array(curve["steps"]), values, np.ones(len(values)), env_steps(result))

    return curve_of


def _smooth(steps: np.ndarray, values: np.ndarray, weights: np.ndarray, budget: int) -> Curve:
    at = np.linspace(0.0, budget, POINTS)
    near = np.abs(steps - at[:, None]) <= budget / 20
    weight = near * weights
    total = weight.sum(1)
    known = total > 0
    return at[known], (weight[known] @ values) / total[known]


def draw(
    panels: dict[str, dict[str, list[Curve]]],
    ylabel: str,
    path: Path,
    *,
    xlabel: str = "env steps (thousands)",
    unit: float = 1e3,
    xscale: str = "linear",
    levels: Mapping[str, Mapping[str, float]] | None = None,
) -> None:
    """One panel per task; one line per contender: the mean over seeds, and its standard error.

    Args:
        panels: Task -> contender -> one curve per seed.
        ylabel: What is shown.
        path: The file, without a suffix.
        xlabel: What it is shown against.
        unit: What that is divided by.
        xscale: Of the axis that it is shown against, as matplotlib names it.
        levels: Task -> contender -> a value that is dashed in the contender's colour.
    """
    if not panels:
        return
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(4.0 * columns, 3.0 * rows), squeeze=False)
    for axis, (title, lines) in zip(axes.flat, panels.items(), strict=False):
        for (name, curves), colour in zip(lines.items(), COLOURS, strict=False):
            if not curves:
                continue
            if name in (levels or {}).get(title, {}):
                axis.axhline(levels[title][name], color=colour, linestyle="--", linewidth=0.8)
            # Seeds end after other times: one that is through stays where it is.
            end = np.mean([c[0][-1] for c in curves])
            at = np.linspace(max(c[0][0] for c in curves), end, POINTS)
            values = np.array([np.interp(at, *curve) for curve in curves])
            mean, error = np.transpose([mean_and_error(at_once) for at_once in values.T])
            # Of a single seed there is none to show.
            error = np.nan_to_num(error)
            axis.plot(at / unit, mean, color=colour, label=name)
            axis.fill_between(at / unit, mean - error, mean + error, color=colour, alpha=0.2, lw=0)
        axis.set_title(title, fontsize=10)
        axis.set_xscale(xscale)
        axis.grid(alpha=0.3)
    for axis in axes.flat[len(panels) :]:
        axis.remove()
    for axis in axes[-1]:
        axis.set_xlabel(xlabel)
    for axis in axes[:, 0]:
        axis.set_ylabel(ylabel)
    # Not every panel has every line.
    every = {
        label: handle
        for axis in figure.axes
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(every.values(), every, loc="lower center", ncols=len(every), frameon=False)
    save(figure, path, bottom=0.06)


def save(figure: Figure, path: Path, bottom: float = 0.0) -> None:
    """Writes a picture as PNG and SVG, and lets go of it.

    Args:
        figure: The picture.
        path: The file, without a suffix.
        bottom: The share of its height to keep free, for a legend.
    """
    figure.tight_layout(rect=(0, bottom, 1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    for suffix in (".png", ".svg"):
        # Without a date, so that the same figures make the same file.
        metadata = {"Date": None} if suffix == ".svg" else {}
        figure.savefig(path.with_suffix(suffix), dpi=110, metadata=metadata)
    plt.close(figure)
