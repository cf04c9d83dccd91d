"""Artifacts on the Hugging Face Hub, or in a folder as it would be there, by huggingface_hub's mixin."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelHubMixin, hf_hub_download

from nern.artifact.container import write_artifact
from nern.artifact.reading import LIMIT, Artifact, load_as
from nern.errors import NernError

FILE = "network.nern"
OPTIONS = ("revision", "cache_dir", "force_download", "local_files_only", "token")  # of the download
CARD = """---
{{ card_data }}
---

A neural representation of {{ name }}: one file, `network.nern`, of {{ size }} bytes, from which its weights are predicted.

```python
import nern

network = nern.Artifact.from_pretrained("USER/NAME").network()
```
"""


class HubArtifact(ModelHubMixin, Artifact, library_name="nern", model_card_template=CARD):  # type: ignore[misc]
    """An artifact with `save_pretrained`, `push_to_hub` and `from_pretrained` as huggingface_hub has them."""

    def __init__(self, sections: Mapping[str, bytes], limit: int = LIMIT) -> None:
        super().__init__(sections, limit)
        self._hub_mixin_config = None  # the file says everything

    def _save_pretrained(self, save_directory: Path) -> None:
        write_artifact(save_directory / FILE, self.sections)

    def generate_model_card(self, *args: Any, **kwargs: Any) -> Any:
        """The card, which tells what the file is."""
        names = ", ".join(network.name for network in self.description.networks)
        return super().generate_model_card(*args, name=names, size=f"{self.size:,}", **kwargs)

    @classmethod
    def _from_pretrained(cls, *, model_id: str | Path, limit: int = LIMIT, **options: Any) -> HubArtifact:
        if others := [name for name in options if name not in OPTIONS]:
            raise NernError(f"from_pretrained takes no {', '.join(others)}")
        file = Path(model_id) / FILE
        if not file.parent.is_dir():
            try:
                file = Path(hf_hub_download(str(model_id), FILE, **options))
            except Exception as error:  # no such name, no network connection, not allowed: told by the hub's library
                detail = " ".join(str(error).split())[:300]
                raise NernError(
                    f"{model_id} is no folder, and {FILE} could not be had from the hub: {detail}"
                ) from error
        return load_as(cls, file, limit)
