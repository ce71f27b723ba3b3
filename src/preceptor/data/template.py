"""Which chat template a stage uses, and which characters of a rendered conversation the assistant wrote.

A loss mask is only as right as the boundary between prompt and answer. It is settled here on text, before any
tokenizer is involved, because a prefix of the text need not be a prefix of the token ids.

A template is a program that comes with a model. transformers runs it in Jinja's immutable sandbox, where it reaches no
file, no network and none of Python's insides; what it costs in time and memory is not bounded.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from preceptor.errors import InputError, first_sentence


class Message(TypedDict):
    """One turn. `role` is system, user or assistant."""

    role: str
    content: str


# Only words any vocabulary can spell, so that it needs no new tokens. A message carries its separator before
# it and the beginning-of-sequence token comes once, so that a conversation ends in the answer's
# end-of-sequence token.
DEFAULT_TEMPLATE = (
    "{% if bos_token %}{{ bos_token }}{% endif %}"
    "{% for message in messages %}"
    "{% if not loop.first %}{{ '\\n\\n' }}{% endif %}"
    "{% if message['role'] == 'assistant' %}"
    "{{ 'Assistant:' }}{% generation %}{{ ' ' + message['content'] + eos_token }}{% endgeneration %}"
    "{% elif message['role'] == 'system' %}{{ 'System: ' + message['content'] }}"
    "{% else %}{{ 'User: ' + message['content'] }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{% if messages %}{{ '\\n\\n' }}{% endif %}{{ 'Assistant:' }}{% endif %}"
)

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
# A word no data holds (private-use code points), to find where a template puts an answer.
_PROBE = "\ue000\ue001\ue002"


def choose_template(
    student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase | str | None = None
) -> Literal["student", "teacher", "default"]:
    """Sets the stage's chat template on the student's tokenizer (so that it is saved with the student).

    The student's own template comes first, then the teacher's (of a stored teacher the template itself), then
    `DEFAULT_TEMPLATE`. Returns which one it was.

    Raises:
        InputError: a tokenizer has several named templates and none is called "default".
    """
    if student.chat_template:
        student.chat_template = _single(student)
        return "student"
    theirs = (
        teacher if teacher is None or isinstance(teacher, str) else _single(teacher) if teacher.chat_template else None
    )
    if theirs is not None:
        student.chat_template = theirs
        return "teacher"
    student.chat_template = DEFAULT_TEMPLATE
    return "default"


def _single(tokenizer: PreTrainedTokenizerBase) -> str:
    template = tokenizer.chat_template
    if isinstance(template, dict):
        if "default" not in template:
            raise InputError(
                f"tokenizer {tokenizer.name_or_path!r}: it has the chat templates "
                f"{', '.join(sorted(template))} and "
                "none named 'default'; name the one to use 'default' in its tokenizer_config.json"
            )
        return str(template["default"])
    return str(template)


@dataclass(frozen=True)
class Rendered:
    """A conversation as text. `spans` are the [start, end) characters that are targets, in order, disjoint.

    `turns_left_out` counts the assistant turns that carry text and are no targets, because the template
    rewrites
    them once the conversation goes on: learning them there would teach what is never asked for.
    """

    text: str
    spans: tuple[tuple[int, int], ...]
    turns_left_out: int = 0


@dataclass(frozen=True)
class Refused:
    """A conversation that cannot be rendered with an exact mask, and why, in words that can be counted."""

    reason: str


class ChatTemplate:
    """The chat template of one tokenizer, asked for text and for the characters that are targets."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raises InputError if the tokenizer has no chat template or no end-of-sequence token."""
        if not tokenizer.chat_template:
            raise InputError(
                f"tokenizer {tokenizer.name_or_path!r}: it has no chat template, and the data are "
                f"conversations; "
                "give it one (`chat_template:` of an init stage) or use a model that has one"
            )
        self.source = _single(tokenizer)
        self.eos = eos_token(tokenizer)
        self.marks_answers = _GENERATION.search(self.source) is not None
        self._special = dict(tokenizer.special_tokens_map)
        # Unknown words are spelled <unk> in public text, and end nothing.
        special = [token for token in tokenizer.added_tokens_decoder.values() if token.special]
        control = {str(token) for token in special} | set(tokenizer.all_special_tokens)
        self._control = tuple(sorted(control - {str(tokenizer.unk_token), ""}))
        # A token may be looked for in normalised text, and so be spelled in other letters than its own.
        self._normalizer = tokenizer.backend_tokenizer.normalizer
        self._normalized: dict[str, str] = {}
        if self._normalizer is not None:
            found = {self._normalizer.normalize_str(str(token)): str(token) for token in special if token.normalized}
            self._normalized = {text: token for text, token in found.items() if text and token in self._control}
        self._control_starts = re.compile("|".join(sorted({re.escape(token[0]) for token in self._control})) or r"$^")
        self._probed: list[tuple[str, str] | None] = []

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
        """The conversation as text; with the generation prompt, up to where the assistant begins to write.

        Raises jinja2.exceptions.TemplateError where the template refuses the conversation.
        """
        texts, _ = self._render(messages, add_generation_prompt=add_generation_prompt)
        return texts

    def _render(
        self, messages: Sequence[Message], *, add_generation_prompt: bool = False, marks: bool = False
    ) -> tuple[str, list[tuple[int, int]]]:
        # Not tokenizer.apply_chat_template: it hands out the marked characters only as a mask over tokens,
        # where a token that straddles the boundary can no longer be told apart.
        texts: Any
        spans: Any
        try:
            texts, spans = render_jinja_template(
                [list(messages)],
                chat_template=self.source,
                add_generation_prompt=add_generation_prompt,
                return_assistant_tokens_mask=marks,
                **self._special,
            )
        except TemplateError as error:
            raise TemplateError(first_sentence(error)) from error
        except Exception as error:  # whatever its code stumbles over: a division by zero, a key that is not there
            raise TemplateError(f"{type(error).__name__}: {first_sentence(error)}") from error
        return texts[0], spans[0] if marks else []

    def control_token_in(self, text: str) -> str | None:
        """The first control token (such as `</s>`) spelled out in `text`, or None.

        A tokenizer reads it as the token itself: an answer would end in its middle.
        """
        for match in self._control_starts.finditer(text):
            if text.startswith(self._control, match.start()):
                return max((t for t in self._control if text.startswith(t, match.start())), key=len)
        if self._normalized and self._normalizer is not None:
            normalized = self._normalizer.normalize_str(text)
            return next((token for spelled, token in self._normalized.items() if spelled in normalized), None)
        return None

    def targets(self, messages: Sequence[Message], *, all_text: bool = False) -> Rendered | Refused:
        """Renders a conversation for training.

        The targets are every assistant turn (its text and the end-of-sequence token that closes it), or all
        text. What follows the last assistant turn is left out: nothing after it is a target.
        """
        turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        answers = [i for i in turns if messages[i]["content"].strip()]
        if not all_text:
            if not answers:
                return Refused("the answer is empty" if turns else "no assistant turn")
            messages = messages[: answers[-1] + 1]
        for message in messages:
            if token := self.control_token_in(message["content"]):
                return Refused(f"a message spells the control token {token!r}")
        try:
            if all_text:
                rendered: Rendered | Refused = self._everything(messages)
            elif self.marks_answers:
                rendered = self._by_marks(messages)
            else:
                rendered = self._by_prefix(messages, answers)
        except TemplateError as error:
            return Refused(f"the chat template refuses it: {error}")
        if isinstance(rendered, Rendered):
            for message in messages:
                if message["role"] != "assistant" and message["content"].strip() not in rendered.text:
                    return Refused(f"the chat template leaves out a {message['role']} message")
        return rendered

    def _everything(self, messages: Sequence[Message]) -> Rendered:
        text = self.render(messages)
        if not text.rstrip().endswith(self.eos):
            text += self.eos
        return Rendered(text, ((0, len(text)),))

    def _by_marks(self, messages: Sequence[Message]) -> Rendered | Refused:
        text, marked = self._render(messages, marks=True)
        # A blank answer between others is no target, as it is none with templates that mark nothing.
        spans = [[start, end] for start, end in marked if text[start:end].replace(self.eos, "").strip()]
        if not spans:
            return Refused("the chat template marks no assistant text")
        for span in spans:
            inside = text[span[0] : span[1]]
            found = text.find(self.eos, span[1])
            # A template may mark the answer and not the token that ends it, which the student must learn to
            # write.
            if self.eos not in inside and found >= 0 and not text[span[1] : found].strip():
                span[1] = found + len(self.eos)
        last = spans[-1]
        if self.eos in text[last[0] : last[1]]:
            text = text[: last[1]]
        else:
            text += self.eos
            last[1] = len(text)
        return Rendered(text, tuple((start, end) for start, end in spans))

    def _by_prefix(self, messages: Sequence[Message], answers: Sequence[int]) -> Rendered | Refused:
        """Finds each answer as the difference between the text before it and the text through it."""
        full = self.render(messages)
        spans: list[tuple[int, int]] = []
        left_out = 0
        for turn in answers:
            is_last = turn == answers[-1]
            through = full if is_last else self.render(messages[: turn + 1])
            span = self._answer_span(messages, turn, through)
            # A turn that reads differently once the conversation has gone on is no target there.
            if span is None or not full.startswith(through):
                left_out += 1
                continue
            if is_last:
                full = through[: span[1]]
            spans.append(span)
        if spans and spans[-1][1] == len(full):
            if not full.endswith(self.eos):
                full += self.eos
                spans[-1] = (spans[-1][0], len(full))
            return Rendered(full, tuple(spans), left_out)
        return self._last_alone(messages, full, len(answers) - 1)

    def _last_alone(self, messages: Sequence[Message], full: str, earlier: int) -> Rendered | Refused:
        """The last answer behind the very prompt it is asked with.

        For templates that rewrite that prompt once the answer is there (Mistral v3's then leaves the system
        message out).
        """
        refused = Refused("the chat template rewrites the conversation around its answers")
        probe = self._probe()
        if probe is None:
            return refused
        lead, tail = probe
        written = _as_written(messages[-1]["content"], tail, full)
        if written is None:
            return refused
        head = self.render(messages[:-1], add_generation_prompt=True)
        if self.eos in tail:
            tail = tail[: tail.index(self.eos)]
        text = head + lead + written + tail + self.eos
        return Rendered(text, ((len(head), len(text)),), earlier)

    def _answer_span(self, messages: Sequence[Message], turn: int, through: str) -> tuple[int, int] | None:
        """Characters of `through` (the conversation up to and with `turn`) which the assistant writes."""
        try:
            head = self.render(messages[:turn], add_generation_prompt=True)
            before = head if through.startswith(head) else self.render(messages[:turn])
        except TemplateError:
            return None  # some templates refuse a conversation that begins with the assistant
        content = messages[turn]["content"]
        if through.startswith(head):
            if content.split()[-1] not in through[len(head) :]:
                return None  # the template drops the answer
            start = end = len(head)
        else:
            # The generation prompt holds more than the template keeps (an opened thought, say): begin where the two
            # part, provided that the text before the turn stands and the answer begins there or later.
            probe = self._probe()
            written = _as_written(content, probe[1], through) if probe is not None else None
            if probe is None or written is None or not through.startswith(before):
                return None
            end = len(through) - len(probe[1])
            start = min(_common_prefix(head, through), end - len(written))
            if start < len(before):
                return None
        closing = through.find(self.eos, end)
        return (start, closing + len(self.eos) if closing >= 0 else len(through))

    def _probe(self) -> tuple[str, str] | None:
        """What the template writes between the generation prompt and an answer, and after the answer."""
        if not self._probed:
            self._probed.append(self._probe_now())
        return self._probed[0]

    def _probe_now(self) -> tuple[str, str] | None:
        asked: list[Message] = [{"role": "user", "content": "a"}]
        try:
            through = self.render([*asked, {"role": "assistant", "content": _PROBE}])
            head = self.render(asked, add_generation_prompt=True)
        except TemplateError:
            return None
        start = through.find(_PROBE)
        if start < 0:
            return None
        return through[min(_common_prefix(head, through), start) : start], through[start + len(_PROBE) :]


def _as_written(content: str, tail: str, text: str) -> str | None:
    """The answer as the template writes it at the end of `text`: as it is, or trimmed. None if in neither way."""
    return next((form for form in (content, content.strip()) if text.endswith(form + tail)), None)


def _common_prefix(a: str, b: str) -> int:
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if a[:middle] == b[:middle] else (low, middle - 1)
    return low


def eos_token(tokenizer: PreTrainedTokenizerBase) -> str:
    """The end-of-sequence token. Raises InputError if the tokenizer has none: no answer could ever end."""
    if tokenizer.eos_token is None:
        raise InputError(
            f"tokenizer {tokenizer.name_or_path!r}: it has no end-of-sequence token, so that no answer "
            f"could end; "
            'set "eos_token" in its tokenizer_config.json'
        )
    return str(tokenizer.eos_token)
