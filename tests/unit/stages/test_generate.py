"""The generate stage: rows that do not depend on batches or interruptions, and that read back as data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

import toys
from preceptor.data.chat import EncodedRow, encode_row
from preceptor.data.rows import read_rows
from preceptor.errors import InputError
from preceptor.models.save import save_model
from preceptor.models.tokenizers import load_tokenizer, train_tokenizer
from preceptor.recipe import DatasetSpec, ModelSpec, parse_recipe
from preceptor.stages import generate
from preceptor.stages.context import StageContext

TEXT = "User: Assistant:\n\nabcdefgh 0123"


def writer(folder: Path, context: int = 64) -> None:
    tokenizer = train_tokenizer([TEXT], vocab_size=100, kind="characters", announce=print)
    sizes = {**toys.TINY, "vocab_size": len(tokenizer), "max_position_embeddings": context, "initializer_range": 0.3}
    model = toys.llama(1, **sizes, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id)
    save_model(model, tokenizer, folder / "writer", dtype=torch.float32)


def prompts(folder: Path, count: int = 5) -> None:
    lines = []
    for i in range(count):
        messages = [{"role": "user", "content": "ab" * (i + 1)}, {"role": "assistant", "content": "c"}]
        lines.append(json.dumps({"messages": messages}))
    (folder / "p.jsonl").write_text("\n".join(lines))


def run(folder: Path, log: Any = print, name: str = "r", **stage: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    raw = {
        "name": name,
        "runs_dir": str(folder / "runs"),
        "data": {"p": {"path": "p.jsonl"}} if (folder / "p.jsonl").exists() else {},
        "stages": {"write": {"kind": "generate", "model": "writer", "rows": 9, "max_new_tokens": 20, **stage}},
    }
    recipe = parse_recipe(raw, folder=folder)
    directory = folder / "runs" / name / "write"
    directory.mkdir(parents=True, exist_ok=True)
    results = generate.execute(recipe.stages["write"], StageContext(recipe, "write", directory, recipe.seed, log))
    assert [file.name for file in directory.iterdir()] == ["rows.jsonl"]
    return results, [json.loads(line) for line in (directory / "rows.jsonl").read_text().splitlines()]


def test_texts_from_the_begin_token(tmp_path: Path) -> None:
    writer(tmp_path)
    results, rows = run(tmp_path, rows=12)
    assert len(rows) == results["rows"] == 12
    assert results["finished"] == sum(row["finished"] for row in rows)
    assert 0 < results["finished"] < 12
    assert all(row["finished"] or row["tokens"] == 20 for row in rows)
    assert len({row["text"] for row in rows}) > 6
    assert not any("<" in row["text"] for row in rows)


@pytest.mark.parametrize("kind", ["texts", "answers"])
def test_the_batch_size_changes_nothing(tmp_path: Path, kind: str) -> None:
    writer(tmp_path)
    prompts(tmp_path)
    options = {"prompts": "p"} if kind == "answers" else {}
    written = [run(tmp_path, name=f"r{size}", batch_size=size, **options)[1] for size in (1, 4, 32)]
    assert written[0] == written[1] == written[2]


def test_rows_read_back_as_the_sequences_that_were_sampled(tmp_path: Path) -> None:
    writer(tmp_path)
    _, rows = run(tmp_path)
    tokenizer = load_tokenizer(ModelSpec(path=str(tmp_path / "writer")))
    spec = DatasetSpec(path=str(tmp_path / "runs" / "r" / "write" / "rows.jsonl"), targets="all")
    for row, written in zip(read_rows("w", spec, announce=print), rows, strict=True):
        assert row.extra["finished"] == written["finished"]
        if not written["text"].strip():
            continue
        encoded = encode_row(row, tokenizer, max_length=100, targets="all")
        assert isinstance(encoded, EncodedRow)
        ids = encoded.input_ids.tolist()
        assert (ids[0], ids[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
        if "<unk>" not in tokenizer.convert_ids_to_tokens(ids):
            assert tokenizer.decode(ids, skip_special_tokens=True) == written["text"]


def test_answers_to_prompts(tmp_path: Path) -> None:
    writer(tmp_path)
    prompts(tmp_path)
    said: list[str] = []
    _, rows = run(tmp_path, said.append, prompts="p", rows=7)
    assert [row["messages"][0]["content"] for row in rows] == ["ab" * n for n in (1, 2, 3, 4, 5, 1, 2)]
    assert all([message["role"] for message in row["messages"]] == ["user", "assistant"] for row in rows)
    assert rows[0]["origin"] == "p.jsonl:1"
    assert rows[0]["messages"] != rows[5]["messages"]  # a second answer to the same prompt
    assert "write: the model has no chat template; the default one is used" in said
    spec = DatasetSpec(path=str(tmp_path / "runs" / "r" / "write" / "rows.jsonl"))
    back = [row.messages for row in read_rows("w", spec, announce=print)]
    assert [list(messages or ()) for messages in back] == [row["messages"] for row in rows]


def test_an_interrupted_stage_goes_on_and_ends_with_the_same_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer(tmp_path)
    _, expected = run(tmp_path, name="whole", batch_size=2)
    real, calls = generate.sample, []

    def interrupted(*args: Any, **options: Any) -> Any:
        calls.append(len(args[1]))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(generate, "sample", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, batch_size=2)
    partial = tmp_path / "runs" / "r" / "write" / generate.PARTIAL
    with partial.open("a") as stream:
        stream.write('[4, {"text": "cut sho')  # the line that the power cut caught
    assert not (partial.parent / "rows.jsonl").exists()
    monkeypatch.setattr(generate, "sample", lambda *a, **o: (calls.append(len(a[1])), real(*a, **o))[1])
    calls.clear()
    said: list[str] = []
    _, rows = run(tmp_path, said.append, batch_size=3)
    assert "write: goes on after 4 of 9 rows" in said
    assert sum(calls) == 5
    assert rows == expected


def test_rows_of_another_spec_are_not_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer(tmp_path)
    _, expected = run(tmp_path, name="whole", temperature=0.5)
    real = generate.sample
    calls: list[int] = []

    def interrupted(*args: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(generate, "sample", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, batch_size=2)
    assert run(tmp_path, temperature=0.5)[1] == expected


def test_temperature_0_writes_the_same_text_every_time(tmp_path: Path) -> None:
    writer(tmp_path)
    _, rows = run(tmp_path, temperature=0)
    assert len({row["text"] for row in rows}) == 1


def test_prompts_that_do_not_fit(tmp_path: Path) -> None:
    writer(tmp_path, context=30)
    prompts(tmp_path)  # the default template writes 17 + 2n characters and the begin token
    said: list[str] = []
    results, rows = run(tmp_path, said.append, prompts="p", rows=5)
    fitting = [n for n in (1, 2, 3, 4, 5) if len("<User: Assistant:\n\n") + 2 * n < 30]
    assert [len(row["messages"][0]["content"]) // 2 for row in rows] == fitting
    assert results["skipped_prompts"] == 5 - len(fitting)
    writer(tmp_path / "short", context=8)
    prompts(tmp_path / "short")
    with pytest.raises(InputError) as caught:
        run(tmp_path / "short", prompts="p")
    assert str(caught.value) == (
        "stages.write.prompts: every prompt of p is longer than the model's context of 8 tokens; give shorter prompts"
    )


def test_a_recurrent_model_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer(tmp_path)
    monkeypatch.setattr(LlamaForCausalLM, "_is_stateful", True)
    with pytest.raises(InputError, match="keeps a recurrent state, which batched generation would spoil"):
        run(tmp_path)
    assert list((tmp_path / "runs/r/write").iterdir()) == []


def test_texts_are_no_prompts(tmp_path: Path) -> None:
    writer(tmp_path)
    (tmp_path / "p.jsonl").write_text('{"text": "abc"}\n{"text": "abd"}\n')
    with pytest.raises(InputError) as caught:
        run(tmp_path, prompts="p")
    assert str(caught.value) == (
        "stages.write.prompts: no row of p is a conversation with something to answer; name a dataset of "
        "conversations, or leave `prompts` out to write from the begin token"
    )


def test_a_real_story(data_folder: Path) -> None:
    from preceptor.models.load import load_model
    from preceptor.models.sampling import row_uniforms, sample

    spec = ModelSpec(path=str(data_folder / "weights" / "stories260K-hf"))
    tokenizer, model = load_tokenizer(spec), load_model(spec, role="teacher")
    (story,) = sample(model, [[tokenizer.bos_token_id]], [row_uniforms(0, 0, 60)], stop={1, 2}, temperature=0.5)
    text = tokenizer.decode(story.tokens, skip_special_tokens=True)
    assert text.startswith("Once upon a time")
    assert tokenizer(text)["input_ids"] == [tokenizer.bos_token_id, *story.tokens]
