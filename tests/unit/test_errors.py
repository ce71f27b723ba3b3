"""What errors say can be printed, whatever they quote."""

from __future__ import annotations

import json
import pickle

import pytest

from preceptor.cli.output import fail, print_result, progress
from preceptor.errors import InputError, InputErrors, RunFailed, did_you_mean, first_sentence, printable, shown


@pytest.mark.parametrize("kind", [InputError, RunFailed])
def test_a_message_holds_nothing_a_terminal_obeys(kind: type[Exception]) -> None:
    error = kind("a\x1b[31m\n\t\x9b\u202e\ud800 ж 日 b")
    assert str(error) == "a\\x1b[31m\\n\\t\\u009b\\u202e\\ud800 ж 日 b"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_a_message_is_bounded_and_keeps_both_ends() -> None:
    said = str(InputError("begin " + "x" * 10**6 + " end"))
    assert said.startswith("begin xxx")
    assert said.endswith("xxx end")
    assert len(said) < 1600


def test_mistakes_are_bounded_too() -> None:
    errors = InputErrors([f"{i}\n" for i in range(250)], unsaid=50)
    assert errors.errors[:2] == ["0\\n", "1\\n"]
    assert len(errors.errors) == 101
    assert errors.errors[-1] == "and 200 more mistakes; mend these first"
    assert str(errors) == "\n".join(errors.errors)
    assert pickle.loads(pickle.dumps(errors)).errors == errors.errors
    assert InputErrors(["x"] * 100).errors == ["x"] * 100


def test_json_stays_json() -> None:
    value = {"a\u202e\x9b\x1b\x7f": "b\n\u2028"}
    text = printable(json.dumps(value, ensure_ascii=False, indent=1), keep="\n")
    assert json.loads(text) == value
    assert not set("\u202e\x9b\x1b\x7f\u2028") & set(text)


def test_shown() -> None:
    assert shown("a" * 10**6) == f"'{'a' * 29}…{'a' * 14}'"
    assert shown("a" * 57 + "b") == "'" + "a" * 57 + "b'"
    assert shown(16**5000) == "one int too large to show"
    deep: list[object] = []
    for _ in range(20_000):
        deep = [deep]
    assert shown(deep) == "one list too large to show"


def test_first_sentence() -> None:
    assert first_sentence(ValueError("\n one: \ntwo")) == "one"
    assert first_sentence(KeyError()) == "KeyError"
    assert first_sentence(ValueError("a" * 300)) == "a" * 200 + " …"
    assert first_sentence(InputError("a" * 300)) == "a" * 300  # ours is one sentence already


def test_no_hint_for_what_is_no_word() -> None:
    assert did_you_mean("kdd", ["kd", "expert"]) == " (did you mean 'kd'?)"
    assert did_you_mean("k" * 10**6, ["k" * 10**6]) == ""
    assert did_you_mean([["kd"]], ["kd"]) == ""


def test_nothing_raw_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    progress("data \x1b]0;x\x07: 3 rows\n  more")
    print_result({"a": "\u202e"}, "row\n\x1b[2J", as_json=False)
    print_result({"a": "\u202e"}, "", as_json=True)
    fail(2, ["a\x1b"], as_json=True)
    output = capsys.readouterr()
    assert output.err == "data \\x1b]0;x\\x07: 3 rows\n  more\nerror: a\\x1b\n"
    assert output.out.startswith('row\n\\x1b[2J\n{\n  "a": "\\u202e"\n}\n')
    assert "\x1b" not in output.out
