"""What tests of reports share: a page taken apart, and shown in a browser."""

from __future__ import annotations

import base64
import html
import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

SECTIONS = ("errors", "smoothness", "importance", "gallery", "classes")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
without_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium here to open the page in")


class Page(HTMLParser):
    """A page taken apart. Fails where an element is closed that is not the open one."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []  # with the section that it is in
        self.section = ""
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "section":
            self.section = str(dict(attrs)["id"])
        if tag not in ("meta", "img", "source", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self.section = "" if tag == "section" else self.section

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.texts.append((self.section, data))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def text(self) -> str:
        return " ".join(" ".join(text for _, text in self.texts).split())

    def of(self, section: str) -> str:
        return " ".join(" ".join(text for own, text in self.texts if own == f"section-{section}").split())

    def sections(self) -> list[str]:
        return [str(section["id"]).removeprefix("section-") for section in self.all("section")]

    def figures(self) -> list[str]:
        return [str(figure["id"]) for figure in self.all("figure")]


def check_in_browser(page: Path, tmp_path: Path, figures: int) -> None:
    """On a screen and on a phone every figure is shown, the one for this width, and nothing is wider than the window."""
    text = html.escape(page.read_text(encoding="utf-8"))
    frames = "".join(f'<iframe width="{width}" height="900" srcdoc="{text}"></iframe>' for width in (1200, 400))
    script = """window.onload = () => {
      const found = [...document.querySelectorAll('iframe')].map(({contentDocument, contentWindow}) => ({
        width: contentWindow.innerWidth,
        wide: contentDocument.documentElement.scrollWidth,
        images: [...contentDocument.images].map(i => [i.complete, i.naturalWidth, i.getBoundingClientRect().right]),
      }));
      document.getElementById('found').textContent = JSON.stringify(found);
    }"""
    both, body = tmp_path / "both.html", f'{frames}<pre id="found"></pre><script>{script}</script>'
    both.write_text(f"<!DOCTYPE html><style>iframe {{ border: 0 }}</style>{body}", encoding="utf-8")
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1300,2000"]
    command = [str(BROWSER), *options, f"--user-data-dir={tmp_path}", "--dump-dom", both.as_uri()]
    environment = os.environ | {"HOME": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True, env=environment)
    shown = json.loads(re.findall(r'<pre id="found">(.*?)</pre>', done.stdout)[0])
    assert [of["width"] for of in shown] == [1200, 400]
    for of, natural in zip(shown, (2160, 744), strict=True):
        assert of["wide"] <= of["width"]
        assert [(complete, width) for complete, width, _ in of["images"]] == [(True, natural)] * figures
        assert all(right <= of["width"] for _, _, right in of["images"])
