"""The JSON files of MT-Bench and AlpacaEval, which many scripts and hands write: any bytes as each of them."""

from __future__ import annotations

import json
from pathlib import Path

from fuzz.scaffold import Target
from preceptor.evaluation.alpaca_eval.files import read_annotations, read_outputs, write_annotations, write_outputs
from preceptor.evaluation.alpaca_eval.prompts import read_prompt
from preceptor.evaluation.alpaca_eval.scores import Annotated
from preceptor.evaluation.alpaca_eval.scores import summarise as summarise_alpaca_eval
from preceptor.evaluation.mt_bench.files import (
    Question,
    read_answers,
    read_judgments,
    read_questions,
    read_references,
    write_answers,
    write_judgments,
)
from preceptor.evaluation.mt_bench.scores import Judged
from preceptor.evaluation.mt_bench.scores import summarise as summarise_mt_bench
from preceptor.system.files import json_text

QUESTIONS = [Question(81, "writing", ("Write.", "Again.")), Question(111, "math", ("1+1?", "And 2+2?"))]


def check(data: bytes, folder: Path) -> None:
    """The first byte says which file the others are; what is accepted can be written again, and summarised."""
    kind, path, out = data[0] % 7 if data else 0, folder / "given", folder / "out"
    path.write_bytes(data[1:])
    if kind == 0:
        judgments = read_judgments(path)
        write_judgments(out, judgments)
        found = summarise_mt_bench({"m": Judged(judgments, "file")}, QUESTIONS, resamples=2)
        json_text(found).encode()
    elif kind == 1:
        annotations = read_annotations(path)
        write_annotations(out, [each for each in annotations if each.raw_completion is None])
        asked = [each.instruction for each in annotations]
        json_text(summarise_alpaca_eval({"m": Annotated(annotations, "file")}, asked, resamples=2)).encode()
    elif kind == 2:
        write_answers(out, read_answers(path, QUESTIONS, partial=True).values())
    elif kind == 3:
        read_questions(path)
    elif kind == 4:
        read_references(path, QUESTIONS)
    elif kind == 5:
        write_outputs(out, read_outputs(path))
    else:
        read_prompt(path, "ranking")


def _lines(*rows: object) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


_JUDGMENT = {
    "question_id": 81,
    "model": "m",
    "judge": ["gpt-4", "single-v1"],
    "user_prompt": "p",
    "judgment": "Fine. Rating: [[9]]",
    "score": 9,
    "turn": 1,
    "tstamp": 1.5,
}
_ANNOTATION = {
    "instruction": "Say hi.",
    "output_1": "hi",
    "generator_1": "base",
    "output_2": "hello",
    "generator_2": "m",
    "annotator": "gpt4",
    "preference": 1.5,
    "dataset": "d",
}
_ANSWER = {
    "question_id": 111,
    "answer_id": "a",
    "model_id": "m",
    "choices": [{"index": 0, "turns": ["2", "4"]}],
    "tstamp": 1.5,
}
_QUESTION = {"question_id": 81, "category": "writing", "turns": ["Write.", "Again."], "reference": ["r"]}
_OUTPUT = {"instruction": "Say hi.", "output": "hi", "generator": "m", "dataset": "d"}
_PROMPT = b"<|im_start|>user\n{instruction} model_1: {output_1} model_2: {output_2}\n<|im_end|>"

TARGET = Target(
    name="json_files",
    check=check,
    seeds=[
        b"\x00" + _lines(_JUDGMENT, {**_JUDGMENT, "turn": 2, "score": 250, "judgment": "[[250]]"}),
        b"\x01" + json.dumps([_ANNOTATION, {**_ANNOTATION, "instruction": "2", "preference": None}]).encode(),
        b"\x02" + _lines(_ANSWER),
        b"\x03" + _lines(_QUESTION),
        b"\x04" + _lines(_ANSWER),
        b"\x05" + json.dumps([_OUTPUT]).encode(),
        b"\x06" + _PROMPT,
    ],
    words=[
        b"[[1e400]]",
        b"Infinity",
        b"1e400",
        b"\\ud800",
        b"true",
        b'"turn": 1.0',
        b'"score": ',
        b"{output_1}",
        b"[[2]]",
    ],
)
