"""Asks an answerer what it has not answered yet, and keeps every answer as it comes.

Beside the official file `NAME` there is `NAME.record`, one line per answer with what the official format has no place
for: whether the answer was ended by a limit, its tokens, and how much of its prompt was cut. The official file is made
from the record alone, so that a run that was killed ends with the file it would have written, and a finished one can
still tell how its answers came about. A name that does not end in .jsonl keeps it out of the official readers' sight.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from preceptor.errors import InputError, shown
from preceptor.evaluation.chats import Answer, Answerer, ChatRequest
from preceptor.evaluation.kept import Kept, header_of
from preceptor.evaluation.progress import Progress
from preceptor.system.files import sha256_json

Log = Callable[[str], None]
_FIELDS = tuple(each.name for each in fields(Answer))


@dataclass(frozen=True)
class Answered:
    """How many answers a model gave, their tokens, and how many of them deserve a warning."""

    model: str
    answers: int
    tokens: int
    unfinished: int
    """Ended by the limit of new tokens, or by the context."""
    cut: int
    """Whose prompt lost its beginning because the context is too short for it."""
    empty: int

    def warnings(self) -> list[str]:
        """A sentence for each count that is not 0."""
        of = f"of {self.answers:,} answers"
        said = {
            f"{self.unfinished:,} {of} were ended by the limit of new tokens or the model's context": self.unfinished,
            f"{self.cut:,} {of} are to prompts too long for the model's context, which lost their beginning": self.cut,
            f"{self.empty:,} {of} are empty": self.empty,
        }
        return [f"{self.model}: {sentence}" for sentence, count in said.items() if count]


@dataclass(frozen=True)
class TimedAnswer:
    """An answer and when it was given, in seconds since 1970."""

    answer: Answer
    tstamp: float


class AnswerRecord:
    """The answers of one model to one set of questions, beside the official file they will be written to.

    Args:
        path: of the official file.
        answerer: gives the answers. Whether its name still means the same model the caller answers for.
        questions: what is asked, as JSON.
        settings: what else an answer depends on, by the name the user knows it under.
        log: takes one line.

    Raises:
        InputError: the record holds answers of another model, to other questions or with other settings, or there is an
            official file without a record.
    """

    def __init__(
        self, path: Path, answerer: Answerer, questions: Sequence[Any], settings: Mapping[str, Any], log: Log
    ) -> None:
        self.name, self._answerer, self._log = answerer.name, answerer, log
        header = {"model": answerer.name, "questions": _digest(questions), "settings": dict(settings)}
        self.identity = sha256_json(header)
        record = path.with_name(f"{path.name}.record")
        _check(path, record, header)
        self._kept: Kept[str] = Kept(record, header, _is_answer)

    def ask(self, requests: Mapping[str, ChatRequest], what: str) -> dict[str, TimedAnswer]:
        """The answers to all requests, by their keys; only those the record does not hold are asked.

        Args:
            requests: by key.
            what: names them in progress lines.
        """
        missing = [key for key in requests if key not in self._kept.results]
        title = f"{self.name}: {what}"
        if len(missing) < len(requests):
            state = (
                f"goes on after {len(requests) - len(missing):,} of {len(requests):,}" if missing else "are there, kept"
            )
            self._log(f"{title}, {state}")
        if missing:
            self._kept.path.parent.mkdir(parents=True, exist_ok=True)
            advance = _Begun(lambda: Progress(title, len(requests), self._log, done=len(requests) - len(missing)))
            for index, answer in self._answerer.answer([requests[key] for key in missing], advance):
                self._kept.add([(missing[index], {**asdict(answer), "tstamp": time.time()})])
        return {key: _timed(self._kept.results[key]) for key in requests}

    def answered(self) -> Answered:
        """Counts over all answers; their warnings are logged."""
        answers = [_timed(each).answer for each in self._kept.results.values()]
        counts = Answered(
            model=self.name,
            answers=len(answers),
            tokens=sum(each.tokens for each in answers),
            unfinished=sum(not each.finished for each in answers),
            cut=sum(each.cut > 0 for each in answers),
            empty=sum(not each.text for each in answers),
        )
        for line in counts.warnings():
            self._log(f"note: {line}")
        return counts


class _Begun:
    """Progress that begins with the first word of it: an answerer that shows its own never says one."""

    def __init__(self, begin: Callable[[], Progress]) -> None:
        self._begin = begin
        self._progress: Progress | None = None

    def __call__(self, rows: int, tokens: int) -> None:
        if self._progress is None:
            self._progress = self._begin()
        self._progress(rows, tokens)


def request_seed(seed: int, *what: int | str) -> int:
    """A seed from 0 to 2^31 - 1 for what is asked, so that an answer does not depend on what is asked beside it."""
    digest = hashlib.sha256("\n".join(str(each) for each in (seed, *what)).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def _digest(questions: Sequence[Any]) -> str:
    try:
        return sha256_json(questions)
    except UnicodeEncodeError:  # half of a surrogate pair in what is not asked, such as the name of a dataset
        return sha256_json(json.dumps(questions, sort_keys=True))


def _is_answer(key: Any, result: Any) -> bool:
    """Whether a line of the record holds what `ask` puts there."""
    if not isinstance(key, str) or not isinstance(result, dict) or result.keys() != {*_FIELDS, "tstamp"}:
        return False
    counts = all(type(result[key]) is int and result[key] >= 0 for key in ("tokens", "cut"))
    timed = type(result["tstamp"]) in (int, float) and 0 <= result["tstamp"] <= 1e15
    return counts and timed and isinstance(result["text"], str) and isinstance(result["finished"], bool)


def _timed(result: Mapping[str, Any]) -> TimedAnswer:
    fields = dict(result)
    return TimedAnswer(tstamp=fields.pop("tstamp"), answer=Answer(**fields))


def _check(path: Path, record: Path, header: Mapping[str, Any]) -> None:
    old = header_of(record)
    if old is None:
        if path.exists():
            raise InputError(
                f"{path}: is there already, and was not written by preceptor, which keeps {record.name} beside it; "
                "move it away, or name it among the answers that are only to be judged"
            )
        return
    if old == header:
        return
    mend = "delete it to ask anew, or write to another folder"
    if old.get("model") != header["model"]:
        raise InputError(f"{record}: holds answers of {old.get('model')}, not of {header['model']}; {mend}")
    if old.get("questions") != header["questions"]:
        raise InputError(f"{record}: holds answers to other questions; {mend}")
    given, now = old.get("settings"), header["settings"]
    before = given if isinstance(given, dict) else {}
    changed = next((key for key in [*now, *before] if before.get(key) != now.get(key)), "settings")
    was, given = shown(before.get(changed)), shown(now.get(changed))
    raise InputError(f"{record}: holds answers with {changed} = {was}, not {given}; {mend}")
