"""The site of `make docs`: built without a warning, whole, and with nothing from elsewhere."""

from __future__ import annotations

import importlib.util
import inspect
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from rllib_gpg import GPGConfig

ROOT = Path(__file__).parent.parent

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        any(importlib.util.find_spec(name) is None for name in ("material", "mkdocstrings")),
        reason='The site needs the extra "docs": pip install ".[docs]"',
    ),
]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    build = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder],
        cwd=ROOT,
        # The theme's news aren't warnings of the build.
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert build.returncode == 0, build.stderr
    assert "WARNING" not in build.stderr
    return folder


class Loads(HTMLParser):
    """What a browser loads for a page by itself, and the text outside of code."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.urls: list[str] = []
        self.text = ""
        self._code = 0
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self._code += tag in ("pre", "code", "script", "style")
        links = {"stylesheet", "icon", "preload", "preconnect", "dns-prefetch", "modulepreload"}
        is_loaded = tag != "a" and (tag != "link" or links & {*(given.get("rel") or "").split()})
        if is_loaded:
            self.urls += [url for key in ("src", "href", "srcset") if (url := given.get(key))]

    def handle_endtag(self, tag: str) -> None:
        self._code -= tag in ("pre", "code", "script", "style")

    def handle_data(self, data: str) -> None:
        self.text += "" if self._code else data


def pages(site: Path) -> list[Path]:
    found = sorted(site.rglob("*.html"))
    assert len(found) > 15
    return found


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    loaded = 0
    for page in pages(site):
        for url in Loads(page).urls:
            assert not re.match(r"(\w+:)?//", url), f"{page.name} loads {url}"
            loaded += 1
    assert loaded > 0
    for sheet in site.rglob("*.css"):
        css = re.sub(r"url\((['\"]?)data:.*?\1\)", "", sheet.read_text())
        assert not re.search(r"(url\(|@import)\s*['\"]?(https?:)?//", css), sheet.name


def test_tables_and_code_are_drawn(site: Path) -> None:
    """The forge's Markdown and the site's differ in what may stand before a table or a block."""
    for page in pages(site):
        text = Loads(page).text
        assert "|---" not in text, page.name
        assert "| ---" not in text, page.name
        assert "```" not in text, page.name


def test_every_setting_is_in_the_reference(site: Path) -> None:
    page = (site / "reference" / "config.html").read_text()
    for method in ("training", "env_runners", "fault_tolerance"):
        for name in inspect.signature(getattr(GPGConfig, method)).parameters.keys() - {"self"}:
            assert f"<code>{name}</code>" in page or f"<code>**{name}</code>" in page, name


def test_pictures_are_there(site: Path) -> None:
    for page in pages(site):
        for source in re.findall(r'<img[^>]* src="([^"]+)"', page.read_text()):
            assert (page.parent / source).exists(), f"{page.name}: {source}"
