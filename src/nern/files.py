"""Files: atomic writes, weights read without executing anything, the user's cache directory."""

from __future__ import annotations

import io
import json
import math
import os
import re
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import platformdirs
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from nern.errors import NernError, ResourceError, plain_errors, resource_error
from nern.pickles import check_pickle, code_refused

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

WEIGHT_SUFFIXES = (".pt", ".pth", ".th", ".safetensors")
RUN_SUFFIXES, CHECKPOINTS = (".pt", ".safetensors", ".yaml", ".json"), "checkpoints"  # of what a run needs
_MOST_UNPACKED = 10  # bytes for each byte of a zip archive: torch.save does not compress


def cache_dir() -> Path:
    """The user's cache folder for nern; `NERN_CACHE_DIR` overrides the platform's choice."""
    return Path(os.environ.get("NERN_CACHE_DIR") or platformdirs.user_cache_dir("nern", appauthor=False))


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it replaces `path` in one step, on failure it is removed.

    A link stays a link, and a file that is replaced keeps its permissions. What is no file (/dev/stdout) is written itself.

    Raises:
        ResourceError: the file cannot be written.
    """
    path, temporary = Path(path), None
    try:
        with plain_errors(path):
            if path.parts[:2] == ("/", "dev") or (path.exists() and not path.is_file()):
                yield path
                return
            target = Path(os.path.realpath(path))
            target.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
            os.close(handle)
            temporary = Path(name)
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            mode = target.stat().st_mode if target.exists() else 0o666 & ~_umask()  # mkstemp makes files private
            temporary.chmod(mode)
            os.replace(temporary, target)
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _umask() -> int:
    current = os.umask(0o022)
    os.umask(current)
    return current


def write_text(path: str | Path, text: str) -> None:
    """Write `text` (UTF-8) atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically; NaN and infinity, which JSON lacks, become null."""
    write_text(path, json.dumps(_finite(value), indent=2, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(v) for key, v in value.items()}
    return [_finite(v) for v in value] if isinstance(value, list | tuple) else value


@contextmanager
def locked(path: str | Path, busy: str) -> Iterator[None]:
    """While entered, no other process holds the lock of this file or folder (where the system has file locks). Raises
    NernError saying `busy` if one does."""
    if fcntl is None:
        yield
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise NernError(busy) from error
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_UN)  # closing would not do: processes started meanwhile hold copies
        os.close(handle)


def check_writable(path: str | Path | None, what: str, *read: Any) -> None:
    """A check before long work: nothing is written. What a user names may be there already, and is replaced then.

    Args:
        path: of the file; None: none is asked for.
        what: the option that names it, for the error.
        read: what is read meanwhile: paths, or values of a config, of which any text may name a file.

    Raises:
        NernError: a file could not be written at `path`; or it would replace what is read, or what a run needs, by its own
            name or behind a link.
    """
    if path is None:
        return
    path = Path(path)
    folder = next(p for p in path.absolute().parents if p.exists())
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise NernError(
            f"{what}: {path} cannot be written: " + ("it is a folder" if path.is_dir() else f"see {folder}")
        )
    if not path.is_file():
        return
    run = any(_of_run(file) for file in (path.absolute(), Path(os.path.realpath(path))))
    if run or any(path.samefile(file) for file in _files_named(read)):
        raise NernError(f"{what}: {path} would be lost: {'a run needs it' if run else 'it is read'}. Name another file")


def _of_run(file: Path) -> bool:
    """Whether a file is one that a run needs: in its folder, or among its checkpoints."""
    folders = [file.parent, *([file.parent.parent] if file.parent.name == CHECKPOINTS else [])]
    return file.suffix in RUN_SUFFIXES and any(
        (folder / "config.yaml").is_file() and ((folder / "state.pt").is_file() or (folder / CHECKPOINTS).is_dir())
        for folder in folders
    )


def _files_named(value: Any) -> Iterator[str]:
    """Files that texts in a value of any depth name: FILE, FILE#KEY, FILE.py:FUNCTION; and of weights their arguments."""
    if isinstance(value, Mapping | list | tuple):
        for entry in value.values() if isinstance(value, Mapping) else value:
            yield from _files_named(entry)
    elif isinstance(value, str | Path):
        text = os.path.expanduser(value)
        for file in (text, text.rpartition("#")[0], text.rpartition(":")[0]):
            stem, suffix = os.path.splitext(file)
            arguments = [f"{stem}.json"] if suffix in WEIGHT_SUFFIXES else []
            yield from filter(os.path.isfile, [file, *arguments])


def check_free(path: str | Path, option: str) -> None:
    """Raise NernError if there is a file or folder at a path that was not named by the user: it is not replaced unasked."""
    if Path(path).exists():
        raise NernError(
            f"{path} is there already and stays as it is. Move it, or name the file to write with {option}: what you name "
            "is replaced"
        )


def save_torch(path: str | Path, value: Any) -> None:
    """`torch.save`, atomically. Only plain containers and tensors: what `load_torch` gives back."""
    data = io.BytesIO()  # writing to a file, torch hides why it fails
    torch.save(value, data)
    with atomic_path(path) as temporary:
        temporary.write_bytes(data.getvalue())


def save_state_dict(path: str | Path, state: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a state dict in the format of the suffix (see `check_weights_suffix`); `metadata` goes into safetensors only."""
    check_weights_suffix(path, "weights")
    if Path(path).suffix.lower() == ".safetensors":
        save_safetensors(path, state, metadata)
    else:
        save_torch(path, {name: tensor.detach().cpu().clone() for name, tensor in state.items()})


def check_weights_suffix(path: str | Path, what: str) -> None:
    """Raise NernError if the suffix is none in whose format `save_state_dict` writes."""
    if Path(path).suffix.lower() not in WEIGHT_SUFFIXES:
        *most, last = WEIGHT_SUFFIXES
        raise NernError(f"{what}: {path} must end in {', '.join(most)} (PyTorch) or {last}: the suffix says the format")


def save_safetensors(
    path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors as safetensors, atomically."""
    contiguous = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}  # none shares memory
    with atomic_path(path) as temporary:
        safetensors.torch.save_file(contiguous, temporary, dict(metadata) if metadata else None)


def load_safetensors(path: str | Path, what: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file. Raises NernError if it is missing, truncated or not one."""
    path = existing_file(path, what)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except Exception as error:  # safetensors raises its own error type, OSError or ValueError, by defect
        if told := resource_error(error):
            raise ResourceError(f"{what} {path} cannot be read: {told}") from error
        raise NernError(f"{what} {path} is not a complete safetensors file ({error})") from error


def load_torch(path: str | Path, what: str, kinds: Mapping[str, Any] | None = None) -> Any:
    """`torch.load` of tensors and plain containers, on the CPU; nothing in the file is executed, and loading it takes time
    and room that go with its bytes (see `pickles`).

    Args:
        what: what it should hold, in words, for the error.
        kinds: further functions and classes that the file may name: what is called in place of each.

    Raises:
        NernError: no such file; truncated; or it names code, which is refused.
    """
    path, allowed = existing_file(path, what), list[Any]((made, name) for name, made in (kinds or {}).items())
    try:
        _check_pickles(path, [name for _, name in allowed])
        # Opened here: of a path, PyTorch goes by its suffix.
        with torch.serialization.safe_globals(allowed), warnings.catch_warnings(), path.open("rb") as file:
            warnings.simplefilter("ignore")  # of torch, about how old files are made
            return torch.load(file, map_location="cpu", weights_only=True)
    except NernError as error:
        raise NernError(f"{what} {path} {error}") from error
    except Exception as error:  # zip, pickle, EOF and runtime errors, by defect
        if told := resource_error(error):
            raise ResourceError(f"{what} {path} cannot be read: {told}") from error
        detail = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if named := re.search(r"GLOBAL ([\w.]+)|Unsupported class ([\w.]+)", str(error)):
            raise NernError(f"{what} {path} {code_refused(named.group(1) or named.group(2))}") from error
        detail = "" if "weights_only" in detail else f" ({detail})"  # torch's advice to load it unsafely is not ours
        raise NernError(f"{what} {path} cannot be read: truncated, or not a PyTorch file{detail}") from error


def _check_pickles(path: Path, kinds: Collection[str]) -> None:
    """Raise NernError for a file of `torch.save` that would take more time or room than goes with its bytes; other errors
    for one that is damaged."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if file.read(4) != b"PK\3\4":
            # of old versions: pickles of a number, a version, the system, the values, their keys
            file.seek(0)
            for _ in range(5):
                check_pickle(file, kinds, size)
            return
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            unpacked = sum(entry.file_size for entry in entries)
            if unpacked > _MOST_UNPACKED * size:
                raise NernError(f"unpacks to {unpacked:,} bytes from {size:,}, and is refused")
            (values,) = [e for e in entries if e.filename.lower().endswith("data.pkl")]
            begin = values.filename[: -len("data.pkl")] + "data/"
            records = {e.filename.removeprefix(begin): e.file_size for e in entries if e.filename.startswith(begin)}
            with archive.open(values) as pickled:
                check_pickle(io.BytesIO(pickled.read()), kinds, unpacked, records)


def existing_file(path: str | Path, what: str) -> Path:
    """`path`, if it is a file; else NernError naming the folder's candidates."""
    path = Path(path).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        raise NernError(f"{what}: {path} is a folder, a file is expected")
    siblings = sorted(p.name for p in path.parent.iterdir() if p.is_file())[:10] if path.parent.is_dir() else []
    there = f"; in that folder: {', '.join(siblings)}" if siblings else ""
    raise NernError(f"{what}: no such file: {path}{there}")


def tensors_of(network: torch.nn.Module) -> dict[str, Tensor]:
    """The tensors of a network's state dict, parameters as they are; without extra state that is no tensor, which stays
    with its module."""
    state = network.state_dict(keep_vars=True)
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def some_names(names: Iterable[str], limit: int = 4) -> str:
    """The first names, and how many more there are, for an error."""
    names = list(names)
    return ", ".join(names[:limit]) + (f", ... (+{len(names) - limit})" if len(names) > limit else "")


def load_yaml(path: str | Path, what: str, reader: Callable[[str], Any]) -> Any:
    """Parse a YAML file with `reader`; NernError where it is missing or malformed."""
    path = existing_file(path, what)
    try:
        return reader(path.read_text(encoding="utf-8"))
    except Exception as error:
        raise NernError(f"{what} {path} is not valid YAML: {' '.join(str(error).split())}") from error
