"""`nern report` of a file: what the file alone tells, and what more the original and a task do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import nern
from artifact_parts import SHAPES, make, save, with_description
from nern import DamagedFileError, NernError, verify
from nern.cli import main
from nern.config import TaskConfig
from nern.jobs.report_content import content_of_file, file_parts
from nern.shipped import NERN, shipped_file
from report_parts import SECTIONS, Page
from runs import quiet, small_resnet

ORIGINAL = "pretrained:digits-resnet8"
DIGITS = TaskConfig(task_name="digits")
NOTHING_TO_COMPARE = "Left out: the original's weights were not given (--original_model_path)."


@pytest.fixture
def file(tmp_path: Path) -> Path:
    shipped = shipped_file("pretrained:digits-resnet8.nern", NERN, "NeRN")
    return Path(shutil.copy(str(shipped), tmp_path / "net.nern"))


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """Two networks in a file, that tells not how they are built."""
    return save(tmp_path / "two.nern", make(networks=2)[0])


def weights_of(path: Path, **changed: Any) -> Path:
    """What the weights in a file of `make` may be like, beside which it is shown."""
    rng = torch.Generator().manual_seed(5)
    state = {f"w{i}": torch.randn(shape, generator=rng) for i, shape in enumerate(SHAPES)}
    torch.save(state | changed, path)
    return path


def content(file: Path, *given: Any) -> Any:
    return content_of_file(nern.load(file), file.name, *given, quiet())


def test_page_of_the_file_alone(file: Path, quickly: None) -> None:
    page = nern.report(file, console=quiet())
    assert page == file.with_name("net_report.html")
    found = Page(page)
    assert found.figures() == []
    assert found.sections() == ["result", "training", *SECTIONS]
    assert all(NOTHING_TO_COMPARE in found.of(name) for name in SECTIONS[:-1])
    assert "no test images were given (--task.task_name)" in found.of("classes")
    told = nern.load(file).description.networks[0].about["test"]
    for text in (
        f"{told['top1']:.2f} % {told['images']} test images",
        "Accuracies are those that the file tells.",
        f"Bytes of the original's tensors, and of the parts of the file: {file.stat().st_size:,} in all.",
    ):
        assert text in found.text


def test_bytes_add_up_to_those_on_disk(file: Path, two: Path, tmp_path: Path) -> None:
    for path in (file, two, save(tmp_path / "as.nern", make(step=None)[0])):
        assert sum(part.after for part in file_parts(nern.load(path))) == path.stat().st_size


def test_with_the_original_what_compares_is_there(file: Path, quickly: None) -> None:
    found = Page(nern.report(file, original_model_path=ORIGINAL, console=quiet()))
    assert found.figures() == ["layers", "kernels", "smoothness", "gallery"]
    assert "Left out: no test images were given" in found.of("importance")
    assert "--original_model_path" not in found.text
    assert "as long as in the order of the network" in found.of("smoothness")


def test_accuracy_is_that_of_verify(file: Path) -> None:
    expected = verify(file, DIGITS, console=quiet())["test"]
    alone = content(file, None, None, DIGITS, None).networks[0]
    assert alone.figures == {"test": {"reconstructed": expected}}
    beside = content(file, 20, ORIGINAL, DIGITS, None).networks[0]
    found, evaluation = beside.figures["test"]["reconstructed"], beside.evaluation
    assert {key: found[key] for key in expected} == pytest.approx(expected, rel=1e-5)
    assert len(evaluation.labels) == 20
    images, _ = next(iter(evaluation.images.batches(20)))
    with torch.no_grad():  # its batch norms hold other statistics than the original's
        assert evaluation.predicted(beside.weights).tolist() == nern.load(file).network()(images).argmax(1).tolist()


def test_with_original_and_task_all_is_there(file: Path, tmp_path: Path, quickly: None, few_drops: None) -> None:
    options = f"--original_model_path {ORIGINAL} --task.task_name digits --images 50 --json {tmp_path}/numbers.json"
    assert main(["report", str(file), *options.split()]) == 0
    found = Page(file.with_name("net_report.html"))
    figures = ["layers", "kernels", "smoothness", "importance", "gallery", "classes"]
    assert found.figures() == figures
    assert found.text.count("Left out") == 1  # there was no training
    assert "the file tells" not in found.text
    assert "same prediction as the original" in found.text
    assert "Of 50 test images (drawn from 597)" in found.of("classes")
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert list(numbers) == ["errors", "smoothness", "importance", "classes"]


def test_several_networks_have_sections_each(two: Path, tmp_path: Path, quickly: None) -> None:
    weights = weights_of(tmp_path / "own.pt")
    page = nern.report(two, tmp_path / "page.html", original_model_path=weights, network=1, console=quiet())
    found, of_both = Page(page), [f"{number}-{name}" for number in (1, 2) for name in SECTIONS]
    assert found.sections() == ["result", "training", *of_both]
    assert found.figures() == [f"2-{name}" for name in ("layers", "kernels", "smoothness", "gallery")]
    assert "small (2)" in found.text
    assert NOTHING_TO_COMPARE in found.of("1-errors")
    with pytest.raises(NernError, match="the file holds 2 networks: --network N"):
        nern.report(two, original_model_path=weights, console=quiet())
    with pytest.raises(NernError, match=r"--network \(=2\) must be below 2"):
        nern.report(two, network=2, console=quiet())


def test_mistakes_are_told_before_weights_are_predicted(
    file: Path, two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def predicted(*args: Any, **kwargs: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(nern.Artifact, "predict", predicted)
    damaged, text = tmp_path / "damaged.nern", tmp_path / "text.nern"
    damaged.write_bytes(file.read_bytes()[:-1] + b"\0")
    text.write_text("a text")
    torch.save(small_resnet().state_dict(), tmp_path / "small.pt")
    sections = nern.load(file).sections
    calling = with_description(sections, lambda value: value["networks"][0].update(architecture="os:getcwd"))
    called = save(tmp_path / "called.nern", calling)
    short = weights_of(tmp_path / "short.pt", w1=torch.zeros(2, 2))
    cases: list[tuple[Path, dict[str, Any], str]] = [
        (text, {}, "text.nern is not a .nern file"),
        (damaged, {}, "damaged.nern is damaged"),
        (file, {"limit": 1000}, "limit"),
        (file, {"original_model_path": str(tmp_path / "small.pt")}, "small.pt does not fit .*another shape"),
        (called, {"original_model_path": ORIGINAL}, "the file names the function 'os:getcwd', which is not called"),
        (file, {"task": TaskConfig(task_name="cifar100"), "original_model_path": ORIGINAL}, "ResNet8.*cifar100"),
        (two, {"task": DIGITS, "network": 0}, "held as a state dict only"),
        (two, {"original_model_path": str(short), "network": 0}, r"w1 has the shape \(2, 2\)"),
    ]
    for path, options, message in cases:
        with pytest.raises(NernError, match=message) as error:
            nern.report(path, tmp_path / "page.html", console=quiet(), **options)
        assert isinstance(error.value, DamagedFileError) == (path in (text, damaged) or "limit" in options)
    assert not (tmp_path / "page.html").exists()


def test_a_run_knows_its_own_original_and_task(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_text("")
    for option in (["--original_model_path", ORIGINAL], ["--task.task_name", "digits"], ["--network", "0"]):
        assert main(["report", str(tmp_path), *option]) == 2
        name = option[0].partition(".")[0]
        assert f"{name}: for .nern files only; run {tmp_path} knows its" in capfd.readouterr().err
    assert main(["report", str(tmp_path), "--task.data_dir", "data"]) == 2
    assert "options of a task need --task.task_name" in capfd.readouterr().err
