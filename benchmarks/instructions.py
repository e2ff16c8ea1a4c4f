"""Instructions of three small runs, by valgrind's callgrind, beside those that were recorded.

    python setup.py build_ctests
    python benchmarks/instructions.py [--record] [--json FILE]

Times vary from run to run, instructions do not: a case that takes over three percent more than benchmarks/instructions.json
says fails. ``--record`` writes that file. The counts depend on the compiler and on the instruction set (valgrind has no
AVX-512, so it is AVX2 at most): where these differ from the recorded ones, the counts are shown and nothing fails.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = ROOT / "build/ctests/cdad_ctests"
RECORDED = Path(__file__).with_suffix(".json")
CASES = ("convolution", "attention", "training_step")
LIMIT = 1.03


def count(case: str, repeats: int) -> tuple[int, str]:
    """(instructions of the whole program, instruction set)."""
    command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", str(PROGRAM), "--counted", case, str(repeats)]
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}  # its idle threads would spin, and be counted
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    found = re.search(r"Collected : (\d+)", done.stderr)
    if done.returncode or not found:
        raise SystemExit(f"{case}: {done.stdout}{done.stderr}")
    return int(found[1]), done.stdout.strip()


def compiler() -> str:
    version = subprocess.run(["gcc", "-dumpfullversion"], capture_output=True, text=True, check=True).stdout.strip()
    return f"gcc {version}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--json", help="write the records here")
    arguments = parser.parse_args()
    counts, isa = {}, ""
    for case in CASES:
        (once, isa), (twice, _) = count(case, 1), count(case, 2)
        counts[case] = twice - once  # without the start, and what is made ready once
    now = {"compiler": compiler(), "isa": isa, "instructions": counts}
    if arguments.record:
        RECORDED.write_text(json.dumps(now, indent=1) + "\n")
    before = json.loads(RECORDED.read_text())
    comparable = all(now[key] == before[key] for key in ("compiler", "isa"))
    records = [
        {"name": f"instructions_{case}", "value": n, "unit": "instructions", "peer": "recorded", "peer_value": old,
         "ratio": old / n, "command": " ".join(["python", *sys.argv])}
        for case, n in counts.items()
        for old in [before["instructions"][case]]
    ]  # fmt: skip
    for r in records:
        print(f"{r['name']}: {r['value']:,}, recorded {r['peer_value']:,}, ratio {r['ratio']:.3f}")
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(records, indent=1) + "\n")
    if not comparable:
        print(f"recorded with {before['compiler']} for {before['isa']}, here {now['compiler']} for {isa}: not compared")
        return 0
    slower = [r["name"] for r in records if r["value"] > LIMIT * r["peer_value"]]
    if slower:
        print(f"more instructions than recorded: {', '.join(slower)}", file=sys.stderr)
    return bool(slower)


if __name__ == "__main__":
    sys.exit(main())
