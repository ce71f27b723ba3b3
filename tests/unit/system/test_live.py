"""The live view in a real pseudo-terminal: bars are drawn and go away, lines stay whole, nothing breaks a run."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from preceptor.system import live
from terminal import Seen, run_in_terminal

LONG = "a line much longer than eighty columns, " * 4 + "of which nothing may get lost"
PROGRAM = f"""
import sys, time
from preceptor.system import live
from preceptor.evaluation.progress import Progress

def log(line):
    print(line, file=sys.stderr, flush=True)

with live.display():
    log("kd: started")
    bar = live.bar("kd", 3000, unit="steps")
    progress = Progress("dae (2 of 4): answers", 40, log)
    for i in range(40):
        time.sleep(0.02)
        progress(1, 25, detail="$0.12 so far")
        bar.update(60 * i, f"logits {{1 / (i + 1):.4f}}  grad norm 0.83") if bar else None
        if i in (10, 25):
            log(f"[bold]line {{i}}[/bold] :smile: 12")
    log({LONG!r})
    sys.stderr.write("begun ")
    sys.stderr.write("and ended\\n")
    bar.close() if bar else None
    print("question? ", end="", flush=True)
    print("7" * 3)
    log("kd: done")
print("result")
"""
WORDS = [
    "kd: started",
    "[bold]line 10[/bold] :smile: 12",
    "[bold]line 25[/bold] :smile: 12",
    LONG,
    "begun and ended",
    "question? ",
    "777",
    "kd: done",
    "result",
]


def wrapped(lines: list[str], width: int) -> list[str]:
    """As a terminal of that width breaks them."""
    return [line[i : i + width].rstrip() for line in lines for i in range(0, max(len(line), 1), width)]


def test_lines_stay_whole_above_bars_that_go_away() -> None:
    seen = run_in_terminal(PROGRAM)
    assert seen.code == 0
    left = seen.screen(80)
    while left[-1] == "":
        left.pop()
    assert left == wrapped(WORDS, 80)


def test_bars_show_count_time_left_and_figures() -> None:
    seen = run_in_terminal(PROGRAM)
    shown = Seen(seen.text[: seen.text.rindex("tokens/s, $0.12")], 0).screen(80)
    assert re.fullmatch(r"kd ━*[╸╺]?━* 2,\d{3} of 3,000 steps, \d+ s left", shown[-4])
    assert len(shown[-4]) == 80
    assert re.fullmatch(r"  logits 0\.0\d{3}  grad norm 0\.83", shown[-3])
    assert re.fullmatch(r"dae \(2 of 4\): answers ━*[╸╺]?━* \d+ of 40 rows, \d s left", shown[-2])
    assert re.fullmatch(r"  [\d,]+", shown[-1])
    assert not any("━" in line for line in seen.screen(80))


@pytest.mark.parametrize("width", [24, 47])
def test_narrow_terminals_cut_the_bars_and_not_the_lines(width: int) -> None:
    left = run_in_terminal(PROGRAM, width=width).screen(width)
    while left[-1] == "":
        left.pop()
    assert left == wrapped(WORDS, width)


@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {"TERM": ""}, {"RANK": "1"}])
def test_terminals_that_can_nothing_and_other_processes_get_lines(environment: dict[str, str]) -> None:
    seen = run_in_terminal(PROGRAM, environment=environment)
    assert "\x1b" not in seen.text
    assert seen.text.replace("\r\n", "\n") == plain()


def test_no_color_draws_without_colours() -> None:
    seen = run_in_terminal(PROGRAM, environment={"NO_COLOR": "1"})
    assert "━" in seen.text
    assert not re.search(r"\x1b\[[\d;]*3\d", seen.text)


def test_a_pipe_gets_the_very_lines_and_nothing_else(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, check=True)
    without = PROGRAM.replace("with live.display():", "if True:")
    again = subprocess.run([sys.executable, "-c", without], capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (again.stdout, again.stderr)
    assert b"\x1b" not in done.stderr + done.stdout
    with (tmp_path / "out").open("wb") as file:  # a terminal for progress, a file for the result
        seen = run_in_terminal(PROGRAM, stdout=file.fileno())
    assert (tmp_path / "out").read_bytes() == done.stdout
    assert "━" in seen.text


def plain() -> str:
    """What a person sees of both streams without a display."""
    return "".join(f"{line}\n" for line in WORDS).replace("question? \n", "question? ")


def test_ctrl_c_leaves_the_terminal_as_it_was() -> None:
    seen = run_in_terminal(PROGRAM, interrupt_at="line 10")
    assert seen.code != 0
    left = [line for line in seen.screen(80) if line]
    assert left[:2] == WORDS[:2]
    assert left[-1] == "KeyboardInterrupt"
    assert not any("━" in line for line in left)
    assert "\x1b[?25l" not in seen.text  # the cursor is never hidden, so that nothing has to bring it back


FAULTS = {
    "drawing": "live._Display._render = lambda self: 1 / 0",
    "printing": "import rich.console\nrich.console.Console.print = lambda *a, **k: 1 / 0",
    "starting": "import rich.live\nrich.live.Live.start = lambda self: 1 / 0",
    "no rich": "import sys\nsys.modules['rich.console'] = None",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_fails_in_the_display_does_not_fail_in_the_run(fault: str) -> None:
    first = "from preceptor.system import live\n"
    seen = run_in_terminal(first + FAULTS[fault] + PROGRAM)
    assert seen.code == 0
    text = re.sub(r"\x1b\[[?\d;]*[A-Za-z]", "", seen.text).replace("\r\n", "\n")
    for word in WORDS:
        assert word in text
    assert "Traceback" not in text


FORKED = """
import os, sys, time
from preceptor.system import live

with live.display():
    bar = live.bar("kd", 10)
    for i in range(200):  # at some of these the drawing thread holds its lock
        bar.update(i % 10)
        child = os.fork()
        if child == 0:
            print(f"child {i}", file=sys.stderr, flush=True)
            os._exit(0 if live.bar("mine", 3) is None else 3)
        _, status = os.waitpid(child, 0)
        assert status == 0, status
print("end")
"""


def test_forked_children_leave_the_terminal_to_the_parent() -> None:
    seen = run_in_terminal(FORKED)
    assert seen.code == 0
    assert all(f"child {i}\r\n" in seen.text for i in range(200))


def test_without_a_display_there_are_no_bars(capsys: pytest.CaptureFixture[str]) -> None:
    assert live.bar("kd", 10) is None
    with live.display():  # captured output is no terminal
        assert live.bar("kd", 10) is None
        print("line", file=sys.stderr)
    assert capsys.readouterr().err == "line\n"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.4, "59 s"), (185, "3 min 05 s"), (3600, "1 h 00 min"), (7620, "2 h 07 min")]
)
def test_clock(seconds: float, text: str) -> None:
    assert live.clock(seconds) == text


COMMAND = """
import json, os, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import toys
os.chdir({folder!r})
rows = [{{"prompt": f"q{{i}}", "completion": "a"}} for i in range(12)]
Path("rows.jsonl").write_text("".join(json.dumps(row) + chr(10) for row in rows))
CONFIG = {{"model_type": "llama", **toys.TINY}}
training = {{"max_steps": 6, "per_device_train_batch_size": 2, "logging_steps": 1, "use_cpu": True}}
stages = {{
    "m": {{"kind": "init", "config": CONFIG, "tokenizer": {{"train_on": "d", "vocab_size": 40, "kind": "characters"}}}},
    "s": {{"kind": "sft", "model": "stage:m", "data": "d", "rows_per_step": 2, "max_length": 32, "training": training}},
}}
Path("r.yaml").write_text(json.dumps({{"name": "r", "data": {{"d": {{"path": "rows.jsonl"}}}}, "stages": stages}}))
from preceptor.cli import main
sys.exit(main(["run", "r.yaml", "--json"]))
"""


@pytest.mark.slow
def test_a_run_shows_bars_in_a_terminal_and_its_result_stays_one_object(tmp_path: Path) -> None:
    tests = str(Path(__file__).parents[2])
    with (tmp_path / "out.json").open("w") as out:
        program = COMMAND.format(tests=tests, folder=str(tmp_path))
        seen = run_in_terminal(program, width=100, stdout=out.fileno(), patience=120.0)
    assert seen.code == 0, seen.text[-2000:]
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["stages"]["s"]["steps"] == 6
    assert Path(result["report"]).is_file()
    assert "\x1b[" in seen.text, "nothing was drawn"
    assert re.search(r"6 of 6 steps|step 6/6", seen.text)
    left = seen.screen(100)
    assert not any("━" in line for line in left), "a bar was left behind"
    assert any(line.startswith("s: done in") for line in left)
