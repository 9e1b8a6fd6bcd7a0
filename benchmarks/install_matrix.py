"""Does Saccade install from a wheel and from a source distribution, for every Python that it is for, and explain?

    python benchmarks/install_matrix.py --python python3.11 python3.12 python3.13
    python benchmarks/install_matrix.py --python python3.12 --extras serve batch train --kinds wheel

Each pair gets a clean virtual environment with the newest packages, in which benchmarks/installed.py runs. With the
extra `train` PyTorch comes as constraints.txt says. Keeps the table in benchmarks/results/install_matrix.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from environments import ROOT, build, checked, make_environment

RESULTS = ROOT / "benchmarks" / "results" / "install_matrix.json"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", nargs="+", default=[sys.executable])
    parser.add_argument("--kinds", nargs="+", choices=["wheel", "sdist"], default=["wheel", "sdist"])
    parser.add_argument("--extras", nargs="*", default=["serve", "batch"])
    parser.add_argument("--dry", action="store_true", help="print the table, write nothing")
    arguments = parser.parse_args()
    from small_bundle import make_bundle, make_explainee

    extras, failed = sorted(arguments.extras), 0
    rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle = make_bundle(make_explainee(), folder / "bundle")
        for kind in arguments.kinds:
            made = build(kind, folder / f"made-{kind}")
            for number, python in enumerate(arguments.python):
                began = time.perf_counter()
                what = f"{made}[{','.join(extras)}]" if extras else str(made)
                pins = ["-c", str(ROOT / "constraints.txt")]
                row = {"kind": kind, "extras": extras}
                try:
                    inside = make_environment(folder / f"{kind}-{number}", what, python=python, options=pins)
                    check = [str(inside), "-P", str(ROOT / "benchmarks" / "installed.py"), str(bundle)]
                    row |= json.loads(checked([*check, "--extras", *extras], cwd=folder))
                except RuntimeError as error:
                    failed += 1
                    row |= {"python": python, "failed": str(error)}
                row["seconds"] = round(time.perf_counter() - began, 1)
                print(json.dumps(row), flush=True)
                same = [(one["python"], one["kind"], one["extras"]) for one in rows]
                key = (row["python"], kind, extras)
                rows = [one for one, other in zip(rows, same, strict=True) if other != key] + [row]
    if not arguments.dry and not failed:
        RESULTS.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
