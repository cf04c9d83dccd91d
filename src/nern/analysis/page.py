"""A report as one HTML page that needs nothing else, and its figures as PNG files beside it."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from nern.analysis.content import Content, NetworkContent, Part
from nern.analysis.plots import SETS
from nern.analysis.sections import OF_NETWORK, LeftOutError, Section, signed, training_section
from nern.analysis.style import WIDE, png, styled
from nern.files import atomic_path, write_text
from nern.terminal import bytes_text

MARK = '<meta name="generator" content="nern report">'  # a page that is made again may replace one that has it

Planned = tuple[NetworkContent | None, str, str, str, Callable[[], Section]]  # of which network; id, name, heading


def figures_folder(page: str | Path) -> Path:
    """Where the PNG files of a page lie."""
    page = Path(page)
    return page.with_name(f"{page.stem}_figures")


@styled
def write_page(
    page: str | Path, content: Content, shown: Callable[[Sequence[Planned]], Iterable[Planned]] = iter
) -> dict[str, Any]:
    """Write the page and its figures. `shown` goes through the sections, showing how far it has come.

    Returns:
        The numbers behind the figures, by section. Of several networks the names of sections begin with '1-', '2-', ...
    """
    numbers: dict[str, Any] = {}
    sections: list[dict[str, Any]] = []
    for network, prefix, name, heading, make in shown(_plan(content)):
        told: dict[str, Any] = {
            "network": network,
            "slug": prefix + name,
            "heading": heading,
            "missing": "",
            "lead": "",
        }
        pictures = told["pictures"] = []
        sections.append(told)
        try:
            section = make()
        except LeftOutError as error:
            told["missing"] = str(error)
            continue
        told["lead"] = section.lead
        for slug, (figure, caption) in section.figures.items():
            data = png(figure)
            with atomic_path(figures_folder(page) / f"{prefix}{slug}.png") as temporary:
                temporary.write_bytes(data)
            pictures.append({"slug": prefix + slug, "caption": caption, "data": base64.b64encode(data).decode()})
        if section.numbers:
            numbers[prefix + name] = dict(section.numbers)
    write_text(page, _html(content, sections))
    return numbers


def _plan(content: Content) -> list[Planned]:
    """All sections but the first, in their order."""
    planned: list[Planned] = [(None, "", "training", "Training", partial(training_section, content))]
    for number, network in enumerate(content.networks, 1):
        several = len(content.networks) > 1
        for name, (heading, make) in OF_NETWORK.items():
            of = (network, f"{number}-") if several else (None, "")
            planned.append((*of, name, heading, partial(make, network, content)))
    return planned


def _html(content: Content, sections: Sequence[dict[str, Any]]) -> str:
    environment = Environment(
        loader=PackageLoader("nern.analysis", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["bytes"] = bytes_text
    sizes = content.sizes or []
    total = Part("all", sum(part.before or 0 for part in sizes), sum(part.after for part in sizes))
    return environment.get_template("page.html.jinja").render(
        content=content,
        sections=sections,
        results=[(network, _accuracies(network)) for network in content.networks],
        parts=[part for part in sizes if part.after or part.before],
        total=total,
        largest=max(total.before or 0, total.after, 1),
        width=WIDE,
    )


def _accuracies(network: NetworkContent) -> list[tuple[str, str, str]]:
    """What was measured: its name, the figure, and what it is to be compared with."""
    tiles = []
    for name, text in SETS.items():
        of_set = network.figures.get(name, {})
        before, after = of_set.get("original", {}), of_set.get("reconstructed", {})
        images = f"{int(after.get('images', 0)):,} {text}"
        if "top1" in after:
            was = ""
            if "top1" in before and before.get("images") == after.get("images"):
                was = f"original {before['top1']:.2f} %, {signed(after['top1'] - before['top1'])} points; "
            tiles.append(("Accuracy", f"{after['top1']:.2f} %", was + images))
        if "agreement" in after and (name == "test" or "top1" not in after):
            tiles.append(("Agreement", f"{after['agreement']:.2f} %", f"same prediction as the original; {images}"))
    return tiles
