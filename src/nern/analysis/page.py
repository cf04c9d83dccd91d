"""A report as one HTML page that needs nothing else, and its figures as PNG files beside it."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from nern.analysis.content import Content, NetworkContent, Part
from nern.analysis.plots import SETS
from nern.analysis.sections import OF_NETWORK, LeftOutError, Section, predictor_section, signed, training_section, words
from nern.analysis.style import NARROW, WIDE, png
from nern.files import atomic_path, write_text
from nern.terminal import bytes_text

MARK = '<meta name="generator" content="nern report">'  # a page that is made again may replace one that has it
NBSP = "\N{NO-BREAK SPACE}"

Tile = tuple[str, str, list[str]]  # name, figure, lines below
Planned = tuple[str, str, str, Callable[[], Section]]  # prefix of the names of one of several networks; name, heading


def figures_folder(page: str | Path) -> Path:
    """Where the PNG files of a page lie."""
    page = Path(page)
    return page.with_name(f"{page.stem}_figures")


def write_page(
    page: str | Path, content: Content, shown: Callable[[Sequence[Planned]], Iterable[Planned]] = iter
) -> dict[str, Any]:
    """Write the page and its figures: NAME.png as on a screen, NAME-narrow.png as on a phone.

    Args:
        page: the HTML file.
        content: what to tell.
        shown: goes through the sections, showing how far it has come.

    Returns:
        The numbers behind the figures, by section.
    """
    numbers: dict[str, Any] = {}
    sections = []
    for prefix, name, heading, make in shown(_plan(content)):
        told: dict[str, Any] = {
            "prefix": prefix,
            "slug": prefix + name,
            "heading": heading,
            "missing": "",
            "pictures": [],
        }
        try:
            section = make()
        except LeftOutError as error:
            sections.append(told | {"missing": str(error)})
            continue
        for picture in section.pictures:
            slug, data = prefix + picture.slug, {}
            for width, suffix in ((WIDE, ""), (NARROW, "-narrow")):
                data[width] = drawn(picture.draw, width)
                with atomic_path(figures_folder(page) / f"{slug}{suffix}.png") as temporary:
                    temporary.write_bytes(data[width])
            told["pictures"].append({"slug": slug, "alt": picture.alt, "caption": picture.caption, "data": data})
        sections.append(told | {"lead": section.lead})
        if section.numbers:
            numbers[prefix + name] = dict(section.numbers)
    write_text(page, _html(content, sections))
    return numbers


def drawn(draw: Callable[[int], Figure], width: int) -> bytes:
    """A figure as PNG."""
    return png(draw(width))


def _plan(content: Content) -> list[Planned]:
    """All sections but the first, in their order."""
    planned: list[Planned] = []
    if content.bits:
        planned.append(("", "predictor", "How the predictor is held", partial(predictor_section, content)))
    planned.append(("", "training", "Training", partial(training_section, content)))
    for number, network in enumerate(content.networks, 1):
        prefix = f"{number}-" if len(content.networks) > 1 else ""
        for name, (heading, make) in OF_NETWORK.items():
            planned.append((prefix, name, heading, partial(make, network, content)))
    return planned


def _html(content: Content, sections: Sequence[dict[str, Any]]) -> str:
    environment = Environment(
        loader=PackageLoader("nern.analysis", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=lambda value: value.replace(" %", f"{NBSP}%") if isinstance(value, str) else value,
    )
    environment.filters |= {"bytes": bytes_text, "base64": lambda data: base64.b64encode(data).decode("ascii")}
    sizes = content.sizes or []
    total = Part("all", sum(part.before or 0 for part in sizes), sum(part.after for part in sizes))
    results: list[dict[str, Any]] = []
    for network in content.networks:
        tiles = _accuracies(network)
        results.append({"name": network.name, "tiles": tiles, "missing": "" if tiles else network.evaluation})
    if len(results) == 1 and content.sizes is not None:
        of_bytes = f"{100 * total.after / (total.before or 1):.1f} % of the bytes, order and all"
        results[0]["tiles"].append(
            ("Size", bytes_text(total.after), [f"original {bytes_text(total.before or 0)}", of_bytes])
        )
    share = 100 * content.predictor / content.represented
    return environment.get_template("page.html.jinja").render(
        content=content,
        names=words([network.name for network in content.networks]),
        share=f"{share:.{1 if share >= 1 else 2}f} %",
        results=results,
        sections=sections,
        parts=[part for part in sizes if part.after or part.before],
        total=total,
        largest=max(total.before or 0, total.after, 1),
        WIDE=WIDE,
        NARROW=NARROW,
    )


def _accuracies(network: NetworkContent) -> list[Tile]:
    tiles: list[Tile] = []
    for name, text in SETS.items():
        of_set = network.figures.get(name, {})
        before, after = of_set.get("original", {}), of_set.get("reconstructed", {})
        images = f"{int(after.get('images', 0)):,} {text}{f', {network.measured}' if network.measured else ''}"
        if "top1" in after:
            was = []
            if "top1" in before and before.get("images") == after.get("images"):
                was = [f"original {before['top1']:.2f} %, {signed(after['top1'] - before['top1'], 2)} points"]
            tiles.append(("Accuracy", f"{after['top1']:.2f} %", [*was, images]))
        if "agreement" in after and (name == "test" or "top1" not in after):
            tiles.append(("Agreement", f"{after['agreement']:.2f} %", ["same prediction as the original", images]))
    return tiles
