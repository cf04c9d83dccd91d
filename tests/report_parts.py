"""What tests of reports share: a page taken apart."""

from __future__ import annotations

import base64
from html.parser import HTMLParser
from pathlib import Path

SECTIONS = ("errors", "smoothness", "importance", "gallery", "classes")
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


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
        if tag not in ("meta", "img"):
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
