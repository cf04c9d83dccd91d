"""Fixtures shared by the tests."""

from __future__ import annotations

import os
import pickle
import random
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.datasets
import torch
from hypothesis import settings
from torch import Tensor, nn

from nern import Config
from nern.cli import main
from nern.ordering import order
from runs import Ended, Run, small_resnet, without_pictures

torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start
settings.register_profile("nern", deadline=None, max_examples=25, derandomize=True, database=None)
settings.load_profile("nern")

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"


@pytest.fixture(scope="session", autouse=True)
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The user's cache of all tests; and the digits are read from their file once."""
    digits = sklearn.datasets.load_digits()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NERN_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(sklearn.datasets, "load_digits", lambda: digits)
        yield


@pytest.fixture(scope="session", autouse=True)
def short_searches() -> Iterator[None]:
    """Orderings are improved for a moment, whatever time a recipe gives."""
    improve = order._improve

    def shortly(*args: Any) -> Any:
        *others, seconds, metric = args
        return improve(*others, min(seconds, 0.3), metric)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(order, "_improve", shortly)
        yield


@pytest.fixture
def cache_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache of this test: a folder of its own."""
    folder = tmp_path.with_name(f"{tmp_path.name}-cache")
    folder.mkdir()
    monkeypatch.setenv("NERN_CACHE_DIR", str(folder))
    return folder


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder beside the repository with data, weights and reference vectors."""
    if not SHARED.is_dir():
        pytest.skip("the folder ../shared (data, weights, reference vectors) is not there")
    return SHARED


def unpacked(name: str, shared: Path, folder: Path) -> Path:
    """The folder, with a shared dataset in it."""
    unpack = shared / "data" / f"unpack_{name}.py"
    subprocess.run([sys.executable, str(unpack), str(folder)], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="session")
def cifar10(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the shared copy of CIFAR-10 in its usual layout."""
    return unpacked("cifar10", shared, tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def cifar100(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the shared copy of CIFAR-100 in its usual layout."""
    return unpacked("cifar100", shared, tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a very small ResNet for digits."""
    path = tmp_path_factory.mktemp("original") / "network.pt"
    torch.save(small_resnet().state_dict(), path)
    return path


@pytest.fixture
def configure(request: pytest.FixtureRequest, original: Path, tmp_path: Path) -> Callable[..., Config]:
    """Makes the config of a short run: the file's own BASE; dotted keys win over it."""

    def make(given: Mapping[str, Any] | None = None, **more: Any) -> Config:
        own = {"original_model_path": str(original), "logging.log_dir": str(tmp_path / "runs")}
        return Config.from_dict(own | request.module.BASE | dict(given or {}) | more)

    return make


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command in an empty working directory, in a terminal of `columns`."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: Any, columns: int = 120) -> Ended:
        monkeypatch.setenv("COLUMNS", str(columns))
        capsys.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stopped:
            code = int(stopped.code or 0)
        return Ended(code, *capsys.readouterr())

    return call


@pytest.fixture
def configs(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """The configs that `nern train` was asked to train; it trains none."""
    seen: list[Config] = []
    monkeypatch.setattr("nern.commands.training.train", lambda config, *_: seen.append(config))
    return seen


@pytest.fixture
def no_picture() -> Iterator[None]:
    """See `without_pictures`."""
    with without_pictures():
        yield


@pytest.fixture(scope="module")
def no_pictures() -> Iterator[None]:
    """See `without_pictures`; of all tests of a file, and of what they share."""
    with without_pictures():
        yield


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """One small picture stands in for all figures of a report."""
    from report_parts import PNG

    monkeypatch.setattr("nern.analysis.page.png", lambda figure: PNG)


@pytest.fixture
def few_drops(monkeypatch: pytest.MonkeyPatch) -> None:
    """A report drops kernels once of each ranking."""
    monkeypatch.setattr("nern.analysis.measures.SHARES", (0.0, 0.2))
    monkeypatch.setattr("nern.analysis.measures.DRAWS", 1)


@pytest.fixture
def rng_untouched() -> Iterator[None]:
    """Asserts that the test leaves the global generators of torch, Python and NumPy as they were."""
    before = _global_states()
    yield
    for name, state in _global_states().items():
        assert np.array_equal(state, before[name]), f"{name}'s global generator was used"


def _global_states() -> dict[str, np.ndarray]:
    numpy_state = np.random.get_state()  # noqa: NPY002
    return {
        "torch": torch.get_rng_state().numpy(),
        "Python": np.array(random.getstate()[1]),
        "NumPy": np.append(numpy_state[1], numpy_state[2]),
    }


@pytest.fixture
def rng() -> torch.Generator:
    """A seeded generator for the test's own draws."""
    return torch.Generator().manual_seed(1)


class _Payload:
    """An object whose pickle runs code when it is loaded: it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


class Attack:
    """Files that would run code if they were loaded as pickles."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def save_torch(self, path: Path) -> None:
        """A file as `torch.save` writes it, a tensor beside the code."""
        torch.save({"weight": torch.zeros(2), "payload": _Payload(self.trace)}, path)

    def save_pickle(self, path: Path, **entries: Any) -> None:
        """A bare pickle of a dict."""
        path.write_bytes(pickle.dumps({**entries, "payload": _Payload(self.trace)}, protocol=2))

    @property
    def executed(self) -> bool:
        """Whether any of the files was executed."""
        return self.trace.exists()


@pytest.fixture
def attack(tmp_path: Path) -> Attack:
    """A maker of malicious files."""
    return Attack(tmp_path / "executed")


@pytest.fixture
def small_cnn() -> Callable[..., nn.Module]:
    """Makes a small network with convolutions of several kernel sizes, seeded."""

    def make(seed: int = 0) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return nn.Sequential(
                nn.Conv2d(1, 4, 3, padding=1),
                nn.BatchNorm2d(4),
                nn.ReLU(),
                nn.Conv2d(4, 6, 1),
                nn.ReLU(),
                nn.Conv2d(6, 3, 3),
                nn.BatchNorm2d(3),
                nn.AdaptiveAvgPool2d(1),
                nn.Flatten(),
                nn.Linear(3, 10),
            )

    return make


@pytest.fixture
def images(rng: torch.Generator) -> Tensor:
    """A batch of eight 1 x 8 x 8 images."""
    return torch.randn(8, 1, 8, 8, generator=rng)
