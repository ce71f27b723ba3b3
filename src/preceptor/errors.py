"""The three ways preceptor can tell a user that something went wrong, and the words shared by their messages.

A message is one sentence: where, what was given, what is accepted, how to mend it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class InputError(ValueError):
    """The user's input is wrong. The message is one sentence; the command line prints it and exits with 2."""


class InputErrors(InputError):  # noqa: N818 - several of them
    """Several mistakes found at once, so that a recipe is mended in one go.

    `errors` holds one sentence each; `str()` gives one per line.
    """

    def __init__(self, errors: Sequence[str]) -> None:
        self.errors: list[str] = list(errors)
        super().__init__("\n".join(self.errors))

    def __reduce__(self) -> tuple[type[InputErrors], tuple[list[str]]]:
        # The default would rebuild it in another process from the joined text, one letter per "error".
        return type(self), (self.errors,)


class RunFailed(RuntimeError):  # noqa: N818 - says what happened
    """A stage failed while running: the cause and how to resume. The command line exits with 1."""


def accepted(values: Iterable[object]) -> str:
    """Joins the accepted values as a person would say them: `a`, `a or b`, `a, b or c`."""
    words = [str(value) for value in values]
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} or {words[-1]}"


def did_you_mean(word: object, options: Iterable[object]) -> str:
    """` (did you mean 'x'?)` for the option nearest to `word`, or nothing when none is near."""
    names = [str(option) for option in options]
    lowered = {name.lower(): name for name in reversed(names)}
    near = difflib.get_close_matches(str(word).lower(), list(lowered), n=1, cutoff=0.6)
    return f" (did you mean {lowered[near[0]]!r}?)" if near else ""


def first_sentence(error: BaseException) -> str:
    """The first line of another library's message, for use inside brackets of ours."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].strip().rstrip(".:;")


def shown(value: object, limit: int = 60) -> str:
    """The value as a message shows it: its repr, cut in the middle beyond `limit` characters."""
    text = repr(value)
    if len(text) <= limit:
        return text
    return f"{text[: limit // 2]}…{text[-limit // 4 :]}"
