"""What a user is told about models that cannot be asked and about answers that are already there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM

import toys
from answerers import Echo, Killed
from preceptor.data.template import DEFAULT_TEMPLATE
from preceptor.errors import InputError
from preceptor.evaluation.alpaca_eval.files import Instruction
from preceptor.evaluation.alpaca_eval.outputs import answer_alpaca_eval
from preceptor.evaluation.chat_prompts import check_can_answer
from preceptor.evaluation.chats import ChatRequest
from preceptor.evaluation.local_answers import LocalAnswerer, load_writer
from preceptor.evaluation.mt_bench.answers import answer_mt_bench
from preceptor.evaluation.mt_bench.files import Question
from preceptor.models.save import save_model
from preceptor.models.tokenizers import train_tokenizer
from preceptor.recipe import ModelSpec
from preceptor.recipe.suites import AlpacaEvalSpec, MtBenchSpec

QUESTIONS = [Question(81, "math", ("ab", "cd")), Question(82, "poetry", ("ef", "gh"))]
INSTRUCTIONS = [Instruction("ab", "set"), Instruction("cd", "set")]
MT_BENCH = MtBenchSpec(questions="q.jsonl", max_new_tokens=9)
ALPACA = AlpacaEvalSpec(baseline="b.json", max_new_tokens=9)


def told(raising: Callable[[], Any]) -> str:
    with pytest.raises(InputError) as caught:
        raising()
    return str(caught.value)


def local(template: str | None = None, context: int = 40, **special: Any) -> LocalAnswerer:
    tokenizer = train_tokenizer(["User: Assistant:\n\nabcdefgh"], vocab_size=50, kind="characters", announce=print)
    tokenizer.chat_template = template
    for name, value in special.items():
        setattr(tokenizer, name, value)
    sizes = {**toys.TINY, "vocab_size": len(tokenizer), "max_position_embeddings": context}
    return LocalAnswerer(toys.llama(1, **sizes), tokenizer, name="dae")


SINGLE_TURN = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{{ raise_exception('only one turn is supported') }}{% endif %}{{ message['content'] }}{% endfor %}"
)


def test_a_template_for_one_turn(tmp_path: Path) -> None:
    said = told(lambda: answer_mt_bench(QUESTIONS, local(SINGLE_TURN), MT_BENCH, tmp_path / "dae.jsonl", 0))
    assert said == (
        "dae: the model's chat template refuses a conversation of 2 turns (only one turn is supported); give a model "
        "that was made for conversations, or mend its chat_template.jinja"
    )
    assert not (tmp_path / "dae.jsonl").exists()


def test_a_template_that_refuses_every_conversation(tmp_path: Path) -> None:
    model = local("{{ raise_exception('a base model') }}")
    said = told(lambda: answer_alpaca_eval(INSTRUCTIONS, model, ALPACA, tmp_path / "outputs.json", 0))
    assert said == (
        "dae: the model's chat template refuses a conversation of 1 turn (a base model); give a model that was made "
        "for conversations, or mend its chat_template.jinja"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_template_that_writes_nothing(tmp_path: Path) -> None:
    model = local("{% if false %}{% endif %}")
    said = told(lambda: answer_alpaca_eval(INSTRUCTIONS, model, ALPACA, tmp_path / "outputs.json", 0))
    assert said == "dae: the model's chat template writes nothing; mend its chat_template.jinja"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("case", ["one turn", "limit"])
def test_what_is_said_before_any_weight_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    model = local(SINGLE_TURN if case == "one turn" else None)
    save_model(model._model, model._tokenizer, tmp_path / "m", dtype=torch.float32)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", None)
    spec, limit = ModelSpec(path=str(tmp_path / "m")), 40 if case == "limit" else 39
    said = told(lambda: check_can_answer(spec, name="dae", turns=2, max_new_tokens=limit))
    asked = told(lambda: list(model.answer([two_turns(limit)], lambda rows, tokens: None)))
    assert said == asked
    if case == "one turn":
        check_can_answer(spec, name="dae", turns=1, max_new_tokens=39)


def two_turns(limit: int) -> ChatRequest:
    roles = ("user", "assistant", "user")
    return ChatRequest(tuple({"role": role, "content": "a"} for role in roles), limit, 0.0, 0)


def test_a_tokenizer_without_an_end_token() -> None:
    said = told(lambda: local(DEFAULT_TEMPLATE, eos_token=None))
    assert said.endswith(
        'it has no end-of-sequence token, so that no answer could end; set "eos_token" in its tokenizer_config.json'
    )


@pytest.mark.parametrize("limit", [40, 1024])
def test_a_limit_of_tokens_longer_than_the_context(tmp_path: Path, limit: int) -> None:
    spec = MT_BENCH.model_copy(update={"max_new_tokens": limit})
    said = told(lambda: answer_mt_bench(QUESTIONS, local(), spec, tmp_path / "dae.jsonl", 0))
    assert said == (
        f"dae: `max_new_tokens` is {limit:,}, but the model's context is 40 tokens, prompt and answer together; set it "
        "below 40, with room for the prompt"
    )
    assert list(tmp_path.iterdir()) == []
    below = ChatRequest(({"role": "user", "content": "ab"},), 39, 0.0, 0)
    assert len(list(local().answer([below], lambda rows, tokens: None))) == 1


def test_a_recurrent_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LlamaForCausalLM, "_is_stateful", True)
    assert told(local).endswith(
        "keeps a recurrent state, which batched generation would spoil; give an attention model"
    )


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    toys.llama(1, **toys.TINY).save_pretrained(tmp_path / "m")
    said = told(lambda: load_writer(ModelSpec(path=str(tmp_path / "m"))))
    assert said == (
        f"tokenizer of '{tmp_path / 'm'}': the folder holds none (tokenizer.json is missing); copy the tokenizer's "
        "files beside the model"
    )


def test_a_temperature_for_an_unknown_category(tmp_path: Path) -> None:
    echo = Echo()
    for name, hint in (("wirting", " (did you mean 'writing'?)"), ("knowledge", "")):
        spec = MT_BENCH.model_copy(update={"temperatures": {"math": 0.5, name: 0.7}})
        said = told(lambda spec=spec: answer_mt_bench(QUESTIONS, echo, spec, tmp_path / "echo.jsonl", 0))
        assert said == (
            f"mt_bench.temperatures: {name!r} is no category of the questions{hint}; accepted are math, poetry, "
            "writing, roleplay, stem, humanities, extraction, coding or reasoning"
        )
    assert echo.asked == []
    assert list(tmp_path.iterdir()) == []


def begun(path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        answer_mt_bench(QUESTIONS, Killed(Echo("kd"), 2), MT_BENCH, path, 0)


# what is asked now -> what is said
OTHER: dict[str, tuple[dict[str, Any], str]] = {
    "another model": ({"answerer": Echo("dae")}, "holds answers of kd, not of dae"),
    "other questions": ({"questions": QUESTIONS[:1]}, "holds answers to other questions"),
    "a question reworded": (
        {"questions": [Question(81, "math", ("ab", "ce")), QUESTIONS[1]]},
        "holds answers to other questions",
    ),
    "another limit": (
        {"spec": MT_BENCH.model_copy(update={"max_new_tokens": 8})},
        "holds answers with max_new_tokens = 9, not 8",
    ),
    "another temperature": (
        {"spec": MT_BENCH.model_copy(update={"temperatures": {"math": 0.5}})},
        "holds answers with temperatures.math = 0.0, not 0.5",
    ),
    "another seed": ({"seed": 1}, "holds answers with seed = 0, not 1"),
}


@pytest.mark.parametrize("case", OTHER)
@pytest.mark.parametrize("finished", [False, True])
def test_answers_of_something_else(tmp_path: Path, case: str, finished: bool) -> None:
    changes, said = OTHER[case]
    path = tmp_path / "answers.jsonl"
    begun(path)
    given: dict[str, Any] = {"questions": QUESTIONS, "answerer": Echo("kd"), "spec": MT_BENCH, "seed": 0}
    if finished:
        answer_mt_bench(**given, path=path)
    before = {each.name: each.read_bytes() for each in tmp_path.iterdir()}
    message = told(lambda: answer_mt_bench(**{**given, **changes}, path=path))
    record = tmp_path / "answers.jsonl.record"
    assert message == f"{record}: {said}; delete it to ask anew, or write to another folder"
    assert {each.name: each.read_bytes() for each in tmp_path.iterdir()} == before


def test_a_reference_answer_is_not_asked(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    begun(path)
    hinted = [Question(81, "math", ("ab", "cd"), ("hint",)), QUESTIONS[1]]
    answer_mt_bench(hinted, Echo("kd"), MT_BENCH, path, 0)


def test_a_file_that_somebody_else_wrote(tmp_path: Path) -> None:
    path = tmp_path / "model_outputs.json"
    path.write_text("[]")
    said = told(lambda: answer_alpaca_eval(INSTRUCTIONS, Echo(), ALPACA, path, 0))
    assert said == (
        f"{path}: is there already, and was not written by preceptor, which keeps model_outputs.json.record beside it; "
        "move it away, or name it among the answers that are only to be judged"
    )
    assert path.read_text() == "[]"


def test_damaged_weights_are_no_input_error(tmp_path: Path) -> None:
    model = local()
    with torch.no_grad():
        model._model.lm_head.weight.fill_(torch.nan)
    with pytest.raises(RuntimeError, match="its logits are not numbers"):
        answer_alpaca_eval(INSTRUCTIONS, model, ALPACA, tmp_path / "outputs.json", 0)
