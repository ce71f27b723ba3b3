"""Loss masks: conversations of any texts, in several templates, against masks made by brute force.

The first two bytes choose the template and the length; then turns, each begun by a byte that says whose it is.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from fuzz.masks import TEMPLATES, expected
from fuzz.scaffold import Target
from preceptor.data.chat import Dropped, EncodedRow, encode_row, render_sample
from preceptor.data.rows import Row
from toy_tokenizers import SPECIAL, byte_level, wrapped

ROLES = {b"\x01": "user", b"\x02": "assistant", b"\x03": "system"}


@cache
def tokenizer(template: int) -> PreTrainedTokenizerFast:
    return wrapped(byte_level(), TEMPLATES[template][0])


def check(data: bytes, folder: Path) -> EncodedRow | Dropped:
    template, length = data[:1] or b"\0", data[1:2] or b"\xff"
    number, limit = template[0] % len(TEMPLATES), 2 + length[0] * 4
    parts = re.split(b"([\x01-\x03])", data[2:])
    messages = tuple(
        {"role": ROLES[mark], "content": text.decode(errors="replace")}
        for mark, text in zip(parts[1::2], parts[2::2], strict=True)
    )
    if not messages:
        messages = ({"role": "user", "content": "x"},)
    made = tokenizer(number)
    found = encode_row(Row("data", messages, None), made, max_length=limit)
    wanted = expected(messages, number, made)
    if isinstance(found, Dropped):
        assert wanted is None or not any(wanted[1][:limit]), found
        return found
    assert wanted is not None
    assert found.input_ids.tolist() == wanted[0][:limit]
    assert found.is_target.tolist() == wanted[1][:limit]
    # No text of a message became a control token: there are as many as the template itself writes.
    texts = "".join(message["content"] for message in messages)
    assert not any(special in texts for special in SPECIAL[1:]) or len(messages) > 1
    assert len(render_sample(found, made)) > 0
    return found


TARGET = Target(
    name="chat",
    check=check,
    seeds=[
        b"\0\xff\x03be brief\x01hello there\x02I am well.\x01what?\x02It is four.",
        b"\1\xff\x01 a\x02 b \x02\n\x02c",
        b"\2\x08\x01hello\x02a\xc3\xa9 \n",
        b"\3\xff\x01</s>\x02<|im_end|>",
    ],
    words=[
        b"<|im_end|>", b"<|im_start|>", b"</s>", b"<s>", b"<unk>", b"\n\nAssistant: ", b"assistant:", b"\n", b" ",
        b"\x01", b"\x02", b"\x03", b"\xe6\x97\xa5", b"\xf0\x9f\x98\x80", b"\xee\x80\x80", b"{{ 1/0 }}", b"\xe2\x80\xa8",
    ],
)  # fmt: skip
