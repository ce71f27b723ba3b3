"""`preceptor init`: writes a first recipe for the models and data that are named."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from preceptor.cli.command import Command
from preceptor.cli.output import print_result, progress
from preceptor.cli.parser import OneOf, Parser, new_parser
from preceptor.errors import InputError, accepted

_EXAMPLE = "preceptor init --teacher ./teacher --student ./student --data chats.jsonl"


def _parser() -> Parser:
    parser = new_parser(
        "init",
        "--teacher MODEL --student MODEL --data DATA",
        "Write a recipe for your models and data, with a comment on each choice. What is here is looked at (formats, "
        "rows, tokenizers, sizes); Hub ids are taken as they are, without a network. Nothing is overwritten.",
        [
            _EXAMPLE,
            "preceptor init --teacher ./teacher --student ./student --data chats.jsonl --domain shop.jsonl --lora",
            "preceptor init --teacher mistralai/Mixtral-8x7B-Instruct-v0.1 --student mistralai/Mistral-7B-v0.1 "
            "--data HuggingFaceH4/ultrachat_200k --quantize 4bit --out big.yaml",
        ],
    )
    add = parser.add_argument
    add("--teacher", metavar="MODEL", help="the model to learn from: a folder or a Hub id")
    add("--student", metavar="MODEL", help="the model that learns; of the teacher's tokenizer")
    add(
        "--data",
        metavar="DATA",
        action="append",
        default=[],
        help="rows of general ability: a file (JSONL, JSON, CSV, Parquet, text) or a Hub id (repeatable)",
    )
    add(
        "--domain",
        metavar="DATA",
        action="append",
        default=[],
        help="rows of a domain to learn without forgetting the rest: adds an expert and stage 2 (repeatable)",
    )
    add(
        "--expert",
        metavar="MODEL",
        action="append",
        default=[],
        help="a ready expert of the domain, a model or an adapter; left out, it is trained (one for each --domain)",
    )
    add("--lora", action="store_true", help="train adapters instead of whole models: much less memory")
    add("--quantize", metavar="4bit|8bit", type=OneOf("4bit", "8bit"), help="load the teacher quantised (bitsandbytes)")
    add("--store", action="store_true", help="run the teacher once and learn from what it said, kept on disk")
    add("--name", metavar="NAME", help="name of the run (default: the domain's, else distilled)")
    add("--out", metavar="FILE", default="recipe.yaml", help="the file to write (default: recipe.yaml)")
    return parser


def _run(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    missing = [f"--{name}" for name in ("teacher", "student", "data") if not getattr(options, name)]
    if missing:
        raise InputError(
            f"preceptor init: {accepted(missing).replace(' or ', ' and ')} {'is' if len(missing) == 1 else 'are'} "
            f"missing; write for example {_EXAMPLE}"
        )

    from preceptor.starter import Asked, start

    asked = Asked(
        teacher=options.teacher,
        student=options.student,
        data=options.data,
        domains=options.domain,
        experts=options.expert,
        lora=options.lora,
        quantize=options.quantize,
        store=options.store,
        name=options.name,
        out=options.out,
    )
    started = start(asked, progress)
    for note in started.notes:
        progress(f"note: {note}")
    following = f"preceptor plan {started.path}"
    result = {
        "recipe": str(started.path),
        "run": started.run,
        "stages": started.stages,
        "notes": started.notes,
        "next": following,
    }
    text = f"{started.path}: {', '.join(started.stages)}\nnext: {following}"
    print_result(result, text, options.json)
    return 0


COMMAND = Command(
    "init",
    "write a commented recipe for your models and data",
    _parser,
    _run,
)
