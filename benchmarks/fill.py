"""Put measured tables into benchmarks/README.md and docs/speed.md.

    python benchmarks/fill.py FOLDER

What stands between `<!-- NAME -->` and `<!-- end -->` gives way to the tables of FOLDER/NAME.json, or to FOLDER/NAME.md, and
FOLDER/NAME.png, if there is one, goes below it.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

PAGES = [Path(__file__).with_name("README.md"), Path(__file__).parents[1] / "docs" / "speed.md"]


def markdown(found: dict[str, Any]) -> str:
    """What `nern bench --json` wrote, as Markdown."""
    texts = [f"`{re.sub(r' --json [^ ]+', '', found['command'])}`"]
    for table in found["tables"]:
        lines = [[heading for heading, _ in table["rows"][0]], *([text for _, text in row] for row in table["rows"])]
        head, *rows = [f"| {' | '.join(text.replace('|', chr(92) + '|') for text in line)} |" for line in lines]
        rule = "|---" + "|---:" * (len(lines[0]) - 1) + "|"
        texts += [f"**{table['title']}**", "\n".join([head, rule, *rows]), table["note"]]
    return "\n\n".join([*texts, found["about"]])


def fill(page: Path, folder: Path) -> None:
    """Fill in what there is; say what was not."""
    text = page.read_text(encoding="utf-8")
    for name in re.findall(r"<!-- ([\w-]+) -->", text):
        if name == "end":
            continue
        if (file := folder / f"{name}.json").is_file():
            text_of = markdown(json.loads(file.read_text(encoding="utf-8")))
        elif (file := folder / f"{name}.md").is_file():
            text_of = file.read_text(encoding="utf-8").strip()
        else:
            print(f"left as it is: {name}")
            continue
        block = f"<!-- {name} -->\n{text_of}\n"
        if (folder / f"{name}.png").is_file():
            shutil.copy(folder / f"{name}.png", page.parent)
            block += f"\n![{name}]({name}.png)\n"
        block += "<!-- end -->"
        text = re.sub(rf"<!-- {name} -->.*?<!-- end -->", lambda _, block=block: block, text, flags=re.DOTALL)
    page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    for page in PAGES:
        fill(page, Path(sys.argv[1]))
