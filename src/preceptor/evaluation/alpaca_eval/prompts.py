"""The annotator's prompt template, and reading a preference from what the judge answers to it.

Official templates are text with the marks of ChatML (`<|im_start|>system … <|im_end|>`). They are taken apart into the
messages of a chat before anything is filled in, so that an answer that spells such a mark cannot start a message.
"""

from __future__ import annotations

import ast
import math
import re
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from preceptor.errors import InputError, accepted, shown

if TYPE_CHECKING:
    from preceptor.data.template import Message

PLACEHOLDERS = ("instruction", "output_1", "output_2")
RANKED = ("model_1", "model_2")
"""What the two models are called in a prompt whose answer is a ranking, and (`TOKENS`) is one token."""
TOKENS = ("m", "M")
_FIELD = re.compile(r"\{(" + "|".join(PLACEHOLDERS) + r")\}")
_LONGEST = 10_000
"""Characters of an answer in which a ranking is looked for: that of two models takes a hundred."""
_START, _END = "<|im_start|>", "<|im_end|>"
_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class AnnotatorPrompt:
    """The messages of the template, placeholders in place, and the name of its file without suffix."""

    name: str
    template: tuple[Message, ...]

    def messages(self, values: Mapping[str, str]) -> tuple[Message, ...]:
        """The chat the judge is sent. Each placeholder is replaced once; what a value holds is left as it is."""
        return tuple(
            {"role": each["role"], "content": _FIELD.sub(lambda found: values[found[1]], each["content"])}
            for each in self.template
        )


def read_prompt(path: str | Path, preference: Literal["ranking", "logprobs"], *, where: str = "") -> AnnotatorPrompt:
    """Reads an annotator's template; text without ChatML marks is one message of the user.

    Raises:
        InputError: no such file, a placeholder that is missing or there twice, broken marks, or a template that asks
            for another form of answer than `preference` reads.
    """
    path = Path(path)
    origin = f"{where}{path}"
    expected = "give an annotator's prompt of AlpacaEval, such as alpaca_eval.txt"
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{origin}: does not exist; {expected}") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = "it is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else error.strerror
        raise InputError(f"{origin}: cannot be read ({reason}); {expected}") from None
    messages = _messages(text, origin, expected)
    counts = Counter(name for each in messages for name in _FIELD.findall(each["content"]))
    for name in PLACEHOLDERS:
        if counts[name] != 1:
            said = "has no placeholder" if not counts[name] else f"has {counts[name]} times the placeholder"
            raise InputError(f"{origin}: {said} {{{name}}}, and each must be there once; {expected}")
    names, other = (RANKED, "logprobs") if preference == "ranking" else (TOKENS, "ranking")
    words = set(re.findall(r"\w+", " ".join(_FIELD.sub("", each["content"]) for each in messages)))
    absent = [name for name in names if name not in words]
    if absent:
        raise InputError(
            f"{origin}: does not mention {accepted(absent)}, and `preference: {preference}` reads which of {names[0]} "
            f"and {names[1]} the judge names; give a prompt that calls the two outputs so, or set "
            f"`preference: {other}`"
        )
    return AnnotatorPrompt(path.stem, messages)


def parse_ranking(completion: str) -> float | None:
    """1 where the first output is ranked first, 2 where it is second, None where the answer says neither.

    The answer is a list of {"model": name, "rank": number} in Python's or JSON's notation, and only the rank of
    `model_1` counts, as in the official parser. Text around the list (a judge's Markdown fence) is passed over.
    """
    start, end = completion.find("["), completion.rfind("]")
    if not 0 <= start < end < start + _LONGEST:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Python's grammar, which are nobody's business here
            ranking = ast.literal_eval(completion[start : end + 1])
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None
    for each in ranking if isinstance(ranking, list) else ():
        if isinstance(each, dict) and each.get("model") == RANKED[0]:
            rank = each.get("rank")
            return float(rank) if type(rank) in (int, float) and rank in (1, 2) else None
    return None


def parse_logprobs(logprobs: Sequence[Mapping[str, float]]) -> tuple[float | None, bool]:
    """2 − p(m) / (p(m) + p(M)) from the log-probabilities of the first token, and whether both were among them.

    A token that is not among the top ones counts as impossible; None where both are not, or where there is no token.
    Vocabularies that begin words with a space are met halfway: ` m` is taken where neither is spelt exactly.
    """
    first = logprobs[0] if logprobs else {}
    possible = {token: value for token, value in first.items() if value > -math.inf}
    tokens = {token: value for token, value in possible.items() if token in TOKENS}
    if not tokens:
        for token, value in possible.items():
            bare = token.strip(" \u2581\u0120")
            if bare in TOKENS:
                tokens[bare] = max(value, tokens.get(bare, -math.inf))
    if not tokens:
        return None, False
    largest = max(tokens.values())
    one, two = (math.exp(tokens[name] - largest) if name in tokens else 0.0 for name in TOKENS)
    return 2 - one / (one + two), len(tokens) == 2


def _messages(text: str, origin: str, expected: str) -> tuple[Message, ...]:
    text = text.strip()
    if _START not in text and _END not in text:
        return ({"role": "user", "content": text},)
    messages: list[Message] = []
    before, *parts = text.split(_START)
    for part in parts:
        content, end, after = part.partition(_END)
        role, _, content = content.partition("\n")
        if not end or after.strip():
            raise InputError(f"{origin}: has text outside {_START} … {_END}, or a mark without the other; {expected}")
        if role.strip() not in _ROLES:
            raise InputError(f"{origin}: has a message of {shown(role.strip())}; accepted are {accepted(_ROLES)}")
        messages.append({"role": role.strip(), "content": content.strip()})
    if before.strip() or not messages:
        raise InputError(f"{origin}: has text outside {_START} … {_END}, or a mark without the other; {expected}")
    if messages[-1]["role"] != "user":
        raise InputError(f"{origin}: ends with a message of the {messages[-1]['role']}; end it with the user's")
    return tuple(messages)
