"""One file from which the reconstructed network can be rebuilt: its format (docs/format.md), its coding, its reader."""

from nern.artifact.container import SUFFIX, DamagedFileError, write_artifact
from nern.artifact.reading import LIMIT, Artifact, load
from nern.artifact.writing import Holding, NetworkParts, described_anew, encoded, probed, size_of

__all__ = [
    "LIMIT",
    "SUFFIX",
    "Artifact",
    "DamagedFileError",
    "Holding",
    "NetworkParts",
    "described_anew",
    "encoded",
    "load",
    "probed",
    "size_of",
    "write_artifact",
]
