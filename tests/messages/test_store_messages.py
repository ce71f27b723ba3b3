"""Stores that do not fit: each gives its sentence, exit code 2, no traceback, and no training."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import preceptor
import stored_recipes
import toys
from preceptor.cli import main
from preceptor.errors import InputErrors
from preceptor.recipe import parse_recipe
from same_results import flip

STORE = "  st: {kind: store, teacher: ./big, student: ./small, data: [shop, general]}"
GOOD = f"""\
name: shop
data:
  general: {{path: general.jsonl, holdout: 5}}
  shop: {{path: shop.jsonl}}
  notes: {{path: notes.jsonl}}
stages:
{STORE}
  kd:
    kind: distill
    student: ./small
    teacher: stage:st
    data: {{general: 0.9, shop: 0.1}}
    objective: [{{kind: logits}}]
"""
TEACHER = "teacher: stage:st"
# what is wrong: (text in GOOD, what replaces it, the sentence after "FILE:")
CASES: dict[str, tuple[str, str, str]] = {
    "a mode that is none": (
        "data: [shop, general]}",
        "data: [shop, general], mode: top-k}",
        "7: stages.st.mode is 'top-k'; write sample, topk or full (did you mean 'topk'?)",
    ),
    "draws of another mode": (
        "data: [shop, general]}",
        "data: [shop, general], mode: full, draws: 20}",
        "7: stages.st is wrong: draws is for mode: sample, and the mode is full; remove it, or change the mode",
    ),
    "k of another mode": (
        "data: [shop, general]}",
        "data: [shop, general], k: 20}",
        "7: stages.st is wrong: k is for mode: topk, and the mode is sample; remove it, or change the mode",
    ),
    "no draws": (
        "data: [shop, general]}",
        "data: [shop, general], draws: 0}",
        "7: stages.st.draws is 0; write a whole number from 1 to 1000",
    ),
    "an unknown dataset": (
        "[shop, general]}",
        "[shop, general, nots]}",
        "7: stages.st.data names 'nots', which is no dataset (did you mean 'notes'?); there is general, shop, notes",
    ),
    "a store as a student": (
        "    student: ./small\n",
        "    student: stage:st\n",
        "10: stages.kd.student is 'stage:st', of kind store, which gives stored predictions; name a stage that gives a "
        "model",
    ),
    "an attention term": (
        "[{kind: logits}]",
        "[{kind: logits}, {kind: attention}]",
        "13: stages.kd.objective.1 is wrong: attention is distilled from a live teacher only, and teacher is stored; "
        "remove the term, give it `routes` with live teachers, or name the model itself as the teacher",
    ),
    "an attention term by lambda": (
        "    objective: [{kind: logits}]",
        "    lambda: 1.0",
        "8: stages.kd.objective.1 is wrong: attention is distilled from a live teacher only, and teacher is stored; "
        "remove the term, give it `routes` with live teachers, or name the model itself as the teacher",
    ),
    "another divergence of sampled tokens": (
        "{kind: logits}",
        "{kind: logits, divergence: jsd}",
        "13: stages.kd.objective.0.divergence is 'jsd', and teacher is stored as sampled tokens, which give forward_kl "
        "only; write forward_kl, or store it with mode: topk or full",
    ),
    "another temperature": (
        "{kind: logits}",
        "{kind: logits, temperature: 2}",
        "13: stages.kd.objective.0.temperature is 2, and the store that teacher names is of temperature 1; write the "
        "same in both",
    ),
    "rows of another length": (
        "    objective:",
        "    max_length: 512\n    objective:",
        "13: stages.kd.max_length is 512, and stage st stores rows with max_length: 2048, so that they have other "
        "tokens or targets; write the same in both",
    ),
    "other targets": (
        "    objective:",
        "    targets: all\n    objective:",
        "13: stages.kd.targets is all, and stage st stores rows with targets: left out, so that they have other tokens "
        "or targets; write the same in both",
    ),
    "rows that are not stored": (
        "data: [shop, general]}",
        "data: [shop]}",
        "11: stages.kd.teacher is 'stage:st', which stores no rows of general; add general to the `data` of stage st",
    ),
    "rows of a route that are not stored": (
        TEACHER,
        "teacher: {routes: {shop: ./big, general: stage:st}}",
        "",
    ),
    "rows of the default route that are not stored": (
        TEACHER,
        "teacher: {routes: {shop: ./big}, default: stage:st}",
        "",
    ),
    "a dtype for a store": (
        TEACHER,
        "teacher: {path: stage:st, dtype: float32}",
        "11: stages.kd.teacher.dtype is of no use to 'stage:st', which is stored; remove it",
    ),
    "a served teacher without its name": (
        "teacher: ./big, student",
        "teacher: {endpoint: http://127.0.0.1:8000/v1, modle: big}, student",
        "7: stages.st.teacher.model is missing; add it",
    ),
    "a served teacher's draws": (
        "teacher: ./big, student",
        "teacher: {endpoint: http://127.0.0.1:8000/v1, model: big}, student",
        "7: stages.st is wrong: mode is sample, and a served teacher tells its most probable tokens only; write "
        "mode: topk",
    ),
    "a served teacher at another temperature": (
        "teacher: ./big, student",
        "mode: topk, temperature: 2.0, teacher: {endpoint: http://127.0.0.1:8000/v1, model: big}, student",
        "7: stages.st is wrong: temperature is 2, and a served teacher's log-probabilities are unscaled whatever "
        "temperature is asked for; write temperature: 1, or load the teacher here",
    ),
    "a served teacher's chat settings": (
        "teacher: ./big, student",
        "mode: topk, teacher: {endpoint: http://127.0.0.1:8000/v1, model: big, omit: [seed]}, student",
        "7: stages.st is wrong: teacher.omit is for chats, and a teacher is asked for no text; remove it",
    ),
    "a store that comes later": (
        f"stages:\n{STORE}\n",
        "stages:\n",
        "10: stages.kd.teacher is 'stage:st', but st comes after kd, and a stage reads earlier ones only (so that no "
        "circle can arise); move st above kd",
    ),
}


def problems(text: str) -> list[str]:
    import yaml

    from preceptor.recipe import load_recipe  # noqa: F401 - the same path as the command line's

    try:
        parse_recipe(yaml.safe_load(text))
    except InputErrors as error:
        return error.errors
    return []


@pytest.mark.parametrize("name", CASES)
def test_wrong_recipes(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new, sentence = CASES[name]
    assert old in GOOD
    text = GOOD.replace(old, new, 1)
    if name == "a store that comes later":
        text += STORE + "\n"
    (tmp_path / "r.yaml").write_text(text)
    if not sentence:
        text = text.replace("data: [shop, general]}", "data: [shop]}")
        route = "routes.general" if "general: stage" in new else "default"
        sentence = (
            f"11: stages.kd.teacher.{route} is 'stage:st', which stores no rows of general; add general to the `data` "
            "of stage st"
        )
        (tmp_path / "r.yaml").write_text(text)
    assert main(["plan", str(tmp_path / "r.yaml")]) == 2
    said = capsys.readouterr().err.splitlines()
    assert said[0] == f"error: {tmp_path}/r.yaml:{sentence}"
    # Of the served teacher without a name, the key that was meant for it is told of too.
    assert len(said) == (2 if "modle" in new else 1)


def test_the_good_one_is_good() -> None:
    assert not problems(GOOD)
    routed = GOOD.replace(TEACHER, "teacher: {routes: {shop: ./big, general: stage:st}}")
    assert not problems(routed.replace("data: [shop, general]}", "data: general}"))
    assert not problems(routed.replace("{kind: logits}", "{kind: logits}, {kind: attention, routes: [shop]}"))
    other = "{kind: logits, divergence: jsd, temperature: 2, routes: [shop]}, {kind: logits, routes: [general]}"
    assert not problems(routed.replace("{kind: logits}", other))


# --- stores on disk -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    for stage in ("teacher", "student", "st"):
        preceptor.run(stored_recipes.recipe(folder), only=stage, log=lambda line: None)
    return folder


def edit(store: Path, **changes: Any) -> None:
    manifest = json.loads((store / "manifest.json").read_text())
    for key, value in changes.items():
        manifest[key] = {**manifest[key], **value} if isinstance(value, dict) else value
    (store / "manifest.json").write_text(json.dumps(manifest))


def empty(store: Path) -> None:
    manifest = json.loads((store / "manifest.json").read_text())
    (store / "manifest.json").write_text(json.dumps({**manifest, "shards": {}}))


SHARD = "000-00000.safetensors"
MEND = "copy the store again, or write it anew"
HASH = {"sha256": "0123456789abcdef"}
BELONGS = "give the store that belongs to it, or store the teacher again"
# what is wrong: (what is done to the store, the sentence; STORE is its folder, … any text)
DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a flipped byte": (
        lambda store: flip(store / SHARD),
        f"store 'STORE': {SHARD} is not what was written (its SHA-256 differs); {MEND}",
    ),
    "a truncated shard": (
        lambda store: os.truncate(store / SHARD, 1000),
        f"store 'STORE': {SHARD} is cut short (it has 1,000 bytes and manifest.json says …); {MEND}",
    ),
    "a missing shard": (
        lambda store: (store / SHARD).unlink(),
        f"store 'STORE': {SHARD} is missing, though manifest.json lists it; {MEND}",
    ),
    "no manifest": (
        lambda store: (store / "manifest.json").unlink(),
        "store 'STORE': has no manifest.json, though its stage is finished; copy the store again, or write it anew "
        "with --redo st",
    ),
    "a manifest without a field": (
        lambda store: edit(store, max_length=None),
        f"store 'STORE': its manifest.json is damaged (max_length is None); {MEND}",
    ),
    "no shards": (
        lambda store: empty(store),
        f"store 'STORE': its manifest.json is damaged (shards is {{}}); {MEND}",
    ),
    "another format version": (
        lambda store: edit(store, version=9),
        "store 'STORE': is in format version 9 and this preceptor reads version 1; write it anew, or use the preceptor "
        "that wrote it",
    ),
    "another teacher": (
        lambda store: edit(store, teacher={**HASH, "model": "stage:other"}),
        "store 'STORE': its teacher is 'stage:other' (SHA-256 0123456789ab…), and stage st recorded 'stage:teacher' "
        f"(SHA-256 …); {BELONGS}",
    ),
    "another tokenizer": (
        lambda store: edit(store, tokenizer={**HASH, "tokens": 31}),
        "store 'STORE': its tokenizer is one of 31 tokens (SHA-256 0123456789ab…), and stage st recorded one of 28 "
        f"tokens (SHA-256 …); {BELONGS}",
    ),
    "another template": (
        lambda store: edit(store, template={**HASH, "text": "{{ messages }}"}),
        "store 'STORE': its chat template is '{{ messages }}' (SHA-256 0123456789ab…), and stage st recorded SHA-256 …"
        f"; {BELONGS}",
    ),
    "another temperature": (
        lambda store: edit(store, temperature=2.0),
        f"store 'STORE': its temperature is 2.0, and stage st recorded 1.0; {BELONGS}",
    ),
    "another mode": (
        lambda store: edit(store, mode="topk", k=3, draws=None),
        f"store 'STORE': its mode is 'topk', and stage st recorded 'sample'; {BELONGS}",
    ),
}
OF_ANOTHER = f"store 'STORE': {SHARD} is of another store than manifest.json describes; {MEND}"
# What is said of a store of which no stage of the recipe has recorded anything.
BY_FOLDER = {
    "another teacher": OF_ANOTHER,
    "another temperature": "stages.kd.objective.1.temperature is 1, and the store that teacher names is of temperature "
    "2; write the same in both",
    "another mode": OF_ANOTHER,
    "another tokenizer": "store 'STORE': its tokenizer is one of 31 tokens (SHA-256 0123456789ab…), and the student's "
    f"is one of 28 tokens (SHA-256 …); {BELONGS}",
    "another template": "store 'STORE': its chat template is '{{ messages }}' (SHA-256 0123456789ab…), and the "
    f"student's is … (SHA-256 …); {BELONGS}",
}


def fits(text: str, sentence: str) -> bool:
    """Whether `text` ends as `sentence` does, … standing for anything that must be there."""
    import re

    pattern = "(?:[^'\"]|'[^']*'|\"[^\"]*\")+?".join(map(re.escape, sentence.replace("ab…)", "ab\0)").split("…")))
    return re.search(pattern.replace("\0", "…") + r"\Z", text) is not None


@pytest.mark.parametrize("name", DAMAGES)
@pytest.mark.parametrize("how", ["by its stage", "by its folder"])
def test_stores_that_do_not_fit(
    made: Path, name: str, how: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(made, folder)
    store = folder / "runs/r/st/store"
    damage, sentence = DAMAGES[name]
    damage(store)
    if how == "by its folder":
        sentence = BY_FOLDER.get(name, sentence)
    teacher = "stage:st" if how == "by its stage" else str(store)
    recipe = tmp_path / "r.json"
    document = stored_recipes.document(folder, teacher=teacher)
    recipe.write_text(json.dumps(absolute(document, folder)))
    assert main(["run", str(recipe), "--only", "kd"]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(said) == 1, said
    assert fits(said[0], sentence.replace("STORE", str(store))), said
    assert not (folder / "runs/r/kd").exists()


def absolute(document: dict[str, Any], folder: Path) -> dict[str, Any]:
    data = {name: {**spec, "path": str(folder / spec["path"])} for name, spec in document["data"].items()}
    return {**document, "data": data}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"objective": [{"kind": "logits", "temperature": 2.0}]},
            "stages.kd.objective.0.temperature is 2, and the store that teacher names is of temperature 1; write the "
            "same in both",
        ),
        (
            {"objective": [{"kind": "logits", "divergence": "jsd"}]},
            "stages.kd.objective.0.divergence is 'jsd', and teacher is stored as sampled tokens, which give forward_kl "
            "only; write forward_kl, or store it with mode: topk or full",
        ),
        (
            {"objective": [{"kind": "attention"}]},
            "stages.kd.objective.0 is wrong: attention is distilled from a live teacher only, and teacher is stored; "
            "remove the term, give it `routes` with live teachers, or name the model itself as the teacher",
        ),
        (
            {"dtype": "float32"},
            "stages.kd.dtype is of no use to 'STORE', which is stored; remove it",
        ),
    ],
)
def test_a_store_by_its_folder_that_cannot_give_what_is_followed(
    made: Path, change: dict[str, Any], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = str(made / "runs/r/st/store")
    teacher = {"path": store, "dtype": change["dtype"]} if "dtype" in change else store
    given = {key: value for key, value in change.items() if key != "dtype"}
    recipe = tmp_path / "r.json"
    recipe.write_text(json.dumps(absolute(stored_recipes.document(made, teacher=teacher, **given), made)))
    assert main(["run", str(recipe), "--only", "kd"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert said == [f"error: {recipe}: {sentence.replace('STORE', store)}"]


# --- the command line -----------------------------------------------------------------------------------------------


def test_info_and_verify(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = made / "runs/r/st/store"
    assert main(["store", "info", str(store)]) == 0
    out = capsys.readouterr().out
    assert "mode: sample, 50 draws at temperature 1" in out
    assert "40 rows, 1,014 target positions in 1 shard," in out
    assert main(["store", "verify", str(store), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["whole"], found["shards"]) == (True, 1)


def test_info_and_verify_of_no_store(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for what in ("info", "verify"):
        assert main(["store", what, str(tmp_path / "none")]) == 2
        said = capsys.readouterr().err
        assert said == (
            f"error: store '{tmp_path}/none': there is no such folder; give one that a `store` stage wrote\n"
        )
    assert main(["store", "info", str(made / "runs/r/teacher/model")]) == 2
    assert "is not that of a teacher store" in capsys.readouterr().err
    assert main(["store", "look", str(tmp_path)]) == 2
    assert "preceptor store: " in capsys.readouterr().err


def test_a_served_teachers_key_is_looked_for_before_any_stage_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VLLM_KEY", raising=False)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    config = {"model_type": "llama", **toys.TINY}
    stages = {
        "m": {"kind": "init", "config": config, "tokenizer": {"train_on": "d", "vocab_size": 300}},
        "s": {
            "kind": "store",
            "teacher": {"endpoint": "http://127.0.0.1:1/v1", "model": "big", "key_env": "VLLM_KEY"},
            "student": "stage:m",
            "data": "d",
            "mode": "topk",
        },
    }
    raw = {"name": "r", "data": {"d": {"path": "rows.jsonl"}}, "stages": stages}
    (tmp_path / "r.yaml").write_text(json.dumps(raw))
    assert main(["run", "r.yaml"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: r.yaml: stages.s.teacher.key_env: the environment variable VLLM_KEY is not set")
    assert not (tmp_path / "runs").exists()
