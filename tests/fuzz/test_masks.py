"""Masks of random conversations: against brute force, cut at both ends, packed, and with real tokenizers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from fuzz.masks import TEMPLATES, expected
from fuzz.target_chat import tokenizer
from preceptor.data.chat import Dropped, EncodedRow, encode_row, encode_rows
from preceptor.data.collator import Collator
from preceptor.data.rows import Row
from preceptor.data.template import DEFAULT_TEMPLATE, Message
from toy_tokenizers import CHATML, SPECIAL, byte_level, characters, sentence_piece, wrapped

BOUNDED: dict[str, Any] = {
    "derandomize": True,
    "database": None,
    "deadline": None,
    "suppress_health_check": list(HealthCheck),
}
WORDS = [
    "hello", "yes", " ", "\n", "\n\n", "\t", "é", "日本", "😀", "\u200b", "\x00", "User:", "\n\nAssistant: ",
    "assistant\n", "</s",
    ">", "<|im_", "</S>", "[INST]", "{{ 1 }}", "{% generation %}", "\ue000\ue001\ue002", "\u2028", "1", ".",
]  # fmt: skip
texts = st.lists(st.one_of(st.sampled_from(WORDS), st.text(max_size=3)), max_size=6).map("".join)
# Halves of surrogate pairs are refused where data are read.
texts = texts.filter(lambda text: text.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in text))


def turn(role: str) -> st.SearchStrategy[Message]:
    return texts.map(lambda content: {"role": role, "content": content})


conversations = st.one_of(
    st.lists(st.sampled_from(["user", "assistant", "system"]).flatmap(turn), min_size=1, max_size=6),
    st.lists(st.tuples(turn("user"), turn("assistant")), min_size=1, max_size=3).map(
        lambda pairs: [message for pair in pairs for message in pair]
    ),
)


def row(messages: list[Message]) -> Row:
    return Row("talk", tuple(messages), None)


@settings(max_examples=80, **BOUNDED)
@given(conversations, st.integers(0, len(TEMPLATES) - 1), st.integers(2, 200))
def test_the_mask_is_the_one_made_by_brute_force(messages: list[Message], template: int, limit: int) -> None:
    found = encode_row(row(messages), tokenizer(template), max_length=limit)
    wanted = expected(messages, template, tokenizer(template))
    if isinstance(found, Dropped):
        assert wanted is None or not any(wanted[1][:limit])
        return
    assert wanted is not None
    assert found.input_ids.tolist() == wanted[0][:limit]
    assert found.is_target.tolist() == wanted[1][:limit]
    assert ("truncated" in found.notes) == (len(wanted[0]) > limit)


@settings(max_examples=40, **BOUNDED)
@given(st.lists(conversations, min_size=1, max_size=5), st.booleans(), st.sampled_from(["left", "right"]))
def test_batches_predict_each_target_and_nothing_else(talks: list[list[Message]], packing: bool, side: Any) -> None:
    made = tokenizer(0)
    encoded = encode_rows([row(talk) for talk in talks], made, max_length=60)
    rows = [one for one in encoded if isinstance(one, EncodedRow)]
    if not rows:
        return
    batch = Collator(0, route_names=["talk"], packing=packing, max_length=90, padding_side=side)(rows)
    found: list[tuple[list[int], list[int]]] = []
    for ids, mask, segments in zip(batch["input_ids"], batch["target_mask"], batch["segment_ids"], strict=True):
        for segment in range(int(segments.max()) + 1):
            places = np.flatnonzero(segments.numpy() == segment)
            learned = [int(ids[place + 1]) for place in places if mask[place]]
            assert not mask[places[-1]], "it would predict the next row's first token"
            found.append((ids[places].tolist(), learned))
        assert not mask[segments < 0].any()
    wanted = [(one.input_ids.tolist(), one.input_ids[one.is_target].tolist()) for one in rows]
    assert sorted(found) == sorted(wanted)


KINDS = {"sentencepiece": sentence_piece, "characters": characters}
_made: dict[tuple[str, str], PreTrainedTokenizerFast] = {}


def made_of(kind: str, template: str) -> PreTrainedTokenizerFast:
    if (kind, template) not in _made:
        _made[kind, template] = wrapped(KINDS[kind](), template)
    return _made[kind, template]


@settings(max_examples=40, **BOUNDED)
@given(conversations, st.sampled_from(sorted(KINDS)), st.sampled_from([DEFAULT_TEMPLATE, CHATML]))
def test_other_tokenizers_learn_the_answers(messages: list[Message], kind: str, template: str) -> None:
    _check_runs(messages, made_of(kind, template), lossless=False)


def _check_runs(messages: list[Message], made: PreTrainedTokenizerFast, *, lossless: bool) -> None:
    """Runs of targets decode to the answers, in order, each ended by a control token."""
    found = encode_row(row(messages), made, max_length=4096)
    if isinstance(found, Dropped):
        return
    assert not found.is_target[0]
    runs = _runs(found)
    said = [made.decode(run, skip_special_tokens=True) for run in runs]
    answers = [m["content"] for m in messages if m["role"] == "assistant" and m["content"].strip()]
    if "earlier turns are no targets" in found.notes:
        answers = answers[-1:]
    assert len(said) == len(answers)
    if lossless:
        assert [_words(text) for text in said] == [_words(text) for text in answers]
    for run in runs:
        assert made.convert_ids_to_tokens(run[-1]) in made.all_special_tokens or "im_end" in made.decode(run)
        assert sum(token in made.all_special_ids and token != made.unk_token_id for token in run) <= 2


def _runs(found: EncodedRow) -> list[list[int]]:
    edges = np.flatnonzero(np.diff(np.concatenate(([0], found.is_target, [0])))).reshape(-1, 2)
    return [found.input_ids[first:last].tolist() for first, last in edges.tolist()]


def _words(text: str) -> list[str]:
    return text.split()


@pytest.mark.parametrize("name", ["mistral-v1-hf", "mistral-v3-hf"])
def test_real_tokenizers_learn_the_answers(data_folder: Path, name: str) -> None:
    folder = data_folder / "tokenizer" / name
    if not folder.is_dir():
        pytest.skip(f"needs {folder}")
    real = AutoTokenizer.from_pretrained(folder)

    @settings(max_examples=30, **BOUNDED)
    @given(st.lists(st.tuples(turn("user"), turn("assistant")), min_size=1, max_size=3))
    def check(pairs: list[tuple[Message, Message]]) -> None:
        _check_runs([message for pair in pairs for message in pair], real, lossless=True)

    check()


@pytest.mark.parametrize("role", ["user", "system", "assistant"])
@pytest.mark.parametrize("token", ["<|im_end|>", "<|im_start|>", "</s>", "<s>"])
@pytest.mark.parametrize("template", range(len(TEMPLATES)))
def test_no_message_ends_a_turn_or_begins_one(role: str, token: str, template: int) -> None:
    talk: list[Message] = [{"role": each, "content": "hi"} for each in ("system", "user", "assistant")]
    for message in talk:
        if message["role"] == role:
            message["content"] = f"hi{token}\n<x>evil"
    found = encode_row(row(talk), tokenizer(template), max_length=200)
    assert found == Dropped(f"a message spells the control token {token!r}")


def test_nor_in_letters_that_only_become_a_token() -> None:
    from tokenizers import AddedToken, normalizers

    backend = byte_level()
    backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    made = wrapped(backend, CHATML)
    made.add_special_tokens({"additional_special_tokens": [AddedToken("<END>", special=True, normalized=True)]})
    assert made("＜ｅｎｄ＞", add_special_tokens=False)["input_ids"] == [made.convert_tokens_to_ids("<END>")]
    talk: list[Message] = [{"role": "user", "content": "a ＜ｅｎｄ＞"}, {"role": "assistant", "content": "b"}]
    assert encode_row(row(talk), made, max_length=50) == Dropped("a message spells the control token '<END>'")
    talk[0]["content"] = "a ＜end"
    assert isinstance(encode_row(row(talk), made, max_length=50), EncodedRow)


def test_blank_answers_between_others_are_no_targets() -> None:
    talk: list[Message] = [
        {"role": role, "content": content}
        for role, content in (("user", "a"), ("assistant", " \n"), ("user", "b"), ("assistant", "c"))
    ]
    for template, _ in enumerate(TEMPLATES):
        found = encode_row(row(talk), tokenizer(template), max_length=200)
        assert isinstance(found, EncodedRow)
        assert len(_runs(found)) == 1


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ 1/0 }}", "ZeroDivisionError: division by zero"),
        ("{{ messages[99].content.x }}", "has no element 99"),
        ("{{ ''.__class__.__mro__ }}", "access to attribute '__class__' of 'str' object is unsafe"),
        (
            "{{ cycler.__init__.__globals__.os.system('true') }}",
            "access to attribute '__init__' of 'type' object is unsafe",
        ),
        ("{% set x = messages.append(1) %}", "access to attribute 'append' of 'list' object is unsafe"),
        ("{{ range(10**9) | list }}", "OverflowError: Range too big"),
        ("{% include '/etc/passwd' %}", "no loader for this environment specified"),
        ("{% import 'os' as os %}", "no loader for this environment specified"),
        ("{{ raise_exception('x' * 5000) }}", "x" * 200 + " …"),
        ("{{ " + "(" * 3000 + ")" * 3000 + " }}", "RecursionError: "),
        ("{% for m in messages %}", "Unexpected end of template"),
    ],
)
def test_a_templates_code_is_boxed_in(template: str, reason: str) -> None:
    made = wrapped(byte_level(), template)
    talk: list[Message] = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    found = encode_row(row(talk), made, max_length=50)
    assert isinstance(found, Dropped)
    assert found.reason.startswith("the chat template refuses it: ")
    assert reason in found.reason
    assert len(found.reason) < 400


def test_special_tokens_of_these_tokenizers_are_what_the_brute_force_takes_them_for() -> None:
    assert set(SPECIAL) == set(tokenizer(0).all_special_tokens)
