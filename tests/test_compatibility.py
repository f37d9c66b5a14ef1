"""Another Ray than the tested one is named at import, before anything can fail on it."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import warnings
from pathlib import Path

import pytest
import ray

from rllib_gpg.compatibility import TESTED_RAY, warn_of_another_ray

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def read(file: str) -> str:
    return (ROOT / file).read_text()


@pytest.mark.parametrize("version", ["2.59.3", "2.61.0", "2.6.0", "3.60.0", "3.0.0.dev0"])
def test_another_ray_is_named_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    monkeypatch.setattr(ray, "__version__", version)
    with pytest.warns(UserWarning) as caught:
        warn_of_another_ray()
    (warning,) = caught
    for part in (f"Ray {version}", f"Ray {TESTED_RAY}", f'"ray[rllib]=={TESTED_RAY}.*"'):
        assert part in str(warning.message)


@pytest.mark.parametrize("patch", ["0", "1", "7rc1"])
def test_patch_versions_are_taken(monkeypatch: pytest.MonkeyPatch, patch: str) -> None:
    monkeypatch.setattr(ray, "__version__", f"{TESTED_RAY}.{patch}")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_another_ray()


def test_the_sentence_comes_before_what_fails(tmp_path: Path) -> None:
    # A Ray of the future that has nothing of what is imported from it.
    (tmp_path / "ray.py").write_text('__version__ = "4.0.0"\n')
    (tmp_path / "user.py").write_text("import rllib_gpg\n")
    # The script's own folder comes first in the search for modules.
    run = subprocess.run(
        [sys.executable, tmp_path / "user.py"],
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode != 0
    sentence, error = run.stderr.index("This is Ray 4.0.0"), run.stderr.index("ImportError")
    assert sentence < error
    # It points at the user's line.
    assert "user.py:1: UserWarning" in run.stderr


def test_it_is_what_the_package_asks_for() -> None:
    needs = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["serve"]
    major, minor = TESTED_RAY.split(".")
    wanted = f">={TESTED_RAY},<{major}.{int(minor) + 1}"
    assert {need for need in needs if need.startswith("ray")} == {
        f"ray[rllib]{wanted}",
        f"ray[serve]{wanted}",
    }
    pinned = re.search(r"^ray\[rllib\]==(.*)$", read("requirements.txt"), re.MULTILINE)
    assert pinned and pinned[1].startswith(f"{TESTED_RAY}.")


def test_all_name_the_same_pythons() -> None:
    of_package = re.findall(r"Python :: (3\.\d+)", " ".join(PROJECT["classifiers"]))
    (of_workflow,) = re.findall(r"python: \[(.*)\]", read(".github/workflows/test.yml"))
    assert re.findall(r"[\d.]+", of_workflow) == of_package
    first, last = (
        f"(3, {int(version[2:]) + n})"
        for n, version in zip((0, 1), of_package[:: len(of_package) - 1], strict=True)
    )
    assert f"{first} <= sys.version_info < {last}" in read("Makefile")


def test_all_name_the_same_version() -> None:
    version = PROJECT["version"]
    assert f"\nversion: {version}\n" in read("CITATION.cff")
    newest = re.search(r"^## (\S+)", read("CHANGELOG.md"), re.MULTILINE)
    assert newest and newest[1] == version
