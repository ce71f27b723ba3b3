"""What is said of a secret in a recipe or a command line: where it is, and never what it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from preceptor.cli import main
from preceptor.errors import InputErrors
from preceptor.recipe import load_recipe, parse_recipe
from preceptor.system.secret_text import secret_in

TOLD = (
    ", which would be copied into files and messages; take it out, and name the environment variable that holds it "
    "instead (`key_env` of an endpoint; HF_TOKEN and the trackers' own variables are read by themselves)"
)
PLANTED = "Tr0ub4dor-and-3-staples"


def raw(**judge: Any) -> dict[str, Any]:
    judged = {"endpoint": "http://127.0.0.1:9/v1", "model": "judge", **judge}
    bench = {"questions": "q.jsonl", "prompts": "p.jsonl", "judge": judged}
    return {"name": "r", "stages": {"scores": {"kind": "evaluate", "models": ["./a"], "mt_bench": bench}}}


@pytest.mark.parametrize(
    ("judge", "where", "what"),
    [
        (
            {"endpoint": f"https://bob:{PLANTED}@judge/v1"},
            "endpoint",
            "holds a URL with a user name, a password or a key in it",
        ),
        (
            {"endpoint": f"https://judge/v1?api_key={PLANTED}"},
            "endpoint",
            "holds a URL with a user name, a password or a key in it",
        ),
        ({"key_env": f"sk-{PLANTED}"}, "key_env", "holds what looks like an access key"),
        ({"api_key": PLANTED}, "api_key", "is a key for a secret"),
        ({"key_env": PLANTED}, "key_env", "holds what the environment variable SOME_TOKEN holds"),
        ({"model": f"x {PLANTED} y"}, "model", "holds what the environment variable SOME_TOKEN holds"),
    ],
)
def test_in_a_recipe(judge: dict[str, Any], where: str, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", PLANTED)
    with pytest.raises(InputErrors) as caught:
        parse_recipe({**raw(**judge), "seed": "another mistake, which would be told otherwise"})
    assert str(caught.value) == f"recipe: stages.scores.mt_bench.judge.{where} {what}{TOLD}"


def test_in_an_override_of_the_python_interface(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(json.dumps(raw()))
    with pytest.raises(InputErrors) as caught:
        load_recipe(tmp_path / "r.yaml", [f"stages.scores.mt_bench.judge.key_env=sk-{PLANTED}"])
    assert PLANTED not in str(caught.value)
    assert "stages.scores.mt_bench.judge.key_env holds what looks like an access key" in str(caught.value)


@pytest.mark.parametrize(
    "arguments",
    [
        ["evaluate", "./a", "--judge", f"https://bob:{PLANTED}@judge/v1#gpt-4"],
        ["evaluate", "./a", "--judge-key-env", f"sk-{PLANTED}"],
        ["run", "r.yaml", f"stages.scores.mt_bench.judge.key_env=sk-{PLANTED}", "--json"],
        [f"https://bob:{PLANTED}@judge/v1"],
    ],
)
def test_on_the_command_line(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    out, err = capfd.readouterr()
    assert PLANTED not in out + err
    assert err.startswith("error: preceptor: an argument holds ")
    assert "--judge-key-env" in err


@pytest.mark.parametrize(
    "text",
    [
        "mistralai/Mistral-7B-v0.1",
        "http://127.0.0.1:8000/v1",
        "org/model@main",
        "stages.kd.training.learning_rate=1e-5",
        "sk-learn",
        "sketch-of-a-long-model-name",
        "org/mistral-sk-7b-instruct-v0.1",  # Slovak
        "data/cs-sk-parallel-corpus-v2.jsonl",
        "data/sk-wikipedia2024-train.jsonl",
        "tell me of Bearer authentication",
        "https://judge.example.org/v1?api-version=2024-10-21",
        "a sentence about user:name@example.org",
        "{question}://x y@z",
    ],
)
def test_what_is_no_secret(text: str) -> None:
    assert secret_in(text) is None


def test_words_of_the_users_own_are_not_keys_for_secrets() -> None:
    """`where` and a model's config have keys of any name, and a variable may hold a path or a short word."""
    made = raw()
    made["data"] = {"rows": {"path": "rows.jsonl", "where": {"token": "yes", "password": "no"}}}
    assert parse_recipe(made).data["rows"].where == {"token": "yes", "password": "no"}


def test_a_variable_that_holds_a_path_or_a_short_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSH_KEY", "/home/me/.ssh/key-of-mine")
    monkeypatch.setenv("SOME_KEY", "questions")
    assert secret_in("/home/me/.ssh/key-of-mine") is None
    assert secret_in("questions.jsonl") is None


@pytest.mark.parametrize(
    "key",
    [
        "sk-proj-0123456789abcdefXYZabc",
        "sk-ant-api03-aB3dE5fG7-aB3dE5fG7",
        f"sk-{'a1b2c3d4' * 4}",
        "Bearer abcdef0123456",
    ],
)
def test_forms_of_keys(key: str) -> None:
    assert secret_in(f"see {key}.") == "what looks like an access key"


def test_a_variable_that_holds_a_name_or_a_control_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of variables that end in KEY or TOKEN are common; of those that say what they hold, every value counts."""
    monkeypatch.setenv("MODEL_KEY", "mistral-7b-instruct-v0.3")
    monkeypatch.setenv("EOS_TOKEN", "<|endoftext|>")
    assert secret_in("./models/mistral-7b-instruct-v0.3") is None
    assert secret_in("ends with <|endoftext|>") is None
    for name in ("JUDGE_API_KEY", "DB_PASSWORD", "HF_TOKEN"):
        monkeypatch.setenv(name, "correct-horse-staple")
        assert secret_in("x correct-horse-staple") == f"what the environment variable {name} holds"
        monkeypatch.delenv(name)
