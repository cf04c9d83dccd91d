"""Put measured tables into benchmarks/README.md and docs/speed.md.

    python benchmarks/fill.py FOLDER

What stands between `<!-- NAME -->` and `<!-- end -->` gives way to FOLDER/NAME.md, and FOLDER/NAME.png, if
there is one, goes below it.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

PAGES = [Path(__file__).with_name("README.md"), Path(__file__).parents[1] / "docs" / "speed.md"]


def fill(page: Path, folder: Path) -> None:
    """Fill in what there is; say what was not."""
    text = page.read_text(encoding="utf-8")
    for name in re.findall(r"<!-- ([\w-]+) -->", text):
        if name == "end":
            continue
        table = folder / f"{name}.md"
        if not table.is_file():
            print(f"left as it is: {name}")
            continue
        block = f"<!-- {name} -->\n{table.read_text(encoding='utf-8').strip()}\n"
        if (folder / f"{name}.png").is_file():
            shutil.copy(folder / f"{name}.png", page.parent)
            block += f"\n![{name}]({name}.png)\n"
        block += "<!-- end -->"
        text = re.sub(rf"<!-- {name} -->.*?<!-- end -->", lambda _, block=block: block, text, flags=re.DOTALL)
    page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    for page in PAGES:
        fill(page, Path(sys.argv[1]))
