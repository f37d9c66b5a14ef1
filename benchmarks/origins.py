"""What a cell was run on: commit, versions and machine."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections import Counter, defaultdict
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    "ray",
    "torch",
    "gymnasium",
    "numpy",
    "scipy",
    "mujoco",
    "box2d",
    "envpool",
    "stable-baselines3",
)


@cache
def where() -> dict[str, Any]:
    """On what this process runs cells: enough to run them again.

    Once per process, before its first cell: commits that are made meanwhile aren't what it runs.
    """
    return {
        "commit": _git("rev-parse", "--short", "HEAD"),
        # Of the code that is measured: results are committed while others are made.
        "changed": bool(_git("status", "--porcelain", "--", ":/rllib_gpg", ":/benchmarks/*.py")),
        "versions": {"python": platform.python_version()} | _versions(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {_processor()}",
    }


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        # Nobody needs the packages of all experiments.
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    name = re.search(r"^model name\s*: (.+)$", text, re.MULTILINE)
    return name[1] if name else platform.processor()


def origins(results: Iterable[dict[str, Any]]) -> str:
    """How many cells were run at which commit, on which machine."""
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for at in (result["where"] for result in results):
        counts[at["machine"]][at["commit"] + ", changed" * at["changed"]] += 1
    return "; ".join(
        f"{', '.join(f'{commit}: {n}' for commit, n in sorted(of.items()))} on {machine}"
        for machine, of in sorted(counts.items())
    )
