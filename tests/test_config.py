"""The configuration: what is accepted, what is refused, and what the refusal says."""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from nern import Config, NernError, registry
from nern.cli import main
from nern.config.checks import CHOICES
from nern.config.published import TRANSLATED
from nern.config.settings import known_keys
from nern.config.yaml_files import nested_value

UNREGISTERED = ("task.task_name", "task.original_model_name")  # published defaults that name nothing
OTHER_DEFAULTS = {  # what published runs did, whatever these keys said
    "nern.norm_layer": "none",
    "nern.embeddings.normalization_mode": "none",
    "nern.embeddings.permutations.permute_mode": "none",
}
FIELDS = {key: kind for key, kind in known_keys(Config).items() if not dataclasses.is_dataclass(kind)}


def nested(values: dict[str, Any]) -> dict[str, Any]:
    """Dotted keys as the sections of a file; those of `networks` as its only section."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        *sections, name = key.split(".")
        inner = result
        for section in sections:
            inner = inner.setdefault(section, [{}])[0] if section == "networks" else inner.setdefault(section, {})
        inner[name] = value
    return result


def value_of(config: Config, key: str) -> Any:
    value: Any = config
    for name in key.split("."):
        value = getattr(value, name)
    return value


def load(tmp_path: Path, text: str) -> Config:
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return Config.load(path)


def published(fields: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, entry in fields.items():
        if "fields" in entry:
            yield from published(entry["fields"], f"{prefix}{name}.")
        else:
            yield prefix + name, entry["default"]


@pytest.fixture(scope="session")
def published_defaults(shared: Path) -> dict[str, Any]:
    """Every key of the published configuration with its default."""
    return dict(published(json.loads((shared / "golden" / "config_defaults.json").read_text())["fields"]))


def test_every_published_key_is_known_and_keeps_its_default(published_defaults: dict[str, Any]) -> None:
    assert len(published_defaults) > 50
    ours = Config().check()
    for key, default in published_defaults.items():
        if key in UNREGISTERED or key in TRANSLATED:
            continue
        value = value_of(ours, key)
        if isinstance(default, list):
            value = list(value)
        assert value == OTHER_DEFAULTS.get(key, default), key


def test_all_published_defaults_are_accepted_in_one_file(tmp_path: Path, published_defaults: dict[str, Any]) -> None:
    values = {key: value for key, value in published_defaults.items() if key not in UNREGISTERED}
    config = load(tmp_path, yaml.safe_dump(nested(values)))
    assert config.nern.norm_layer == "bn"
    assert config.nern.embeddings.normalization_mode == "local"
    assert config.nern.embeddings.permutations.permute_mode == "none"
    assert config.logging.tracker == "clearml"  # use_tensorboard is false there


@pytest.mark.parametrize(("number", "word"), [("5e-3", "False"), ("5.e-3", "no"), ("5E-3", "off")])
def test_numbers_and_booleans_are_read_as_people_write_them(tmp_path: Path, number: str, word: str) -> None:
    optim = load(tmp_path, f"optim: {{lr: {number}, ranger_use_gc: {word}}}").optim
    assert (optim.lr, optim.ranger_use_gc) == (0.005, False)


LOOKS = ["1e3", "5e-3", "1_0e1", "007", "true", "null", "~", "1.5", "2020-01-01", "a: b"]  # like something else
TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1)


@given(name=st.sampled_from(LOOKS) | TEXT, lr=st.floats(1e-6, 1e6))
def test_what_is_written_reads_back_equal(tmp_path_factory: pytest.TempPathFactory, name: str, lr: float) -> None:
    path = tmp_path_factory.mktemp("round") / "config.yaml"
    config = Config.from_dict(
        {
            "original_model_path": "weights/network.pt",
            "nern.method": "basic",
            "nern.embeddings.num_idxs": 5,
            "nern.embeddings.permutations.permute_mode": "crossfilter",
            "nern.feature_maps": ["bn1", "layer*.sum"],
            "task.original_model_kwargs": {"option": "B", "widths": [4, 6, 8]},
            "optim": {"betas": [0.9, 0.95], "min_lr": 0.0},
            "num_iterations": 7,
        }
    )
    config.logging.exp_name, config.optim.lr = name, lr
    config.check().save(path)
    assert Config.load(path) == config


@pytest.mark.parametrize("text", ["", "# nothing but a remark\n", "---\n"])
def test_empty_file_means_all_defaults(tmp_path: Path, text: str) -> None:
    assert load(tmp_path, text) == Config().check()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("- epochs\n", r"config\.yaml holds .*, not keys and values"),
        ("nern: [1\nepochs: 2", r"config\.yaml is not valid YAML"),
        ("epochs: !!python/object:os.system 1", r"config\.yaml is not valid YAML"),
        ("logging: {exp_name: mine}\nepochs: 3\nlogging: {use_tensorboard: True}\n", "logging"),
        ("logging: {exp_name: 2020-01-01}", r"logging\.exp_name holds a date; quote it if text is meant"),
        ("nern: {exclude: !!set {a, b}}", r"nern\.exclude holds a set"),
    ],
)
def test_a_file_that_is_no_config_is_refused_in_one_line(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(NernError, match=says) as caught:
        load(tmp_path, text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "nearest", "choice"),
    [
        ("epoch", "epochs", "num_iterations"),
        ("nern.num_block", "nern.num_blocks", "nern.hidden_layer_size"),
        ("optim.learning_rate", "optim", "optim.lr"),
    ],
)
def test_unknown_key_names_the_nearest_and_all_choices(tmp_path: Path, key: str, nearest: str, choice: str) -> None:
    with pytest.raises(NernError, match="unknown configuration key") as caught:
        load(tmp_path, yaml.safe_dump(nested({key: 1})))
    message = str(caught.value)
    assert repr(key) in message
    assert nearest in message
    assert choice in message
    assert "config.yaml" in message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("nern.num_blocks", "five"),
        ("nern.method", 3),
        ("nern.embeddings.gauss_scale", ["a"]),
        ("optim.lr", "fast"),
        ("optim.lr", True),
        ("no_cuda", "perhaps"),
        ("task.original_model_kwargs", [1]),
        *((key, value) for key in ("nern", "nern.embeddings.permutations") for value in ("crossfilter", None)),
        *((key, 0) for key in ("batch_size", "nern.hidden_layer_size", "optim.lr", "logging.log_interval")),
        *((key, float("nan")) for key in ("optim.lr", "nern.embeddings.base")),
        ("optim.max_gradient_norm", float("inf")),
    ],
)
def test_wrong_type_and_numbers_that_cannot_be_name_the_key(key: str, value: object) -> None:
    with pytest.raises(NernError, match=key.replace(".", r"\.")):
        Config.from_dict(nested({key: value}))


@pytest.mark.parametrize("key", [key for key, kind in FIELDS.items() if type(None) not in typing.get_args(kind)])
def test_null_is_refused_where_a_value_is_needed(key: str) -> None:
    with pytest.raises(NernError, match=key.rpartition(".")[2]):
        Config.from_dict(nested({key: None}))


NAMED = CHOICES | {
    "task.task_name": registry.TASKS,
    "task.original_model_name": registry.ORIGINALS,
    "optim.optimizer_type": registry.OPTIMIZERS,
    "optim.lr_scheduler_type": registry.SCHEDULES,
    "logging.tracker": registry.TRACKERS,
}


@pytest.mark.parametrize("key", NAMED)
def test_unknown_name_lists_the_choices(key: str) -> None:
    with pytest.raises(NernError, match="'nonesuch'") as caught:
        Config.from_dict(nested({key: "nonesuch"}))
    assert key in str(caught.value)
    for name in NAMED[key]:
        assert name in str(caught.value)


@pytest.mark.parametrize("word", ["None", "none", None])
@pytest.mark.parametrize(
    "key", ["nern.embeddings.permutations.permute_mode", "nern.embeddings.normalization_mode", "nern.norm_layer"]
)
def test_none_may_be_written_in_three_ways(key: str, word: str | None) -> None:
    assert value_of(Config.from_dict(nested({key: word})), key) == "none"


@pytest.mark.parametrize(
    "key",
    [
        key
        for key, kind in FIELDS.items()
        if {int, float} & {kind, *typing.get_args(kind)}
        and not key.endswith(("_loss_weight", "gauss_scale", "betas"))
        and not key.startswith("phases.")
    ]
    + [f"mine.{key}" for key in ("iterations", "epochs", "bits", "images", "weights_batch_size", "optim.weight_decay")],
)
def test_negative_number_is_refused(key: str) -> None:
    values: dict[str, Any] = {key: -1}
    if key == "num_iterations":
        values["epochs"] = None
    phases = {"phases": [{"name": "mine"}]} if key.startswith("mine.") else {}
    with pytest.raises(NernError, match=key.replace(".", r"\.")):
        Config.from_dict(nested(values) | phases)


PHASE_LENGTHS = ("reconstruction.iterations", "distillation.iterations", "distillation.epochs")
LENGTH_KEYS = ("epochs", "num_iterations", *PHASE_LENGTHS, "quantisation.iterations")


@pytest.mark.parametrize(
    ("base", "own", "expected"),
    [
        ({}, {"num_iterations": 10}, (None, 10, None, None, None, None)),
        ({}, {"reconstruction.iterations": 3}, (None, None, 3, None, None, None)),
        ({"num_iterations": 10}, {"epochs": 3}, (3, None, None, None, None, None)),
        ({"recipe": "nern"}, {"distillation.epochs": 5}, (None, None, 3000, None, 5, None)),
    ],
)
def test_the_length_that_is_given_takes_the_place_of_the_others(
    tmp_path: Path, configs: list[Config], base: dict[str, Any], own: dict[str, Any], expected: tuple[Any, ...]
) -> None:
    (tmp_path / "base.yaml").write_text(json.dumps(base))
    (tmp_path / "own.yaml").write_text(json.dumps({"base": "base.yaml"} | own))
    options = [f"--{key}={'null' if value is None else value}" for key, value in own.items()]
    assert main(["train", "--config_path", str(tmp_path / "base.yaml"), *options]) == 0
    configs.append(Config.load(tmp_path / "own.yaml"))
    if not base:
        configs.append(Config.from_dict(own))
    for config in configs:
        found = config.to_dict() | {phase.name: vars(phase) for phase in config.phases}
        assert tuple(nested_value(found, key) for key in LENGTH_KEYS) == expected
        assert Config.from_dict(config.to_dict()) == config


def test_two_lengths_at_once_and_one_over_those_of_a_recipe_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for own in ({"epochs": 3, "num_iterations": 10}, {"epochs": 3, "distillation.iterations": 2}):
        with pytest.raises(NernError, match=r"set .*epochs and num_iterations"):
            Config.from_dict(own)
        assert main(["train", *(f"--{key}={value}" for key, value in own.items())]) == 2
        assert "epochs is 3" in capsys.readouterr().err
    with pytest.raises(NernError, match=r"recipe 'nern' sets distillation\.iterations"):
        Config.from_dict({"recipe": "nern", "num_iterations": 10})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"nern.embeddings.type": "ffn", "nern.embeddings.fusion_mode": "sum"}, "set nern.embeddings.fusion_mode to"),
        ({"nern.embeddings.type": "ffn", "nern.embeddings.gauss_scale": [1, 0.1]}, "gauss_scale .* num_idxs"),
        ({"nern.method": "basic"}, "needs nern.embeddings.num_idxs 5, not 3"),
        ({"quantisation.iterations": 3, "quantisation.bits": 25.0}, r"quantisation.bits \(=25.0\) must be at most 24"),
        ({"nern.init": "checkpoint"}, "needs nern.checkpoint_path"),
        ({"nern.checkpoint_path": "best.pt"}, "set nern.init to 'checkpoint'"),
        ({"nern.weights_batch_method": "random_weighted_batch", "nern.weights_batch_size": None}, "weights_batch_size"),
        ({"optim.lr": 1e-4, "optim.min_lr": 1e-3}, "optim.min_lr .* must not be above optim.lr"),
        ({"optim.lr_scheduler_type": "exponential", "optim.min_lr": 0}, "optim.gamma 0 .* needs optim.min_lr"),
        ({"task.use_random_data": True, "nern.task_loss_weight": 1.0}, "needs labels"),
        ({"evaluation.best_on": "test", "evaluation.test_images": 0}, "needs test images"),
        ({"logging.use_tensorboard": True, "logging.tracker": "none"}, "logging.tracker"),
    ],
)
def test_impossible_combination_says_what_to_change(values: dict[str, Any], message: str) -> None:
    with pytest.raises(NernError, match=message):
        Config.from_dict(nested(values))


words = st.sampled_from(["none", "basic", "ffn", "kxk", "test", "5e-3", "1", ""]) | st.text(max_size=4)
scalars = st.none() | st.booleans() | st.integers(-3, 10**6) | st.floats() | words
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=2), max_leaves=4
)
keys = st.sampled_from([key for key in known_keys(Config) if key != "imports"])
strange = st.recursive(
    st.dictionaries(words | st.integers() | st.none(), values, max_size=2),
    lambda inner: st.dictionaries(st.sampled_from(["nern", "optim", "embeddings", "task"]), inner, max_size=2),
)


def loads_or_explains(mapping: dict[Any, Any]) -> None:
    try:
        config = Config.from_dict(mapping)
    except NernError:
        return
    assert Config.from_dict(config.to_dict()).to_yaml() == config.to_yaml()


@settings(max_examples=60)
@given(st.dictionaries(keys, values, min_size=1, max_size=4))
def test_any_values_load_or_are_explained(mapping: dict[str, Any]) -> None:
    try:
        arranged = nested(mapping)
    except (AttributeError, TypeError, LookupError):  # a section and a key within it
        return
    loads_or_explains(arranged)


@given(strange)
def test_any_mapping_loads_or_is_explained(mapping: dict[Any, Any]) -> None:
    loads_or_explains(mapping)


def test_one_text_stands_for_a_list_of_it() -> None:
    assert Config.from_dict({"nern": {"exclude": "fc.weight"}}).nern.exclude == ["fc.weight"]
