"""Specs of what an `evaluate` stage measures besides rows: MT-Bench, AlpacaEval and task suites; and of endpoints."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, model_validator

from preceptor.recipe.base import Names, NotNegative, Positive, Spec, Text, Whole0, Whole1, broken_rule, choice, real


class PriceSpec(Spec):
    """What an endpoint charges, in one currency per million tokens."""

    input: NotNegative
    """Per million tokens of prompts."""
    output: NotNegative
    """Per million tokens of answers."""


class EndpointSpec(Spec):
    """A model served over the OpenAI-compatible chat API. Its key comes from the environment and is never written."""

    endpoint: Text
    """The base URL, such as http://127.0.0.1:8000/v1."""
    model: Text
    """The model's name there."""
    key_env: Text | None = None
    """The environment variable that holds the key; None: no key is sent."""
    concurrency: Whole1 = 8
    """Requests under way at once."""
    timeout: Positive = 120.0
    """Seconds one request may take."""
    retries: Whole0 = 12
    """Further attempts after 429, 5xx, a time-out or a lost connection: 12 outlast some minutes without the server."""
    token_limit_field: Annotated[
        Literal["max_tokens", "max_completion_tokens"], choice("max_tokens", "max_completion_tokens")
    ] = "max_tokens"
    """What the endpoint calls the limit on new tokens; newer OpenAI models refuse max_tokens."""
    omit: list[Annotated[Literal["temperature", "seed"], choice("temperature", "seed")]] = []  # noqa: RUF012
    """Fields that are not sent: some reasoning models refuse a temperature."""
    price: PriceSpec | None = None
    """What it charges, for the cost in the log."""

    @property
    def title(self) -> str:
        """What logs call it."""
        return f"{self.model} at {self.endpoint}"


TRANSPORT_KEYS = frozenset(EndpointSpec.model_fields) - {"endpoint", "model", "omit"}
"""Keys of an endpoint that say how it is reached, and change no answer."""


class MtBenchSpec(Spec):
    """MT-Bench (arXiv 2306.05685): answers in two turns, graded 1 to 10 by a judge. The files are the official ones."""

    questions: Text
    """question.jsonl."""
    prompts: Text | None = None
    """judge_prompts.jsonl; needed with `judge`."""
    references: Text | None = None
    """Reference answers, in the format of model answers; needed for math, reasoning and coding."""
    judge: EndpointSpec | None = None
    """Who judges; None: answers are written and not judged."""
    answers: dict[str, Text] = {}  # noqa: RUF012 - pydantic copies defaults
    """Official model_answer files of further models, by name; they are judged too."""
    judgments: list[Text] = []  # noqa: RUF012
    """Official model_judgment files of further models; they are shown beside ours."""
    temperatures: dict[str, NotNegative] = {}  # noqa: RUF012
    """Sampling temperature by category where it is not the official one."""
    max_new_tokens: Whole1 = 1024
    """Tokens of an answer; the official number."""
    judge_max_tokens: Whole1 = 2048
    """Tokens of a judgment; the official number."""
    batch_size: Whole1 = 16
    """Answers written at once by a local model; changes speed and memory only."""

    @model_validator(mode="after")
    def _consistent(self) -> MtBenchSpec:
        if self.judge is not None and self.prompts is None:
            raise broken_rule("has a `judge` without `prompts`; give the path of the official judge_prompts.jsonl")
        return self


class AlpacaEvalSpec(Spec):
    """AlpacaEval (github.com/tatsu-lab/alpaca_eval): a judge prefers a model's answer or a baseline's."""

    baseline: Text
    """model_outputs.json of the model compared with; its rows are the instructions."""
    prompt: Text | None = None
    """The annotator's prompt template, such as alpaca_eval.txt; needed with `judge`."""
    judge: EndpointSpec | None = None
    """Who judges; None: answers are written and not judged."""
    preference: Annotated[Literal["ranking", "logprobs"], choice("ranking", "logprobs")] = "ranking"
    """How the judge's answer is read: a ranking (AlpacaEval 1), or the log-probabilities of its first token (2)."""
    order: Annotated[Literal["random", "both"], choice("random", "both")] = "random"
    """Which answer the judge sees first: drawn by seed and instruction, or each order once and the mean."""
    outputs: dict[str, Text] = {}  # noqa: RUF012
    """model_outputs.json files of further models, by name; they are judged too."""
    annotations: dict[str, Text] = {}  # noqa: RUF012
    """annotations.json files of further models, by name; they are shown beside ours."""
    temperature: Annotated[float, real(0.0)] = 0.7
    """Of the models' answers; the judge's is 0."""
    max_new_tokens: Whole1 = 2048
    """Tokens of an answer."""
    judge_max_tokens: Whole1 = 100
    """Tokens of a judgment."""
    batch_size: Whole1 = 16
    """Answers written at once by a local model; changes speed and memory only."""

    @model_validator(mode="after")
    def _consistent(self) -> AlpacaEvalSpec:
        if self.judge is not None and self.prompt is None:
            raise broken_rule("has a `judge` without `prompt`; give the path of the annotator's prompt template")
        return self


class TasksSpec(Spec):
    """Tasks of lm-evaluation-harness (github.com/EleutherAI/lm-evaluation-harness); needs the extra `eval`."""

    names: Names
    """Its own tasks and groups, or those of `include`."""
    include: Annotated[list[Text], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)] = []  # noqa: RUF012
    """Folders of further task files (YAML)."""
    num_fewshot: Whole0 | None = None
    """Examples before each question; None: each task's own number."""
    limit: Whole1 | None = None
    """At most so many examples of each task; for trials only."""
    chat_template: bool = True
    """Whether prompts are written with the model's chat template."""
    batch_size: Whole1 = 16
    """Requests at once; changes speed and memory only."""
