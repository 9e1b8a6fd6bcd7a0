"""Everything that comes from outside, thrown at Saccade at random: images, manifests, bundles, ONNX files, tar and
Parquet files, folders of results, and the arguments of every command.

    python benchmarks/fuzz.py                          100,000 cases and more
    python benchmarks/fuzz.py --cases 2000 --targets images tars
    python benchmarks/fuzz.py --coverage 100000 --targets images graphs      guided by coverage (pip install atheris)
    python benchmarks/fuzz.py --replay                 the kept corpus alone

Each case must be answered or refused with a SaccadeError or a usage error. Any other exception, a crash of the process,
a hang, much memory, or a file written outside of the case's folder is a finding: its case goes into tests/corpus, which
tests run again. Exits with 1 if there is one. Each target runs in a process of its own, the same cases for the same
seed. Needs hypothesis.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
CORPUS = ROOT / "tests" / "corpus"
RESULTS = ROOT / "benchmarks" / "results" / "fuzz.json"
SHARES = {
    "images": 0.55,
    "manifests": 0.1,
    "bundles": 0.06,
    "graphs": 0.12,
    "tars": 0.05,
    "parquets": 0.03,
    "ledgers": 0.02,
    "commands": 0.07,
}
STUCK = 120  # seconds without a case done, after which a process is ended: code that is not Python's cannot be stopped
MOST_MEMORY = 14 << 30
SMALL = 20_000  # bytes of a case that is kept


def worker(name: str, count: int, seed: int, folder: Path) -> None:
    """Run so many cases of a target, telling the folder about each before it is tried."""
    from fuzzing.place import use_bundle
    from fuzzing.target import Tried, run_case
    from fuzzing.targets import TARGETS

    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))  # so that the machine survives what does not fit
    use_bundle(folder / "bundle")
    target, tried, said = TARGETS[name], Tried(), 0.0
    cases = target.cases(seed)
    with (folder / "current").open("wb", buffering=0) as current:
        for done in range(count):
            case = next(cases)
            current.seek(0)
            current.write(len(case).to_bytes(8, "little") + case)
            run_case(target, case, tried)
            if time.monotonic() - said > 1 or done == count - 1:
                said = time.monotonic()
                write_tally(folder / "tally.json", tried)


def write_tally(path: Path, tried: Any) -> None:
    from fuzzing.commands import messages

    findings = [{"kind": one.kind, "what": one.what, "case": one.case.hex()} for one in tried.findings.values()]
    text = json.dumps({"kinds": tried.kinds, "messages": tried.messages | messages, "findings": findings})
    path.with_suffix(".part").write_text(text)
    path.with_suffix(".part").replace(path)


def guided(name: str, count: int, seed: int, folder: Path) -> None:
    """So many cases of a target that coverage leads to, from its first ordinary cases; never returns."""
    import atheris

    with atheris.instrument_imports(include=["saccade", "PIL", "tarfile"]):
        from fuzzing.place import use_bundle
        from fuzzing.target import Tried, run_case
        from fuzzing.targets import TARGETS

        use_bundle(folder / "bundle")
        target, tried = TARGETS[name], Tried()
        cases = target.cases(seed)
        (folder / "begin").mkdir(exist_ok=True)
        for number in range(200):
            (folder / "begin" / str(number)).write_bytes(next(cases))
    current = (folder / "current").open("wb", buffering=0)

    def one(case: bytes) -> None:
        current.seek(0)
        current.write(len(case).to_bytes(8, "little") + case)
        run_case(target, case, tried)
        if sum(tried.kinds.values()) % 500 == 0 or sum(tried.kinds.values()) >= count:
            write_tally(folder / "tally.json", tried)

    options = [
        f"-runs={count}",
        f"-seed={seed or 1}",
        "-max_len=60000",
        "-verbosity=0",
        "-timeout=60",
        "-rss_limit_mb=6000",
    ]
    atheris.Setup([sys.argv[0], *options, str(folder / "begin")], one)
    atheris.Fuzz()


def watched(
    mode: str, name: str, count: int, seed: int, folder: Path
) -> tuple[Counter[str], dict[str, str], list[Any]]:
    """Run a worker until all cases are done; where its process ends, the case under way is a finding, and it goes on
    with others.
    """
    kinds, messages, findings = Counter[str](), dict[str, str](), list[Any]()
    left = count
    while left > 0:
        for file in ("tally.json", "current"):
            (folder / file).unlink(missing_ok=True)
        command = [sys.executable, __file__, mode, name, str(left), str(seed), str(folder)]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
            code = wait(process, folder)
        done = Counter[str]()
        if (folder / "tally.json").exists():
            tally = json.loads((folder / "tally.json").read_bytes())
            done, messages = Counter(tally["kinds"]), messages | tally["messages"]
            findings += tally["findings"]
        kinds += done
        left -= max(1, sum(done.values()))
        if code != 0:
            raw = (folder / "current").read_bytes() if (folder / "current").exists() else bytes(8)
            case = raw[8 : 8 + int.from_bytes(raw[:8], "little")]
            said = (folder / "log").read_text(errors="replace")[-2000:]
            what = "hang" if code is None else "end of the process"
            findings.append({"kind": what, "what": f"exit code {code}\n{said}", "case": case.hex()})
            kinds[what] += 1
            seed += 1
            if not done and code == 1:
                raise RuntimeError(f"the target '{name}' does not start: {said}")
    return kinds, messages, findings


def wait(process: subprocess.Popen[bytes], folder: Path) -> int | None:
    """The exit code; None where nothing went on for too long."""
    seen, since = b"", time.monotonic()
    while True:
        try:
            return process.wait(1)
        except subprocess.TimeoutExpired:
            now = (folder / "current").read_bytes() if (folder / "current").exists() else b""
            if now != seen:
                seen, since = now, time.monotonic()
            elif time.monotonic() - since > STUCK:
                process.kill()
                process.wait()
                return None


def keep(name: str, findings: list[Any]) -> list[str]:
    """Write the findings' cases into the corpus; what was found, for people."""
    from fuzzing.targets import TARGETS

    said = []
    for finding in findings:
        case = bytes.fromhex(finding["case"])
        digest = hashlib.sha256(case).hexdigest()[:12]
        path = CORPUS / name / f"{digest}{TARGETS[name].suffix}"
        if len(case) <= SMALL:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(case)
        said.append(f"{name}: {finding['kind']} ({path.relative_to(ROOT)}, {len(case)} bytes)\n{finding['what']}")
    return said


def replay(bundle: Path) -> tuple[Counter[str], list[str]]:
    """Run the kept corpus in this process."""
    from fuzzing.place import use_bundle
    from fuzzing.target import Tried, run_case
    from fuzzing.targets import TARGETS

    use_bundle(bundle)
    tried = Tried()
    for path in sorted(path for path in CORPUS.rglob("*") if path.is_file()):
        run_case(TARGETS[path.parent.name], path.read_bytes(), tried)
    return tried.kinds, [f"{one.kind}: {one.what}" for one in tried.findings.values()]


def main() -> int:
    if len(sys.argv) == 6 and sys.argv[1] in ("worker", "guided"):
        run = worker if sys.argv[1] == "worker" else guided
        run(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), Path(sys.argv[5]))
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=110_000, help="of all targets together")
    parser.add_argument("--targets", nargs="+", choices=SHARES, default=list(SHARES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--coverage", type=int, default=0, metavar="N", help="N cases of each target, guided by coverage"
    )
    parser.add_argument("--replay", action="store_true", help="the corpus alone")
    parser.add_argument("--messages", action="store_true", help="print each kind of refusal with an example")
    parser.add_argument("--dry", action="store_true", help="write no results")
    arguments = parser.parse_args()
    from small_bundle import make_bundle, make_explainee

    began, table, said = time.perf_counter(), {}, list[str]()
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="saccade-fuzz-", dir=memory) as temporary:
        folder = Path(temporary)
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        bundle = make_bundle(make_explainee(), folder / "bundle")
        if arguments.replay:
            kinds, said = replay(bundle)
            print(json.dumps(kinds))
            print("\n".join(said))
            return 1 if said else 0
        whole = sum(SHARES[name] for name in arguments.targets)
        for name in arguments.targets:
            start = time.perf_counter()
            mode = "guided" if arguments.coverage else "worker"
            count = arguments.coverage or max(1, round(arguments.cases * SHARES[name] / whole))
            kinds, messages, findings = watched(mode, name, count, arguments.seed, folder)
            seconds = round(time.perf_counter() - start, 1)
            table[name] = {"cases": sum(kinds.values()), "seconds": seconds, "kinds": dict(sorted(kinds.items()))}
            print(f"{name}: {json.dumps(table[name])}", flush=True)
            found = keep(name, findings)
            print("\n".join(found), flush=True) if found else None
            said += found
            if arguments.messages:
                print("\n".join(f"    {message}" for message in sorted(messages.values())))
    seconds = round(time.perf_counter() - began, 1)
    cases = sum(one["cases"] for one in table.values())
    print(f"{cases} cases in {seconds:.0f} s, seed {arguments.seed}, {len(said)} findings")
    if not arguments.dry:
        from saccade.accel.machine import machine

        earlier = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        about = {"seed": arguments.seed, "cases": cases, "seconds": seconds, "findings": len(said)}
        earlier["coverage" if arguments.coverage else "random"] = {**about, "targets": table, "machine": machine()}
        RESULTS.write_text(json.dumps(earlier, indent=1) + "\n", encoding="utf-8")
    return 1 if said else 0


if __name__ == "__main__":
    sys.exit(main())
