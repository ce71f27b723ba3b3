"""Which tokens are targets, by brute force: the text written out here, and tokens laid over it byte by byte.

Nothing of preceptor is used: the templates are spelled in Python, and a byte-level token's bytes come from its name in
the vocabulary, not from the tokenizer's offsets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from transformers import PreTrainedTokenizerFast

from preceptor.data.template import DEFAULT_TEMPLATE, Message
from toy_tokenizers import CHATML, MARKED, PLAIN, SPECIAL

Piece = tuple[str, bool]
"""Some text, and whether it is to be learned."""


def _default(messages: Sequence[Message]) -> list[Piece]:
    pieces: list[Piece] = [("<s>", False)]
    for number, message in enumerate(messages):
        pieces.append(("\n\n" if number else "", False))
        content, role = message["content"], message["role"]
        if role == "assistant":
            pieces += [("Assistant:", False), (f" {content}</s>", bool(content.strip()))]
        else:
            pieces.append((f"{'System' if role == 'system' else 'User'}: {content}", False))
    return pieces


def _marked(messages: Sequence[Message]) -> list[Piece]:
    pieces: list[Piece] = [("<s>", False)]
    for message in messages:
        pieces.append((f"<|im_start|>{message['role']}\n", False))
        if message["role"] == "assistant":
            pieces += [(f"{message['content']}</s>", bool(message["content"].strip())), ("\n", False)]
        else:
            pieces.append((f"{message['content']}<|im_end|>\n", False))
    return pieces[:-1]


def _chatml(messages: Sequence[Message]) -> list[Piece]:
    pieces: list[Piece] = []
    for message in messages:
        learned = message["role"] == "assistant" and bool(message["content"].strip())
        pieces += [(f"<|im_start|>{message['role']}\n", False), (f"{message['content']}<|im_end|>\n", learned)]
    return [*pieces, ("</s>", True)]


def _plain(messages: Sequence[Message]) -> list[Piece]:
    pieces: list[Piece] = []
    for message in messages:
        content = message["content"].strip()
        learned = message["role"] == "assistant" and bool(content)
        pieces += [(f"{message['role']}:", False), (f" {content}\n", learned)]
    return [*pieces, ("</s>", True)]


TEMPLATES: list[tuple[str, Callable[[Sequence[Message]], list[Piece]]]] = [
    (DEFAULT_TEMPLATE, _default),
    (MARKED, _marked),
    (CHATML, _chatml),
    (PLAIN, _plain),
]


def expected(
    messages: Sequence[Message], template: int, tokenizer: PreTrainedTokenizerFast
) -> tuple[list[int], list[bool]] | None:
    """The token ids of a conversation and which of them are targets; None if it cannot be learned."""
    answers = [i for i, m in enumerate(messages) if m["role"] == "assistant" and m["content"].strip()]
    if not answers:
        return None
    messages = messages[: answers[-1] + 1]
    if any(special in m["content"] for m in messages for special in SPECIAL if special != "<unk>"):
        return None
    pieces = TEMPLATES[template][1](messages)
    text = "".join(piece for piece, _ in pieces)
    learned = [mark for piece, mark in pieces for _ in piece.encode()]
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    mask: list[bool] = []
    at = 0
    content = text.encode()
    for token in ids:
        bytes_ = _bytes(tokenizer.convert_ids_to_tokens(token))
        end = at + len(bytes_)
        assert content[at:end] == bytes_, "the tokens are not the text"
        inside = bytes(b for b, mark in zip(bytes_, learned[at:end], strict=True) if mark)
        outside = bytes(b for b, mark in zip(bytes_, learned[at:end], strict=True) if not mark)
        # A token that holds text of both sides is one only if the other side's is whitespace.
        both = bool(inside) and bool(outside)
        mask.append(bool(inside) and not (both and (_some(outside) or not _some(inside))))
        at = end
    assert at == len(content)
    mask[0] = False
    return ids, mask


def _some(part: bytes) -> bool:
    return bool(part.decode(errors="replace").strip())


def _bytes(token: str) -> bytes:
    return token.encode() if token in SPECIAL else bytes(_BYTE[letter] for letter in token)


def _byte_of_letter() -> dict[str, int]:
    """Byte-level vocabularies spell the bytes that are no visible characters with the letters from U+0100 on."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters = {chr(byte): byte for byte in visible}
    return letters | {chr(0x100 + n): byte for n, byte in enumerate(b for b in range(256) if b not in visible)}


_BYTE = _byte_of_letter()
