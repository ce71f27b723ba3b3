"""The command line, killed at random moments and started again, until it has been killed often enough.

Every third moment is that at which a file or folder is being written aside, if one comes within three seconds.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import killed_recipe
from killed_same import differences, half_written, leftovers

_SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
_BEGUN = (", started in", ", going on in")
_SENTENCE = "goes on from there"
_MEAN = 4.0  # seconds of work until a process is killed
_PATIENCE = 600.0
Start = Callable[[Path, Path], Any]
"""Given a recipe and where output goes: a process."""


def moments(folder: Path, kills: int, seed: int, processes: int = 1) -> dict[str, Any]:
    """Kills that many times, over as many runs of the recipe as that takes, and compares each with one left alone."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job has it ignored, and so children
    draw = random.Random(seed)
    reference = killed_recipe.write(folder, "reference")
    began = time.monotonic()
    if processes == 1:
        import killed_runs

        start: Start = lambda recipe, log: killed_runs.start(["run", str(recipe)], log)  # noqa: E731
        killed_runs.whole(reference, list(killed_recipe.document(folder, "")["stages"]), report=True)
    else:
        start = partial(_launched, processes)
        code = start(reference, folder / "reference.txt").wait()
        assert code == 0, (folder / "reference.txt").read_text()
    found: dict[str, Any] = {"reference_seconds": round(time.monotonic() - began, 1), "processes": processes}
    expected = folder / "reference" / killed_recipe.NAME
    counts = {name: Counter[str]() for name in ("by signal", "by stage", "codes")}
    found |= {
        "kills": 0,
        "runs": 0,
        "starts": 0,
        "hit a write": 0,
        "said how to go on": 0,
        "lost": 0,
        "wrong": [],
        **counts,
    }
    recipe = killed_recipe.write(folder, "work")
    work, log = folder / "work" / killed_recipe.NAME, folder / "work.txt"
    while found["kills"] < kills:
        shutil.rmtree(work, ignore_errors=True)
        while True:
            log.write_bytes(b"")
            number = _SIGNALS[found["kills"] % 3]
            process = start(recipe, log)
            found["starts"] += 1
            killed = found["kills"] < kills and _kill(process, log, work, number, draw, aside=found["kills"] % 9 < 3)
            if not killed:
                code = process.wait(_PATIENCE)
                break
            code = process.wait(_PATIENCE)
            said = log.read_text(encoding="utf-8")
            begun = [line.split(":")[0] for line in said.splitlines() if any(sign in line for sign in _BEGUN)]
            stage = begun[-1] if begun else "between stages"
            found["kills"] += 1
            found["hit a write"] += bool(half_written(work))
            found["said how to go on"] += _SENTENCE in said
            counts["by signal"][number.name] += 1
            counts["by stage"][stage] += 1
            counts["codes"][str(code)] += 1
            # Python may deliver a signal where exceptions are ignored, such as a weak reference's callback: it is lost.
            lost = code == 0 and "Exception ignored" in said
            found["lost"] += lost
            if not lost and (code not in (128 + number, -number, 0) or "Traceback" in said):
                found["wrong"].append({"signal": number.name, "code": code, "said": said[-2000:]})
            print(f"kill {found['kills']}: {number.name} in {stage}: {code}", file=sys.stderr, flush=True)
        found["runs"] += 1
        wrong = differences(work, expected) + leftovers(work)
        if code or wrong:
            found["wrong"].append(
                {"run": found["runs"], "code": code, "differs": wrong, "said": log.read_text()[-500:]}
            )
            shutil.copytree(work, folder / f"wrong-{found['runs']}", dirs_exist_ok=True)
        print(f"run {found['runs']}: {json.dumps(found['wrong'])[:300]}", file=sys.stderr, flush=True)
    return found


def _launched(processes: int, recipe: Path, log: Path) -> subprocess.Popen[bytes]:
    # As `preceptor run` starts itself where several GPUs are visible.
    code = "import sys; from preceptor.running.launching import launch, launch_arguments as given; "
    code += f"sys.exit(launch(given(['run', {str(recipe)!r}], {processes})))"
    command = [sys.executable, "-c", code]
    with log.open("ab") as stream:
        return subprocess.Popen(command, stdout=stream, stderr=stream, start_new_session=True)


def _kill(process: Any, log: Path, work: Path, number: int, draw: random.Random, *, aside: bool) -> bool:
    """Sends the signal to the process (SIGKILL: to its group too) at a moment; False when it is done before."""
    while not any(sign in log.read_text(encoding="utf-8", errors="replace") for sign in _BEGUN):
        if process.poll() is not None:
            return False
        time.sleep(0.02)
    until = time.monotonic() + draw.expovariate(1 / _MEAN)
    while time.monotonic() < until:
        if process.poll() is not None:
            return False
        time.sleep(0.005)
    until = time.monotonic() + 3.0
    while aside and time.monotonic() < until and not half_written(work):
        time.sleep(0.0005)
    if process.poll() is not None:
        return False
    if number == signal.SIGKILL:
        _group(process, number)
    else:
        process.send_signal(number)
    return True


def _group(process: Any, number: int) -> None:
    """Kills a launcher and its processes, each of which leads a group of its own."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    for pid in [*(int(each) for each in children.read_text().split()), process.pid]:
        try:
            os.killpg(pid, number)
        except ProcessLookupError:
            continue
