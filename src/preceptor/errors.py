"""The three ways preceptor can tell a user that something went wrong, and the words shared by their messages.

A message is one sentence: where, what was given, what is accepted, how to mend it. Much of it is quoted from files that
strangers wrote, so no message holds what a terminal would obey, and none is long.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from itertools import islice

LONGEST = 1600  # characters of one message
MOST_AT_ONCE = 100  # messages
# Control characters (escape codes, line ends), marks that turn the direction of a line, and halves of surrogate pairs,
# which no output takes.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class InputError(ValueError):
    """The user's input is wrong. The message is one sentence; the command line prints it and exits with 2."""

    def __init__(self, message: str) -> None:
        super().__init__(_sentence(message))


class InputErrors(InputError):  # noqa: N818 - several of them
    """Several mistakes found at once, so that a recipe is mended in one go.

    `errors` holds one sentence each, a last one saying how many more there are; `str()` gives one per line.
    """

    def __init__(self, errors: Sequence[str], unsaid: int = 0) -> None:
        """`unsaid` counts mistakes beyond those in `errors`."""
        self.errors: list[str] = [_sentence(error) for error in errors[:MOST_AT_ONCE]]
        self._unsaid = unsaid + max(len(errors) - MOST_AT_ONCE, 0)
        if self._unsaid:
            self.errors.append(f"and {self._unsaid:,} more mistakes; mend these first")
        ValueError.__init__(self, "\n".join(self.errors))

    def __reduce__(self) -> tuple[type[InputErrors], tuple[list[str], int]]:
        # The default would rebuild it in another process from the joined text, one letter per "error".
        return type(self), (self.errors[:MOST_AT_ONCE], self._unsaid)


class RunFailed(RuntimeError):  # noqa: N818 - says what happened
    """A stage failed while running: the cause and how to resume. The command line exits with 1."""

    def __init__(self, message: str) -> None:
        super().__init__(_sentence(message))


def printable(text: str, *, keep: str = "") -> str:
    r"""The text with what a terminal would obey written out (`\x1b`, `\u202e`), but for the characters of `keep`.

    JSON stays JSON with the same content.
    """

    def spelled(match: re.Match[str]) -> str:
        if match[0] in keep:
            return match[0]
        # JSON knows \u and not \x, and escapes itself what is below a space.
        return match[0].encode("unicode_escape").decode("ascii") if match[0] < " " else f"\\u{ord(match[0]):04x}"

    return _UNPRINTABLE.sub(spelled, text)


def _sentence(message: str) -> str:
    """A message fit to be printed. What is quoted in its middle goes first, as how to mend it stands at the end."""
    if len(message) > LONGEST:
        message = f"{message[: LONGEST // 2]}…{message[-LONGEST // 4 :]}"
    return printable(message)


def accepted(values: Iterable[object]) -> str:
    """Joins the accepted values as a person would say them: `a`, `a or b`, `a, b or c`."""
    words = [str(value) for value in values]
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} or {words[-1]}"


def did_you_mean(word: object, options: Iterable[object]) -> str:
    """` (did you mean 'x'?)` for the option nearest to `word`, or nothing when none is near."""
    if not isinstance(word, str | int) or len(str(word)) > 200:
        return ""
    names = [str(option) for option in islice(options, 20_000)]  # strangers may write many
    lowered = {name.lower(): name for name in reversed(names)}
    near = difflib.get_close_matches(str(word).lower(), list(lowered), n=1, cutoff=0.6)
    return f" (did you mean {lowered[near[0]]!r}?)" if near else ""


def first_sentence(error: BaseException, limit: int = 200) -> str:
    """The first line of another library's message, cut at `limit` characters, for use inside brackets of ours."""
    lines = str(error).strip().splitlines()
    line = lines[0].rstrip(" .:;") if lines else type(error).__name__
    return line if len(line) <= limit or isinstance(error, InputError) else f"{line[:limit].rstrip()} …"


def shown(value: object, limit: int = 60) -> str:
    """The value as a message shows it: its repr, cut in the middle beyond `limit` characters."""
    if isinstance(value, str) and len(value) > 4 * limit:
        value = value[: 2 * limit] + value[-2 * limit :]  # no need to spell out megabytes
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits; lists in lists in lists
        return f"one {type(value).__name__} too large to show"
    if len(text) <= limit:
        return text
    return f"{text[: limit // 2]}…{text[-limit // 4 :]}"
