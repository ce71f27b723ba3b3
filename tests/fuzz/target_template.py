"""A chat template that came with a model: any text as the template."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from fuzz.masks import TEMPLATES
from fuzz.scaffold import Target
from preceptor.data.chat import Dropped, EncodedRow, encode_row
from preceptor.data.rows import Row
from toy_tokenizers import byte_level, wrapped

TALK = tuple(
    {"role": role, "content": content}
    for role, content in (("system", "s"), ("user", "hello"), ("assistant", "yes"), ("user", "b"), ("assistant", "no"))
)


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    return wrapped(byte_level())


def check(data: bytes, folder: Path) -> EncodedRow | Dropped:
    made = tokenizer()
    made.chat_template = data.decode(errors="replace") or " "
    found = encode_row(Row("data", TALK, None), made, max_length=200)
    if isinstance(found, Dropped):
        assert 0 < len(found.reason) < 400
        return found
    assert not found.is_target[0]
    assert found.is_target.any()
    return found


TARGET = Target(
    name="template",
    check=check,
    seeds=[template.encode() for template, _ in TEMPLATES],
    words=[
        b"{% for m in messages %}", b"{% endfor %}", b"{% if ", b"{% endif %}", b"{{ ", b" }}", b"m['content']",
        b"m.role", b"{% generation %}", b"{% endgeneration %}", b"raise_exception('x')", b"| trim", b"[0]", b"1/0",
        b".__class__", b"loop.last", b"add_generation_prompt", b"eos_token", b"{% set x = ",
        b"| tojson", b"messages[1:]", b" ~ ",
    ],
)  # fmt: skip
