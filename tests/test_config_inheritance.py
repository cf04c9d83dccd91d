"""Configurations built on others (`base`), overridden on the command line, with several networks, with heads left open."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from nern import Config, NernError, OriginalConfig
from nern.cli import main
from nern.config.settings import read_config_file

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a file below the test's folder: text, or keys and values."""

    def file(name: str, content: str | dict[str, Any]) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8")
        return path

    return file


def test_bases_may_have_bases_and_share_them(write: Write) -> None:
    write("root.yaml", "epochs: 1\nseed: 1\nbatch_size: 1\nnum_workers: 1\n")
    write("left.yaml", "base: root.yaml\nseed: 2\nbatch_size: 2\nnum_workers: 2\n")
    write("right.yaml", "base: root.yaml\nbatch_size: 3\nnum_workers: 3\n")
    own = write("own.yaml", "base: [left.yaml, right.yaml]\nnum_workers: 4\n")
    for kind in (Config, OriginalConfig):
        assert read_config_file(own, kind) == {"epochs": 1, "seed": 1, "batch_size": 3, "num_workers": 4}


def test_base_is_found_from_its_own_file_the_root_or_the_home(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    top = write("top.yaml", "seed: 5\n")
    write("parts/middle.yaml", "base: ../top.yaml\nepochs: 6\n")
    write("mine/own.yaml", "base: ../parts/middle.yaml\n")
    write("elsewhere/top.yaml", "seed: 99\n")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert Config.load("../mine/own.yaml").seed == 5
    assert Config.load(tmp_path / "mine" / "own.yaml").epochs == 6
    for home in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(home, str(tmp_path))
    for base in (str(top), "~/top.yaml"):
        assert Config.load(write("mine/own.yaml", {"base": base})).seed == 5


def test_dotted_keys_and_sections_are_the_same(write: Write) -> None:
    write("base.yaml", "nern.embeddings.base: 0.5\nnern: {num_blocks: 4}\n")
    write("second.yaml", "nern: {embeddings: {base: 0.6}}\nnern.hidden_layer_size: 10\n")
    own = write("own.yaml", "base: [base.yaml, second.yaml]\nnern.embeddings: {enc_levels: 9}\nnern.num_blocks: 5\n")
    assert read_config_file(own, Config) == {
        "nern": {"num_blocks": 5, "hidden_layer_size": 10, "embeddings": {"base": 0.6, "enc_levels": 9}}
    }


def test_lists_are_replaced_whole(write: Write) -> None:
    base = {"nern": {"exclude": ["a", "b"]}, "optim": {"betas": [0.9, 0.99]}, "networks": [{"include": ["a"]}]}
    write("base.yaml", base)
    own = {"base": "base.yaml", "nern.exclude": ["c"], "networks": [{"task.task_name": "cifar10"}]}
    values = read_config_file(write("own.yaml", own), Config)
    assert values["nern"]["exclude"] == ["c"]
    assert values["optim"]["betas"] == [0.9, 0.99]
    assert values["networks"] == [{"task": {"task_name": "cifar10"}}]


def test_base_is_a_matter_of_files_and_a_circle_names_them(write: Write) -> None:
    for name, base in (("a", "b"), ("b", "c"), ("c", "a")):
        write(f"{name}.yaml", f"base: {base}.yaml\n")
    with pytest.raises(NernError, match=r"circle: \S*a\.yaml -> \S*b\.yaml -> \S*c\.yaml -> \S*a\.yaml$") as caught:
        Config.load(write("outside.yaml", "base: a.yaml\n"))
    assert "outside" not in str(caught.value)
    with pytest.raises(NernError, match="unknown configuration key 'base'"):
        Config.from_dict({"base": "base.yaml"})


@pytest.mark.parametrize("base", [None, {"file": "base.yaml"}, ["base.yaml", 3], "absent.yaml"])
def test_base_that_is_missing_or_of_another_type_is_refused(write: Write, base: object) -> None:
    write("base.yaml", "")
    absent = r"base of \S*own\.yaml\).*no such file: \S*absent\.yaml"
    with pytest.raises(NernError, match=rf"own\.yaml: base must be a file name or a list of them, not|{absent}"):
        Config.load(write("own.yaml", {"base": base}))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- 1\n", r"base\.yaml.*holds list, not keys and values"),
        ("epochs: [1\n", r"base\.yaml.*is not valid YAML"),
        ("nern.init: fmod\nnern: {init: default}\n", r"base\.yaml.*nern\.init is given twice"),
        ("nern: {num_block: 3}\n", r"'nern\.num_block'; did you mean 'nern\.num_blocks'"),
        ("batch_size: 0\n", r"batch_size \(=0\)"),
        ("nern: {base: other.yaml}\n", r"'nern\.base'"),
    ],
)
def test_what_a_base_says_is_checked(write: Write, content: str, message: str) -> None:
    write("base.yaml", content)
    with pytest.raises(NernError, match=message):
        Config.load(write("own.yaml", "base: base.yaml\nepochs: 1\n"))


@pytest.mark.parametrize("last", [False, True])
def test_options_win_over_file_and_base_wherever_they_stand(write: Write, configs: list[Config], last: bool) -> None:
    write(
        "base.yaml", "nern: {hidden_layer_size: 10, num_blocks: 4, weights_batch_size: 8}\noriginal_model_path: a.pt\n"
    )
    own = write("own.yaml", "base: base.yaml\nnern.num_blocks: 5\nepochs: 6\n")
    file, options = ["--config_path", str(own)], ["--nern.hidden_layer_size", "30", "--num_iterations=3"]
    options += ["--epochs", "null", "--original_model_path", "null"]
    assert main(["train", *(file + options if last else options + file)]) == 0
    (config,) = configs
    assert (config.nern.hidden_layer_size, config.nern.num_blocks, config.nern.weights_batch_size) == (30, 5, 8)
    assert (config.epochs, config.num_iterations, config.original_model_path) == (None, 3, None)


TWO = [
    {"original_model_path": "weights/a.pt", "task": {"task_name": "digits", "data_dir": "data"}},
    {
        "original_model_path": "pretrained:digits-resnet8",
        "task": {"original_model_name": "mine/nets.py:make", "original_model_kwargs": {"option": "B"}, "mixup": 0.5},
        "include": ["*.weight"],
        "exclude": ["stem.*"],
        "feature_maps": ["a", "b:input"],
    },
]


def of_networks(networks: Sequence[Any], **values: Any) -> Config:
    return Config.from_dict({"networks": list(networks)} | values)


def test_networks_may_be_written_with_dotted_keys(write: Write, configs: list[Config]) -> None:
    path = write("own.yaml", "networks:\n- task.task_name: cifar10\n  task.original_model_kwargs.option: B\n")
    (network,) = Config.load(path).networks
    assert (network.task.task_name, network.task.original_model_kwargs) == ("cifar10", {"option": "B"})
    assert main(["train", "--config_path", str(path), "--seed", "4"]) == 0
    assert configs[0].networks == [network]


def test_members_take_what_they_leave_open_from_nern() -> None:
    config = of_networks(TWO, nern={"include": ["conv*"], "exclude": ["fc.*"], "feature_maps": ["bn1"]})
    first, second = config.members()
    assert (first.include, first.exclude, first.feature_maps) == (["conv*"], ["fc.*"], ["bn1"])
    assert (second.include, second.exclude, second.feature_maps) == (["*.weight"], ["stem.*"], ["a", "b:input"])
    assert config.networks[0].include is None


def test_paths_of_all_networks_are_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = of_networks(TWO)
    first, second = config.with_absolute_paths().networks
    assert first.original_model_path == str(tmp_path / "weights" / "a.pt")
    assert first.task.data_dir == str(tmp_path / "data")
    assert second.original_model_path == "pretrained:digits-resnet8"
    assert second.task.original_model_name == f"{tmp_path / 'mine' / 'nets.py'}:make"
    assert config == of_networks(TWO)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"path": "a.pt"}, r"unknown configuration key 'networks\.path'.*networks\.original_model_path"),
        ({}, "networks holds an empty section"),
        ({"task": {"input_size": "large"}}, r"networks.*task\.input_size"),
        ({"task": {"task_name": "nonesuch"}}, r"task\.task_name.*'nonesuch'"),
        (None, "networks is a list of sections"),
    ],
)
def test_faulty_network_is_refused(write: Write, item: Any, message: str) -> None:
    networks = [TWO[0], item]
    with pytest.raises(NernError, match=message):
        of_networks(networks)
    with pytest.raises(NernError, match=message):
        Config.load(write("own.yaml", {"networks": networks}))


@pytest.mark.parametrize("alone", [{"original_model_path": "a.pt"}, {"task": {"task_name": "cifar10"}}])
def test_networks_take_the_place_of_one_network(alone: dict[str, Any]) -> None:
    with pytest.raises(NernError, match="networks replaces original_model_path and task"):
        of_networks(TWO, **alone)


@pytest.mark.parametrize(
    ("nern", "heads"),
    [({}, "per_size"), ({"output_size": 5}, "shared"), ({"heads": "shared"}, "shared")],
)
def test_heads_left_open_follow_the_output_size(nern: dict[str, Any], heads: str) -> None:
    config = Config.from_dict({"nern": nern})
    assert config.nern.kind_of_heads == heads
    assert Config.from_dict(config.to_dict()) == config


def test_output_size_has_no_part_in_heads_by_size(write: Write) -> None:
    write("base.yaml", "nern.heads: per_size\n")
    with pytest.raises(NernError, match=r"nern\.output_size \(=5\) has an effect only with nern\.heads 'shared'"):
        Config.load(write("own.yaml", "base: base.yaml\nnern.output_size: 5\n"))
    config = Config.load(write("own.yaml", "base: base.yaml\nnern: {output_size: 5, heads: null}\n"))
    assert config.nern.kind_of_heads == "shared"


def test_options_cannot_say_which_of_several_networks_they_mean(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--networks.task.task_name", "digits"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "networks is a list of sections, and the option does not say which one" in said
