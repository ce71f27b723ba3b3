"""How fast a local model answers: batched and one by one, ours and transformers' own `generate`.

    python benchmarks/answers.py
    python benchmarks/answers.py --rows 400 --batch-size 64

The pocket teacher answers questions of the pocket study's test split, greedily, prompts longest first. All cases live
in one process and are run in turn, round after round, so that a machine that slows down slows all of them; `ratio` is
the median over rounds of a case's seconds by those of ours one by one in the same round, `faster` its inverse. `same`
counts answers equal to ours one by one. Rows go to benchmarks/out/answers.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from preceptor.data.template import ChatTemplate, Message
from preceptor.evaluation.chats import ChatRequest
from preceptor.evaluation.local_answers import LocalAnswerer, load_writer
from preceptor.evaluation.measure import by_length
from preceptor.models.sampling import stop_tokens
from preceptor.pocket.methods import TEACHER_SPEC
from preceptor.pocket.tasks import make_rows
from preceptor.recipe import ModelSpec
from step import OUT, environment

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FIRST = "one"
LABELS = {
    FIRST: "preceptor, one by one",
    "batched": "preceptor, batches of {B}",
    "sampled": "preceptor, batches of {B}, temperature 0.7",
    "generate_one": "transformers' generate, one by one",
    "generate_batched": "transformers' generate, batches of {B}",
}

Answers = Callable[[], list[str]]


def questions(rows: int) -> list[tuple[Message, ...]]:
    """Conversations of one turn, all different."""
    found = (row["messages"][0]["content"] for row in make_rows("test", rows * 2, 0))
    texts = list(dict.fromkeys(found))[:rows]
    return [({"role": "user", "content": text},) for text in texts]


def ours(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    asked: Sequence[tuple[Message, ...]],
    *,
    batch_size: int,
    limit: int,
    temperature: float = 0.0,
) -> Answers:
    """Answers by `LocalAnswerer`, rendering and tokenizing included."""
    answerer = LocalAnswerer(model, tokenizer, name="pocket", batch_size=batch_size)
    requests = [ChatRequest(messages, limit, temperature, seed) for seed, messages in enumerate(asked)]

    def run() -> list[str]:
        found = dict(answerer.answer(requests, lambda rows, tokens: None))
        return [found[i].text for i in range(len(requests))]

    return run


def by_generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    asked: Sequence[tuple[Message, ...]],
    *,
    batch_size: int,
    limit: int,
) -> Answers:
    """Answers by `generate` on the same prompts in the same order, padded on the left."""
    template, stop = ChatTemplate(tokenizer), sorted(stop_tokens(model, tokenizer))

    @torch.inference_mode()
    def run() -> list[str]:
        texts = [template.render(messages, add_generation_prompt=True) for messages in asked]
        prompts = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        answers = [""] * len(prompts)
        for batch in by_length([len(ids) for ids in prompts], batch_size):
            inputs = tokenizer.pad({"input_ids": [prompts[i] for i in batch]}, padding_side="left", return_tensors="pt")
            written = model.generate(
                **inputs,
                do_sample=False,
                max_new_tokens=limit,
                eos_token_id=stop,
                pad_token_id=tokenizer.pad_token_id,
            )[:, inputs["input_ids"].shape[1] :]
            for i, text in zip(batch, tokenizer.batch_decode(written, skip_special_tokens=True), strict=True):
                answers[i] = text.strip()
        return answers

    return run


def measure(cases: dict[str, Answers], rounds: int) -> dict[str, dict[str, Any]]:
    """Median seconds of each case, and against ours one by one in the same round."""
    expected = cases[FIRST]()
    same = {name: sum(a == b for a, b in zip(run(), expected, strict=True)) for name, run in cases.items()}
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(rounds):
        print(f"round {turn + 1} of {rounds}", file=sys.stderr, flush=True)
        for name, run in cases.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    found = {}
    for name, values in seconds.items():
        ratio = statistics.median(own / one for own, one in zip(values, seconds[FIRST], strict=True))
        found[name] = {
            "median_s": round(statistics.median(values), 4),
            "ratio": round(ratio, 4),
            "faster": round(1 / ratio, 2),
            "rounds": rounds,
            "fastest_s": round(min(values), 4),
            "answers_per_s": round(len(expected) / statistics.median(values), 1),
            "same": same[name],
        }
    return found


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: answers per second, against one by one, and how many answers are the same."""
    lines = ["| way | answers/s | against one by one | same answers |", "|---|---|---|---|"]
    for row in rows:
        label = LABELS[row["case"]].format(B=row["B"])
        same = "–" if row["case"] == "sampled" else f"{row['same']:,} of {row['rows']:,}"
        lines.append(f"| {label} | {row['answers_per_s']:,.1f} | {row['faster']:.2f}× | {same} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print the table, write the rows."""
    parser = argparse.ArgumentParser(description="Throughput of answering, batched and one by one.")
    parser.add_argument(
        "--rows", type=int, default=160, help="questions (default 160, as many answers as MT-Bench has)"
    )
    parser.add_argument("--batch-size", type=int, default=16, help="answers written at once (default 16)")
    parser.add_argument("--limit", type=int, default=31, help="new tokens of an answer at most (default 31)")
    parser.add_argument("--rounds", type=int, default=5, help="measured runs of each case (default 5)")
    parser.add_argument("--threads", type=int, help="torch threads (default: one per core)")
    parser.add_argument("--out", type=Path, default=OUT, help="directory for answers.json (default benchmarks/out)")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    machine = environment()
    model, tokenizer = load_writer(ModelSpec(**TEACHER_SPEC))
    asked, B = questions(args.rows), args.batch_size
    cases = {
        FIRST: ours(model, tokenizer, asked, batch_size=1, limit=args.limit),
        "batched": ours(model, tokenizer, asked, batch_size=B, limit=args.limit),
        "sampled": ours(model, tokenizer, asked, batch_size=B, limit=args.limit, temperature=0.7),
        "generate_one": by_generate(model, tokenizer, asked, batch_size=1, limit=args.limit),
        "generate_batched": by_generate(model, tokenizer, asked, batch_size=B, limit=args.limit),
    }
    found = measure(cases, args.rounds)
    size = {FIRST: 1, "generate_one": 1}
    how = {"S": model.config.max_position_embeddings, "rows": len(asked), "limit": args.limit}
    rows = [
        {"case": name, "B": size.get(name, B), **how, **each, "environment": machine} for name, each in found.items()
    ]
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "answers.json").write_text(json.dumps(rows, indent=1) + "\n")
    print(table(rows))
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items() if name != "trl")
    work = f"{len(asked)} questions, at most {args.limit} new tokens"
    print(f"\nThe pocket teacher, {work}; median of {args.rounds} rounds.", end=" ")
    print(f"fp32, {machine['cpu']}, {machine['threads']} threads; {versions}.")


if __name__ == "__main__":
    main()
