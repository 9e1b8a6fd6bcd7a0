"""Do the lowest versions that pyproject.toml allows really work?

    python benchmarks/lowest.py                        the core, with the extras serve and batch
    python benchmarks/lowest.py --extras serve batch train

Makes a virtual environment with the lowest version of every direct dependency, and what pip finds for theirs, and runs
benchmarks/installed.py in it. Keeps what it found in benchmarks/results/lowest.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from environments import ROOT, build, checked, lowest_versions, make_environment

RESULTS = ROOT / "benchmarks" / "results" / "lowest.json"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--extras", nargs="*", default=["serve", "batch"])
    parser.add_argument("--keep", type=Path, help="make the environment here, and leave it")
    parser.add_argument("--dry", action="store_true", help="print the result, write nothing")
    arguments = parser.parse_args()
    from small_bundle import make_bundle, make_explainee

    extras = sorted(arguments.extras)
    versions = lowest_versions(extras)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pins = folder / "constraints.txt"
        pins.write_text("".join(f"{package}=={version}\n" for package, version in versions.items()))
        wheel = build("wheel", folder)
        what = f"{wheel}[{','.join(extras)}]" if extras else str(wheel)
        bundle = make_bundle(make_explainee(), folder / "bundle")
        python = make_environment(arguments.keep or folder / "venv", what, options=["-c", str(pins)])
        began = time.perf_counter()
        check = [str(python), "-P", str(ROOT / "benchmarks" / "installed.py"), str(bundle), "--extras", *extras]
        passed = json.loads(checked(check, cwd=folder))["passed"]
        seconds = round(time.perf_counter() - began, 1)
        listed = json.loads(checked([str(python), "-m", "pip", "list", "--format", "json"]))
    installed = {one["name"]: one["version"] for one in listed}
    result = {
        "python": sys.version.split()[0],
        "lowest": versions,
        "installed": installed,
        "passed": passed,
        "seconds": seconds,
    }
    print(json.dumps(result, indent=1))
    if not arguments.dry:
        earlier = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        earlier[" ".join(["core", *extras])] = result
        RESULTS.write_text(json.dumps(earlier, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
