"""Write the tables of README.md and docs/ from results/*.json: python benchmarks/tables.py

Each table stands between `<!-- NAME -->` and `<!-- /NAME -->`; what is there is replaced. NAME:PART is one of several
tables of results/NAME.json.
"""

import json
import re
from pathlib import Path

from tables_of import conditioned, latent, learning, running, throughput, video

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
ROOMS = (learning, running, throughput, latent, conditioned, video)
TABLES = {name: make for room in ROOMS for name, make in room.TABLES.items()}


def filled(text: str) -> str:
    """`text` with each table replaced by the one that the results give."""
    for name, make in TABLES.items():
        path = RESULTS / f"{name.partition(':')[0]}.json"
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
