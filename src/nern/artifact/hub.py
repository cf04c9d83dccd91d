"""Artifacts on the Hugging Face Hub, or in a folder as it would be there, by huggingface_hub's mixin."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData, ModelHubMixin, hf_hub_download

from nern.artifact.container import write_artifact
from nern.artifact.reading import LIMIT, Artifact, load_as
from nern.artifact.table import about, accuracy_text, plain
from nern.errors import NernError

FILE = "network.nern"
OPTIONS = ("revision", "cache_dir", "force_download", "local_files_only", "token")  # of the download
CARD = """---
{{ card_data }}
---

# {{ name }}, in {{ size }} bytes

One file, `network.nern`, holds the network {{ name }}: {{ numbers }} parameters and buffers, {{ bits }} bits each.

```python
import nern

network = nern.Artifact.from_pretrained("{{ repo_id | default("USER/NAME", true) }}").network({{ module }})
```

{% for line in lines %}- {{ line }}
{% endfor %}
`nern info network.nern` shows where the bytes are, and how each layer is held.
"""
FRONT = ("license", "base_model")  # of the metadata of a file, what goes into the front matter of its card


class HubArtifact(ModelHubMixin, Artifact):  # type: ignore[misc]
    """An artifact with `save_pretrained`, `push_to_hub` and `from_pretrained` as huggingface_hub has them."""

    def __init__(self, sections: Mapping[str, bytes], limit: int = LIMIT) -> None:
        super().__init__(sections, limit)
        self._hub_mixin_config = None  # the file says everything

    def _save_pretrained(self, save_directory: Path) -> None:
        write_artifact(save_directory / FILE, self.sections)

    def generate_model_card(self, *args: Any, **kwargs: Any) -> Any:
        """The card: what the file holds, how it is loaded, the accuracy if the file tells it, and the file's metadata.
        'license' and 'base_model' of these are in the front matter, too."""
        networks, metadata = self.description.networks, self.description.metadata
        name, results = ", ".join(plain(network.name) for network in networks), list[EvalResult]()
        front: dict[str, Any] = {key: plain(metadata[key]) for key in FRONT if key in metadata}
        for network in networks:
            if accuracy_text(network):
                task, test = plain(network.about.get("task", "images")), network.about["test"]
                top1, of = round(test["top1"], 2), f"accuracy, % of {test['images']:,} test images"
                results.append(EvalResult("image-classification", task, task, "accuracy", top1, metric_name=of))
        if results:
            front |= {"model_name": name, "eval_results": results, "metrics": ["accuracy"]}
        tags = ["nern", "model-compression", "codes" if self.coded else "neural-representation"]
        numbers = sum(network.weights for network in networks) + sum(code.count for code in self.description.kept)
        facts: dict[str, Any] = {
            "name": name,
            "size": f"{self.size:,}",
            "numbers": f"{numbers:,}",
            "bits": f"{8 * self.size / numbers:.2f}",
            "module": "" if networks[0].architecture else "module",
            "lines": about(self),
        }
        data = ModelCardData(library_name="nern", tags=tags, **front)
        return ModelCard.from_template(data, template_str=CARD, **facts, **kwargs)

    def push_to_hub(self, repo_id: str, **options: Any) -> Any:
        """As huggingface_hub's; the card names the repository."""
        names = {"repo_id": repo_id} | (options.pop("model_card_kwargs", None) or {})
        return super().push_to_hub(repo_id, model_card_kwargs=names, **options)

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
