"""A local model as an answerer: the same answers in any batch, and those of transformers' own greedy generation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from preceptor.data.template import ChatTemplate
from preceptor.evaluation.chats import Answer, ChatRequest
from preceptor.evaluation.local_answers import LocalAnswerer, local_answerer
from preceptor.models.sampling import row_uniforms, sample, sample_as_done
from preceptor.models.save import save_model
from preceptor.recipe import ModelSpec

CONTEXT = 128


def request(text: str, limit: int = 12, temperature: float = 0.0, seed: int = 0, top_p: float = 1.0) -> ChatRequest:
    return ChatRequest(({"role": "user", "content": text},), limit, temperature, seed, top_p)


def requests(count: int = 11) -> list[ChatRequest]:
    """Prompts of many lengths, both ways to write, seeds and limits of their own."""
    return [
        request(
            "abcdefgh"[: 1 + i % 8] * (1 + i % 3),
            limit=4 + i,
            temperature=(0.0, 0.7, 1.3)[i % 3],
            seed=i,
            top_p=0.6 if i % 4 == 1 else 1.0,
        )
        for i in range(count)
    ]


def answers(model: Any, tokenizer: Any, asked: list[ChatRequest], batch_size: int = 4) -> list[Answer]:
    answerer = LocalAnswerer(model, tokenizer, name="m", batch_size=batch_size)
    found = dict(answerer.answer(asked, lambda rows, tokens: None))
    return [found[i] for i in range(len(asked))]


def prompt_ids(tokenizer: Any, asked: ChatRequest) -> list[int]:
    text = ChatTemplate(tokenizer).render(asked.messages, add_generation_prompt=True)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("changes", [{}, {"sliding_window": 20}])
def test_answers_do_not_depend_on_the_batch(make: Any, changes: dict[str, Any]) -> None:
    model, asked = make.model(4, **changes), requests()
    alone = [answers(model, make.tokenizer, [each])[0] for each in asked]
    for batch_size in (1, 2, 3, 64):
        assert answers(model, make.tokenizer, asked, batch_size) == alone
    backwards = answers(model, make.tokenizer, asked[::-1], 3)
    assert backwards[::-1] == alone
    assert len({each.text for each in alone}) > 6
    assert {each.finished for each in alone} == {True, False}
    assert all(each.finished or each.tokens == one.max_new_tokens for each, one in zip(alone, asked, strict=True))


@pytest.mark.parametrize("batch_size", [1, 5])
def test_temperature_0_is_transformers_greedy_generation(make: Any, batch_size: int) -> None:
    model, tokenizer = make.model(1), make.tokenizer
    texts = ["abcdefgh"[: 1 + i] * (1 + i % 3) for i in range(8)]
    found = answers(model, tokenizer, [request(text) for text in texts], batch_size)
    for text, answer in zip(texts, found, strict=True):
        ids = torch.tensor([prompt_ids(tokenizer, request(text))])
        ends = [tokenizer.eos_token_id, tokenizer.bos_token_id]
        written = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=12,
            eos_token_id=ends,
            pad_token_id=tokenizer.pad_token_id,
        )[0, ids.shape[1] :].tolist()
        assert answer.finished == (written[-1] in ends)
        kept = written[:-1] if answer.finished else written
        assert answer.text == tokenizer.decode(kept, skip_special_tokens=True).strip()
        assert answer.tokens == len(kept)
    assert {each.finished for each in found} == {True, False}


def test_every_row_has_its_own_temperature_and_top_p(make: Any) -> None:
    model, ids = make.model(4), [[1, 5, 6], [1, 7], [1, 8, 9, 10], [1, 5]]
    uniforms = [row_uniforms(3, row, 15) for row in range(4)]
    settings = [(0.0, 1.0), (1.5, 1.0), (1.5, 0.3), (0.4, 1.0)]
    mixed = sample(model, ids, uniforms, stop={2}, temperature=[t for t, _ in settings], top_p=[p for _, p in settings])
    for row, (temperature, top_p) in enumerate(settings):
        (alone,) = sample(model, [ids[row]], [uniforms[row]], stop={2}, temperature=temperature, top_p=top_p)
        assert mixed[row] == alone
        together = sample(model, ids, uniforms, stop={2}, temperature=temperature, top_p=top_p)
        assert mixed[row] == together[row]
    everywhere = [sample(model, ids, uniforms, stop={2}, temperature=t, top_p=p) for t, p in settings]
    assert all(everywhere[i][1] != everywhere[j][1] for i in range(4) for j in range(i))  # the settings matter


def test_what_a_request_asks_for_is_what_its_row_gets(make: Any) -> None:
    model, tokenizer = make.model(4), make.tokenizer
    asked = [request("abc", 15, *how) for how in ((1.5, 3, 1.0), (1.5, 3, 0.3), (1.5, 4, 1.0), (0.4, 3, 1.0))]
    found = answers(model, tokenizer, asked)
    ends = {tokenizer.eos_token_id, tokenizer.bos_token_id}
    for one, answer in zip(asked, found, strict=True):
        uniforms = row_uniforms(one.seed, 0, 15)
        (alone,) = sample(
            model, [prompt_ids(tokenizer, one)], [uniforms], stop=ends, temperature=one.temperature, top_p=one.top_p
        )
        assert answer.text == tokenizer.decode(alone.tokens, skip_special_tokens=True).strip()
    assert len({answer.text for answer in found}) == 4


def test_rows_come_as_they_end(make: Any) -> None:
    limits = [9, 2, 5]
    uniforms = [row_uniforms(0, row, limit) for row, limit in enumerate(limits)]
    model = make.model(4)
    seen = [row for row, _ in sample_as_done(model, [[1], [1, 5], [1, 6, 7]], uniforms, stop=set())]
    assert seen == [1, 2, 0]


def test_every_answer_is_reported_when_it_is_there(make: Any) -> None:
    asked, told = requests(7), []
    answerer = LocalAnswerer(make.model(4), make.tokenizer, name="m", batch_size=3)
    found = list(answerer.answer(asked, lambda rows, tokens: told.append((rows, tokens))))
    assert told == [(0, 0), *((1, answer.tokens) for _, answer in found)]
    assert sorted(index for index, _ in found) == list(range(7))


def test_a_seed_draws_another_answer_and_the_same_one_again(make: Any) -> None:
    model = make.model(4)
    asked = [request("abc", 20, 1.0, seed) for seed in (1, 2, 1)]
    first, other, again = answers(model, make.tokenizer, asked)
    assert first == again
    assert first != other


def test_a_model_without_a_template_is_given_one(make: Any, tmp_path: Path) -> None:
    for name, template in (
        ("own", None),
        ("without", ""),
        ("reference", "{{ bos_token + messages[0].content + '0' }}"),
    ):
        save_model(make.model(4, torch.float32), make.tokenizer, tmp_path / name, dtype=torch.float32)
        file = tmp_path / name / "chat_template.jinja"
        if template == "":
            file.unlink()
        elif template:
            file.write_text(template)

    def answered(name: str, reference: str | None = None) -> tuple[dict[int, Answer], list[str]]:
        said: list[str] = []
        spec, theirs = (ModelSpec(path=str(tmp_path / folder)) for folder in (name, reference or name))
        answerer = local_answerer(spec, name=name, reference=theirs if reference else None, log=said.append)
        return dict(answerer.answer([request("ab")], lambda rows, tokens: None)), said

    own, said = answered("own", "reference")
    assert said == []
    given, said = answered("without")
    assert (given, said) == (own, ["without: the model has no chat template; the default one is used"])
    theirs, said = answered("without", "reference")
    assert said == ["without: the model has no chat template; that of the reference is used"]
    assert theirs == answered("reference")[0] != own


@pytest.mark.parametrize(("limit", "room"), [(100, CONTEXT // 4), (10, 10)])
def test_a_prompt_too_long_loses_its_beginning(make: Any, limit: int, room: int) -> None:
    model, tokenizer = make.model(4), make.tokenizer
    fits = CONTEXT - room - len(prompt_ids(tokenizer, request("")))
    lengths = (fits, fits + 1, fits + 60)
    asked = [request(("abcdefgh" * 40)[:length], limit) for length in lengths]
    found = answers(model, tokenizer, asked)
    assert [each.cut for each in found] == [0, 1, 60]
    for one, answer in zip(asked, found, strict=True):
        ids = prompt_ids(tokenizer, one)
        kept = [tokenizer.bos_token_id, *ids[1 + answer.cut :]]
        assert len(kept) == CONTEXT - room
        ends = {tokenizer.eos_token_id, tokenizer.bos_token_id}
        (expected,) = sample(model, [kept], [torch.zeros(room)], stop=ends, temperature=0.0)
        assert answer.text == tokenizer.decode(expected.tokens, skip_special_tokens=True).strip()
        assert answer.tokens == len(expected.tokens)


def test_an_answer_ends_where_the_context_does(make: Any) -> None:
    model, tokenizer = make.model(4), make.tokenizer
    with torch.no_grad():
        model.lm_head.weight[[tokenizer.eos_token_id, tokenizer.bos_token_id]] = 0
        model.lm_head.weight[5:] *= 3
    long = request("a" * 70, 100)
    (answer,) = answers(model, tokenizer, [long])
    assert (answer.cut, answer.finished, answer.tokens) == (0, False, CONTEXT - len(prompt_ids(tokenizer, long)))
