"""Recipes: what keys that are not given mean, in files, in their bases, on the command line and in Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from nern import Config, NernError
from nern.cli import main
from nern.config.yaml_files import RECIPES, recipe_values

FILES = [name for name in RECIPES if name != "published"]


def write(folder: Path, text: str, name: str = "config.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def dotted(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= dotted(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What `nern train` makes of these arguments."""
    made: list[Config] = []
    monkeypatch.setattr("nern.commands.training.train", lambda config, *args: made.append(config) or {})

    def parse(*arguments: object) -> Config:
        assert main(["train", *map(str, arguments)]) == 0
        return made.pop()

    return parse


@pytest.mark.parametrize("name", FILES)
def test_a_recipe_is_the_same_from_everywhere(tmp_path: Path, typed: Any, name: str) -> None:
    named = Config.of_recipe(name)
    assert named.recipe == name
    assert named != Config().check()
    path = write(tmp_path, f"recipe: {name}\n")
    write(tmp_path, f"recipe: {name}\n", "beneath.yaml")
    heir = write(tmp_path, "base: beneath.yaml\n", "heir.yaml")
    empty = write(tmp_path, "", "empty.yaml")
    assert Config.load(empty) == typed("--config_path", empty) == Config().check()
    assert Config.load(path) == Config.load(heir) == Config.from_dict({"recipe": name}) == named
    assert typed("--config_path", path) == typed("--config_path", heir) == named
    assert typed("--recipe", name) == typed(f"--recipe={name}") == named
    assert typed("--config_path", empty, "--recipe", name) == typed("--recipe", name, "--config_path", empty) == named


@pytest.mark.parametrize("name", FILES)
def test_a_recipe_sets_what_its_file_says(name: str) -> None:
    config, values = dotted(Config.of_recipe(name).to_dict()), dotted(recipe_values(name))
    for phase, said in zip(config["phases"], values.pop("phases"), strict=True):
        assert phase | said == phase | {"optim": said["optim"]}
    assert len(values) > 10
    assert {key: config[key] for key in values} == values
    plain = dotted(Config().check().to_dict())
    others = plain.keys() - values.keys() - {"recipe", "phases"}
    assert {key: config[key] for key in others} == {key: plain[key] for key in others}


def test_keys_of_a_file_win_over_the_recipe(tmp_path: Path, typed: Any) -> None:
    text = (
        "recipe: nern\nnern: {act_layer: gelu, embeddings: {enc_levels: 9}}\noptim.weight_decay: 0.5\nbatch_size: 3\n"
    )
    path = write(tmp_path, text)
    config, recipe = Config.load(path), Config.of_recipe("nern")
    assert (config.nern.act_layer, config.nern.embeddings.enc_levels) == ("gelu", 9)
    assert (config.optim.weight_decay, config.batch_size) == (0.5, 3)
    assert config.nern.embeddings.type == recipe.nern.embeddings.type == "order"  # beside the key of its section
    assert config.nern.init == recipe.nern.init
    assert config.optim.betas == recipe.optim.betas
    assert typed("--config_path", path) == config


def test_what_is_typed_wins_over_file_and_recipe(tmp_path: Path, typed: Any) -> None:
    path = write(tmp_path, "nern: {act_layer: elu, hidden_layer_size: 9}\n")
    config = typed(
        "--nern.act_layer", "gelu", "--recipe", "nern", "--config_path", path, "--reconstruction.iterations=7"
    )
    assert (config.nern.act_layer, config.nern.hidden_layer_size) == ("gelu", 9)
    assert config.phase("reconstruction").iterations == 7
    assert config.phase("reconstruction").optim == Config.of_recipe("nern").phase("reconstruction").optim
    file = write(tmp_path, "recipe: nern\n", "other.yaml")
    assert typed("--config_path", file, "--recipe", "published") == Config().check()
    assert typed("--recipe", "published", "--recipe", "nern") == Config.of_recipe("nern")


@pytest.mark.parametrize("name", ["nernn", "", None, 3])
def test_an_unknown_recipe_lists_the_choices(name: object, tmp_path: Path) -> None:
    with pytest.raises(NernError, match=r"unknown recipe .*published, nern|unknown recipe .*nern, published"):
        Config.from_dict({"recipe": name})
    path = write(tmp_path, yaml.safe_dump({"recipe": name}))
    with pytest.raises(NernError, match="unknown recipe"):
        Config.load(path)


def test_a_saved_config_does_not_change_with_its_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config.of_recipe("nern")
    config.save(tmp_path / "saved.yaml")
    other = {"nern": {"act_layer": "elu", "num_blocks": 9}, "batch_size": 1}
    monkeypatch.setattr("nern.config.schema.recipe_values", lambda name: other)
    assert Config.load(tmp_path / "saved.yaml") == config
    assert Config.of_recipe("nern").nern.act_layer == "elu"
