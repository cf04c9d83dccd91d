"""`nern report` of a run: what it computes, and the page that it writes."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import nern
from nern import Config, NernError
from nern.analysis.content import Content, NetworkContent
from nern.analysis.measures import RANDOM, SHARES, SMALLEST, WORST, drop_curves
from nern.analysis.page import figures_folder, write_page
from nern.cli import main
from report_parts import SECTIONS, Page
from runs import SHORT, quiet

pytestmark = pytest.mark.usefixtures("no_pictures")

BASE: dict[str, Any] = SHORT | {
    "nern.embeddings.permutations.permute_mode": "crossfilter",
    "nern.embeddings.permutations.improve_seconds": 0,
    "nern.weights_batch_method": "random_weighted_batch",
    "optim.lr": 0.02,
    "original_model_path": "pretrained:digits-resnet8",
    "evaluation.test_images": 60,
    "num_iterations": 8,
    "eval_iterations_interval": 3,
    "loss_warmup_iterations": 2,
}


def train(folder: Path, name: str = "run", **given: Any) -> Path:
    config = Config.from_dict(BASE | {"logging.log_dir": str(folder), "logging.exp_name": name} | given)
    return Path(nern.train(config, quiet())["run_folder"])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def page(run: Path) -> Path:
    """Its page, in its place, measured on 40 of its 60 images."""
    return nern.report(run, images=40, console=quiet())


def test_curves_drop_the_shares_they_say() -> None:
    weights = [torch.ones(10, 10, 3, 3)]
    curves = drop_curves(lambda w: float(100 * w[0].flatten(2).any(2).double().mean()), weights, weights, seed=0)
    assert [curve["ranking"] for curve in curves] == [WORST, SMALLEST, RANDOM]
    assert [len(curve["accuracies"]) for curve in curves] == [1, 1, 3]
    for curve in curves:
        assert curve["shares"] == SHARES
        assert all(found == pytest.approx([100, 98, 95, 90, 80, 70, 50]) for found in curve["accuracies"])


def test_page_needs_nothing_else_and_has_every_section(page: Path) -> None:
    found, text = Page(page), page.read_text(encoding="utf-8")
    assert not re.search(r"https?://|url\(|@import|<link|<script|<iframe", text)
    assert all(str(image["src"]).startswith("data:image/png;base64,") for image in found.all("img"))
    assert found.sections() == ["result", "training", *SECTIONS]
    assert found.figures() == ["training", "layers", "kernels", "smoothness", "importance", "gallery", "classes"]
    assert "Left out" not in found.text
    assert len(re.findall(r"<figcaption>(.+?)</figcaption>", text)) == 7
    assert all(len(str(image["alt"])) > 10 for image in found.all("img"))


def test_figures_lie_beside_the_page(page: Path) -> None:
    found, folder = Page(page), figures_folder(page)
    assert sorted(p.name for p in folder.iterdir()) == sorted(f"{name}.png" for name in found.figures())
    for name, image in zip(found.figures(), found.all("img"), strict=True):
        inlined = base64.b64decode(str(image["src"]).partition(",")[2])
        assert inlined == (folder / f"{name}.png").read_bytes()
        with Image.open(io.BytesIO(inlined)) as picture:
            assert picture.width == 1920
            assert np.asarray(picture.convert("L")).std() > 5  # something is drawn


def test_figures_of_the_run_are_told(run: Path, page: Path) -> None:
    text, metrics = Page(page).text, json.loads((run / "metrics.json").read_text())
    before, after, sizes = metrics["original"]["test"], metrics["best"]["test"], metrics["sizes"]
    worst = max(metrics["layers"], key=lambda layer: layer["relative"])
    for told in (
        f"Accuracy {after['top1']:.2f} % original {before['top1']:.2f} %, ",
        f"{after['agreement']:.2f} % same prediction as the original; 60 test images",
        f"{metrics['best']['held_out']['top1']:.2f} %",
        f"{sizes['predictor_parameters']:,} parameters",
        f"{sizes['ordering_bytes'] / 1e3:.1f} kB",
        f"Largest relative error of a layer: {worst['relative']:.3f}, of {worst['name'].removesuffix('.weight')}.",
        "Of 40 test images (drawn from 60)",
        "Measured on 40 test images (drawn from 60).",
    ):
        assert told in text


def test_names_are_escaped_and_what_is_not_known_is_left_out(tmp_path: Path, quickly: None) -> None:
    bad, page = "<script>alert('&')</script> $x_$", tmp_path / "page.html"
    weights = [torch.ones(2, 2, 3, 3), torch.ones(2, 2, 1, 1)]
    network = NetworkContent(name=bad, layers=[bad, "b"], weights=weights, original=weights, evaluation=bad)
    content = Content(title=bad, networks=[network], represented=40, predictor=10, notes=[bad])
    write_page(page, content)
    assert Page(page).text.count(bad) >= 5
    write_page(page, replace(content, networks=[replace(network, name=f"{bad}{n}") for n in range(2)]))
    assert "script" not in {tag for tag, _ in Page(page).tags}
    write_page(page, replace(content, networks=[replace(network, original=None)]))
    assert Page(page).figures() == []
    assert Page(page).text.count("Left out") == 8  # accuracies, sizes, and the six sections below


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "copy", ignore=shutil.ignore_patterns("report*")))


def test_unfinished_run_is_shown_as_far_as_it_went(copy: Path, quickly: None, few_drops: None) -> None:
    (copy / "metrics.json").unlink()
    found = Page(nern.report(copy, images=20, console=quiet()))
    assert "This run is not finished: it has come to step 8. Continue with: nern train --resume" in found.text
    assert "sizes are known when the run is finished" in found.text
    assert "60 test images" in found.of("result")  # all that the run uses, whatever --images says
    assert "Of 20 test images (drawn from 60)" in found.of("classes")
    (copy / "checkpoints" / "best.pt").unlink()
    (copy / "state.pt").unlink()
    found = Page(nern.report(copy, images=0, console=quiet()))
    assert "nothing is known of how the weights were trained" in found.of("training")
    assert "kernels" in found.figures()


def remove(*names: str) -> Callable[[Path], object]:
    return lambda folder: [f.unlink() for name in names for f in folder.glob(name)]


MISTAKES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no checkpoint": (remove("checkpoints/*"), "stopped before its first checkpoint.*nern train --resume"),
    "nothing saved": (
        remove("checkpoints/*", "state.pt"),
        "nothing was saved; train it again: nern train --config_path",
    ),
    "no config": (remove("config.yaml"), "is not a run folder: it has no config.yaml"),
    "bad metrics": (lambda f: (f / "metrics.json").write_text("{"), "metrics.json is damaged.*--resume"),
    "no ordering": (lambda f: (f / "ordering.safetensors").write_text(""), "ordering"),
}


@pytest.mark.parametrize(("damage", "message"), MISTAKES.values(), ids=MISTAKES)
def test_damaged_runs(copy: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(copy)
    with pytest.raises(NernError, match=message):
        nern.report(copy, console=quiet())
    assert not (copy / "report.html").exists()


def test_places_that_cannot_be_written(run: Path, tmp_path: Path) -> None:
    (tmp_path / "page_figures").write_text("")
    for place in (tmp_path, tmp_path / "page.html"):
        with pytest.raises(NernError, match=r"--out: .* cannot be written"):
            nern.report(run, place, console=quiet())
    with pytest.raises(NernError, match=r"--images \(=-1\) must be 0"):
        nern.report(run, images=-1, console=quiet())


def test_command(run: Path, tmp_path: Path, quickly: None, few_drops: None, capfd: pytest.CaptureFixture[str]) -> None:
    page, numbers = tmp_path / "page.html", tmp_path / "numbers.json"
    assert main(["report", str(run), "-o", str(page), "--images", "10", "--json", str(numbers)]) == 0
    found = json.loads(numbers.read_text())
    assert list(found) == ["errors", "smoothness", "importance", "classes"]
    assert sum(of["images"] for of in found["classes"]["classes"]) == 10
    assert "Of 10 test images" in Page(page).text
    assert f"page: {page}" in capfd.readouterr().out
    assert main(["report", str(tmp_path)]) == 2
    assert "is not a run folder" in capfd.readouterr().err
