"""lm-evaluation-harness, led from outside: its noise caught, its progress made ours, our models put to it.

It is the optional extra `eval`, so it is imported inside functions only. It draws bars on standard error, prints to
standard output and warns through `logging`; of these the warnings are worth having, once each.
"""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from preceptor.errors import InputError
from preceptor.evaluation.progress import Progress
from preceptor.models.load import quiet_transformers
from preceptor.system.environment import environment_kept

Log = Callable[[str], None]

_IDLE = ("`pretrained`", "using default")  # models are handed over whole by design; defaults are what they are


class Caught(logging.Handler):
    """Warnings of the harness, each once, and how many prompts were cut to a model's context."""

    def __init__(self, log: Log) -> None:
        super().__init__(logging.WARNING)
        self.warnings: dict[str, None] = {}  # in order
        self.cut = 0
        self._log = log
        self._streams = sys.stdout, sys.stderr

    def say(self, line: str) -> None:
        """Logs a line of our own, which may go to a stream that is silent for the harness."""
        with redirect_stdout(self._streams[0]), redirect_stderr(self._streams[1]):
            self._log(line)

    def emit(self, record: logging.LogRecord) -> None:
        text = " ".join(record.getMessage().split())
        if text.startswith(("Combined length of context", "Left truncation applied")):
            self.cut += 1
        elif not any(word in text for word in _IDLE):
            self.warnings[text] = None


class _Sink(io.TextIOBase):
    def write(self, text: str, /) -> int:
        return len(text)


@contextmanager
def caught(log: Log = lambda line: None) -> Iterator[Caught]:
    """Runs the harness silently: bars and prints go nowhere, warnings into what is given."""
    import datasets

    handler, logger = Caught(log), logging.getLogger("lm_eval")
    propagate, disabled = logger.propagate, datasets.are_progress_bars_disabled()
    logger.addHandler(handler)
    logger.propagate = False
    datasets.disable_progress_bars()
    alone = environment_kept(DISABLE_MULTIPROC="1")  # bootstraps of a second are not worth forking a full process
    try:
        with redirect_stdout(_Sink()), redirect_stderr(_Sink()), quiet_transformers(), alone:
            yield handler
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate
        if not disabled:
            datasets.enable_progress_bars()


def evaluate(**given: Any) -> dict[str, Any]:
    """`lm_eval.simple_evaluate`, without what it asks git, pip and the compiler: stage.json has the versions.

    Outside a git repository git would complain on the very terminal, past any stream of Python's.
    """
    from lm_eval import evaluator

    asides: dict[str, Any] = {"get_git_commit_hash": lambda: None, "add_env_info": lambda results: None}
    own = {name: vars(evaluator)[name] for name in asides if name in vars(evaluator)}
    vars(evaluator).update({name: asides[name] for name in own})
    try:
        found: dict[str, Any] | None = evaluator.simple_evaluate(**given)
    finally:
        vars(evaluator).update(own)
    assert found is not None  # this is the one process
    return found


_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # in the harness's own order
_LENGTH = 256  # where a task gives none, for models of transformers


def longest_answer(generation: Mapping[str, Any]) -> int:
    """How many tokens an answer may have, from a task's `generation_kwargs`."""
    return next((int(generation[key]) for key in _LENGTHS if generation.get(key)), _LENGTH)


def too_long(where: str, task: str, longest: int, name: str, context: int) -> InputError:
    """The error for a task whose answers leave no room for a question in a model's context."""
    return InputError(
        f"{where}.names: {task} allows answers of {longest:,} tokens, and the context of {name} is {context:,}; write "
        "a smaller `max_gen_toks` into the task, or leave it out"
    )


def language_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    batch_size: int,
    progress: Callable[[str, int], Progress],
    name: str,
    where: str,
) -> Any:
    """The harness's view of a model that is loaded already.

    `progress` makes one for each kind of request; `name` and `where` are for messages.
    """
    from lm_eval.models.huggingface import HFLM

    class Told:
        """Stands where the harness's cache is told of each answer."""

        def __init__(self, what: str, total: int) -> None:
            self._progress = progress(what, total)

        def add_partial(self, kind: str, request: Any, answer: Any) -> None:
            self._progress(1)

    class Loaded(HFLM):
        def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> Any:
            self.cache_hook = Told("likelihoods", len(requests))
            return super().loglikelihood(requests, disable_tqdm=True)

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> Any:
            self.cache_hook = Told("texts", len(requests))
            # In parts, for it reports at its end only; the sums are by text.
            parts = (requests[i : i + batch_size] for i in range(0, len(requests), batch_size))
            return [each for part in parts for each in super(Loaded, self).loglikelihood_rolling(part, True)]

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> Any:
            for request in requests:
                longest = longest_answer(request.args[1])
                if longest >= self.max_length:
                    raise too_long(where, request.task_name, longest, name, self.max_length)
            self.cache_hook = Told("answers", len(requests))
            return super().generate_until(requests, disable_tqdm=True)

        def get_model_info(self) -> dict[str, Any]:
            return {}  # it would look the model up on the Hub

    return Loaded(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=batch_size)
