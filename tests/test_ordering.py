"""Orderings on disk: files, the published framework's folders, the cache."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from nern.config import Config
from nern.errors import NernError, NernWarning
from nern.experiment import represent
from nern.files import load_safetensors, save_safetensors
from nern.ordering.order import METRICS, solve_ordering
from nern.ordering.store import FILE_NAME, get_ordering, load_ordering, save_ordering
from nern.originals.base import as_original
from runs import random_weights, small_resnet

pytestmark = pytest.mark.usefixtures("rng_untouched", "cache_dir")

MODES = ["crossfilter", "infilter", "infilter_path"]
SHAPES = [(4, 3, 3, 3), (5, 2, 1, 1), (2, 3, 5, 5)]


def same(a: Any, b: Any) -> bool:
    first, second = a.tensors(), b.tensors()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("mode", MODES)
def test_an_ordering_survives_its_file(mode: str, metric: str, tmp_path: Path) -> None:
    ordering = solve_ordering(random_weights(SHAPES), mode, metric=metric)
    save_ordering(tmp_path / FILE_NAME, ordering)
    for path in (tmp_path / FILE_NAME, tmp_path):
        again = load_ordering(path, mode, SHAPES, metric)
        assert same(again, ordering)
        assert (again.metric, again.cost) == (metric, ordering.cost)
    other = next(m for m in METRICS if m != metric)
    with pytest.raises(NernError, match=rf"is of metric '{metric}'.*permutations\.metric is '{other}'; set that"):
        load_ordering(tmp_path, mode, SHAPES, other)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shapes", [[(4, 2, 3, 3), *SHAPES[1:]], SHAPES[:2], [*SHAPES, (2, 2, 3, 3)]])
def test_an_ordering_of_another_network_or_mode_is_refused(
    mode: str, shapes: list[tuple[int, ...]], tmp_path: Path
) -> None:
    save_ordering(tmp_path / FILE_NAME, solve_ordering(random_weights(SHAPES), mode))
    with pytest.raises(NernError, match=r"ordering.* (does not fit|lacks|has a tensor)"):
        load_ordering(tmp_path, mode, shapes)
    other = MODES[MODES.index(mode) - 1]
    with pytest.raises(NernError, match=rf"is of mode '{mode}'.*permute_mode is '{other}'"):
        load_ordering(tmp_path, other, SHAPES)


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "a folder without orderings", "missing"])
def test_a_damaged_file_is_refused(damage: str, tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    save_ordering(path, solve_ordering(random_weights(SHAPES), "crossfilter"))
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-10])
    elif damage in ("empty", "text"):
        path.write_text("" if damage == "empty" else "an ordering, trust me")
    else:
        path.unlink()
    with pytest.raises(NernError, match="order"):
        load_ordering(tmp_path if damage == "a folder without orderings" else path, "crossfilter", SHAPES)


@pytest.mark.parametrize("order", [[0, 1, 1, 3], [0, 1, 2], [1, 2, 3, 4], [-1, 0, 1, 2], [[0, 1], [2, 3]]])
def test_what_is_no_permutation_is_refused(order: list[Any], tmp_path: Path) -> None:
    save_file({"order.0": torch.tensor(order)}, tmp_path / FILE_NAME, {"mode": "crossfilter"})
    with pytest.raises(NernError, match=r"layer 0 is not a permutation of 0\.\.3"):
        load_ordering(tmp_path, "crossfilter", [(2, 2, 3, 3)])


def write_published(folder: Path, layers: list[Any]) -> None:
    folder.mkdir(exist_ok=True)
    for index, content in enumerate(layers):
        torch.save(content, folder / f"layer_{index}.pt")


FORMS: dict[str, tuple[str, Callable[..., Any]]] = {
    "tensor": ("crossfilter", lambda order: order),
    "list": ("crossfilter", lambda order: order.tolist()),
    "array": ("crossfilter", lambda order: order.numpy()),
    "pair of tensors": ("infilter", lambda filters, channels: (filters, channels)),
    "channels first": ("infilter", lambda filters, channels: (channels, filters)),
    "list of arrays each filter": ("infilter", lambda filters, channels: (filters.numpy(), list(channels.numpy()))),
    "dict": ("infilter", lambda filters, channels: {"filters": filters, "channels": channels}),
}


@pytest.mark.parametrize(("mode", "form"), FORMS.values(), ids=FORMS)
def test_published_folders_are_read_and_go_before_the_cache(
    mode: str, form: Callable[..., Any], tmp_path: Path
) -> None:
    shapes = [(4, 3, 3, 3), (3, 3, 3, 3), (5, 1, 3, 3), (1, 5, 3, 3)]
    ordering = solve_ordering(random_weights(shapes), mode)
    write_published(tmp_path, [form(*layer.values()) for layer in ordering.layers])
    for metric in METRICS:  # which they do not tell
        assert same(load_ordering(tmp_path, mode, shapes, metric), ordering)
    others = random_weights(shapes, seed=1)
    get_ordering(others, mode)
    found, source = get_ordering(others, mode, tmp_path)
    assert source == f"read from {tmp_path}"
    assert same(found, ordering)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("content", [torch.rand(12), "0 1 2", [[0, 1], [2]], ([0], [1], [2])])
def test_published_files_of_something_else_are_refused(mode: str, content: Any, tmp_path: Path) -> None:
    write_published(tmp_path, [content])
    with pytest.raises(NernError, match=rf"layer_0.pt does not hold a {mode} order of 4 filters and 3 channels"):
        load_ordering(tmp_path, mode, SHAPES[:1])


def test_a_published_folder_with_a_damaged_or_missing_layer_is_refused(tmp_path: Path) -> None:
    write_published(tmp_path, list(solve_ordering(random_weights(SHAPES), "crossfilter").tensors().values()))
    (tmp_path / "layer_2.pt").write_bytes((tmp_path / "layer_2.pt").read_bytes()[:100])
    with pytest.raises(NernError, match=r"layer_2.pt cannot be read"):
        load_ordering(tmp_path, "crossfilter", SHAPES)
    (tmp_path / "layer_1.pt").unlink()
    with pytest.raises(NernError, match=r"layer_0.pt to layer_2.pt; it has layer_0.pt, layer_2.pt"):
        load_ordering(tmp_path, "crossfilter", SHAPES)


@pytest.mark.parametrize(("mode", "how"), [*zip(MODES, ["save_torch", "save_pickle", "save_torch"], strict=True)])
def test_published_files_with_code_are_refused_and_not_executed(
    mode: str, how: str, attack: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "orders"
    folder.mkdir()
    getattr(attack, how)(folder / "layer_0.pt")
    with pytest.raises(NernError, match=r"layer_0.pt .*refused"):
        load_ordering(folder, mode, SHAPES[:1])
    assert not attack.executed


def test_the_second_time_an_ordering_comes_from_the_cache(cache_dir: Path) -> None:
    weights, found = random_weights(SHAPES), {}
    for said in ("solved now", "from the cache"):
        for mode in MODES:
            for metric in METRICS:
                ordering, source = get_ordering([w.clone() for w in weights], mode, metric=metric)
                assert source.startswith(said)
                first = found.setdefault((mode, metric), ordering)
                assert same(ordering, first)
                assert (ordering.mode, ordering.metric, ordering.cost) == (mode, metric, first.cost)
    assert len(list((cache_dir / "orderings").iterdir())) == 6


def test_what_changes_the_result_changes_the_cached_file(tmp_path: Path) -> None:
    weights = random_weights([(9, 7, 3, 3)])
    improved, _ = get_ordering(weights, "crossfilter", tmp_path, improve_seconds=0.05)
    assert improved.cost is not None
    assert improved.cost.final < improved.cost.greedy
    for path in (None, tmp_path):
        again, _ = get_ordering(weights, "crossfilter", path, improve_seconds=0.05)
        assert same(again, improved)
        assert again.cost == improved.cost
    ordering, source = get_ordering(weights, "crossfilter")
    assert source == "solved now"
    assert same(ordering, solve_ordering(weights, "crossfilter"))


@pytest.mark.parametrize("mode", MODES)
def test_an_ordering_is_written_to_the_path_and_read_from_there(mode: str, tmp_path: Path) -> None:
    weights, folder = random_weights(SHAPES), tmp_path / "deep" / "orders"
    first, source = get_ordering(weights, mode, folder)
    assert f"written to {folder}" in source
    assert [p.name for p in folder.iterdir()] == [FILE_NAME]
    second, source = get_ordering(weights, mode, folder)
    assert source == f"read from {folder}"
    assert same(first, second)
    with pytest.warns(NernWarning, match="was solved for other weights"):
        get_ordering(random_weights(SHAPES, seed=1), mode, folder)


def rewritten(change: Callable[[dict[str, Tensor], dict[str, str]], object]) -> Callable[[Path], object]:

    def write(path: Path) -> None:
        tensors, metadata = load_safetensors(path, "cached")
        change(tensors, metadata)
        save_safetensors(path, tensors, metadata)

    return write


CACHE_DAMAGE: dict[str, Callable[[Path], object]] = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:20]),
    "another mode": rewritten(lambda _, m: m.update(mode="infilter")),
    "other weights": rewritten(lambda _, m: m.update(content_key="0" * 64)),
    "a place twice": rewritten(lambda t, _: t["order.0"].__setitem__(0, int(t["order.0"][1]))),
}


@pytest.mark.parametrize("damage", CACHE_DAMAGE.values(), ids=CACHE_DAMAGE)
def test_a_damaged_cache_is_mended_with_one_warning(damage: Callable[[Path], object], cache_dir: Path) -> None:
    weights = [torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0))]
    solved, _ = get_ordering(weights, "crossfilter")
    (cached,) = (cache_dir / "orderings").iterdir()
    damage(cached)
    with pytest.warns(NernWarning, match="is damaged and made anew") as caught:
        again, source = get_ordering(weights, "crossfilter")
    assert len(caught) == 1
    assert source == "solved now"
    assert same(again, solved)
    mended, source = get_ordering(weights, "crossfilter")  # without a warning
    assert source == f"from the cache ({cached})"
    assert same(mended, solved)
    assert list((cache_dir / "orderings").iterdir()) == [cached]


def test_the_config_chooses_the_metric() -> None:
    original = as_original(small_resnet())
    chosen = {"permute_mode": "crossfilter", "metric": "distance"}
    config = Config.from_dict({"nern": {"embeddings": {"permutations": chosen}}})
    _, ordering, _ = represent(config, [original], torch.device("cpu"))
    assert same(ordering, solve_ordering(original.weights, "crossfilter", metric="distance"))
    assert str(ordering.cost).startswith("path cost (distance) ")


@pytest.mark.parametrize(
    ("permutations", "says"),
    [
        ({"improve_seconds": 3.0}, "permute_mode is 'none'; choose one .'crossfilter', 'infilter', 'infilter_path'"),
        ({"permute_mode": "crossfilter", "improve_seconds": float("inf")}, "must be finite"),
        ({"permute_mode": "crossfilter", "metric": "euclid"}, r"permutations\.metric.*'euclid'.*cosine, distance"),
    ],
)
def test_settings_that_cannot_work_are_refused(permutations: dict[str, object], says: str) -> None:
    with pytest.raises(NernError, match=says):
        Config.from_dict({"nern": {"embeddings": {"permutations": permutations}}})
