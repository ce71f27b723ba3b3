"""What a judge says: the texts from which grades and preferences are read."""

from __future__ import annotations

import json
import math
from pathlib import Path

from fuzz.scaffold import Target
from preceptor.evaluation.alpaca_eval.prompts import parse_logprobs, parse_ranking
from preceptor.evaluation.mt_bench.files import FAILED, Judgment, parse_score, write_judgments


def check(data: bytes, folder: Path) -> float:
    text = data.decode("utf-8", "surrogateescape" if data[:1] == b"s" else "replace")
    score = parse_score(text)
    assert math.isfinite(score)
    assert score == FAILED or score >= 0
    write_judgments(folder / "judgments.jsonl", [Judgment(1, "m", ("j", "t"), "p", text, score, 1, 0.0)])
    assert parse_ranking(text) in (None, 1.0, 2.0)
    try:
        told = json.loads(text, parse_constant=float)
    except (ValueError, RecursionError):
        told = None
    if isinstance(told, dict):
        numbers = {key: float(value) for key, value in told.items() if type(value) is float and not math.isnan(value)}
        preference, _ = parse_logprobs([{key: value for key, value in numbers.items() if value < math.inf}])
        assert preference is None or 1 <= preference <= 2
    return score


TARGET = Target(
    name="judge_reply",
    check=check,
    seeds=[
        b"The answer is fine. Rating: [[8.5]]",
        b"[{'model': 'model_1', 'rank': 1}, {'model': 'model_2', 'rank': 2}]",
        b'```json\n[{"model": "model_2", "rank": 1}, {"model": "model_1", "rank": 2}]\n```',
        b'{"m": -0.1, "M": -2.5, " m": -7.0}',
        b"Rating: [5] of [[x]]",
        "[[٣]] [[１０]]".encode(),
    ],
    words=[
        b"[[",
        b"]]",
        b"[[10]]",
        b"rank",
        b"model_1",
        b"1j",
        b"lambda: 0",
        b"f'{",
        b"-" * 40,
        b"\\d",
        b"1e999",
        b"{1:",
    ],
)
