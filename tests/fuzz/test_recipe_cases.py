"""Recipes that a fuzzer is slow to think of, or that are too large to keep; and the wording of their refusals."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fuzz.scaffold import check_message
from fuzz.target_overrides import RAW
from fuzz.target_recipe import GOOD
from preceptor.errors import InputError, InputErrors
from preceptor.recipe import expand, load_recipe, local_path, parse_recipe, yaml_text
from preceptor.recipe.yaml_text import MAX_BYTES

LEVELS = "".join(f"a{i + 1}: &a{i + 1} [{', '.join([f'*a{i}'] * 9)}]\n" for i in range(12))
MERGES = "".join(f"a{i + 1}: &a{i + 1} {{<<: [{', '.join([f'*a{i}'] * 9)}]}}\n" for i in range(12))
ONE = "name: x\nstages:\n  a: {kind: sft, model: o/m, data: d}\n"


def refused(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        load_recipe(path)
    check_message(caught.value)
    return str(caught.value).replace(str(path), "PATH")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a0: &a0 [x]\n" + LEVELS, "PATH:1: aliases unfold to more than 100,000 values; write them out"),
        ("a0: &a0 {x: 1}\n" + MERGES, "PATH:2: aliases unfold to more than 100,000 values; write them out"),
        ("a: &a [*a]\n", "PATH:1: is nested deeper than 64 levels (or an alias holds itself)"),
        ("a: &a {<<: *a}\n", "PATH:1: is nested deeper than 64 levels (or an alias holds itself)"),
        ("[" * 5000, "PATH: is nested deeper than 64 levels; a recipe needs about 6"),
        (
            "seed: " + "9" * 5000,
            f"PATH:1: '{'9' * 29}…{'9' * 14}' is too large a number; mend it or put it in quotes",
        ),
        ("seed: 0x8000000000000000", "PATH:1: '0x8000000000000000' is too large a number; mend it or put it in quotes"),
        (
            r'name: "a\0"',
            r"PATH:1: 'a\x00' holds a character that no path or file can; remove it",
        ),
        (r'"\uD800": 1', r"PATH:1: '\ud800' holds a character that no path or file can; remove it"),
        (
            "a: !!python/object/apply:os.system [id]\n",
            "PATH:1: has the tag 'tag:yaml.org,2002:python/object/apply:os.system'; remove the tag",
        ),
        ("a: !!set {x}\n", "PATH:1: has the tag 'tag:yaml.org,2002:set'; remove the tag"),
        ("a: 1\na: 2\n", "PATH:2: the key 'a' is given twice; remove one of them"),
        ("1: 2\n", "PATH:1: '1' is a key but not text; put it in quotes"),
        (
            "a: 1\n---\nb: 2\n",
            "PATH:2: is not YAML: expected a single document in the stream, but found another document at column 1; "
            "mend the line or the one above it",
        ),
        ("#" * (MAX_BYTES + 1), "PATH: has more than 1,048,576 bytes; a recipe has fewer"),
        (
            "a: \x1b[31m",
            "PATH: is not YAML: unacceptable character #x001b: special characters are not allowed in \"PATH\", "
            "position 3; save it as plain UTF-8 text",
        ),
        (
            ONE + "data: {d: {path: o/d, where: {n: .nan}}}",
            "PATH:4: data.d.where.n is nan; write a finite number",
        ),
        (
            ONE.replace("}", ", training: {max_grad_norm: .inf}}") + "data: {d: {path: o/d}}",
            "PATH:3: stages.a.training.max_grad_norm is inf; write a finite number",
        ),
        (
            "name: x\nstages:\n" + "".join(f"  s{i}: {{}}\n" for i in range(1001)),
            "PATH:2: stages has 1,001 names; a recipe has at most 1,000",
        ),
    ],
)  # fmt: skip
def test_bombs_and_oddities(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(content)
    assert refused(path).replace('in "<unicode string>"', 'in "PATH"') == said


def test_very_many_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yaml_text, "MAX_VALUES", 1000)
    path = tmp_path / "recipe.yaml"
    path.write_text("[" + "1," * 1001 + "]")
    assert refused(path) == (
        "PATH:1: is not YAML: it has more than 1,000 values at column 2000; mend the line or the one above it"
    )


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(GOOD.decode().encode("utf-16"))
    assert refused(path) == "PATH: byte 0 is not UTF-8; save the file as UTF-8 text"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD)
    assert load_recipe(path).name == "shop"


def test_places_that_are_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    said = "PATH: is no regular file; save the recipe to a file first"
    assert refused(tmp_path / "pipe") == said
    assert refused(Path("/dev/zero")) == said
    assert refused(tmp_path) == "PATH: is a folder; give the recipe file in it"
    for name, end in (("a\0b", "is no name a file can have"), ("a" * 300, "cannot be read (File name too long)")):
        with pytest.raises(InputError, match=end.replace("(", r"\(").replace(")", r"\)")) as caught:
            load_recipe(tmp_path / name)
        check_message(caught.value)


def test_a_hundred_mistakes_are_told_and_the_others_counted(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("name: x\n" + "".join(f"k{i}: 1\n" for i in range(500)))
    with pytest.raises(InputErrors) as caught:
        load_recipe(path)
    assert len(caught.value.errors) == 101
    assert caught.value.errors[-1] == "and 401 more mistakes; mend these first"  # `stages` is missing too


NAMES = [
    "../x", "/x", "C:\\x", ".", "..", "", ".hidden", "-rf", "a/b", "a ", "a\n", "a" * 101, "ка", "a\u202eb",
    "a\x1b[31m", "con:", "a*", "~", "$HOME",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_names_that_are_no_names(name: str) -> None:
    for raw in (
        {**RAW, "name": name},
        {**RAW, "stages": {**RAW["stages"], name: {"kind": "init"}}},
        {**RAW, "data": {**RAW["data"], name: {"path": "o/d"}}},
    ):
        with pytest.raises(InputErrors, match=r"a name of letters, digits, '_', '-' and '\.'") as caught:
            parse_recipe(raw)
        check_message(caught.value)


@pytest.mark.parametrize("name", ["report", "Report", "requests", "recipe.yaml"])
def test_names_of_what_else_lies_in_a_run(name: str) -> None:
    with pytest.raises(InputErrors, match="is the name of something else in the run directory"):
        parse_recipe({"name": "x", "stages": {name: {"kind": "init", "config": {"model_type": "llama"}}}})


def test_names_that_some_file_systems_take_for_one() -> None:
    stage = {"kind": "init", "config": {"model_type": "llama"}}
    with pytest.raises(InputErrors) as caught:
        parse_recipe({"name": "x", "stages": {"Kd": stage, "other": stage, "kD": stage}})
    assert caught.value.errors == [
        "recipe: stages.kD differs from 'Kd' in capitals alone, and some file systems take them for one folder; give "
        "the stage another name"
    ]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("stages.kd.objective.²=1", "has 2 items, so '²' is none of them; write a number from 0 to 1"),
        ("stages.kd.objective." + "9" * 5000 + "=1", "is none of them; write a number from 0 to 1"),
        ("a" + ".a" * 70 + "=1", "write one such as stages.kd.rows_per_step"),
        ("stages.kd.training.\ud800=1", "write one such as stages.kd.rows_per_step"),
        ("stages.__class__.x=1", "there is no '__class__' in stages; it has kd, expert, dae, scores"),
        ("stages.kd.student=\x1b", "unacceptable character #x001b"),
        ("stages.kd.rows_per_step.x=1", "stages.kd.rows_per_step is 64, which has no keys"),
    ],
)
def test_overrides(override: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_recipe(RAW, overrides=[override])
    check_message(caught.value)
    assert said in str(caught.value)


def test_numbers_too_large_for_a_float() -> None:
    raw = {**RAW, "stages": {**RAW["stages"], "kd": {**RAW["stages"]["kd"], "objective": [{"kind": "logits"}]}}}
    raw["stages"]["kd"]["objective"][0]["weight"] = 10**400
    with pytest.raises(InputErrors, match=r"weight is 1000.*; write a number of at least 0"):
        parse_recipe(raw)


@pytest.mark.parametrize("name", ["HF_TOKEN", "OPENAI_API_KEY", "MYAPIKEY", "DB_PASSWORD", "Secret", "KEY"])
def test_paths_hold_no_secrets(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "sk-planted")
    with pytest.raises(InputError) as caught:
        expand(f"owner/${{{name}}}")
    assert str(caught.value) == (
        f"'owner/${{{name}}}' uses the environment variable {name}, which by its name is a secret and no path; use "
        "another variable"
    )


def test_variables_that_only_sound_like_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TOKENIZER", "MONKEY", "KEYS_DIR", "TOKEN_DIR"):
        monkeypatch.setenv(name, "/x")
        assert expand(f"${name}/y") == "/x/y"


@pytest.mark.parametrize("text", ["a/" + "b" * 300, "x" * 5000, "/" * 5000 + "y"])
def test_paths_too_long_for_any_file(tmp_path: Path, text: str) -> None:
    if text.startswith("/"):
        with pytest.raises(InputError, match="does not exist") as caught:
            local_path(text, tmp_path)
        check_message(caught.value)
    else:
        assert local_path(text, tmp_path) is None  # a Hub id, for all that is known here


@pytest.mark.parametrize("revision", ["../../../../secret", "SECRET", "main/../../../../secret"])
def test_a_revision_reads_no_other_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, revision: str) -> None:
    import huggingface_hub

    from preceptor.running.inputs import hub_commit

    (tmp_path / "cache/datasets--owner--name/refs/main").mkdir(parents=True)
    (tmp_path / "cache/datasets--owner--name/refs/v1").write_text("f" * 40 + "\n")
    (tmp_path / "secret").write_text("five years")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", lambda *_, **__: 1 / 0)
    assert hub_commit("owner/name", "v1", "dataset") == "f" * 40
    with pytest.raises(InputError, match="cannot be found"):
        hub_commit("owner/name", revision.replace("SECRET", str(tmp_path / "secret")), "dataset")


def test_a_home_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        local_path("~nobody-of-that-name/x", tmp_path)
    assert str(caught.value) == (
        "'~nobody-of-that-name/x' is in the home folder ~nobody-of-that-name, and there is none; write out the path"
    )


def test_a_look_alike_is_no_hub_id(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        local_path("οwner/name", tmp_path)  # its first letter is Greek


def test_the_working_directory_is_named_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        local_path("a.jsonl", tmp_path)
    assert str(caught.value) == (
        f"'a.jsonl' does not exist: there is no a.jsonl in {tmp_path}; mend the path, or give a Hub id owner/name"
    )
    with pytest.raises(InputError, match=f"there is no a.jsonl in {tmp_path / 'b'} or {tmp_path}; "):
        local_path("a.jsonl", tmp_path / "b")
