"""`preceptor init`: what it finds, what it writes, and what it refuses."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from first_folder import LETTERS, rows, write_model, write_rows, write_tokenizer
from preceptor.cli import main
from preceptor.recipe import DistillStage, EvaluateStage, SftStage, StoreStage, load_recipe
from preceptor.starter import machine
from preceptor.starter.machine import Machine

BASE = ["init", "--teacher", "./teacher", "--student", "./student", "--data", "chats.jsonl"]
CPU = Machine(8_000_000_000, 0, False)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("preceptor.starter.writing.this_machine", lambda: CPU)
    write_model(tmp_path / "teacher", parameters=5000)
    write_model(tmp_path / "student")
    write_rows(tmp_path / "chats.jsonl", rows(range(200)))
    write_rows(tmp_path / "shop.jsonl", rows(range(190, 250), metric="exact"))
    write_rows(tmp_path / "law.jsonl", rows(range(500, 540)))
    return tmp_path


def made(*more: str, name: str = "recipe.yaml") -> Any:
    assert main([*BASE, *more]) == 0
    return load_recipe(name)


def test_one_teacher_one_student_one_dataset(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = made()
    assert (recipe.name, list(recipe.data), list(recipe.stages)) == ("distilled", ["chats"], ["kd", "scores"])
    assert (recipe.data["chats"].holdout, recipe.data["chats"].role) == (20, "general")
    kd, scores = recipe.stages.values()
    assert isinstance(kd, DistillStage)
    assert isinstance(scores, EvaluateStage)
    assert [term.kind for term in kd.objective] == ["logits", "attention"]
    assert (kd.student.path, kd.teachers["teacher",].path) == ("./student", "./teacher")
    assert (kd.max_length, kd.rows_per_step, kd.training["per_device_train_batch_size"]) == (64, 8, 8)
    assert not kd.training.get("bf16")
    assert list(scores.named) == ["before", "kd", "teacher"]
    output = capsys.readouterr()
    assert output.err == "chats: 200 rows, JSONL, `messages`\n"
    assert output.out == "recipe.yaml: kd, scores\nnext: preceptor plan recipe.yaml\n"


def test_a_domain_adds_an_expert_and_stage_2() -> None:
    recipe = made("--domain", "shop.jsonl")
    assert recipe.name == "shop"
    assert list(recipe.stages) == ["kd", "expert", "dae", "scores"]
    assert recipe.overlap.losers == ["chats"]
    dae, expert, scores = (recipe.stages[name] for name in ("dae", "expert", "scores"))
    assert isinstance(expert, SftStage)
    assert expert.lora is not None
    assert isinstance(dae, DistillStage)
    assert {key[2]: model.path for key, model in dae.teachers.items()} == {"shop": "stage:expert", "chats": "stage:kd"}
    assert dae.shares == {"shop": 0.23, "chats": 0.77}  # of 54 and 180 rows
    assert (scores.reference.path, scores.expert.path, scores.on) == ("stage:kd", "stage:expert", ["chats", "shop"])
    text = Path("recipe.yaml").read_text()
    assert "# 10 prompts are in both" in text
    assert text.count("# metric: exact") == 1  # the rows of the shop say themselves how they are scored


def test_several_domains_have_an_expert_each() -> None:
    recipe = made("--domain", "shop.jsonl", "--domain", "law.jsonl", "--name", "both")
    assert list(recipe.stages) == ["kd", "expert_shop", "expert_law", "dae", "scores"]
    assert recipe.overlap.losers == ["chats", "shop"]
    assert sum(recipe.stages["dae"].shares.values()) == 1.0
    assert list(recipe.stages["scores"].named) == ["dae", "expert_shop", "expert_law", "kd"]


def test_a_ready_expert_is_not_trained(folder: Path) -> None:
    write_model(folder / "expert")
    recipe = made("--domain", "shop.jsonl", "--expert", "./expert")
    assert "expert" not in recipe.stages
    assert recipe.stages["dae"].teacher.models()["routes", "shop"].path == "./expert"
    assert recipe.stages["scores"].expert.path == "./expert"


def test_an_expert_may_be_an_adapter(folder: Path) -> None:
    (folder / "expert").mkdir()
    (folder / "expert" / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    expert = made("--domain", "shop.jsonl", "--expert", "./expert").stages["scores"].expert
    assert (expert.path, expert.adapter) == ("org/base", "./expert")


def test_adapters_are_merged_before_others_are_trained_on_them() -> None:
    recipe = made("--domain", "shop.jsonl", "--lora")
    assert list(recipe.stages) == ["kd", "distilled", "expert", "dae", "scores"]
    merged = recipe.stages["distilled"]
    assert ([model.path for model in merged.models], merged.alpha) == (["./student", "stage:kd"], 1.0)
    for name in ("kd", "expert", "dae"):
        assert recipe.stages[name].lora is not None
    assert recipe.stages["dae"].student.path == recipe.stages["expert"].model.path == "stage:distilled"
    assert recipe.stages["scores"].reference.path == "stage:distilled"


def test_a_store_is_filled_and_learned_from() -> None:
    recipe = made("--store", "--quantize", "8bit")
    said, kd = recipe.stages["said"], recipe.stages["kd"]
    assert isinstance(said, StoreStage)
    assert said.teacher.quantization == {"load_in_8bit": True}
    assert said.max_length == kd.max_length
    assert kd.teachers["teacher",].path == "stage:said"
    assert [term.kind for term in kd.objective] == ["logits"]
    assert list(recipe.stages["scores"].named) == ["before", "kd"]


def test_hub_ids_are_taken_as_they_are(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: object) -> None:
        raise AssertionError("a socket was asked for")

    monkeypatch.setattr("socket.socket.connect", no_network)
    given = ["--teacher", "org/big", "--student", "org/small", "--data", "org/chats-2k", "--domain", "shop.jsonl"]
    assert main(["init", *given]) == 0
    assert "note: org/big, org/small, org/chats-2k: not looked at here; preceptor plan does" in capsys.readouterr().err
    recipe = load_recipe("recipe.yaml")
    assert recipe.stages["kd"].teachers["teacher",].path == "org/big"
    assert recipe.data["chats-2k"].path == "org/chats-2k"
    assert (recipe.stages["kd"].max_length, recipe.stages["dae"].shares["shop"]) == (2048, 0.1)
    assert "# split" not in Path("recipe.yaml").read_text()
    assert recipe.data["chats-2k"].split == "train"


def test_columns_are_guessed_by_their_names(folder: Path) -> None:
    (folder / "faq.csv").write_text("Question,topic,Answer\n" + "".join(f"what is {i},x,{i}\n" for i in range(20)))
    recipe = made("--domain", "faq.csv")
    assert recipe.data["faq"].columns == {"prompt": "Question", "completion": "Answer"}


def test_large_models_and_gpus(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("preceptor.starter.writing.this_machine", lambda: Machine(24_000_000, 2, True))
    monkeypatch.setattr("preceptor.starter.choices._LARGE", 2_000_000)
    write_model(folder / "big", parameters=3_000_000)
    given = [*BASE[:4], "./big", *BASE[5:], "--quantize", "4bit"]
    assert main(given) == 0
    kd = load_recipe("recipe.yaml").stages["kd"]
    assert kd.training["bf16"] is True
    assert kd.training["gradient_checkpointing"] is True
    assert kd.training["per_device_train_batch_size"] == 1
    assert (
        "note: stage kd needs at least 48 MB (student 48 MB, teacher 0.1 MB) plus activations; a GPU here has 24 MB; "
        "--lora, --store take less" in capsys.readouterr().err
    )
    assert main([*given, "--lora", "--out", "less.yaml"]) == 0
    assert "stage kd needs" not in capsys.readouterr().err


def test_a_recipe_elsewhere_names_absolute_paths(folder: Path) -> None:
    (folder / "sub").mkdir()
    recipe = made("--out", "sub/r.yaml", name="sub/r.yaml")
    assert recipe.data["chats"].path == str(folder / "chats.jsonl")
    assert recipe.stages["kd"].student.path == str(folder / "student")


def test_paths_that_yaml_would_misread(folder: Path) -> None:
    for name in ("1e5", "my chats: new.jsonl", "#x.jsonl"):
        write_rows(folder / name, rows(range(20))) if name.endswith("l") else write_model(folder / name)
    assert main(["init", "--teacher", "1e5", "--student", "./student", "--data", "my chats: new.jsonl"]) == 0
    recipe = load_recipe("recipe.yaml")
    assert recipe.stages["kd"].teachers["teacher",].path == "1e5"
    assert recipe.data["my_chats_new"].path == "my chats: new.jsonl"
    assert made("--data", "#x.jsonl", "--out", "x.yaml", name="x.yaml").data["x"].path == "#x.jsonl"


def test_the_result_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    made("--json")
    assert json.loads(capsys.readouterr().out) == {
        "recipe": "recipe.yaml",
        "run": "runs/distilled",
        "stages": ["kd", "scores"],
        "notes": [],
        "next": "preceptor plan recipe.yaml",
    }


def test_the_text_reads_well() -> None:
    made("--domain", "shop.jsonl", "--store", "--lora", "--quantize", "4bit")
    lines = Path("recipe.yaml").read_text().splitlines()
    assert max(map(len, lines)) <= 88
    assert not any(line.endswith(" ") for line in lines)
    assert lines[1].startswith("#   preceptor plan recipe.yaml ")
    assert sum("#" in line for line in lines) > 25


# --- what is refused ------------------------------------------------------------------------------------------------


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    before = sorted(Path.cwd().iterdir())
    assert main(list(arguments)) == 2
    assert sorted(Path.cwd().iterdir()) == before
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: preceptor init: ")
    return error.removeprefix("error: preceptor init: ")


def test_nothing_is_overwritten(capsys: pytest.CaptureFixture[str]) -> None:
    Path("recipe.yaml").write_text("mine")
    assert refused(capsys, *BASE) == (
        "recipe.yaml is there already; give another file with --out, or move that one away"
    )
    assert Path("recipe.yaml").read_text() == "mine"


def test_a_dangling_link_is_not_written_through(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "recipe.yaml").symlink_to(folder / "elsewhere")
    assert "is there already" in refused(capsys, *BASE)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["init"],
            "--teacher, --student and --data are missing; write for example preceptor init --teacher ./teacher "
            "--student ./student --data chats.jsonl",
        ),
        (
            BASE[:5],
            "--data is missing; write for example preceptor init --teacher ./teacher --student ./student --data "
            "chats.jsonl",
        ),
        ([*BASE, "--out", "r.txt"], "--out is 'r.txt'; give a file that ends in .yaml"),
        ([*BASE, "--out", "no/r.yaml"], "--out is no/r.yaml, and there is no folder no; create it first"),
        ([*BASE, "--name", "a b"], "--name is 'a b'; write a name of letters"),
        ([*BASE, "--expert", "./student"], "--expert is given once and --domain 0 times; give an expert for each"),
        ([*BASE, "--data", "./chats.jsonl"], "./chats.jsonl is given twice; give other rows, or leave one of them out"),
        ([*BASE, "--data", "none.jsonl"], "--data 'none.jsonl' does not exist: there is no none.jsonl in "),
        ([*BASE, "--data", "stage:x"], "--data stage:x: give a file or a Hub id such as org/name"),
        (
            [*BASE, "--domain", "rows.xlsx"],
            "the format of rows.xlsx cannot be told from its name; give a file that ends",
        ),
        ([*BASE, "--domain", "one.jsonl"], "one.jsonl has 1 prompt; give at least two, one to train on and one to"),
        ([*BASE, "--domain", "empty.jsonl"], "empty.jsonl has no rows; give a file that has some"),
        (
            [*BASE, "--domain", "odd.jsonl"],
            "odd.jsonl: the columns `left`, `right` are none of the shapes accepted: `messages`, `conversations`, "
            "`prompt/completion`, `instruction/input/output` or `text`; rename the two that hold prompt and answer to",
        ),
        ([*BASE[:4], "./teacher", *BASE[5:]], "./teacher is given as teacher and as student; give two models"),
        ([*BASE[:4], "teacher", *BASE[5:]], "teacher is given as teacher and as student; give two models"),
        ([*BASE[:4], "./none", *BASE[5:]], "--student './none' does not exist: "),
        ([*BASE[:4], "chats.jsonl", *BASE[5:]], "--student chats.jsonl: is a file; give the folder that holds config"),
        ([*BASE[:4], "stage:kd", *BASE[5:]], "--student stage:kd: give a model's folder or a Hub id such as org/name"),
        ([*BASE[:4], "./hollow", *BASE[5:]], "--student ./hollow: the folder holds no config.json; give the folder"),
        ([*BASE[:4], "./adapter", *BASE[5:]], "--student ./adapter: the folder holds an adapter, and no model; merge"),
        ([*BASE[:4], "./weightless", *BASE[5:]], "--student ./weightless: the folder holds no weights as safetensors"),
        ([*BASE[:4], "./broken", *BASE[5:]], "--student ./broken: config.json is not readable JSON (Expecting"),
        (
            [*BASE[:4], "./other", *BASE[5:]],
            "the student's tokenizer (69 tokens) is not the teacher's (68 tokens): token 68 is '%' for the student "
            "and absent for the teacher; distil between models of one tokenizer",
        ),
        ([*BASE[:2], "./packed", *BASE[3:], "--quantize", "4bit"], "./packed is stored quantised already; leave out"),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else "",
)
def test_what_is_refused(arguments: list[str], sentence: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_rows(folder / "one.jsonl", rows([1]))
    write_rows(folder / "rows.xlsx", rows(range(20)))
    write_rows(folder / "empty.jsonl", [])
    write_rows(folder / "odd.jsonl", [{"left": "a", "right": "b"}])
    for name in ("hollow", "adapter"):
        (folder / name).mkdir()
    (folder / "adapter" / "adapter_config.json").write_text("{}")
    (write_model(folder / "weightless") / "model.safetensors").unlink()
    (write_model(folder / "broken") / "config.json").write_text("{")
    write_model(folder / "other", letters=LETTERS + "%")
    write_model(folder / "packed", quantization_config={"quant_method": "bitsandbytes"})
    assert refused(capsys, *arguments).startswith(sentence)


def test_a_tokenizer_that_cuts_otherwise(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = folder / "student" / "tokenizer.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "pre_tokenizer": None}))
    assert refused(capsys, *BASE).startswith("the student's tokenizer has the teacher's tokens but cuts text otherwise")


def test_a_tokenizer_that_cannot_be_read(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "student" / "tokenizer.json").write_text("{}")
    assert refused(capsys, *BASE).startswith("tokenizer of ./student: could not be read (")


def test_tokenizers_that_cannot_be_compared_are_left_to_the_plan(folder: Path) -> None:
    (folder / "student" / "tokenizer.json").unlink()
    made()
    assert "# tokenizers: must be the same; `preceptor plan` compares" in Path("recipe.yaml").read_text()
    write_tokenizer(folder / "student")
    made("--out", "b.yaml")
    assert "# tokenizers: the same, as a distillation needs" in Path("b.yaml").read_text()


def test_a_file_system_that_cannot_be_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("preceptor.starter.writing.write_atomic", full)
    assert refused(capsys, *BASE) == "recipe.yaml cannot be written (No space left on device); choose another --out"


# --- the machine ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("24564, 8.9\n16384, 7.5\n", Machine(16384 * 2**20, 2, False)),
        ("81559, 9.0\n", Machine(81559 * 2**20, 1, True)),
    ],
)
def test_the_driver_is_asked_for_gpus(said: str, found: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    class Done:
        stdout = said

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(machine.subprocess, "run", lambda *_, **__: Done)
    assert machine.this_machine() == found
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert machine.this_machine().gpus == 0


@pytest.mark.parametrize("said", ["", "No devices were found", "12, 3, 4"])
def test_without_a_gpu_the_memory_is_the_machines(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Done:
        stdout = said

    monkeypatch.setattr(machine.subprocess, "run", lambda *_, **__: Done)
    found = machine.this_machine()
    assert found.gpus == 0
    assert 1e8 < found.memory <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert found.words.startswith("this machine has ")


@pytest.mark.parametrize(("count", "words"), [(0, "0.1 MB"), (3.44e6, "3.4 MB"), (2.5e7, "25 MB"), (8.0e9, "8.0 GB")])
def test_sizes(count: float, words: str) -> None:
    assert machine.size(count) == words
