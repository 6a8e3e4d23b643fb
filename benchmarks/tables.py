"""Write the tables of README.md and docs/ from results/*.json: python benchmarks/tables.py

Each table stands between `<!-- NAME -->` and `<!-- /NAME -->`; what is there is replaced.
"""

import json
import re
from pathlib import Path

from tables_of import conditioned, latent, learning, running, video

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
TABLES = {**learning.TABLES, **running.TABLES, **latent.TABLES, **conditioned.TABLES, **video.TABLES}


def filled(text: str) -> str:
    """`text` with each table replaced by the one that the results give."""
    for name, make in TABLES.items():
        path = RESULTS / f"{name}.json"
        if path.exists():
            body = make(json.loads(path.read_text()))
            pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
            text = re.sub(pattern, lambda match, body=body: f"{match[1]}{body}\n{match[2]}", text, flags=re.DOTALL)
    return text


def main() -> None:
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
