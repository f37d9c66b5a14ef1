"""What the release files say more than once, they say alike."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_versions_agree() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    latest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert latest is not None
    assert latest[1] == PROJECT["version"]


def test_each_supported_python_is_tried() -> None:
    prefix = "Programming Language :: Python :: "
    supported = [
        classifier.removeprefix(prefix)
        for classifier in PROJECT["classifiers"]
        if classifier.startswith(prefix)
    ]
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text())
    assert workflow["jobs"]["test"]["strategy"]["matrix"]["python"] == supported


def test_pins_are_of_what_is_asked_for() -> None:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    pinned = {
        pin.name: next(iter(pin.specifier)).version
        for pin in (Requirement(line) for line in lines if line and not line.startswith("#"))
    }
    extras = PROJECT["optional-dependencies"]
    # Those of benchmarks aren't needed for tests.
    wanted = [
        *PROJECT["dependencies"],
        *(n for e in extras if e != "benchmarks" for n in extras[e]),
    ]
    for need in map(Requirement, wanted):
        assert need.specifier.contains(pinned[need.name]), need
