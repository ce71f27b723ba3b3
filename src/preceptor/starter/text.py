"""The text of a first recipe: YAML in the order in which it is read, each choice with its reason beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from preceptor.recipe import local_path
from preceptor.starter import choices
from preceptor.starter.choices import Length, Memory
from preceptor.starter.data import DataFacts
from preceptor.starter.lines import comment, commented, scalar
from preceptor.starter.models import ModelFacts


@dataclass(frozen=True)
class Found:
    """What a recipe is written from."""

    name: str
    teacher: ModelFacts
    student: ModelFacts
    experts: Sequence[ModelFacts]
    data: Sequence[DataFacts]
    shared: int
    """Prompts that several datasets have."""
    tokenizers_agree: bool
    """Whether they were compared; where they differ there is no recipe."""
    length: Length
    memory: Memory
    lora: bool
    quantize: str | None
    store: bool
    here: bool
    """Whether the recipe lies in the working directory, so that paths hold as they were given."""

    @property
    def domains(self) -> list[DataFacts]:
        """The datasets that a domain is learned from."""
        return [each for each in self.data if each.role == "domain"]

    @property
    def general(self) -> list[DataFacts]:
        """The datasets of what is to be kept."""
        return [each for each in self.data if each.role == "general"]

    def path(self, text: str) -> str:
        """A path or Hub id as the recipe names it."""
        local = None if self.here else local_path(text, Path.cwd())
        return scalar(text if local is None else str(local))


def recipe_text(found: Found, out: str) -> str:
    """The whole file."""
    lines = [*_head(found, out), *_data(found), "", "stages:"]
    if found.store:
        lines += _store(found)
    lines += _kd(found)
    if found.domains:
        lines += [*_whole(found), *_experts(found), *_dae(found)]
    lines += _scores(found)
    return "\n".join(lines) + "\n"


def _head(found: Found, out: str) -> list[str]:
    file = scalar(out)
    return [
        "# Begun by `preceptor init`, and yours to change. Next:",
        f"#   preceptor plan {file}    what a run does and needs; trains nothing",
        f"#   preceptor run {file}     runs what is not yet done; stopped, it goes on",
        "#",
        f"# teacher: {found.teacher.words}",
        f"# student: {found.student.words}",
        "# tokenizers: "
        + (
            "the same, as a distillation needs"
            if found.tokenizers_agree
            else "must be the same; `preceptor plan` compares"
        ),
        *commented(f"name: {scalar(found.name)}", f"results go to runs/{found.name}"),
        *commented("seed: 43", "fixes the rows held out and the order of rows"),
    ]


def _data(found: Found) -> list[str]:
    lines = ["", "data:"]
    for each in found.data:
        lines.append(f"  {scalar(each.name)}:")
        lines += commented(f"    path: {found.path(each.path)}", each.words)
        if each.columns:
            pairs = ", ".join(f"{ours}: {scalar(theirs)}" for ours, theirs in each.columns.items())
            lines += commented(f"    columns: {{{pairs}}}", "our names and the file's; mend them if guessed wrongly")
        if each.rows is None:
            lines += commented("    split: train", "of a Hub dataset; mend it if called otherwise")
        lines += commented(f"    holdout: {each.holdout}", "rows kept out of training, to compare models on")
        what = "a domain to learn" if each.role == "domain" else "what the student is to know and keep"
        lines += commented(f"    role: {each.role}", what)
        if not each.scored:
            lines += commented("    # metric: exact", "score answers too: exact, accuracy or rougeL")
    if len(found.data) > 1 and found.shared:
        order = [scalar(each.name) for each in (*found.general, *found.domains)]
        losers = order[0] if len(order) == 2 else f"[{', '.join(order[:-1])}]"
        prompts = "1 prompt is" if found.shared == 1 else f"{found.shared:,} prompts are"
        lines += commented(
            f"overlap: {{drop_from: {losers}}}", f"{prompts} in both" if len(order) == 2 else f"{prompts} in several"
        )
    return lines


def _shares(shares: dict[str, float]) -> str:
    """One dataset's name, or several with their shares."""
    if len(shares) == 1:
        return scalar(next(iter(shares)))
    return "{" + ", ".join(f"{scalar(name)}: {share:g}" for name, share in shares.items()) + "}"


def _quantized(found: Found) -> str:
    return f"quantization: {{load_in_{found.quantize}: true}}"


def _teacher(found: Found) -> str:
    path = found.path(found.teacher.path)
    return path if found.quantize is None else f"{{path: {path}, {_quantized(found)}}}"


def _store(found: Found) -> list[str]:
    names = [scalar(each.name) for each in found.general]
    return [
        "",
        *comment(
            "The teacher is run once, and what it predicts is kept on disk: it need not be in memory while the student "
            "learns, nor run again in later passes or trials.",
            "  ",
        ),
        "  said:",
        "    kind: store",
        *commented(f"    teacher: {_teacher(found)}", "by bitsandbytes" if found.quantize else ""),
        *commented(f"    student: {found.path(found.student.path)}", "whose tokenizer and chat template the rows get"),
        f"    data: {names[0] if len(names) == 1 else '[' + ', '.join(names) + ']'}",
        *commented(f"    max_length: {found.length.tokens}", "as in the stage that learns from it"),
        *commented("    mode: sample", "tokens drawn from it; also topk, full"),
        *commented("    draws: 50", "per target token; more say more, and take more disk"),
    ]


def _kd(found: Found) -> list[str]:
    lines = [
        "",
        "  # Stage 1, knowledge distillation: the student learns to predict as the teacher does.",
        *comment(f"Memory: {found.memory.words}.", "  "),
        "  kd:",
        "    kind: distill",
        f"    student: {found.path(found.student.path)}",
    ]
    if found.store:
        lines += commented("    teacher: stage:said", "what the teacher said, read from disk")
    else:
        lines += commented(f"    teacher: {_teacher(found)}", "by bitsandbytes" if found.quantize else "")
    lines += [
        f"    data: {_shares(choices.parted(found.general, 1.0))}",
        "    objective:",
        *commented("      - {kind: logits}", "KL to its next-token distributions"),
    ]
    if found.store:
        lines += comment("add {kind: attention} where the teacher itself is named, not a store", "      ")
    else:
        lines += commented("      - {kind: attention}", "KL to its attention, in every layer")
    lines += _training(found, found.general, rate="2.0e-5", decay="0.1", lora=found.lora)
    return lines


def _training(
    found: Found, data: Sequence[DataFacts], *, rate: str, decay: str, lora: bool, first: bool = True
) -> list[str]:
    """The keys that all training stages have; the first explains them."""
    per_device = choices.batch(found.student)
    large = per_device == 1
    lines = commented(
        f"    rows_per_step: {choices.rows_per_step(data, per_device)}",
        "per optimiser step, over all GPUs" if first else "",
    )
    lines += commented(f"    max_length: {found.length.tokens}", found.length.why if first else "")
    if lora:
        lines += commented("    lora: {r: 64}", "an adapter learns, the model's own weights stay" if first else "")
        rate = "1.0e-4"
    lines += commented("    training:", "what transformers.TrainingArguments accepts" if first else "")
    lines += commented("      num_train_epochs: 2", "passes over the rows" if first else "")
    lines += commented(
        f"      learning_rate: {rate}",
        ("adapters take more than whole models" if lora else "as in the paper") if first else "",
    )
    lines += ["      lr_scheduler_type: cosine"]
    lines += commented("      warmup_steps: 0.1", "a share of all steps" if first else "")
    lines += [f"      weight_decay: {decay}"]
    lines += commented(
        f"      per_device_train_batch_size: {per_device}",
        "rows at once; more is faster while it fits" if first else "",
    )
    if found.memory.machine.bf16:
        lines += commented("      bf16: true", "forward and backward in bf16, weights kept in fp32" if first else "")
    if large:
        lines += commented(
            "      gradient_checkpointing: true", "less memory for about a third more time" if first else ""
        )
    lines += commented("      logging_steps: 10") + commented(
        "      save_steps: 100", "a stopped run loses no more than these" if first else ""
    )
    return lines


def _base(found: Found) -> str:
    """What stage 2 begins with."""
    return "stage:distilled" if found.lora else "stage:kd"


def _whole(found: Found) -> list[str]:
    if not found.lora:
        return []
    return [
        "",
        "  # The adapter of stage 1 merged into its model, on which stage 2 trains adapters anew.",
        f"  distilled: {{kind: merge, models: [{found.path(found.student.path)}, stage:kd], alpha: 1.0}}",
    ]


def _expert_name(found: Found, domain: DataFacts) -> str:
    return "expert" if len(found.domains) == 1 else f"expert_{domain.name}"


def _expert(found: Found, number: int) -> str:
    """How stages name the expert of a domain."""
    if not found.experts:
        return scalar(f"stage:{_expert_name(found, found.domains[number])}")
    given = found.experts[number]
    path = found.path(given.path)
    return path if given.base is None else f"{{path: {found.path(given.base)}, adapter: {path}}}"


def _experts(found: Found) -> list[str]:
    if found.experts:
        return []
    lines = [
        "",
        *comment(
            "A domain expert: the distilled student, fine-tuned on the answers of one domain. As an adapter it shares "
            "its other weights with the reference of stage 2.",
            "  ",
        ),
    ]
    for domain in found.domains:
        lines += [
            f"  {scalar(_expert_name(found, domain))}:",
            "    kind: sft",
            f"    model: {_base(found)}",
            f"    data: {scalar(domain.name)}",
            *_training(found, [domain], rate="2.0e-5", decay="0.0", lora=True, first=False),
        ]
    return lines


def _dae(found: Found) -> list[str]:
    routes = {domain.name: _expert(found, number) for number, domain in enumerate(found.domains)}
    routes |= {each.name: _base(found) for each in found.general}
    return [
        "",
        *comment(
            "Stage 2, Domain Alignment from Expert: each row follows the teacher of its dataset, a domain's rows their "
            "expert and the others the student as it was, so that it stays so.",
            "  ",
        ),
        "  dae:",
        "    kind: distill",
        f"    student: {_base(found)}",
        "    teacher:",
        "      routes:",
        *(line for name, model in routes.items() for line in commented(f"        {scalar(name)}: {model}")),
        *commented(
            f"    data: {_shares(choices.shares(found.data))}", "shares of rows; about 0.1 of a domain in the paper"
        ),
        "    objective: [{kind: logits}]",
        *_training(found, found.data, rate="2.0e-5", decay="0.0", lora=found.lora, first=False),
    ]


def _scores(found: Found) -> list[str]:
    on = ", ".join(scalar(each.name) for each in found.data)
    lines = ["", "  # What was learned, kept and forgotten, on the rows held out.", "  scores:", "    kind: evaluate"]
    if found.domains:
        lines += ["    models: [stage:dae]", *commented(f"    reference: {_base(found)}", "what is to be kept")]
        if len(found.domains) == 1:
            lines += commented(f"    expert: {_expert(found, 0)}", "what is to be gained")
        else:
            experts = ", ".join(f"{_expert_name(found, d)}: {_expert(found, n)}" for n, d in enumerate(found.domains))
            lines[-2] = f"    models: {{dae: stage:dae, {experts}}}"
    else:
        before = found.path(found.student.path)
        teacher = "" if found.store else f", teacher: {_teacher(found)}"
        lines += [f"    models: {{before: {before}, kd: stage:kd{teacher}}}"]
    lines += [f"    on: [{on}]", f"    max_length: {found.length.tokens}"]
    return lines
