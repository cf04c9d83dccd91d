"""What ships with nern, in its folder `pretrained`: networks (NAME.safetensors), NeRNs of them (NAME.nern), and a card of
each (NAME.md)."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from nern.errors import unknown_name

SHIPPED = "pretrained:"
NETWORK, NERN = ".safetensors", ".nern"


def shipped_names(suffix: str) -> list[str]:
    """Names of the files of this kind, without their suffix."""
    folder = resources.files("nern") / "pretrained"
    return sorted(f.name.removesuffix(suffix) for f in folder.iterdir() if f.name.endswith(suffix))


def shipped_networks() -> list[str]:
    """What `original_model_path` takes, of the networks that ship: 'pretrained:NAME'."""
    return [SHIPPED + name for name in shipped_names(NETWORK)]


def shipped_nerns() -> list[str]:
    """What `nern.load` and the commands about files take, of the NeRNs that ship: 'pretrained:NAME.nern'."""
    return [f"{SHIPPED}{name}{NERN}" for name in shipped_names(NERN)]


def shipped_file(path: str, suffix: str, kind: str) -> Path | None:
    """The file that 'pretrained:NAME' means; None: `path` is an ordinary one. `suffix`: of the files of the kind wanted;
    NeRNs are named with it, networks without. Raises NernError where there is none of that name."""
    if not path.startswith(SHIPPED):
        return None
    choices = shipped_networks() if suffix == NETWORK else shipped_nerns()
    if path not in choices:
        raise unknown_name(kind, path, choices)
    name = path.removeprefix(SHIPPED).removesuffix(suffix)
    return Path(str(resources.files("nern") / "pretrained" / f"{name}{suffix}"))
