"""Names of the tensors of several networks together: each network's number and a dot before them; of one, nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")


def joint_name(name: str, number: int, networks: int) -> str:
    """A tensor's name among those of so many networks."""
    return name if networks == 1 else f"{number}.{name}"


def of_number(tensors: Mapping[str, T], number: int, networks: int) -> dict[str, T]:
    """Those of one of so many networks, by their own names."""
    start = joint_name("", number, networks)
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}
