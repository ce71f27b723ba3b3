"""Feeds one parser mutated input, guided by the branches it takes, until a while brings no new branch.

    pip install atheris        (wheels for Linux; not a dependency of anything else)
    python scripts/fuzz.py recipe --quiet-minutes 10

What broke a parser's promise (tests/fuzz/scaffold.py) is kept once for each kind of failure and place, and is printed;
the run goes on. Copy what it finds to tests/fuzz/cases/NAME/, where the tests try it ever after. The corpus (inputs
that reached something new) stays in the output folder, and the next run begins with it.
"""

from __future__ import annotations

import argparse
import atexit
import ctypes
import hashlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_PARENT_DEATH = 1  # PR_SET_PDEATHSIG: which signal this process gets when its parent dies
STATUS = re.compile(rb"#(\d+)\s+\w+\s+cov: (\d+) ft: (\d+)")


def main() -> int:
    """Runs the supervisor, or (called by it) the process that does the work."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target")
    parser.add_argument("--quiet-minutes", type=float, default=10, help="stop after so long without a new branch")
    parser.add_argument("--minutes", type=float, help="stop after so long in any case")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "fuzz", help="folder of corpora and findings")
    parser.add_argument("--memory-mb", type=int, default=1024, help="address space beyond what importing took")
    parser.add_argument("--longest", type=int, default=4096, help="bytes of the longest input it makes up")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT / "tests"))
    return child(options) if options.child else supervise(options)


def supervise(options: argparse.Namespace) -> int:
    """Starts the working process (again, where native code killed it) and stops it when it finds nothing new."""
    folder = options.out / options.target
    for name in ("corpus", "findings"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))
    (folder / "executions").unlink(missing_ok=True)
    began = last = time.monotonic()
    before = executions = coverage = restarts = 0
    while True:
        command = [sys.executable, __file__, options.target, "--child", "--out", str(options.out),
                   "--memory-mb", str(options.memory_mb), "--longest", str(options.longest)]  # fmt: skip
        process = subprocess.Popen(command, stderr=subprocess.PIPE, cwd=ROOT)
        atexit.register(process.kill)  # it must not outlive us
        stop = threading.Event()
        lines: list[bytes] = []
        reader = threading.Thread(target=lambda p=process, into=lines: into.extend(p.stderr), daemon=True)
        reader.start()
        seen = 0
        while process.poll() is None:
            time.sleep(1)
            fresh, seen = lines[seen:], len(lines)
            for line in fresh:
                if found := STATUS.search(line):
                    executions = max(executions, before + int(found[1]))
                    if int(found[2]) > coverage:
                        coverage, last = int(found[2]), time.monotonic()
                elif line.startswith(b"FINDING") or b"ERROR: libFuzzer" in line:
                    print(line.decode(errors="backslashreplace").rstrip(), flush=True)
            now = time.monotonic()
            if now - last > 60 * options.quiet_minutes or (options.minutes and now - began > 60 * options.minutes):
                process.terminate()
                process.wait()
                stop.set()
        reader.join(5)
        counted = folder / "executions"
        if counted.exists():
            executions = max(executions, before + int(counted.read_text()))
        if stop.is_set():
            break
        print(f"the working process ended with {process.returncode}; the last it said:", flush=True)
        print(b"".join(lines[-8:]).decode(errors="backslashreplace"), flush=True)
        before, restarts = executions, restarts + 1
        if restarts > 50 or executions == 0:
            return 1
    result = {
        "target": options.target,
        "executions": executions,
        "minutes": round((time.monotonic() - began) / 60, 1),
        "quiet_minutes": round((time.monotonic() - last) / 60, 1),
        "branches": coverage,
        "restarts": restarts,
        "findings": sorted(path.name for path in (folder / "findings").iterdir()),
    }
    print(json.dumps(result), flush=True)
    return 0


def child(options: argparse.Namespace) -> int:
    """Runs inputs through the target under atheris; never returns."""
    import atheris

    # Whatever becomes of the supervisor: while native code runs, nobody else's signals are answered.
    ctypes.CDLL(None).prctl(_PARENT_DEATH, signal.SIGKILL)
    folder = (options.out / options.target).resolve()
    import fuzz.scaffold as early  # its own branches are of no interest

    with atheris.instrument_imports(include=["preceptor", "yaml"], enable_loader_override=False):
        target = early.load(options.target)
    for number, seed in enumerate(target.seeds):
        (folder / "corpus" / f"seed-{number}").write_bytes(seed)
    for number, path in enumerate(early.cases(options.target)):
        (folder / "corpus" / f"case-{number}").write_bytes(path.read_bytes())
    spelled = ("".join(f"\\x{byte:02x}" for byte in word) for word in target.words)
    (folder / "words.dict").write_text("".join(f'"{word}"\n' for word in spelled))
    count = 0
    known: set[tuple[str, ...]] = set()
    scratch = Path(tempfile.mkdtemp(prefix="fuzz-"))
    early.promise(target, target.seeds[0], scratch)  # what is imported late is imported before memory is limited

    def one(data: bytes) -> None:
        nonlocal count
        count += 1
        if count % 256 == 0:
            (folder / "executions").write_text(str(count))
        try:
            early.promise(target, data, scratch)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            frames = [f"{Path(f.filename).name}:{f.name}" for f in traceback.extract_tb(error.__traceback__)]
            ours = [frame for frame in frames if not frame.startswith(("fuzz.py", "scaffold.py", "contextlib.py"))]
            what = str(error)[:40] if isinstance(error, early.Broken) else ""
            key = (type(error).__name__, re.sub(r"\d+", "N", what), *ours[-2:])
            if key not in known:
                known.add(key)
                kept = folder / "findings" / hashlib.sha256(data).hexdigest()[:16]
                kept.write_bytes(data)
                said = str(error).replace("\n", " | ")[:300]
                print(f"FINDING {type(error).__name__}: {said!a} at {' > '.join(ours[-4:])} ({kept})", file=sys.stderr)
                sys.stderr.flush()

    pages = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    limit = pages + (options.memory_mb << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    arguments = [sys.argv[0], str(folder / "corpus"), f"-max_len={options.longest}", "-timeout=120", "-rss_limit_mb=0",
                 f"-artifact_prefix={folder / 'findings'}/native-", f"-dict={folder / 'words.dict'}"]  # fmt: skip
    atheris.Setup(arguments, one)
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
