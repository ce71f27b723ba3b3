"""Masks by brute force: the decoded target tokens are the assistant's words and the end-of-sequence token."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from preceptor.data.chat import (
    DEFAULT_TEMPLATE,
    Dropped,
    EncodedRow,
    choose_template,
    encode_row,
    encode_rows,
    render_sample,
)
from preceptor.data.rows import Row
from preceptor.errors import InputError
from toy_tokenizers import CHATML, MARKED, PLAIN

FORGETS = (  # keeps the thought of the last answer only, as reasoning models do
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}{{ '<|im_start|>' }}"
    "{{ m['content'] if loop.last else m['content'].split('##')[-1] }}{{ eos_token }}"
    "{% else %}{{ m['content'] }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>' }}{% endif %}"
)
OPENS = (  # the generation prompt opens a thought that the template does not keep
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}"
    "{{ '<|im_start|>' + m['content'] + eos_token }}{% else %}{{ m['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>##' }}{% endif %}"
)


def target_texts(row: EncodedRow, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """The runs of targets, decoded after a token that keeps the decoder from trimming a first space."""
    runs: list[list[int]] = []
    previous = False
    for token, is_target in zip(row.input_ids.tolist(), row.is_target.tolist(), strict=True):
        if is_target and not previous:
            runs.append([])
        if is_target:
            runs[-1].append(token)
        previous = is_target
    before = tokenizer.eos_token_id
    return [tokenizer.decode([before, *run]).removeprefix(tokenizer.eos_token) for run in runs]


def encoded(row: Row, tokenizer: PreTrainedTokenizerFast, **options: object) -> EncodedRow:
    result = encode_row(row, tokenizer, max_length=512, **options)
    assert isinstance(result, EncodedRow), result
    assert result.input_ids.dtype == np.int32
    assert result.is_target.dtype == np.bool_
    assert not result.is_target[0]
    assert result.input_ids.tolist().count(tokenizer.bos_token_id) <= 1
    assert len(result.input_ids) == len(result.is_target)
    return result


TALK = ("s:be brief", "u:hello there", "a:I am well, thank you.", "u:what is two and two?", "a:It is four.\n")


@pytest.mark.parametrize("kind", ["byte-level", "sentencepiece", "characters"])
@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (DEFAULT_TEMPLATE, [" I am well, thank you.</s>", " It is four.\n</s>"]),
        (MARKED, ["I am well, thank you.</s>", "It is four.\n</s>"]),
        # An end-of-turn token that is not the end-of-sequence token: both are learned at the end of the row.
        (CHATML, ["I am well, thank you.<|im_end|>\n", "It is four.\n<|im_end|>\n</s>"]),
        (PLAIN, [" I am well, thank you.\n", " It is four.\n</s>"]),
        (OPENS, ["I am well, thank you.</s>", "It is four.\n</s>"]),
    ],
    ids=["default", "marked", "chatml", "plain", "opens"],
)
def test_targets_are_the_assistants_words(make_tokenizer, chat, kind, template, expected):
    tokenizer = make_tokenizer(kind, template)
    row = encoded(chat(*TALK), tokenizer)
    found = target_texts(row, tokenizer)
    if kind == "sentencepiece":
        # It writes a word mark after each control token, which decodes to a space.
        found = [t.replace("<|im_end|> ", "<|im_end|>") for t in found]
        found = [t.removeprefix("" if e.startswith(" ") else " ") for t, e in zip(found, expected, strict=True)]
    assert found == expected
    assert row.input_ids[-1] == tokenizer.eos_token_id
    assert row.is_target[-1]


@pytest.mark.parametrize("kind", ["byte-level", "sentencepiece", "characters"])
@pytest.mark.parametrize("template", [DEFAULT_TEMPLATE, MARKED], ids=["default", "marked"])
def test_odd_answers(make_tokenizer, chat, kind, template):
    tokenizer = make_tokenizer(kind, template)
    lead = " " if template == DEFAULT_TEMPLATE else ""
    answers = ["no", " yes ", "\n", "naïve café 日本", "\tmaybe\n\n", "a" * 50, "[INST]", ":"]
    for answer in answers:
        result = encode_row(chat("u:hello \n", f"a:{answer}"), tokenizer, max_length=512)
        if not answer.strip():
            assert result == Dropped("the answer is empty")
            continue
        texts = target_texts(result, tokenizer)
        if kind == "characters":
            texts = [t.replace("<unk>", "") for t in texts]
            answer = "".join(c for c in answer if c in tokenizer.get_vocab())
        assert texts == [lead + answer + "</s>"]


def test_random_conversations_against_brute_force(make_tokenizer, chat):
    """Fuzz over words, whitespace and turns: the runs of targets are the answers, in order, and nothing else."""
    rng = random.Random(0)
    words = ["hello", " ", "\n", "  ", "Assistant:", "User:", "four", "é", "日", ".", "\t", "1"]
    tokenizers = [make_tokenizer(k, t) for k in ("byte-level", "sentencepiece") for t in (DEFAULT_TEMPLATE, MARKED)]
    for _ in range(150):
        turns = []
        for _ in range(rng.randint(1, 3)):
            turns += [
                "u:" + "".join(rng.choices(words, k=rng.randint(1, 5))),
                "a:." + "".join(rng.choices(words, k=rng.randint(0, 4))) + "x" + rng.choice(["", " ", "\n"]),
            ]
        for tokenizer in tokenizers:
            lead = " " if tokenizer.chat_template == DEFAULT_TEMPLATE else ""
            row = encoded(chat(*turns), tokenizer)
            assert target_texts(row, tokenizer) == [lead + t[2:] + "</s>" for t in turns[1::2]], turns


def test_a_token_over_the_boundary(make_tokenizer, chat):
    """It is a target if the prompt's part of it is whitespace and the answer's is not."""
    glued = "{% for m in messages %}{{ m['content'] }}{% if not loop.last %}{{ ' ' }}{% endif %}{% endfor %}"
    spaced = glued + "{% if add_generation_prompt %}{{ ' ' }}{% endif %}"
    tokenizer = make_tokenizer("byte-level", spaced)
    row = encoded(chat("u:and is", "a:two"), tokenizer)
    assert tokenizer.convert_ids_to_tokens(row.input_ids[row.is_target]) == ["Ġtwo", "</s>"]
    row = encoded(chat("u:and is", "a: \n two"), tokenizer)
    assert target_texts(row, tokenizer)[0].strip() == "two</s>"
    # The answer's first letters are in a token that the prompt begins: it is none, and the rest still is.
    tokenizer = make_tokenizer("byte-level", glued.replace("{{ ' ' }}", ""))
    row = encoded(chat("u:be hel", "a:lo there"), tokenizer)
    assert tokenizer.tokenize("be hello") == ["be", "Ġhello"]
    assert target_texts(row, tokenizer) == [" there</s>"]


def test_the_bytes_of_the_last_character_are_targets(make_tokenizer, chat):
    """They share one place in the text; here no token follows them in the answer."""
    tokenizer = make_tokenizer("sentencepiece", PLAIN.replace("'\\n'", "''"))
    row = encoded(chat("u:hello", "a:日", "u:how", "a:no"), tokenizer)
    assert target_texts(row, tokenizer)[0] == " 日"


def test_tokens_are_those_of_the_whole_text(make_tokenizer, chat):
    """The row is tokenized as one text, as it is when a user's conversation goes on."""
    tokenizer = make_tokenizer("byte-level", DEFAULT_TEMPLATE)
    row = encoded(chat(*TALK), tokenizer)
    messages = [dict(m) for m in chat(*TALK).messages]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert row.input_ids.tolist() == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert text.count("<s>") == 1


@pytest.mark.parametrize("kind", ["byte-level", "characters"])
def test_earlier_turns_that_the_template_rewrites_are_no_targets(make_tokenizer, chat, kind):
    tokenizer = make_tokenizer(kind, FORGETS)
    row = encoded(chat("u:hello", "a:think ## yes", "u:how", "a:well ## no"), tokenizer)
    assert target_texts(row, tokenizer) == ["well ## no</s>"]
    assert row.notes == ("earlier turns are no targets",)
    assert "think" not in tokenizer.decode(row.input_ids)
    # Without a thought nothing is rewritten, and both answers are learned.
    row = encoded(chat("u:hello", "a: yes", "u:how", "a: no"), tokenizer)
    assert target_texts(row, tokenizer) == [" yes</s>", " no</s>"]
    assert row.notes == ()


def test_what_follows_the_last_answer_is_left_out(make_tokenizer, chat):
    tokenizer = make_tokenizer("byte-level", DEFAULT_TEMPLATE)
    short = encoded(chat("u:hello", "a:yes"), tokenizer)
    long = encoded(chat("u:hello", "a:yes", "u:and now?", "a:  "), tokenizer)
    assert long.input_ids.tolist() == short.input_ids.tolist()


def test_all_targets(make_tokenizer, chat):
    tokenizer = make_tokenizer("byte-level", DEFAULT_TEMPLATE)
    row = encoded(chat(*TALK), tokenizer, targets="all")
    assert row.is_target.tolist() == [False] + [True] * (len(row) - 1)
    assert row.input_ids[-1] == tokenizer.eos_token_id


@pytest.mark.parametrize("kind", ["byte-level", "sentencepiece", "characters"])
@pytest.mark.parametrize("text", ["hello there", "<s>hello there", "hello there</s>", "<s>hello there</s>"])
def test_plain_text_is_closed_once(make_tokenizer, kind, text):
    tokenizer = make_tokenizer(kind)
    row = encoded(Row("books", None, text, {}, "b.txt:1"), tokenizer)
    assert tokenizer.decode(row.input_ids).replace("<s> ", "<s>") == "<s>hello there</s>"
    assert row.is_target.tolist() == [False] + [True] * (len(row) - 1)


def test_truncation_keeps_a_target_or_drops_the_row(make_tokenizer, chat):
    tokenizer = make_tokenizer("characters", DEFAULT_TEMPLATE)
    row = chat("u:hello", "a:yes")
    whole = encoded(row, tokenizer)
    first = int(np.flatnonzero(whole.is_target)[0])
    cut = encode_row(row, tokenizer, max_length=first + 1)
    assert isinstance(cut, EncodedRow)
    assert cut.target_count == 1
    assert cut.notes == ("truncated",)
    assert cut.input_ids.tolist() == whole.input_ids[: first + 1].tolist()
    assert encode_row(row, tokenizer, max_length=first) == Dropped(f"no target within {first} tokens")


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        (("u:hello",), "no assistant turn"),
        (("u:hello", "a: \n"), "the answer is empty"),
        (("u:hello", "a:yes</s>no"), "a message spells the control token '</s>'"),
        (("u:<|im_start|>system", "a:no"), "a message spells the control token '<|im_start|>'"),
    ],
)
def test_dropped_rows_say_why(make_tokenizer, chat, turns, reason):
    tokenizer = make_tokenizer("byte-level", DEFAULT_TEMPLATE)
    assert encode_row(chat(*turns), tokenizer, max_length=64) == Dropped(reason)


def test_plain_text_without_words_is_dropped(make_tokenizer):
    row = Row("books", None, " \n", {}, "b.txt:1")
    assert encode_row(row, make_tokenizer(), max_length=8) == Dropped("the text is empty")


def test_a_template_that_refuses_or_forgets_drops_the_row(make_tokenizer, chat):
    refuses = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + PLAIN
    tokenizer = make_tokenizer("byte-level", refuses)
    result = encode_row(chat("s:be brief", "u:hello", "a:yes"), tokenizer, max_length=64)
    assert result == Dropped("the chat template refuses it: no system role")
    silent = "{% for m in messages if m['role'] != 'system' %}{{ m['content'] }}{% endfor %}"
    tokenizer = make_tokenizer("byte-level", silent)
    result = encode_row(chat("s:be brief", "u:hello", "a:yes"), tokenizer, max_length=64)
    assert result == Dropped("the chat template leaves out a system message")


def test_rows_come_back_in_order(make_tokenizer, chat):
    tokenizer = make_tokenizer("byte-level", DEFAULT_TEMPLATE)
    rows = [chat("u:hello", f"a:{i}") if i % 3 else chat("u:hello") for i in range(1200)]
    results = list(encode_rows(rows, tokenizer, max_length=64))
    assert len(results) == 1200
    for i, result in enumerate(results):
        if i % 3:
            assert target_texts(result, tokenizer) == [f" {i}</s>"]
        else:
            assert result == Dropped("no assistant turn")


def test_choose_template(make_tokenizer):
    student, teacher = make_tokenizer("characters"), make_tokenizer("characters", CHATML)
    assert choose_template(student, None) == "default"
    assert student.chat_template == DEFAULT_TEMPLATE
    student.chat_template = None
    assert choose_template(student, teacher) == "teacher"
    assert student.chat_template == CHATML
    student.chat_template = PLAIN
    assert choose_template(student, teacher) == "student"
    assert student.chat_template == PLAIN
    student.chat_template = {"default": MARKED, "tool_use": PLAIN}
    assert choose_template(student, teacher) == "student"
    assert student.chat_template == MARKED
    student.chat_template = {"rag": MARKED, "tool_use": PLAIN}
    with pytest.raises(InputError, match="chat templates rag, tool_use and none named 'default'"):
        choose_template(student, teacher)


def test_default_template_is_saved_with_the_student(make_tokenizer, chat, tmp_path):
    tokenizer = make_tokenizer("byte-level")
    choose_template(tokenizer)
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    row = chat(*TALK)
    assert encoded(row, again).input_ids.tolist() == encoded(row, tokenizer).input_ids.tolist()
    assert encoded(row, again).is_target.tolist() == encoded(row, tokenizer).is_target.tolist()


def test_default_template_prompts_as_it_trains(make_tokenizer):
    """What generation is given is a prefix of what was trained on, up to the first target."""
    tokenizer = make_tokenizer("byte-level", DEFAULT_TEMPLATE)
    messages = [{"role": "user", "content": "hello"}]
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template([*messages, {"role": "assistant", "content": "yes"}], tokenize=False)
    assert prompt == "<s>User: hello\n\nAssistant:"
    assert whole == prompt + " yes</s>"


def test_tokenizers_that_cannot_be_used(make_tokenizer, chat):
    with pytest.raises(InputError, match="no chat template"):
        encode_row(chat(*TALK), make_tokenizer("byte-level"), max_length=64)
    tokenizer = make_tokenizer("byte-level", PLAIN)
    tokenizer.eos_token = None
    with pytest.raises(InputError, match="no end-of-sequence token"):
        encode_row(chat(*TALK), tokenizer, max_length=64)
    with pytest.raises(InputError, match="no end-of-sequence token"):
        encode_row(Row("books", None, "hello", {}, "b:1"), tokenizer, max_length=64)


def test_render_sample(make_tokenizer, chat):
    tokenizer = make_tokenizer("byte-level", DEFAULT_TEMPLATE)
    row = encoded(chat("u:naïve 日本", "a:café", "u:how", "a:no"), tokenizer)
    assert (
        render_sample(row, tokenizer)
        == "<s>User: naïve 日本\n\nAssistant:⟦ café</s>⟧\n\nUser: how\n\nAssistant:⟦ no</s>⟧"
    )


@pytest.mark.parametrize("version", ["v1", "v3"])
class TestMistral:
    """The real Mistral tokenizers and templates."""

    @pytest.fixture
    def tokenizer(self, data_folder: Path, version: str) -> PreTrainedTokenizerFast:
        return AutoTokenizer.from_pretrained(data_folder / "tokenizer" / f"mistral-{version}-hf")

    def test_targets(self, tokenizer, chat, version):
        turns = ("u: Hello \n", "a: Hi there ", "u:日本?", "a:naïve 🙂\n", "u:[INST", "a:x")
        row = encoded(chat(*turns), tokenizer)
        assert target_texts(row, tokenizer) == ["  Hi there </s>", " naïve 🙂\n</s>", " x</s>"]
        assert row.input_ids[0] == tokenizer.bos_token_id
        assert row.input_ids[-1] == tokenizer.eos_token_id
        expected = tokenizer.apply_chat_template([dict(m) for m in chat(*turns).messages])["input_ids"]
        assert row.input_ids.tolist() == expected

    def test_system_message(self, tokenizer, chat, version):
        """v3's template writes the system message into the last turn only while that is the user's, so that a whole
        conversation loses it: the last answer is learned behind the prompt it is asked with."""
        turns = ("s:Be brief.", "u:Hello", "a:Hi", "u:More", "a:OK")
        row = encoded(chat(*turns), tokenizer)
        sample = render_sample(row, tokenizer)
        if version == "v1":
            assert target_texts(row, tokenizer) == [" Hi</s>", " OK</s>"]
            assert sample.startswith("<s> [INST] Be brief.\n\nHello [/INST]⟦ Hi</s>⟧ [INST] More")
            assert row.notes == ()
        else:
            assert target_texts(row, tokenizer) == [" OK</s>"]
            assert tokenizer.decode(row.input_ids) == (
                "<s>[INST] Hello[/INST] Hi</s>[INST] Be brief.\n\nMore[/INST] OK</s>"
            )
            assert row.notes == ("earlier turns are no targets",)
            prompt = [dict(m) for m in chat(*turns).messages[:-1]]
            asked = tokenizer.apply_chat_template(prompt, add_generation_prompt=True)["input_ids"]
            assert row.input_ids[: len(asked)].tolist() == asked
            assert row.is_target.tolist() == [i >= len(asked) for i in range(len(row))]

    def test_real_rows(self, tokenizer, data_folder, version):
        """Every row of the shop's test set: the targets are its answer, and the prompt is the prompt."""
        from preceptor.data.rows import read_rows
        from preceptor.recipe import DatasetSpec

        spec = DatasetSpec(path=str(data_folder / "ecommerce" / "ecom_eval.jsonl"))
        rows = read_rows("shop", spec, announce=lambda line: None)[::7]
        for row, result in zip(rows, encode_rows(rows, tokenizer, max_length=4096), strict=True):
            assert isinstance(result, EncodedRow), result
            assert target_texts(result, tokenizer) == [f" {row.answer}</s>"]
            asked = tokenizer.apply_chat_template([dict(m) for m in row.prompt_messages], add_generation_prompt=True)
            assert result.input_ids[~result.is_target].tolist() == asked["input_ids"]
