"""The code on the pages runs as it is printed there, and what they say of the code is so."""

from __future__ import annotations

import ast
import inspect
import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.examples.utils import add_rllib_example_script_args
from ray.runtime_env import RuntimeEnv

from benchmarks.methods import table_of_settings
from rllib_gpg import GPG, GPGConfig
from rllib_gpg.advantages import (
    BinBaseline,
    GroupAdvantageEstimation,
    estimate_advantages,
)
from rllib_gpg.advantages.estimator import _compared
from rllib_gpg.advantages.grouping import into_bins
from rllib_gpg.learning.surrogates import Clip
from rllib_gpg.validation import CRITIC_SETTINGS

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
FROM_PPO = DOCS / "from_ppo.md"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(DOCS.rglob("*.md"))]
# They take more than a few seconds: many small algorithms, a larger simulator.
SLOW = {"README.md", "from_ppo.md", "integrations.md"}


def blocks(page: Path) -> list[tuple[str, str]]:
    """The python and text blocks of a page, in their order."""
    return re.findall(r"^```(python|text)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def pages_with_code() -> list[Any]:
    return [
        pytest.param(page, marks=[pytest.mark.slow] if page.name in SLOW else [], id=page.name)
        for page in PAGES
        if any(language == "python" for language, _ in blocks(page))
    ]


def planned_init(**kwargs: Any) -> None:
    """In place of `ray.init`, which tests have called already: looks at what it is asked for."""
    inspect.signature(ray.init).bind(**kwargs)
    environment = dict(kwargs.get("runtime_env", {}))
    # Ray uploads the folders of modules first.
    modules = [Path(module.__file__).parent for module in environment.pop("py_modules", [])]
    RuntimeEnv(py_modules=[f"{folder}" for folder in modules], **environment)


def rows(page: Path, heading: str) -> list[list[str]]:
    """The cells of the table under a heading."""
    section = page.read_text().split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_block_of_code_escapes(page: Path) -> None:
    """Where `blocks` would pass over it: indented, or in another language."""
    fences = re.findall(r"^[ >]*(?:```|~~~).*$", page.read_text(), re.MULTILINE)
    assert {*fences[::2]} <= {"```python", "```text", "```bash"}
    assert {*fences[1::2]} <= {"```"}


@pytest.mark.parametrize("page", pages_with_code())
@pytest.mark.usefixtures("ray_session")
def test_the_code_runs_and_prints_what_the_page_says(
    page: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "init", planned_init)
    scope: dict[str, Any] = {"__name__": "__main__"}
    printed = ""
    try:
        for language, block in blocks(page):
            if language == "python":
                exec(compile(block, str(page), "exec"), scope)
                printed = capsys.readouterr().out
            else:
                assert block in printed
    finally:
        # One of them turns it off, which tests of warnings would notice.
        logging.getLogger("ray.rllib.diagnosis").setLevel(logging.NOTSET)


def test_defaults_are_those_of_the_configs() -> None:
    ppo, gpg = PPOConfig(), GPGConfig()
    defaults = rows(FROM_PPO, "Settings that keep their names, with other defaults")
    named = set()
    for name, of_ppo, of_gpg in defaults:
        setting = name.strip("`")
        assert ast.literal_eval(of_ppo) == getattr(ppo, setting), setting
        assert ast.literal_eval(of_gpg) == getattr(gpg, setting), setting
        named.add(setting)
    of_both = vars(ppo).keys() & vars(gpg).keys()
    differ = {
        name for name in of_both if name[0] != "_" and getattr(ppo, name) != getattr(gpg, name)
    }
    # The class, the model without a critic, and what follows from `group_size`.
    assert differ - named == {"algo_class", "model", "train_batch_size"}


def test_all_settings_of_the_critic_are_named() -> None:
    named = " ".join(row[0] for row in rows(FROM_PPO, "Settings that go"))
    assert set(re.findall(r"`(\w+)`", named)) >= CRITIC_SETTINGS


@pytest.mark.parametrize(
    ("heading", "functions"),
    [
        ("Algorithm 1: the update", [GPG.training_step]),
        ("Algorithm 2: the advantages", [_compared, into_bins, BinBaseline.values]),
        ("The loss", [Clip.__call__]),
    ],
)
def test_lines_beside_the_algorithms_are_those_of_the_code(
    heading: str, functions: list[Any]
) -> None:
    lines = [line.strip("`") for _, line in rows(DOCS / "how_it_works.md", heading)]
    sources = [inspect.getsource(function) for function in functions]
    assert all(any(line in source for source in sources) for line in lines)
    assert all(any(line in source for line in lines) for source in sources)


def test_the_picture_shows_what_the_estimator_gives() -> None:
    rewards = [np.ones(length) for length in (5, 3, 4, 2)]
    observations = [np.zeros((len(reward), 1)) for reward in rewards]
    advantages = estimate_advantages(observations, rewards, gamma=1.0, binning="time")
    picture = (DOCS / "images" / "group_advantages.svg").read_text()
    drawn = re.findall(r'<text class="n a"[^>]*>([^<]+)<', picture)
    assert [float(number.replace("\N{MINUS SIGN}", "-")) for number in drawn] == [
        *np.concatenate(advantages)
    ]


def test_commands_are_targets_of_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([\w-]+):", makefile, re.MULTILINE))
    for page in PAGES:
        for command in re.findall(r"(?:^|`)make ([a-z][\w-]*)", page.read_text(), re.MULTILINE):
            assert command in targets, f"{page.name}: make {command}"


def test_commands_are_those_of_the_programs() -> None:
    """What is typed into a shell: the program is there, and knows the flags."""
    ours = r"python (?:-m ((?:rllib_gpg|benchmarks)[.\w]*)|([\w/]+\.py))([^\n`#]*)"
    num_flags = 0
    for page in PAGES:
        for module, script, arguments in re.findall(ours, page.read_text()):
            path = ROOT / (script or module.replace(".", "/"))
            path = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
            assert path.exists(), f"{page.name}: {module or script}"
            source = path.read_text()
            if "example_parser" in source:
                source += (path.parent / "run_example.py").read_text()
                source += inspect.getsource(add_rllib_example_script_args)
            for flag in re.findall(r"--[\w-]+", arguments):
                assert f'"{flag}"' in source, f"{page.name}: {path.name} {flag}"
                num_flags += 1
    assert num_flags > 10


def test_metrics_to_look_at_are_logged() -> None:
    logged = re.findall(r"`(\w+)`", inspect.getdoc(GroupAdvantageEstimation) or "")
    named = set()
    for page in (DOCS / "troubleshooting.md", DOCS / "choosing.md"):
        named |= set(re.findall(r"`((?:group|bins|baseline)_\w+)`", page.read_text()))
    named -= vars(GPGConfig()).keys()
    assert "group_singleton_fraction" in named
    assert named <= set(logged)


def test_the_page_of_methods_says_what_presets_set() -> None:
    page = (DOCS / "methods.md").read_text()
    assert table_of_settings() in page, "python -m benchmarks.methods report"
