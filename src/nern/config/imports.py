"""`imports` of a config: the user's modules that register networks and tasks."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from contextlib import suppress
from pathlib import Path
from types import ModuleType

from nern.compat import import_torchvision
from nern.errors import NernError
from nern.files import existing_file


def import_modules(names: list[str]) -> None:
    """Import modules by dotted name (from the working directory, too) or by path to a .py file, each once; what lies
    beside a file can be imported by it. Raises NernError for one that does not exist or fails."""
    for name in names:
        import_module(name, "imports")


def import_module(name: str, key: str) -> ModuleType:
    """The module `name` (see `import_modules`); `key`: the config key to name in errors."""
    try:
        with suppress(ImportError):  # what is imported may import torchvision itself, which can need help
            import_torchvision()
        if not name.endswith(".py"):
            _make_importable(Path.cwd())
            return importlib.import_module(name)
        path = Path(name).expanduser().resolve()
        module_name = f"nern_import_{path.stem}_{abs(hash(path)):x}"
        if module_name in sys.modules:
            return sys.modules[module_name]
        spec = importlib.util.spec_from_file_location(module_name, existing_file(path, key))
        assert spec is not None
        assert spec.loader is not None
        sys.modules[module_name] = module = importlib.util.module_from_spec(spec)
        try:
            sys.path.insert(0, str(path.parent))  # first, as of a script
            try:
                spec.loader.exec_module(module)
            finally:
                sys.path.remove(str(path.parent))
                _make_importable(path.parent)
        except BaseException:
            del sys.modules[module_name]
            raise
        return module
    except NernError:
        raise
    except Exception as error:
        raise NernError(f"{key}: {name!r} cannot be imported ({type(error).__name__}: {error})") from error


def _make_importable(folder: Path) -> None:
    """For what is imported when a function is called; last, so that nothing is hidden by it."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
