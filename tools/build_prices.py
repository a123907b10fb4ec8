"""
Compiles the installed genai-prices into the table that is committed and shipped.

    pip install genai-prices && python tools/build_prices.py

Writes table.bin, manifest.json and LICENSE.genai-prices into src/picostep/prices/. The table depends on the
version of genai-prices and nothing else; with `--check` it is compiled and compared with the committed one.
"""

from __future__ import annotations

import json
import sys
from datetime import date
from hashlib import sha256
from importlib.metadata import distribution
from pathlib import Path

from picostep.prices import PriceTable
from picostep.prices.compile import build

HERE = Path(__file__).resolve().parent.parent / "src" / "picostep" / "prices"


def main() -> int:
    """Write the three files, or compare; the exit status says whether a comparison found them equal."""
    data, manifest = build()
    PriceTable(data).check()
    if "--check" in sys.argv[1:]:
        same = (HERE / "table.bin").read_bytes() == data
        print(
            f"{manifest['source']} {manifest['version']}: table.bin is {'as' if same else 'NOT as'} committed"
        )
        return 0 if same else 1
    licence = distribution("genai-prices").read_text("licenses/LICENSE")
    if licence is None:
        raise SystemExit("the licence of genai-prices was not installed with it")
    order = {
        "source": manifest.pop("source"),
        "version": manifest.pop("version"),
        "licence": "MIT, see LICENSE.genai-prices",
        "compiled": date.today().isoformat(),
        "id": manifest.pop("id"),
        "bytes": len(data),
        "sha256": sha256(data).hexdigest(),
        **manifest,
    }
    (HERE / "table.bin").write_bytes(data)
    (HERE / "manifest.json").write_text(
        json.dumps(order, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    (HERE / "LICENSE.genai-prices").write_text(licence, encoding="utf-8")
    print(f"{order['source']} {order['version']}: {order['counts']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
