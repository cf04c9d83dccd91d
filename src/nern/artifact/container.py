"""The container: named sections of bytes in one file, each under a checksum. docs/format.md is its specification.

Nothing is trusted before it is checked: the header's own digest, then sizes against the file's, then each section's digest.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from nern.errors import NernError
from nern.files import atomic_path, existing_file
from nern.shipped import NERN, shipped_file

MAGIC = b"\x89NERN\r\n\x1a"  # not text, and broken by whatever converts ends of lines
VERSIONS = (1, 2, 3)  # that are read; files without codes are written as version 1
CODES = {"CODE": 2, "COD3": 3}  # sections of codes, and the version that added each; new files have the last
MOST_SECTIONS = 64
# Magic, version, sections, zero, size of the file, digest of the rest of the header.
_FIXED = struct.Struct("<8sHHIQ16s")
_ENTRY = struct.Struct("<4sQ16s")  # name, size, digest
SUFFIX = ".nern"


class DamagedFileError(NernError):
    """A file is no artifact, damaged, or asks for what cannot be."""


def header_size(sections: int) -> int:
    """Bytes before the first section."""
    return _FIXED.size + sections * _ENTRY.size


def write_artifact(path: str | Path, sections: Mapping[str, bytes]) -> int:
    """Write the sections of an artifact, atomically, in this order; names are four ASCII letters. Returns the bytes of the
    file. Raises NernError where it cannot be written."""
    data = to_bytes(sections)
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)
    return len(data)


def to_bytes(sections: Mapping[str, bytes]) -> bytes:
    """The container's bytes."""
    table = b"".join(_ENTRY.pack(name.encode("ascii"), len(data), _digest(data)) for name, data in sections.items())
    total = header_size(len(sections)) + sum(map(len, sections.values()))
    return _fixed(_version(sections), len(sections), total, table) + table + b"".join(sections.values())


def read_container(path: str | Path, most: int = 2**62) -> dict[str, bytes]:
    """The sections of a file (or of 'pretrained:NAME.nern') of at most `most` bytes, all digests checked.

    Raises:
        NernError: no such file, or it cannot be opened.
        DamagedFileError: it is no artifact, of another version, truncated, damaged anywhere, or larger than `most`.
    """
    path = shipped_file(str(path), NERN, "pretrained NeRN") or existing_file(path, "artifact")
    try:
        with path.open("rb") as file:
            return _read(file, path, most)
    except OSError as error:
        raise NernError(f"artifact {path} cannot be read: {error.strerror}") from error


def _read(file: BinaryIO, path: Path, most: int) -> dict[str, bytes]:
    def damaged(why: str, how: str = "damaged") -> DamagedFileError:
        return DamagedFileError(f"artifact {path} is {how}: {why}")

    size, start = os.fstat(file.fileno()).st_size, file.read(_FIXED.size)
    if not start.startswith(MAGIC):
        raise DamagedFileError(f"{path} is not a .nern file: its first bytes are not those of one")
    if len(start) < _FIXED.size:
        raise damaged(f"it has {size:,} bytes", "truncated")
    _, version, count, _, total, _ = _FIXED.unpack(start)
    if version not in VERSIONS:
        raise DamagedFileError(
            f"artifact {path} is of format version {version}; this nern reads versions {VERSIONS[0]} to {VERSIONS[-1]}. "
            "A newer nern may read it."
        )
    if total != size:
        raise damaged(f"it has {size:,} bytes and says {total:,}", "truncated" if size < total else "damaged")
    if not 0 < count <= MOST_SECTIONS or header_size(count) > size:
        raise damaged(f"it says that it has {count} sections")
    if size > most:
        raise DamagedFileError(f"artifact {path} has {size:,} bytes; at most {most:,} are read: see `limit`")
    table = file.read(count * _ENTRY.size)
    if start != _fixed(version, count, size, table):
        raise damaged("its header does not match its checksum")
    entries = list(_ENTRY.iter_unpack(table))
    if header_size(count) + sum(length for _, length, _ in entries) != size:
        raise damaged(f"its sections do not add up to its {size:,} bytes")
    sections: dict[str, bytes] = {}
    for name, length, digest in entries:
        label, data = name.decode("ascii", "replace"), file.read(length)
        if label in sections:
            raise damaged(f"it has two sections {label!r}")
        if _digest(data) != digest:
            raise damaged(f"section {label!r} does not match its checksum")
        sections[label] = data
    if version != _version(sections):
        raise damaged(f"it is of version {version}, and has the sections of version {_version(sections)}")
    return sections


def codes_section(sections: Mapping[str, bytes]) -> str:
    """The section with the codes of kernels, of whichever version; empty: there is none."""
    return next((name for name in CODES if name in sections), "")


def _version(sections: Mapping[str, bytes]) -> int:
    return CODES.get(codes_section(sections), 1)


def _fixed(version: int, count: int, total: int, table: bytes) -> bytes:
    """The first bytes of the header; its digest is that of itself, the digest being zeros, and the table."""
    blank = _FIXED.pack(MAGIC, version, count, 0, total, bytes(16))
    return _FIXED.pack(MAGIC, version, count, 0, total, _digest(blank + table))


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()
