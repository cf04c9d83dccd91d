"""A report as one HTML page that needs nothing else, and its figures as PNG files beside it."""

from __future__ import annotations

import base64
import html
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from nern.analysis.canvas import NARROW, WIDE
from nern.analysis.importance import measurements
from nern.analysis.report_sections import (
    Section,
    class_section,
    error_section,
    gallery_section,
    importance_section,
    order_section,
    predictor_section,
    signed,
    training_section,
    words,
)
from nern.analysis.report_template import TEMPLATE
from nern.analysis.subject import PackedFile, Part, Reconstructed, Subject
from nern.files import atomic_path, write_text
from nern.terminal import bytes_text

NBSP, NONE = "\N{NO-BREAK SPACE}", "\N{EN DASH}"
BREAK = 720  # CSS pixels of the window below which the figures for phones are shown


def figures_folder(page: str | Path) -> Path:
    """Where the PNG files of a page lie."""
    page = Path(page)
    return page.with_name(f"{page.stem}_figures")


def write_report(page: str | Path, subject: Subject, on_step: Callable[[], None] | None = None) -> dict[str, Any]:
    """Write the page and its figures: NAME.png as on a screen, NAME-narrow.png as on a phone.

    Args:
        page: the HTML file.
        subject: what to tell.
        on_step: called after each of `steps(subject)` steps.

    Returns:
        The numbers behind the figures, by section.
    """
    folder, parts = figures_folder(page), []
    numbers: dict[str, Any] = {}
    done = on_step or (lambda: None)

    def add(section: Section) -> None:
        for picture in section.pictures:
            for name, data in ((picture.slug, picture.wide), (f"{picture.slug}-narrow", picture.narrow)):
                with atomic_path(folder / f"{name}.png") as temporary:
                    temporary.write_bytes(data)
        parts.append(_section_html(section, several))
        if section.numbers:
            numbers[section.slug] = dict(section.numbers)
        done()

    several = len(subject.networks) > 1
    parts.append(_result_html(subject))
    if subject.bits:
        add(predictor_section(subject))
    add(training_section(subject))
    for number, network in enumerate(subject.networks):
        prefix = f"{number + 1}-" if several else ""
        if several:
            parts.append(f'<h2 class="network">{html.escape(network.name)}</h2>')
        add(error_section(network, prefix))
        add(order_section(network, subject, prefix))
        add(importance_section(network, subject.seed, prefix, done))
        add(gallery_section(network, prefix))
        add(class_section(network, prefix))
    write_text(page, TEMPLATE.substitute(title=html.escape(subject.title), body="\n".join(parts)))
    return numbers


def steps(subject: Subject) -> int:
    """How often `write_report` calls `on_step`."""
    measured = sum(network.trial is not None and network.original is not None for network in subject.networks)
    return 1 + bool(subject.bits) + 5 * len(subject.networks) + measured * measurements()


def _section_html(section: Section, several: bool) -> str:
    level = "h3" if several and section.slug not in ("training", "predictor") else "h2"
    parts = [f"<{level}>{html.escape(section.heading)}</{level}>"]
    if section.missing:
        parts.append(f'<p class="missing">Left out: {_text(section.missing)}.</p>')
    if section.lead:
        parts.append(f'<p class="lead">{_text(section.lead)}</p>')
    for picture in section.pictures:
        wide, narrow = (base64.b64encode(data).decode("ascii") for data in (picture.wide, picture.narrow))
        parts.append(
            f'<figure id="{picture.slug}"><picture>'
            f'<source media="(max-width: {BREAK}px)" srcset="data:image/png;base64,{narrow}" width="{NARROW}">'
            f'<img src="data:image/png;base64,{wide}" width="{WIDE}" alt="{html.escape(picture.alt)}"></picture>'
            f"<figcaption>{_text(picture.caption)}</figcaption></figure>"
        )
    return f'<section id="section-{section.slug}">\n' + "\n".join(parts) + "\n</section>"


def _text(plain: str) -> str:
    """A plain text for the page; a number stays beside its per cent."""
    return html.escape(plain).replace(" %", f"{NBSP}%")


def _result_html(subject: Subject) -> str:
    several = len(subject.networks) > 1
    names = [html.escape(network.name) for network in subject.networks]
    whose = names[0] if not several else f"{len(names)} networks"
    share = 100 * subject.predictor / subject.represented
    notes = "".join(f'<p class="missing">{html.escape(note)}</p>' for note in subject.notes)
    source = html.escape(f"{subject.source} {subject.title}")
    packed = "" if subject.packed is None else f" {html.escape(_packed_text(subject.packed))}"
    head = (
        f'<header><p class="kicker">Neural representation of neural networks · {source}</p>'
        f"<h1>{whose}{' in one NeRN' if several else ', as a NeRN'}</h1>"
        f'<p class="lead">A predictor of {subject.predictor:,} parameters stands in for {subject.represented:,} weights of '
        f"{words(names)}: {_percent(share, 1 if share >= 1 else 2)} of their number.{packed}</p>{notes}</header>"
    )
    parts = []
    for network, name in zip(subject.networks, names, strict=True):
        tiles = _accuracy_tiles(network)
        if several:
            parts.append(f"<h3>{name}</h3>")
        if not tiles:
            parts.append(f'<p class="missing">Left out: accuracies, because {html.escape(network.without_images)}.</p>')
        if not several and subject.sizes is not None:
            tiles.append(_size_tile(subject.sizes))
        parts.append(f'<div class="tiles">{"".join(tiles)}</div>' if tiles else "")
    result = "\n".join([*parts, _bytes_html(subject)])
    return f'{head}\n<section id="section-result">\n<h2>Result</h2>\n{result}\n</section>'


def _packed_text(packed: PackedFile) -> str:
    share = _percent(100 * packed.size / packed.original, 1)
    return f"The file {packed.name} has {packed.size:,} bytes: {share} of the original's {packed.original:,.0f} bytes."


def _percent(value: float, digits: int) -> str:
    return f"{value:.{digits}f}{NBSP}%"


def _accuracy_tiles(network: Reconstructed) -> list[str]:
    tiles = []
    for name, text in (("test", "test images"), ("held_out", "held-out training images")):
        of_set = network.figures.get(name, {})
        before, after = of_set.get("original", {}), of_set.get("reconstructed", {})
        images = (
            f"{int(after.get('images', 0)):,} {text}{f', {html.escape(network.measured)}' if network.measured else ''}"
        )
        if "top1" in after:
            was = ""
            if "top1" in before and before.get("images") == after.get("images"):
                was = f"original {_percent(before['top1'], 2)}, {signed(after['top1'] - before['top1'], 2)} points<br>"
            tiles.append(_tile("Accuracy", _percent(after["top1"], 2), f"{was}{images}"))
        if "agreement" in after and (name == "test" or "top1" not in after):
            tiles.append(
                _tile("Agreement", _percent(after["agreement"], 2), f"same prediction as the original<br>{images}")
            )
    return tiles


def _tile(name: str, figure: str, about: str) -> str:
    return (
        f'<div class="tile"><p class="name">{name}</p><p class="figure">{figure}</p><p class="about">{about}</p></div>'
    )


def _size_tile(sizes: Sequence[Part]) -> str:
    before, after = _totals(sizes)
    about = f"original {bytes_text(before)}<br>{_percent(100 * after / before, 1)} of the bytes, order and all"
    return _tile("Size", bytes_text(after), about)


def _totals(sizes: Sequence[Part]) -> tuple[float, float]:
    return sum(part.before or 0 for part in sizes), sum(part.after for part in sizes)


def _bytes_html(subject: Subject) -> str:
    heading, sizes = "<h3>Where the bytes are</h3>", subject.sizes
    if sizes is None:
        return f'{heading}<p class="missing">Left out: sizes are known when the run is finished.</p>'
    total = Part("all", *_totals(sizes))
    largest, bits = max(total.before or 0, total.after, 1), any(part.numbers for part in sizes)
    shown = [part for part in sizes if part.after or part.before]
    lines = [_bytes_line(part, largest, bits) for part in shown] + [_bytes_line(total, largest, bits, "total")]
    this = f"this {subject.source}"
    keys = "".join(f'<span class="key {of}"></span> {text} ' for of, text in (("before", "original"), ("after", this)))
    columns = ["original", this, *(["bits a number"] if bits else [])]
    head = f'<th>part</th>{"".join(_cell(text, "th") for text in columns)}<th class="bars">{keys}</th>'
    return (
        f"{heading}<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
        f'<p class="caption">{html.escape(subject.sizes_about)}</p>'
    )


def _cell(text: str, tag: str = "td") -> str:
    return f'<{tag} class="number">{text}</{tag}>'


def _bytes_line(part: Part, largest: float, bits: bool, kind: str = "") -> str:
    bars = "".join(
        f'<div class="bar {of}" style="width: {max(100 * value / largest, 0.4):.1f}%"></div>'
        for of, value in (("before", part.before), ("after", part.after))
        if value
    )
    texts = [bytes_text(value) if value else NONE for value in (part.before, part.after)]
    texts += [f"{8 * part.after / part.numbers:.2f}" if part.numbers else NONE] if bits else []
    cells = "".join(map(_cell, texts))
    return f'<tr class="{kind}"><td>{html.escape(part.name)}</td>{cells}<td class="bars">{bars}</td></tr>'
