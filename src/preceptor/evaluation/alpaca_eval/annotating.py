"""Pairwise judging of AlpacaEval: the judge sees an instruction and two answers, and says which it prefers.

Which answer stands first moves a judge, so that the order is drawn for each instruction, or both are asked. Whatever
the judge saw, a preference is written with the baseline as output 1 and the model as output 2.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preceptor.evaluation.alpaca_eval.files import Annotation, Output, write_annotations
from preceptor.evaluation.alpaca_eval.prompts import AnnotatorPrompt, parse_logprobs, parse_ranking
from preceptor.evaluation.endpoint import Completion, Reply
from preceptor.evaluation.judge import Judge
from preceptor.recipe.suites import AlpacaEvalSpec

TIE = 1.5
TOP_LOGPROBS = 5


@dataclass(frozen=True)
class Annotations:
    """One model's annotations, and what the order of the answers did.

    `twice` rows were judged in both orders and got a preference in each; in `changed` of them the second order turned
    the verdict. Both are None where one order was asked. `one_token` counts replies whose preference is 1 or 2 because
    the other token was not among the log-probabilities, `replies` those with a preference.
    """

    rows: list[Annotation]
    changed: int | None
    twice: int | None
    one_token: int
    replies: int


def model_first(seed: int, instruction: str) -> bool:
    """Whether the judge sees the model's answer before the baseline's: a fair coin of the seed and the instruction."""
    digest = hashlib.sha256(f"{seed}\n{instruction}".encode("utf-8", "surrogatepass")).digest()
    return bool(digest[0] & 1)


def annotate_alpaca_eval(
    pairs: Sequence[tuple[Output, Output]],
    prompt: AnnotatorPrompt,
    judge: Judge,
    spec: AlpacaEvalSpec,
    path: Path,
    *,
    name: str,
    seed: int,
    log: Callable[[str], None],
) -> Annotations:
    """Has every pair of answers judged, and writes the official annotations.json.

    Equal answers are a tie and are not sent. A reply that cannot be read gives the preference null; in both orders the
    preference is the mean of the two, and null where one cannot be read.

    Args:
        pairs: the baseline's and the model's output, by instruction.
        prompt: the annotator's template.
        judge: asked at temperature 0 for a ranking, at 1 for one token's log-probabilities (it changes none of them).
        spec: of the stage.
        path: the file to write.
        name: what the model is called in log lines.
        seed: of the order.
        log: takes a line.

    Raises:
        InputError: the judge gives no log-probabilities where they are needed; and with RunFailed, from the judge.
    """
    assert spec.judge is not None
    tasks: list[tuple[int, bool]] = []  # row, whether the model's answer comes first
    for row, (baseline, output) in enumerate(pairs):
        if baseline.output != output.output:
            first = model_first(seed, baseline.instruction)
            tasks += [(row, False), (row, True)] if spec.order == "both" else [(row, first)]
    requests = [_completion(prompt, spec, *pairs[row], swapped=swapped) for row, swapped in tasks]
    seen: dict[tuple[int, bool], _Verdict] = {}
    replies = judge.complete(requests, f"AlpacaEval annotations of {name}") if requests else iter(())
    for index, reply in replies:
        if spec.preference == "logprobs" and reply.logprobs is None and reply.text:
            raise judge.no_logprobs()
        seen[tasks[index]] = _verdict(reply, spec, swapped=tasks[index][1])
    rows = [
        _annotation(baseline, output, f"{prompt.name}_{spec.judge.model}", _in_order(seen, row))
        for row, (baseline, output) in enumerate(pairs)
    ]
    write_annotations(path, rows)
    failed = sum(each.preference is None for each in rows)
    log(
        f"{name}: {len(requests):,} preferences asked for, {failed:,} of {len(rows):,} rows without one, "
        f"{len(pairs) - len({row for row, _ in tasks}):,} ties of equal answers"
    )
    both = [each for row in range(len(pairs)) if len(each := _preferences(_in_order(seen, row))) == 2]
    asked_twice = spec.order == "both"
    return Annotations(
        rows=rows,
        changed=sum((one - TIE) * (two - TIE) < 0 for one, two in both) if asked_twice else None,
        twice=len(both) if asked_twice else None,
        one_token=sum(each.one_token for each in seen.values()),
        replies=len(_preferences(list(seen.values()))),
    )


@dataclass(frozen=True)
class _Verdict:
    """One reply: the preference with the baseline as 1 and the model as 2, and what is kept of the reply."""

    preference: float | None
    kept: dict[str, Any]
    one_token: bool
    cost: float | None


def _completion(
    prompt: AnnotatorPrompt, spec: AlpacaEvalSpec, baseline: Output, output: Output, *, swapped: bool
) -> Completion:
    one, two = (output, baseline) if swapped else (baseline, output)
    messages = prompt.messages({"instruction": baseline.instruction, "output_1": one.output, "output_2": two.output})
    if spec.preference == "logprobs":
        return Completion(messages, max_tokens=1, temperature=1.0, top_logprobs=TOP_LOGPROBS)
    return Completion(messages, max_tokens=spec.judge_max_tokens, temperature=0.0)


def _verdict(reply: Reply, spec: AlpacaEvalSpec, *, swapped: bool) -> _Verdict:
    kept: dict[str, Any] = {"text": reply.text, "finish_reason": reply.finish_reason, "model_first": swapped}
    one_token = False
    if spec.preference == "logprobs":
        seen, both = parse_logprobs(reply.logprobs or ())
        one_token = seen is not None and not both
        first = (reply.logprobs or ({},))[0]
        kept["logprobs"] = {token: value for token, value in first.items() if math.isfinite(value)}
    else:
        seen = parse_ranking(reply.text)
    preference = 3 - seen if swapped and seen is not None else seen
    price = spec.judge.price if spec.judge is not None else None
    cost = None
    if price is not None:
        cost = (reply.prompt_tokens * price.input + reply.completion_tokens * price.output) / 1e6
    return _Verdict(preference, kept, one_token, cost)


def _in_order(seen: dict[tuple[int, bool], _Verdict], row: int) -> list[_Verdict]:
    """What was said of a row: nothing for equal answers, else one verdict or two, the baseline-first one before."""
    return [seen[row, swapped] for swapped in (False, True) if (row, swapped) in seen]


def _preferences(verdicts: Sequence[_Verdict]) -> list[float]:
    return [each.preference for each in verdicts if each.preference is not None]


def _annotation(baseline: Output, output: Output, annotator: str, verdicts: Sequence[_Verdict]) -> Annotation:
    preferences = _preferences(verdicts)
    costs = [each.cost for each in verdicts if each.cost is not None]
    if not verdicts:
        preference: float | None = TIE
    else:
        preference = sum(preferences) / len(preferences) if len(preferences) == len(verdicts) else None
    return Annotation(
        instruction=baseline.instruction,
        output_1=baseline.output,
        generator_1=baseline.generator,
        output_2=output.output,
        generator_2=output.generator,
        annotator=annotator,
        preference=preference,
        dataset=baseline.dataset,
        price=sum(costs) if costs else None,
        raw_completion=[each.kept for each in verdicts]
        if len(verdicts) > 1
        else verdicts[0].kept
        if verdicts
        else None,
    )
