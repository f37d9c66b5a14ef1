"""The rooms import one another as docs/architecture.md says, no more and no less."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "rllib_gpg"


def imports(file: Path) -> Iterator[str]:
    """The modules that a file imports when it runs, also inside of functions."""
    tree = ast.parse(file.read_text())
    for_types = {
        id(inside)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inside in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.ImportFrom):
            if node.module == "rllib_gpg":
                yield from (f"rllib_gpg.{alias.name}" for alias in node.names)
            else:
                yield node.module or ""
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def files_of(room: str) -> list[Path]:
    folder = PACKAGE / room
    return [*folder.rglob("*.py")] if folder.is_dir() else [folder.with_suffix(".py")]


def rooms() -> set[str]:
    names = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py"}
    names |= {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    return names - {"__init__"}


def touched_by(files: list[Path], room: str = "") -> set[str]:
    found = {name.split(".")[1] for file in files for name in imports(file) if "rllib_gpg." in name}
    return found - {room}


def test_rooms_touch_what_the_page_says() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    section = page.split("## Which room may touch which\n")[1].split("\n## ")[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("| `")]
    said = {name.strip(" `"): set(re.findall(r"`(\w+)`", touches)) for name, _, touches in rows}
    assert said.keys() == rooms()
    assert said.pop("gpg") == set()  # "all"
    assert said == {room: touched_by(files_of(room), room) for room in said}


def test_only_the_connector_knows_more_than_numpy() -> None:
    for file in files_of("advantages"):
        known = {name.split(".")[0] for name in imports(file)}
        assert "torch" not in known, file
        if file.name in ("connector.py", "episodes.py"):
            assert "ray" in known
        else:
            assert "ray" not in known, file
            is_front = file == PACKAGE / "advantages" / "__init__.py"
            assert is_front or touched_by([file], "advantages") == set(), file


def test_sampling_takes_one_thing_from_advantages() -> None:
    taken = {
        (file.name, name)
        for file in files_of("sampling")
        for name in imports(file)
        if name.startswith("rllib_gpg.advantages")
    }
    assert taken == {("starts.py", "rllib_gpg.advantages.returns")}


def test_the_config_imports_the_algorithm_in_its_constructor_only() -> None:
    tree = ast.parse((PACKAGE / "config.py").read_text())
    at_the_top = {node.module for node in tree.body if isinstance(node, ast.ImportFrom)}
    assert "rllib_gpg.gpg" not in at_the_top
    assert "rllib_gpg.gpg" in set(imports(PACKAGE / "config.py"))
