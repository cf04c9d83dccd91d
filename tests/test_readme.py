"""The code and the commands of the documentation, run as written but for their length."""

from __future__ import annotations

import re
import shlex
import shutil
from collections import Counter
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch

import nern
from nern import registry
from nern.cli import main
from nern.public import __all__ as PUBLIC
from nern.training.run_folder import load_steps

ROOT = Path(__file__).resolve().parents[1]
PAGES = {path.name: path.read_text(encoding="utf-8") for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]}
ROOT_PAGES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "experiments/README.md", "benchmarks/README.md"]
README, EXTEND = PAGES["README.md"], PAGES["extend.md"]
FEW = ["--batch_size", "8", "--evaluation.test_images", "32", "--evaluation.held_out_images", "16"]
SHORT = ["--epochs", "null", "--num_iterations", "2", *FEW]
SHORT_PHASES = ["--reconstruction.iterations", "2", "--distillation.iterations", "2", *FEW]
SHORT_PHASES += ["--refinement.iterations", "2", "--refinement.images", "8", "--norm_images", "8"]
SHORT_PHASES += ["--nern.embeddings.permutations.improve_seconds", "0"]
SHORT_CODES = ["--quantisation.iterations", "2", "--quantisation.images", "8", *FEW]


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def commands(text: str) -> list[list[str]]:
    lines = [line for block in blocks("sh", text.replace("\\\n", " ")) for line in block.splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("nern ")]


def shortened(command: list[str]) -> list[str]:
    few = ["4" if part == "4000" else part for part in command]  # steps of a run made longer
    match command[0]:
        case "train" if "--recipe" in command:
            return [*few, *SHORT_CODES]
        case "train" if "config.yaml" in command or "experiments/several-networks/resnet20-and-digits.yaml" in command:
            return [*few, *SHORT_PHASES]
        case "train" if "--config_path" in command:
            return [*few, *SHORT]
        case "evaluate" if "--config_path" in command:
            return [*few, *FEW[2:]]
        case "pack" | "report" if "--images" not in command:
            return [*few, "--images", "2"]
    return few


def test_three_lines_pack_and_load_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code = blocks("python")[0]
    assert len(code.split("\n\n", 1)[1].strip().splitlines()) == 2
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3))
    names: dict[str, object] = {"network": network, "loader": [torch.randn(8, 3, 8, 8)]}
    exec(code.replace("size=72_000", "bits=6"), names)
    rebuilt = names["network"]
    assert isinstance(rebuilt, torch.nn.Sequential)
    assert rebuilt is not network
    assert torch.nn.functional.mse_loss(rebuilt[0].weight, network[0].weight) < 1e-3  # type: ignore[arg-type]


class Segmenter(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = torch.nn.Conv2d(1, 64, 3, padding=1), torch.nn.Conv2d(64, 3, 1)

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"out": self.out(self.conv(images).relu())}


class LanguageModel(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(20, 8)
        self.layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.layer(self.embed(input_ids))
        return hidden


@pytest.mark.parametrize("page", ["README.md", "your-network.md"])
def test_ten_lines_fit_a_network(
    page: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe, short = nern.Config.of_recipe, {"reconstruction": 3, "refinement": 2, "distillation": 2}

    def quick(name: str, values: Any = None) -> nern.Config:
        config = recipe(name, values)
        config.norm_images, config.nern.embeddings.permutations.improve_seconds = 8, 0.0
        for phase in config.phases:
            phase.iterations, phase.images = short.get(phase.name), 8 if phase.name == "refinement" else phase.images
        return config

    monkeypatch.setattr(nern.Config, "of_recipe", quick)
    images, labels = torch.randn(16, 1, 8, 8), torch.arange(16) % 4
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, labels), batch_size=8)
    pixels = [(images[:8], torch.arange(8 * 64).reshape(8, 8, 8) % 3)]
    network = torch.nn.Sequential(
        torch.nn.Conv2d(1, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3), torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(), torch.nn.Linear(8, 4),
    )  # fmt: skip
    names: dict[str, Any] = {
        **{"nern": nern, "network": network, "train_loader": loader, "test_loader": loader, "segmenter": Segmenter()},
        **{"pixel_loader": pixels, "language_model": LanguageModel()},
        "token_batches": [{"input_ids": torch.arange(24).reshape(4, 6) % 20}],
    }
    codes = [block for block in blocks("python", PAGES[page]) if "nern.fit" in block]
    assert len(codes) == {"README.md": 1, "your-network.md": 3}[page]
    assert len(codes[0].strip().splitlines()) <= 10
    for code in codes:
        exec(code, names)
    assert isinstance(names["reconstructed"], torch.nn.Sequential)
    assert nern.load("net.nern").network(network)(images).shape == (16, 4)
    assert (tmp_path / "page.html").is_file()
    assert "relative error" in capsys.readouterr().out


# The name of each file of code in the docs, and what it registers.
EXTENSIONS: list[tuple[str, list[tuple[registry.Registry[Any], str]]]] = [
    ("mine.py", [(registry.ORIGINALS, "MyNetwork"), (registry.TASKS, "mybenchmark")]),
    ("omega.py", [(registry.PREDICTORS, "kxk_omega"), (registry.LOSS_TERMS, "agreement")]),
    ("parts.py", [(registry.ENCODINGS, "order_linear"), (registry.ORDERINGS, "by_norm")]),
]


@pytest.mark.parametrize("number", range(3), ids=[name for name, _ in EXTENSIONS])
def test_own_components_of_the_docs_train_and_are_kept(
    number: int, tmp_path: Path, original: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name, registered = EXTENSIONS[number]
    code = blocks("python", EXTEND)[number]
    Path(name).write_text(code)
    Path("config.yaml").write_text(blocks("yaml", EXTEND)[number])
    options = ["--original_model_path", str(original), "--loss_warmup_iterations", "0"]
    if name == "omega.py":
        options += re.findall(r"`(--nern.method.name [^`]*)`", EXTEND)[0].split()
    try:
        if name == "mine.py":
            names: dict[str, Any] = {}
            exec(code, names)
            torch.save(names["MyNetwork"]().state_dict(), "mine.pt")
            for entries, own in registered:
                entries.unregister(own)
            options = options[2:]
        assert main(["train", "--config_path", "config.yaml", *SHORT, *options]) == 0
        state = torch.load("outputs/NeRN_Train/state.pt", weights_only=True)
        assert name != "omega.py" or {"agreement", "distillation"} <= state["losses"][-1].keys()
        network = nern.load_run("outputs/NeRN_Train")
        assert main(["pack", "outputs/NeRN_Train", "-o", "run.nern", "--lossless", "true"]) == 0
        again = nern.load("run.nern").state_dict()
        for key, value in network.state_dict().items():
            torch.testing.assert_close(again[key], value)
    finally:
        for entries, own in registered:
            entries.unregister(own)


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory, no_pictures: None) -> Path:
    """A folder with what `nern quickstart` leaves, of few steps."""
    folder = tmp_path_factory.mktemp("quickstart")
    quantised = next(block for block in blocks("yaml", PAGES["files.md"]) if "quantisation" in block)
    base = str(resources.files("nern") / "configs" / "quickstart.yaml")
    (folder / "config.yaml").write_text(f"base: {base}\n{quantised}".replace("1000", "2"))
    short = [*SHORT_PHASES, "--logging.tracker", "none", "--logging.log_dir", str(folder / "outputs")]
    assert main(["train", "--config_path", str(folder / "config.yaml"), *short]) == 0
    assert load_steps(folder / "outputs" / "quickstart" / "checkpoints" / "best.pt") is not None
    run = str(folder / "outputs" / "quickstart")
    assert main(["pack", run, "-o", f"{run}.nern"]) == 0
    return folder


@pytest.fixture
def documented_folder(
    shared: Path, cifar10: Path, quickstart: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quickly: None
) -> Path:
    """A working directory with the files that the documentation names."""
    (tmp_path / "data").symlink_to(cifar10)
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    monkeypatch.setattr(registry.RANDOM_IMAGES, "_entries", dict(registry.RANDOM_IMAGES._entries))
    shutil.copytree(quickstart / "outputs", tmp_path / "outputs")
    shutil.copy(shared / "weights" / "resnet20-cifar10.pt", tmp_path / "resnet20.pt")
    config = next(block for block in blocks("yaml") if "resnet20.pt" in block)
    assert config in PAGES["train.md"]
    (tmp_path / "config.yaml").write_text(config.replace("131", "32"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("page", "expected"),
    [
        ("README.md", {"pack": 2, "info": 1, "verify": 1, "train": 4, "evaluate": 2, "unpack": 1}),
        ("start.md", {"--completion": 1, "quickstart": 1, "evaluate": 1, "info": 1, "verify": 1}),
        ("train.md", {"train": 6, "evaluate": 4}),
        ("compress.md", {"pack": 3, "info": 1, "verify": 1, "unpack": 1, "train": 1}),
        ("files.md", {"pack": 1, "info": 1, "verify": 1, "unpack": 1}),
        ("paper.md", {"train": 1}),
        ("networks.md", {"inspect": 2}),
        ("study.md", {"report": 4}),
    ],
)
def test_documented_commands_run(page: str, expected: dict[str, int], documented_folder: Path) -> None:
    ran = commands(PAGES[page])
    assert Counter(command[0] for command in ran) == expected
    for command in ran:
        if "--help" in command:
            with pytest.raises(SystemExit) as stopped:
                main(command)
            assert stopped.value.code == 0
        elif command[0] != "quickstart" and (page != "compress.md" or command not in commands(README)):
            assert main(shortened(command)) == 0, command
    if page == "README.md":
        for network in (nern.load_run("outputs/resnet20"), nern.load("resnet20.nern").network()):
            assert network(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


@pytest.mark.parametrize(
    ("page", "count"), [("other-runs.md", 2), ("rivals.md", 2), ("rivals-nerns.md", 1), ("speed.md", 1)]
)
def test_documented_runs_have_a_config(
    page: str, count: int, documented_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [c for c in commands(PAGES[page]) if c[0].startswith("train") and {"--config_path", "--recipe"} & set(c)]
    assert len(runs) == count
    for command in runs:
        assert main([*command, "--print_config"]) == 0, command
        assert "task_name" in capsys.readouterr().out


@pytest.mark.parametrize("page", ["start.md", "compress.md", "study.md"])
def test_documented_snippets_run(page: str, documented_folder: Path) -> None:
    for command in commands(PAGES[page]):
        if command[0] == "pack" and "pretrained:digits-resnet8" in command:
            assert main(shortened(command)) == 0
    for code in blocks("python", PAGES[page]):
        names: dict[str, object] = {"nern": nern}
        exec(code, names)
        assert isinstance(names.get("network", torch.nn.Identity()), torch.nn.Module)


def test_api_page_has_every_public_name() -> None:
    named = re.findall(r"^::: nern\.(\w+)$", PAGES["api.md"], flags=re.MULTILINE)
    assert sorted(named) == sorted(PUBLIC)
    assert set(dir(nern)) == {*PUBLIC, "__version__"}


@pytest.mark.parametrize(
    ("key", "entries"),
    [
        ("nern.embeddings.permutations.permute_mode", registry.ORDERINGS),
        ("nern.embeddings.type", registry.ENCODINGS),
        ("nern.method", registry.PREDICTORS),
        ("nern.weights_batch_method", registry.WEIGHT_BATCHES),
        ("task.random_data", registry.RANDOM_IMAGES),
        ("optim.optimizer_type", registry.OPTIMIZERS),
        ("optim.lr_scheduler_type", registry.SCHEDULES),
        ("logging.tracker", registry.TRACKERS),
    ],
)
def test_tables_list_every_registered_name(key: str, entries: registry.Registry[object]) -> None:
    row = next(line for line in PAGES["train.md"].splitlines() if f"| `{key}` |" in line)
    named = set(re.findall(r"`([\w.]+)`", row.split("|")[3]))
    assert set(entries) <= named


def test_networks_and_tasks_are_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    def plain(text: str) -> list[str]:  # how many networks a library has changes with its version
        return [re.sub(r"the [\d,]+ networks", "the networks", line) for line in text.strip().splitlines()]

    assert main(["list"]) == 0
    between = PAGES["networks.md"].partition("<!-- nern list -->")[2].partition("<!-- end -->")[0]
    assert plain(between) == plain(capsys.readouterr().out)


def anchors(text: str) -> set[str]:
    """Of the headings, as GitHub and the site make them."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", [*sorted(f"docs/{name}" for name in PAGES if name != "README.md"), *ROOT_PAGES])
def test_links_in_the_documentation_lead_somewhere(path: str) -> None:
    file = ROOT / path
    text = re.sub(r"^```.*?^```", "", file.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for link, _, anchor in re.findall(r"\]\(([^)#]*)(#([^)]+))?\)", text):
        if "://" in link:
            continue
        target = (file.parent / link) if link else file
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text(encoding="utf-8")), f"{link}#{anchor}"


def test_messages_and_comments_name_pages_that_exist() -> None:
    folders = ("src", "tests", "benchmarks", "experiments", "tools")
    files = [file for folder in folders for file in (ROOT / folder).rglob("*.*")]
    texts = {f: f.read_text(encoding="utf-8") for f in files if f.suffix in (".py", ".yaml", ".md", ".sh")}
    named = {(name, f) for f, text in texts.items() for name in re.findall(r"docs[/\\]+([\w-]+)\\?\.md", text)}
    assert named
    assert {(name, str(f)) for name, f in named if f"{name}.md" not in PAGES} == set()
