"""The code on a page of the docs runs as it is printed there, from its first line to its last."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from ray.rllib.algorithms.ppo import PPOConfig

from rllib_gpg import GPGConfig
from rllib_gpg.validation import CRITIC_SETTINGS

DOCS = Path(__file__).parent.parent / "docs"
PAGE = DOCS / "from_ppo.md"


def blocks(language: str, page: Path = PAGE) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def rows(heading: str) -> list[list[str]]:
    """The cells of the table under a heading."""
    section = PAGE.read_text().split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_the_code_runs_and_prints_what_the_page_says(capsys: pytest.CaptureFixture[str]) -> None:
    scope = {"__name__": "__main__"}
    code, promised = blocks("python"), blocks("text")
    assert code
    assert promised
    for block in code:
        exec(compile(block, str(PAGE), "exec"), scope)
    printed = capsys.readouterr().out
    for output in promised:
        assert output in printed


@pytest.mark.usefixtures("ray_session")
def test_the_code_of_the_guide_runs(capsys: pytest.CaptureFixture[str]) -> None:
    page, scope = DOCS / "in_rllib.md", {"__name__": "__main__"}
    for block in blocks("python", page):
        exec(compile(block, str(page), "exec"), scope)
    # Rewards with a bonus; and without rooms, all steps are in the bin of room 0.
    assert capsys.readouterr().out.splitlines()[-2:] == ["True", "1.0"]


def test_defaults_are_those_of_the_configs() -> None:
    defaults = rows("Settings that keep their names, with other defaults")
    assert defaults
    for name, of_ppo, of_gpg in defaults:
        setting = name.strip("`")
        assert ast.literal_eval(of_ppo) == getattr(PPOConfig(), setting), setting
        assert ast.literal_eval(of_gpg) == getattr(GPGConfig(), setting), setting


def test_all_settings_of_the_critic_are_named() -> None:
    named = " ".join(row[0] for row in rows("Settings that go"))
    assert set(re.findall(r"`(\w+)`", named)) >= CRITIC_SETTINGS
