"""One file from which the reconstructed network can be rebuilt: its format (docs/format.md), its coding, its reader."""

from nern.artifact.container import SUFFIX, DamagedFileError
from nern.artifact.reading import Artifact, load
from nern.artifact.writing import Holding, NetworkParts, to_sections, write_artifact

__all__ = ["SUFFIX", "Artifact", "DamagedFileError", "Holding", "NetworkParts", "load", "to_sections", "write_artifact"]
