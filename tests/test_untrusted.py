"""JSON and YAML that anyone may have written: what they say, or one error, in bounded time."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from nern import NernError
from nern.config.yaml_files import parse_yaml
from nern.ordering.order import PathCost
from nern.originals.build import build_original_network
from nern.training.run_folder import load_steps
from nern.untrusted import parse_json, read_json

DEEP, LONG = "nested too deeply", "a number of 5,000 digits"
JSON: dict[str, tuple[str | bytes, str]] = {
    "deep lists": ("[" * 10**6, DEEP),
    "deep objects": ('{"a":' * 10**6, DEEP),
    "a key twice": ('{"a": 1, "b": {"c": 1, "c": 2}}', "a key twice"),
    "a long number": ("[" + "9" * 5000 + "]", LONG),
    "infinite": ('{"a": 1e999}', "holds 1e999"),
    "not a number": ("[NaN]", "holds NaN"),
    "cut": ('{"a": [1, 2', "is not valid JSON"),
    "nothing": ("", "is not valid JSON"),
    "no UTF-8": (b"\xff\xfe[]", "is not valid JSON"),
    "a mark": (b"\xef\xbb\xbf[]", "is not valid JSON"),
}


@pytest.mark.parametrize(("text", "message"), JSON.values(), ids=JSON)
def test_json_that_is_refused(text: str | bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(NernError, match=message):
        parse_json(text)
    path = tmp_path / "x.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(NernError, match=rf"x\.json is damaged \(it.*{message}.*\); do this") as caught:
        read_json(path, dict, "; do this")
    assert len(str(caught.value)) < 500
    (tmp_path / "best.safetensors").touch()
    path.rename(tmp_path / "best.steps.json")  # of earlier versions
    with pytest.raises(NernError, match=message):
        load_steps(tmp_path / "best.safetensors")
    if isinstance(text, str):
        with pytest.raises(NernError, match="is not a path cost"):
            PathCost.from_json(text)


@pytest.mark.parametrize(
    "text", ["[" * 10**5, '{"num_classes": 3, "num_classes": 4}', '{"num_classes": 1e999}', b"\xff"]
)
def test_arguments_beside_weights_that_are_refused(text: str | bytes, tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_bytes(b"")
    (tmp_path / "w.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(NernError, match=r"w\.json is damaged \(it"):
        build_original_network("timm:test_convnext", str(tmp_path / "w.pt"))


def test_json_that_is_read(tmp_path: Path) -> None:
    value = {"a": [1, -2.5, 1e300, None, True, "x", {"b": 2**63}], "c": ""}
    text = '{"a": [1, -2.5, 1e300, null, true, "x", {"b": 9223372036854775808}], "c": ""}'
    assert parse_json(text) == parse_json(text.encode()) == value
    assert parse_json("[" * 64 + "1" + "]" * 64)[0][0] != []
    (tmp_path / "x.json").write_text(text)
    assert read_json(tmp_path / "x.json", dict) == value
    with pytest.raises(NernError, match="it holds dict, not list"):
        read_json(tmp_path / "x.json", list)
    with pytest.raises(NernError, match=r"y\.json is damaged"):
        read_json(tmp_path / "y.json", dict)


LAUGHS = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30))
MERGED = "a0: &a0 {k: x}\n" + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 30))
YAML: dict[str, tuple[str, str]] = {
    "laughs": (LAUGHS, "more than 65,536 values"),
    "merged laughs": (MERGED, "more than 65,536 values"),
    "a circle": ("a: &a [*a]", DEEP),
    "deep and closed": ("[" * 70 + "]" * 70, DEEP),
    "deep mappings": ("".join(" " * i + "a:\n" for i in range(200)), DEEP),
    "a long number": ("a: " + "9" * 5000, LONG),
    "a long number of base 16": ("a: 0x" + "f" * 4998, LONG),
    "a long number of base 60": ("a: 1" + ":59" * 2000, "a number of 6,001 digits"),
    "a key twice": ("a: 1\na: 2", "'a' is given twice"),
    "an object": ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
    "no day": ("a: 2020-99-99", "month must be in"),
    "no key": ("{[1]: 2}", "unhashable key"),
    "no text": ("a: \x00", "unacceptable character"),
}


@pytest.mark.parametrize(("text", "message"), YAML.values(), ids=YAML)
def test_yaml_that_is_refused(text: str, message: str) -> None:
    start = time.process_time()
    with pytest.raises(NernError, match=message):
        parse_yaml(text)
    assert time.process_time() - start < 5
