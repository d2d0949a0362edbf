"""Write ATTRIBUTION.md: every 3-D model that packshot-mini was trained on, its maker, its licence.

Give it the assets folder and the file to write:

    python training/attribution.py .work/assets MODEL/ATTRIBUTION.md
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "data"))

from lexicon import read_tables
from obj import catalog

LICENCES = {
    "BlendSwap-CC-0": "CC0 1.0",
    "BlendSwap-CC-BY": "CC BY 3.0",
    "KatorLegaz": "CC BY 3.0 US",
    "Scopia": "CC BY 3.0",
}
HEAD = """# Attribution

packshot-mini's weights were trained on pictures that packshot's authors rendered from 3-D models of
others. The models come from Sweet Home 3D's furniture libraries (Debian package
`sweethome3d-furniture`); they were re-tinted, lit, and composed on grounds of our own. The pictures
themselves are not part of this package. Light came from eighteen Poly Haven panoramas (CC0, npm
package `@pmndrs/assets`). EfficientNet-lite0's ImageNet weights (Apache-2.0) judged the autoencoder
while it was trained and are not part of it.

| product | model | by | licence |
|---|---|---|---|
"""
TAIL = """
CC BY 3.0: https://creativecommons.org/licenses/by/3.0/ ·
CC BY 3.0 US: https://creativecommons.org/licenses/by/3.0/us/ ·
CC0 1.0: https://creativecommons.org/publicdomain/zero/1.0/
"""


def main() -> None:
    libraries = Path(sys.argv[1]) / "shf/usr/share/sweethome3d/furniture"
    lines = []
    for product in read_tables()[0]:
        for row in product["models"]:
            entries = catalog(libraries / f"{row['lib']}.sh3f")
            entry = next(e for e in entries if e["model"].endswith("/" + row["file"]))
            name, creator = (
                entry["name"].encode().decode("unicode_escape"),
                entry.get("creator", ""),
            )
            lines.append(
                f"| {product['name']} | {name} (`{row['file']}`) | {creator} "
                f"| {LICENCES[row['lib']]} |"
            )
    Path(sys.argv[2]).write_text(HEAD + "\n".join(lines) + "\n" + TAIL)


if __name__ == "__main__":
    main()
