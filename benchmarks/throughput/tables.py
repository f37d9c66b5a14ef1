"""What is printed."""

from __future__ import annotations

from statistics import median

from benchmarks.throughput.rows import ROWS, Row
from benchmarks.throughput.turns import Memory, Turn, per_second, update_microseconds

RATIOS = (
    "vs RLlib PPO",
    "vs SB3 PPO",
    "sampling vs bare",
    "update vs RLlib",
    "memory vs RLlib",
    "ridge vs bins",
)
# What the last three should be, in all rows: there is no critic, and a ridge costs little.
COST_TARGETS = ("<= 0.5", "< 1", ">= 0.95")


def print_contenders(turns: dict[str, list[Turn]], memory: dict[str, Memory]) -> None:
    """Prints one line per contender."""
    columns = ("steps/s", "sampling", "simulated", "update us/step", "MB before", "MB grown")
    print(f"{'':<12}" + "".join(f"{column:>16}" for column in columns))
    for name, own in turns.items():
        sampling = f"{per_second(own, 'num_steps', 'sampling_seconds'):,.0f}"
        if name == "bare loop":
            cells = ["-", sampling, sampling, "-", "-", "-"]
        else:
            simulated = per_second(own, "num_simulated", "sampling_seconds")
            cells = [
                f"{per_second(own, 'num_steps', 'seconds'):,.0f}",
                sampling,
                f"{simulated:,.0f}" if simulated else "-",
                f"{update_microseconds(own):.2f}",
                f"{memory[name].before:,.0f}",
                f"{memory[name].grown:,.0f}",
            ]
        print(f"{name:<12}" + "".join(f"{cell:>16}" for cell in cells))
    wasted = median(turn.num_simulated / turn.num_steps for turn in turns["GPG"])
    print(f"GPG: {wasted:.2f} steps simulated per step returned", flush=True)


def ratios(turns: dict[str, list[Turn]], memory: dict[str, Memory]) -> tuple[float, ...]:
    """Returns what `RATIOS` names."""
    gpg = per_second(turns["GPG"], "num_steps", "seconds")
    simulated = per_second(turns["GPG"], "num_simulated", "sampling_seconds")
    return (
        gpg / per_second(turns["RLlib"], "num_steps", "seconds"),
        gpg / per_second(turns["SB3"], "num_steps", "seconds"),
        simulated / per_second(turns["bare loop"], "num_simulated", "seconds"),
        update_microseconds(turns["GPG"]) / update_microseconds(turns["RLlib"]),
        memory["GPG"].grown / memory["RLlib"].grown,
        ridge_ratio(turns),
    )


def ridge_ratio(turns: dict[str, list[Turn]]) -> float:
    """Returns how fast GPG is with the ridge, relative to bins."""
    ridge, bins = (per_second(turns[name], "num_steps", "seconds") for name in ("ridge", "GPG"))
    return ridge / bins


def print_simulated(ratios: list[float]) -> None:
    """Prints how many steps GPG simulates for each step that it returns, group by group."""
    print(
        f"steps simulated / steps returned: {median(ratios):.3f} (median of {len(ratios)} groups, "
        f"at most {max(ratios):.3f}; to reach: at most 1.05)"
    )


def print_speeds(row: Row, speeds: dict[str, float]) -> None:
    """Prints how fast iterations are with remote env runners and a remote learner."""
    for name, speed in speeds.items():
        print(f"{name:<12}{speed:>10,.0f} steps/s")
    if "RLlib" in speeds and row.targets is not None:
        ratio = speeds["GPG"] / speeds["RLlib"]
        print(f"GPG / RLlib's PPO: {ratio:.2f} (to reach: >= {row.targets[0]:g})", flush=True)


def print_summary(reached: dict[str, tuple[float, ...]]) -> None:
    """Prints all ratios, each beside what is to be reached."""
    print(f"\n{'reached (to reach)':<34}" + "".join(f"{name:>20}" for name in RATIOS))
    for name, own in reached.items():
        targets = [f">= {target}" for target in ROWS[name].targets or ()]
        cells = zip(own, [*targets, *COST_TARGETS], strict=True)
        print(f"{ROWS[name]!s:<34}" + "".join(f"{f'{r:.2f} ({t})':>20}" for r, t in cells))
