"""The suites of an `evaluate` stage: every model answers, a judge grades all answers, tasks are run.

Answers, judgments and the judge's replies are kept as they come, so a stage that was stopped asks nothing twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from preceptor.evaluation.alpaca_eval.annotating import TOP_LOGPROBS
from preceptor.evaluation.alpaca_eval.benchmark import evaluate_alpaca_eval, read_alpaca_eval_files
from preceptor.evaluation.alpaca_eval.outputs import answer_alpaca_eval
from preceptor.evaluation.answering import Answered
from preceptor.evaluation.chat_prompts import check_can_answer
from preceptor.evaluation.chats import Advance, Answer, ChatRequest
from preceptor.evaluation.endpoint import Endpoint
from preceptor.evaluation.endpoint_answers import EndpointAnswerer
from preceptor.evaluation.judge import file_name
from preceptor.evaluation.local_answers import LocalAnswerer, local_answerer
from preceptor.evaluation.mt_bench.answers import answer_mt_bench, temperatures_of
from preceptor.evaluation.mt_bench.benchmark import evaluate_mt_bench, read_mt_bench_files
from preceptor.evaluation.tasks import check_tasks, run_tasks
from preceptor.recipe import AlpacaEvalSpec, EndpointSpec, EvaluateStage, ModelSpec, MtBenchSpec, TasksSpec
from preceptor.stages.context import run_directory

if TYPE_CHECKING:
    from preceptor.stages.context import StageContext

Log = Callable[[str], None]
_Suite = TypeVar("_Suite", MtBenchSpec, AlpacaEvalSpec, TasksSpec)


class _Judged:
    """A suite whose answers a judge grades: where they are, and what to be wary of in them."""

    turns: int
    """Questions in one conversation."""

    def __init__(self, judge: Endpoint | None) -> None:
        self.judge = judge
        self.answered: dict[str, Path] = {}
        self.notes: list[str] = []

    def keep(self, name: str, path: Path, given: Answered) -> None:
        """Takes note of one model's answers."""
        self.answered[name] = path
        self.notes += given.warnings()

    def noted(self, found: dict[str, Any]) -> dict[str, Any]:
        """The suite's scores with the notes among their warnings."""
        return {**found, "warnings": [*found["warnings"], *self.notes]}


class _MtBench(_Judged):
    """MT-Bench in one stage."""

    turns = 2

    def __init__(self, spec: MtBenchSpec, models: Sequence[str], judge: Endpoint | None, where: str) -> None:
        super().__init__(judge)
        self.spec = spec
        self.files = read_mt_bench_files(spec, models, where=f"{where}.")
        temperatures_of(self.files.questions, spec)  # refuses those of unknown categories

    def check_judge(self) -> None:
        if self.judge is not None:
            self.judge.check()

    def counts(self, models: int) -> tuple[str, int]:
        """What is asked, and how many grades the judge gives at most."""
        turns = sum(len(each.turns) for each in self.files.questions)
        return f"{len(self.files.questions):,} questions, {turns:,} turns", turns * (models + len(self.files.answers))

    def answer(self, name: str, writer: _Writer | _Served, context: StageContext, log: Log) -> None:
        path = context.directory / "mt_bench" / "model_answer" / f"{name}.jsonl"
        writer.batch_size = self.spec.batch_size
        self.keep(name, path, answer_mt_bench(self.files.questions, writer, self.spec, path, context.seed, log))

    def score(self, directory: Path, **shared: Any) -> dict[str, Any]:
        folder = directory / "mt_bench"
        return self.noted(evaluate_mt_bench(self.spec, self.files, self.answered, folder, judge=self.judge, **shared))


class _AlpacaEval(_Judged):
    """AlpacaEval in one stage."""

    turns = 1

    def __init__(self, spec: AlpacaEvalSpec, models: Sequence[str], judge: Endpoint | None, where: str) -> None:
        super().__init__(judge)
        self.spec = spec
        self.files = read_alpaca_eval_files(spec, models, where=f"{where}.")

    def check_judge(self) -> None:
        if self.judge is not None:
            self.judge.check(top_logprobs=TOP_LOGPROBS if self.spec.preference == "logprobs" else None)

    def counts(self, models: int) -> tuple[str, int]:
        """What is asked, and how many preferences the judge tells at most."""
        asked = len(self.files.instructions)
        twice = 2 if self.spec.order == "both" else 1
        return f"{asked:,} instructions", asked * twice * (models + len(self.files.outputs))

    def answer(self, name: str, writer: _Writer | _Served, context: StageContext, log: Log) -> None:
        path = context.directory / "alpaca_eval" / file_name(name) / "model_outputs.json"
        writer.batch_size = self.spec.batch_size
        self.keep(name, path, answer_alpaca_eval(self.files.instructions, writer, self.spec, path, context.seed, log))

    def score(self, directory: Path, **shared: Any) -> dict[str, Any]:
        folder = directory / "alpaca_eval"
        return self.noted(
            evaluate_alpaca_eval(self.spec, self.files, self.answered, folder, judge=self.judge, **shared)
        )


class Suites:
    """The suites of one stage: their files are read and fit together, and no model is loaded yet.

    Raises:
        InputError: a file that is not what it should be, a key that is not in the environment.
    """

    def __init__(self, spec: EvaluateStage, context: StageContext) -> None:
        self.spec, self.context = spec, context
        self.where = f"stages.{context.name}"
        self.log: Log = lambda line: context.log(f"{context.name}: {line}")
        names = [*spec.named, *spec.served]
        self.judged: dict[str, _MtBench | _AlpacaEval] = {}
        if spec.mt_bench is not None:
            bench, where = self._resolved("mt_bench", spec.mt_bench), f"{self.where}.mt_bench"
            self.judged["mt_bench"] = _MtBench(bench, names, self._judge(bench, where), where)
        if spec.alpaca_eval is not None:
            alpaca, where = self._resolved("alpaca_eval", spec.alpaca_eval), f"{self.where}.alpaca_eval"
            self.judged["alpaca_eval"] = _AlpacaEval(alpaca, names, self._judge(alpaca, where), where)
        self.tasks = None if spec.tasks is None else self._resolved("tasks", spec.tasks)
        self.served = {name: self._endpoint(each, f"{self.where}.models.{name}") for name, each in spec.served.items()}
        self.models = {name: context.resolve_model(model) for name, model in spec.named.items()}
        for name, resolved in self.models.items():
            if all(Path(path).is_dir() for path in (resolved.path, resolved.adapter) if path is not None):
                for suite in self.judged.values():
                    check_can_answer(resolved, name=name, turns=suite.turns, max_new_tokens=suite.spec.max_new_tokens)

    def planned(self) -> dict[str, str]:
        """What each suite will ask, by suite, as `preceptor plan` says it."""
        found = {}
        models = len(self.spec.named) + len(self.spec.served)
        for name, suite in self.judged.items():
            asked, to_grade = suite.counts(models)
            judge = "" if suite.spec.judge is None else f"; {suite.spec.judge.title} is asked {to_grade:,} times"
            found[name] = f"{asked}, {models} models answer{judge}"
        if self.tasks is not None:
            found["tasks"] = f"{', '.join(self.tasks.names)}, {len(self.spec.named)} models"
        return found

    def run(self) -> dict[str, Any]:
        """The parts of `scores.json` that the suites give, by suite.

        Raises:
            InputError: whatever models, endpoints and files refuse.
            RunFailed: an endpoint stopped answering.
        """
        for suite in self.judged.values():  # before hours of answers
            suite.check_judge()
        for endpoint in self.served.values():
            endpoint.check()
        if self.tasks is not None:
            check_tasks(self.tasks, where=f"{self.where}.tasks", data=True, models=self.models)
        if self.judged:
            self._answer()
        reference = self.spec.name_of(self.spec.reference)
        shared: dict[str, Any] = {"reference": reference, "seed": self.context.seed, "log": self.log}
        found = {
            name: suite.score(self.context.directory, resamples=self.spec.resamples, **shared)
            for name, suite in self.judged.items()
        }
        if self.tasks is not None:
            found["tasks"] = run_tasks(
                self.models, self.tasks, directory=self.context.directory, where=f"{self.where}.tasks", **shared
            )
        return found

    def _answer(self) -> None:
        """Has every model answer what all suites ask; a local one is gone before the next is loaded."""
        reference = None if self.spec.reference is None else self.context.resolve_model(self.spec.reference)
        for name, model in self.models.items():
            writer = _Writer(name, model, reference, self.log)
            for suite in self.judged.values():
                suite.answer(name, writer, self.context, self.log)
            del writer
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        for name, endpoint in self.served.items():
            for suite in self.judged.values():
                suite.answer(name, _Served(endpoint, name=name), self.context, self.log)

    def _judge(self, spec: MtBenchSpec | AlpacaEvalSpec, where: str) -> Endpoint | None:
        return None if spec.judge is None else self._endpoint(spec.judge, f"{where}.judge")

    def _endpoint(self, spec: EndpointSpec, where: str) -> Endpoint:
        # Of the run and not of the stage: what was paid for serves other stages, and a stage that is run again.
        cache = run_directory(self.context.recipe) / "requests" / f"{file_name(spec.model)}.jsonl"
        return Endpoint(spec, cache=cache, log=self.log, where=where)

    def _resolved(self, suite: str, spec: _Suite) -> _Suite:
        """`spec` with the absolute paths of its files."""
        changes: dict[str, Any] = {}
        for (owner, key, *rest), text in self.spec.files.items():
            if owner != suite:
                continue
            path = self.context.resolve_file(text)
            if not rest:
                changes[str(key)] = path
            elif isinstance(getattr(spec, str(key)), dict):
                changes.setdefault(str(key), {})[rest[0]] = path
            else:
                changes.setdefault(str(key), []).append(path)
        return spec.model_copy(update=changes)


class _Writer:
    """A local model that is loaded when the first question is put to it: all may have been answered before."""

    def __init__(self, name: str, spec: ModelSpec, reference: ModelSpec | None, log: Log) -> None:
        self.name, self.batch_size = name, 1
        self._spec, self._reference, self._log = spec, reference, log
        self._loaded: LocalAnswerer | None = None

    def answer(self, requests: Sequence[ChatRequest], progress: Advance) -> Iterator[tuple[int, Answer]]:
        """See `LocalAnswerer.answer`."""
        if self._loaded is None:
            self._loaded = local_answerer(self._spec, name=self.name, reference=self._reference, log=self._log)
        self._loaded.batch_size = self.batch_size
        return self._loaded.answer(requests, progress)


class _Served(EndpointAnswerer):
    """A served model; how much it is asked at once is its endpoint's `concurrency`."""

    batch_size = 1


def check_suites(context: StageContext) -> None:
    """Makes sure, before any stage runs, that the files of an `evaluate` stage's suites are there and fit together.

    Raises:
        InputError: see `Suites`; an unknown task.
    """
    spec = context.recipe.stages[context.name]
    assert isinstance(spec, EvaluateStage)
    suites = Suites(spec, context)
    if suites.tasks is not None:  # here alone: looking names up in the harness takes seconds
        check_tasks(suites.tasks, where=f"{suites.where}.tasks")
