"""Kills runs of a recipe and has them go on, until they are done and equal one that nobody killed, to the bit.

    python benchmarks/kill_anywhere.py moments --kills 50     at random moments
    python benchmarks/kill_anywhere.py moments --processes 2  the same of two processes, under torchrun
    python benchmarks/kill_anywhere.py calls --stages kd      at every call of the file system that a stage makes
    python benchmarks/kill_anywhere.py calls --every 16 --turns     at each 16th: bounded, as the tests run it

Prints one JSON object. docs/reliability.md has the figures. Set OMP_NUM_THREADS=1: sums depend on the threads.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import killed_recipe
from killed_calls import Calls
from killed_same import differences, half_written, leftovers


def calls(
    folder: Path,
    stages: list[str],
    ways: list[str],
    *,
    every: int = 1,
    turns: bool = False,
    begin: int = 1,
    end: int = sys.maxsize,
    seed: int = 0,
) -> dict[str, Any]:
    """Lets each of `stages` die at its calls, in each of `ways` or in turn, and go on; the differences that made."""
    import killed_runs

    reference = killed_recipe.write(folder, "reference")
    order = list(killed_recipe.document(folder, "")["stages"])
    stages = stages or order
    seconds = killed_runs.whole(reference, order[: 1 + max(map(order.index, stages))])
    expected = folder / "reference" / killed_recipe.NAME
    recipe = killed_recipe.write(folder, "work")
    work = folder / "work" / killed_recipe.NAME
    log = folder / "log.txt"
    offsets = random.Random(seed)
    found: dict[str, Any] = {"reference_seconds": round(seconds, 1), "stages": {}, "wrong": []}
    for stage in stages:
        _before(expected, work, stage)
        listed = folder / f"calls-{stage}.txt"
        listed.unlink(missing_ok=True)
        arguments = ["run", str(recipe), "--only", stage]

        def counting(listed: Path = listed) -> None:
            stream = listed.open("a")
            Calls(work, told=lambda call: print(call, file=stream, flush=True))

        code = killed_runs.start(arguments, log, counting).wait()
        made = listed.read_text(encoding="utf-8").splitlines()
        wrong = _wrong(work, expected, stage)
        if code or wrong:
            found["wrong"].append({"stage": stage, "call": 0, "code": code, "differs": wrong})
        counts: Counter[str] = Counter()
        at = [range(1 + offsets.randrange(every), len(made) + 1, every) for way in ways]
        deaths = [(way, last) for way, lasts in zip(ways, at, strict=True) for last in lasts]
        if turns:  # each call in one way only
            deaths = [(ways[i % len(ways)], last) for i, last in enumerate(at[0])]
        for way, last in deaths:
            if not begin <= last <= end:
                continue
            _before(expected, work, stage)
            dies = killed_runs.start(arguments, log, lambda last=last, way=way: Calls(work, last, way))
            code = dies.wait()
            hit = bool(half_written(work))
            again = killed_runs.start(arguments, log).wait()
            wrong = _wrong(work, expected, stage)
            counts[way] += 1
            counts["left something half done"] += hit
            if again or code not in killed_runs.codes(way) or wrong:
                what = {"stage": stage, "way": way, "call": last, "what": made[last - 1]}
                found["wrong"].append({**what, "codes": [code, again], "differs": wrong})
                print(json.dumps(found["wrong"][-1]), file=sys.stderr, flush=True)
        found["stages"][stage] = {"calls": len(made), **counts}
        print(f"{stage}: {found['stages'][stage]}", file=sys.stderr, flush=True)
    return found


def _before(expected: Path, work: Path, stage: str) -> None:
    """`work` as it is when a stage begins: all that come before it in the recipe are done."""
    order = list(killed_recipe.document(work.parents[1], "")["stages"])
    for name in order:
        if name in order[order.index(stage) :]:
            shutil.rmtree(work / name, ignore_errors=True)
        elif not (work / name).exists():
            shutil.copytree(expected / name, work / name)


def _wrong(work: Path, expected: Path, stage: str) -> list[str]:
    if not (work / stage / "stage.json").exists():
        return ["it was not finished"]
    return differences(work / stage, expected / stage) + leftovers(work)


def main() -> int:
    """Runs one of the two forms; returns 1 where anything differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("form", choices=("moments", "calls"))
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--processes", type=int, default=1, help="under torchrun, for `moments`")
    parser.add_argument("--stages", default="", help="names, with commas (default: all)")
    parser.add_argument("--ways", default="kill,power,int,term")
    parser.add_argument("--every", type=int, default=1, help="of how many calls one is taken")
    parser.add_argument("--turns", action="store_true", help="each of these in one way, the ways in turn")
    parser.add_argument("--begin", type=int, default=1, metavar="CALL", help="the first")
    parser.add_argument("--end", type=int, default=sys.maxsize, metavar="CALL", help="the last")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where to work (default: a temporary folder)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        began = time.monotonic()
        if options.form == "calls":
            stages = [name for name in options.stages.split(",") if name]
            how = {name: getattr(options, name) for name in ("every", "turns", "begin", "end", "seed")}
            found = calls(folder, stages, options.ways.split(","), **how)
        else:
            from killed_moments import moments

            found = moments(folder, options.kills, options.seed, options.processes)
        found["seconds"] = round(time.monotonic() - began, 1)
    print(json.dumps(found, indent=1))
    return 1 if found["wrong"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
