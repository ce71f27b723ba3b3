"""DistillationTrainer: adapters, precision, evaluation, logs, skipped steps, and what it refuses."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import TrainerCallback

import toys
from invariant import steps
from invariant.ranks import whole
from invariant.test_one_process import encoded as encoded_steps
from invariant.test_one_process import make_trainer
from invariant.trainers import datasets, trainer, weights
from oracle import brute
from preceptor import Attention, Logits, ModelTeacher, NextToken, Objective
from preceptor.data.collator import Collator
from preceptor.data.mixture import Mixture
from preceptor.errors import InputError
from preceptor.recipe import LoraSpec
from preceptor.stages.build import add_lora
from preceptor.trainer import DistillationTrainer

SGD: dict[str, Any] = {"optim": "sgd", "learning_rate": 0.5, "lr_scheduler_type": "constant", "max_grad_norm": 0}
ONCE: dict[str, Any] = {**SGD, "max_steps": 1, "save_strategy": "no", "logging_steps": 1}


def teacher(dtype: torch.dtype = torch.float32) -> ModelTeacher:
    return ModelTeacher(toys.mistral(2, dtype, sharpness=2))


def adapted(seed: int = 3, dtype: torch.dtype = torch.float32, **settings: Any) -> Any:
    """A toy student with an adapter whose B is not zero, so that A has gradients too."""
    torch.manual_seed(seed)
    model = add_lora(toys.llama(1, dtype, sharpness=2), LoraSpec(r=2, **settings))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return model


class Gradients(TrainerCallback):
    """Keeps the gradients of the first step."""

    def __init__(self) -> None:
        self.found: dict[str, torch.Tensor] = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: nn.Module, **_: Any) -> None:
        self.found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def gradients(folder: Path, model: nn.Module, terms: Any, **settings: Any) -> dict[str, torch.Tensor]:
    kept = Gradients()
    dtype = next(model.parameters()).dtype
    trainer(folder, kept, model=model, terms=terms, teacher=teacher(dtype), **{**ONCE, **settings}).train()
    return kept.found


# --- adapters ---------------------------------------------------------------------------------------------------


def test_only_the_adapter_learns(tmp_path: Path) -> None:
    model = adapted()
    before = weights(model)
    found = gradients(tmp_path, model, [NextToken(), Logits(), Attention()])
    assert found
    assert all("lora_" in name for name in found)
    for name, value in weights(model).items():
        assert torch.equal(value, before[name]) != ("lora_" in name), name


def test_the_attention_term_reaches_the_adapters_of_queries_and_keys(tmp_path: Path) -> None:
    """Against autograd through the brute force, whose models are the toys with the adapter merged."""
    found = gradients(tmp_path, adapted(dtype=torch.float64), [Attention()], per_device_train_batch_size=4,
                      gradient_accumulation_steps=1)  # fmt: skip
    reached = {name for name, grad in found.items() if grad.abs().max() > 1e-6}
    for part in ("layers.0.self_attn.q_proj", "layers.1.self_attn.q_proj", "layers.1.self_attn.k_proj"):
        for factor in ("lora_A", "lora_B"):
            assert any(f"{part}.{factor}" in name for name in reached), part
    assert not any("layers.1.mlp" in name for name in reached)  # nothing follows the last layer's attention
    student = adapted(dtype=torch.float64)
    student.get_base_model().set_attn_implementation("brute")
    taught = brute.doubled(teacher(torch.float64).model)
    rows = first_rows(4)
    sums = sum(brute.terms_of_row(row, student, taught)["attention"] for row in rows)
    (sums / targets(rows)).backward()
    for name, parameter in student.named_parameters():
        if parameter.requires_grad and "self_attn" in name and ("q_proj" in name or "k_proj" in name):
            assert torch.allclose(found[name], parameter.grad, rtol=1e-7, atol=1e-12), name


def first_rows(count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    mixture = Mixture(datasets(), shares={"a": 0.6, "b": 0.4}, rows=10, seed=1, multiple_of=4)
    return [(torch.tensor(row.input_ids).long(), torch.tensor(row.is_target)) for row in list(mixture)[:count]]


def targets(rows: list[tuple[torch.Tensor, torch.Tensor]]) -> int:
    return sum(int(is_target[1:].sum()) for _, is_target in rows)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_changes_nothing_for_an_adapter(reentrant: bool, tmp_path: Path) -> None:
    terms = [NextToken(), Logits(), Attention()]
    plain = gradients(tmp_path, adapted(dtype=torch.float64), terms)
    model = adapted(dtype=torch.float64)
    model.enable_input_require_grads()
    checkpointing = {
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": reentrant},
    }
    found = gradients(tmp_path, model, terms, **checkpointing)
    # transformers 5.17 knows it by its old name only.
    base = model.get_base_model()
    assert getattr(base, "is_activation_checkpointing", None) or base.is_gradient_checkpointing
    assert found.keys() == plain.keys()
    for name, grad in plain.items():
        assert torch.allclose(found[name], grad, rtol=1e-9, atol=1e-14), name


def test_a_head_in_modules_to_save_is_trained_whole(tmp_path: Path) -> None:
    model = adapted(dtype=torch.float64, target_modules=["q_proj", "v_proj"], modules_to_save=["lm_head"])
    found = gradients(tmp_path, model, [NextToken()], per_device_train_batch_size=4, gradient_accumulation_steps=1)
    (name,) = [name for name in found if "lm_head" in name]
    student = adapted(dtype=torch.float64, target_modules=["q_proj", "v_proj"], modules_to_save=["lm_head"])
    rows = first_rows(4)
    loss = sum(
        torch.nn.functional.cross_entropy(
            student(ids[None], use_cache=False).logits[0, :-1][is_target[1:]], ids[1:][is_target[1:]], reduction="sum"
        )
        for ids, is_target in rows
    )
    (loss / targets(rows)).backward()
    expected = dict(student.named_parameters())[name].grad
    assert torch.allclose(found[name], expected, rtol=1e-7, atol=1e-12)
    assert expected.abs().max() > 1e-3


def test_an_adapter_on_the_head_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError) as refused:
        trainer(tmp_path, model=adapted(target_modules=["q_proj", "lm_head"]))
    assert str(refused.value) == (
        "lora.target_modules: adapts the output head, whose weight the losses must see whole; leave the head out, "
        "or train it in full with `modules_to_save: [lm_head]`"
    )


# --- precision --------------------------------------------------------------------------------------------------


def test_bfloat16_by_autocast(tmp_path: Path) -> None:
    """Autocast rounds this toy's gradient by 1.5 % in plain transformers too."""
    terms = [NextToken(), Logits(), Attention()]
    kept = {bf16: Gradients() for bf16 in (False, True)}
    made = {
        bf16: trainer(tmp_path, kept[bf16], model=toys.llama(1), terms=terms, teacher=teacher(), bf16=bf16, **ONCE)
        for bf16 in kept
    }
    measured = {bf16: each.evaluate() for bf16, each in made.items()}
    for each in made.values():
        each.train()
    assert {p.dtype for p in made[True].model.parameters()} == {torch.float32}
    exact, rounded = kept[False].found, kept[True].found
    assert {grad.dtype for grad in rounded.values()} == {torch.float32}
    size = sum(float(grad.square().sum()) for grad in exact.values()) ** 0.5
    apart = sum(float((grad - rounded[name]).square().sum()) for name, grad in exact.items()) ** 0.5
    assert 1e-4 * size < apart < 0.03 * size
    for name in ("next_token", "logits", "attention"):
        one, other = ([line[name] for line in each.state.log_history if name in line] for each in made.values())
        assert one != other
        assert one == pytest.approx(other, rel=0.02)
        # What is measured before the first step is in the precision of training, as it is after it.
        assert measured[True][f"eval_{name}"] != measured[False][f"eval_{name}"]


def test_bfloat16_parameters_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError) as refused:
        trainer(tmp_path, model=toys.llama(1, torch.bfloat16), learning_rate=2e-5)
    assert str(refused.value) == (
        "student: its trainable parameters are bfloat16, in which most updates round away (learning rate 2e-05); load "
        "it in float32 and set `training: {bf16: true}` to compute in bfloat16"
    )


def test_a_quantised_student_without_an_adapter_is_refused(tmp_path: Path) -> None:
    model = toys.llama(1)
    model.is_quantized = True
    with pytest.raises(InputError) as refused:
        trainer(tmp_path, model=model)
    assert str(refused.value) == (
        "student: its checkpoint is quantised, and quantised weights cannot be trained themselves; train an adapter on "
        "it (`lora: {r: 16}`), or start from the checkpoint that was not quantised"
    )


def test_a_frozen_bfloat16_base_is_accepted(tmp_path: Path) -> None:
    model = add_lora(toys.llama(1, torch.bfloat16), LoraSpec(r=2))
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    made = trainer(tmp_path, model=model, **{**ONCE, "bf16": True})
    made.train()
    assert all(torch.isfinite(p).all() for p in made.model.parameters())


# --- measuring and logs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 3, 5])
def test_evaluation_is_the_mean_over_targets(batch: int, tmp_path: Path) -> None:
    student = toys.llama(1, torch.float64, sharpness=2)
    terms = [NextToken(0.5), Logits(), Attention(2.0)]
    made = trainer(
        tmp_path, model=student, terms=terms, teacher=teacher(torch.float64), per_device_eval_batch_size=batch
    )
    found = made.evaluate()
    doubled, taught = brute.doubled(student), brute.doubled(teacher(torch.float64).model)
    held_out = {"a": datasets()["a"][:3], "b": datasets()["b"][:2]}
    sums: dict[str, dict[str, float]] = {}
    for name, rows in held_out.items():
        plain = [(torch.tensor(row.input_ids).long(), torch.tensor(row.is_target)) for row in rows]
        each = [brute.terms_of_row(row, doubled, taught) for row in plain]
        sums[name] = {term: sum(float(row[term]) for row in each) for term in each[0]} | {"targets": targets(plain)}
        for term in ("next_token", "logits", "attention"):
            assert found[f"eval_{term}/{name}"] == pytest.approx(sums[name][term] / targets(plain), rel=1e-7)
    count = sum(each["targets"] for each in sums.values())
    means = {term: (sums["a"][term] + sums["b"][term]) / count for term in ("next_token", "logits", "attention")}
    for term, mean in means.items():
        assert found[f"eval_{term}"] == pytest.approx(mean, rel=1e-7)
    assert found["eval_loss"] == pytest.approx(
        0.5 * means["next_token"] + means["logits"] + 2 * means["attention"], rel=1e-7
    )
    assert made.model.training, "evaluation leaves the model as it was"


def test_a_term_with_routes_is_measured_on_its_own_rows_and_divided_by_all(tmp_path: Path) -> None:
    student = toys.llama(1, torch.float64, sharpness=2)
    terms = [NextToken(0.5, ("a",)), Logits(1.0, ("b",)), Logits(0.25, ("a",), temperature=2.0)]
    made = trainer(tmp_path, model=student, terms=terms, teacher=teacher(torch.float64))
    found = made.evaluate()
    doubled, taught = brute.doubled(student), brute.doubled(teacher(torch.float64).model)
    sums = {"next_token": 0.0, "logits[b]": 0.0, "logits[a]": 0.0}
    count = 0
    for name, rows in {"a": datasets()["a"][:3], "b": datasets()["b"][:2]}.items():
        for row in rows:
            plain = (torch.tensor(row.input_ids).long(), torch.tensor(row.is_target))
            of_row = brute.terms_of_row(plain, doubled, taught, temperature=2.0 if name == "a" else 1.0)
            count += targets([plain])
            sums["next_token"] += float(of_row["next_token"]) if name == "a" else 0.0
            sums[f"logits[{name}]"] += float(of_row["logits"])
    for term, value in sums.items():
        assert found[f"eval_{term}"] == pytest.approx(value / count, rel=1e-7)
    weighted = 0.5 * sums["next_token"] + sums["logits[b]"] + 0.25 * sums["logits[a]"]
    assert found["eval_loss"] == pytest.approx(weighted / count, rel=1e-7)


def test_packing_under_flash_attention_is_refused(tmp_path: Path) -> None:
    model = toys.llama(1)
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(InputError) as refused:
        DistillationTrainer(
            model,
            toys.training_arguments(output_dir=str(tmp_path), report_to="none", use_cpu=True),
            objective=Objective([NextToken()]),
            data_collator=Collator(0, route_names=("default",), packing=True, max_length=32),
        )
    assert str(refused.value) == (
        "packing: flash_attention_2 keeps packed rows apart only in batches of one; set `packing: false`, or load the "
        "student with attn_implementation sdpa"
    )


class Tracker(TrainerCallback):
    """What wandb and its like are given."""

    def __init__(self) -> None:
        self.logged: list[dict[str, Any]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:
        self.logged.append({"step": state.global_step, **logs})


def test_a_tracker_gets_terms_routes_and_speed(tmp_path: Path) -> None:
    tracker = Tracker()
    terms = [NextToken(0.5), Logits(routes=("a",))]
    settings = {"eval_strategy": "steps", "eval_steps": 2, "logging_steps": 1, "save_strategy": "no"}
    made = trainer(tmp_path, tracker, model=toys.llama(1), terms=terms, teacher=teacher(), **settings)
    made.train()
    trained = [line for line in tracker.logged if "loss" in line]
    assert [line["step"] for line in trained] == list(range(1, 10))
    for line in trained:
        assert line["targets"] == line["targets/a"] + line["targets/b"]
        both = line["next_token/a"] * line["targets/a"] + line["next_token/b"] * line["targets/b"]
        assert line["next_token"] == pytest.approx(both / line["targets"], rel=1e-9)
        # One N for all terms, though this one is on some rows only; its own log divides by its own count.
        on_a = line["logits/a"] * line["targets/a"]
        assert line["loss"] == pytest.approx((0.5 * both + on_a) / line["targets"], rel=1e-6)
        assert line["grad_norm"] > 0
        assert line["targets_per_second"] > 0
        assert line["tokens_per_second"] > line["targets_per_second"]
        assert 50 < line["peak_memory_mb"] < 1e5
    rows = first_rows(10)
    assert trained[0]["targets"] == targets(rows[:4])
    assert trained[0]["tokens"] == sum(len(ids) for ids, _ in rows[:4])
    evaluated = [line for line in tracker.logged if "eval_loss" in line]
    assert [line["step"] for line in evaluated] == [2, 4, 6, 8, 9]
    assert {"eval_next_token/a", "eval_logits/b", "eval_next_token"} <= evaluated[0].keys()


def test_the_last_short_step_is_filled(tmp_path: Path) -> None:
    """10 rows in steps of 4: the third step has 2 rows and 2 fillers, and no row twice."""
    tracker = Tracker()
    made = trainer(tmp_path, tracker, model=toys.llama(1), num_train_epochs=1, logging_steps=1, save_strategy="no")
    made.train()
    rows = first_rows(10)
    trained = [line["targets"] for line in tracker.logged if "loss" in line]
    assert trained == [targets(rows[:4]), targets(rows[4:8]), targets(rows[8:])]


# --- a step without targets -------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", [{"optim": "sgd", "optim_args": "momentum=0.9"}, {"optim": "adamw_torch"}])
def test_a_step_without_targets_moves_nothing(optimizer: dict[str, str], tmp_path: Path) -> None:
    """Neither by weight decay nor by momentum, which are both at work by then."""
    full = toys.rows(1, [6, 7, 5, 8], [3, 3, 2, 4])
    empty = toys.rows(2, [6, 5, 7, 4], [0, 0, 0, 0])
    seen: list[dict[str, torch.Tensor]] = []

    class Look(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, model: nn.Module, **_: Any) -> None:
            seen.append(weights(model))

    arguments = toys.training_arguments(
        output_dir=str(tmp_path), per_device_train_batch_size=2, gradient_accumulation_steps=2, num_train_epochs=1,
        learning_rate=0.05, weight_decay=0.3, lr_scheduler_type="constant", logging_steps=4, save_strategy="no",
        report_to="none", use_cpu=True, disable_tqdm=True, dataloader_pin_memory=False, **optimizer,
    )  # fmt: skip

    class InOrder(DistillationTrainer):
        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

    made = InOrder(
        toys.llama(1), arguments, objective=Objective([NextToken()], route_names=("rows",)),
        train_dataset=encoded_steps(full + empty + full + empty),
        data_collator=Collator(0, route_names=("rows",)), callbacks=[Look()],
    )  # fmt: skip
    start = weights(made.model)
    made.train()
    first, second, third, fourth = seen
    assert any(not torch.equal(first[name], start[name]) for name in first)
    assert all(torch.equal(second[name], first[name]) for name in first)
    assert any(not torch.equal(third[name], second[name]) for name in first)
    assert all(torch.equal(fourth[name], third[name]) for name in first)
    (line,) = [line for line in made.state.log_history if "skipped_steps" in line]
    assert line["skipped_steps"] == 2
    assert made.step_metrics.skipped_total == 2
    assert line["targets"] == 2 * targets(full)


# --- what is refused --------------------------------------------------------------------------------------------


def test_several_gpus_in_one_process_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.TrainingArguments.n_gpu", property(lambda self: 4))
    with pytest.raises(InputError) as refused:
        trainer(tmp_path)
    assert str(refused.value) == (
        "4 GPUs are visible to one process, which would train with nn.DataParallel; start one process per GPU with "
        "torchrun or accelerate launch, or set CUDA_VISIBLE_DEVICES"
    )


def test_processes_that_do_not_know_of_each_other_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under torchrun without accelerators and without use_cpu, accelerate takes each process for the only one."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("transformers.TrainingArguments.world_size", property(lambda self: 1))
    arguments = toys.training_arguments(output_dir=str(tmp_path))
    with pytest.raises(InputError) as refused:
        DistillationTrainer(
            toys.llama(1), arguments, objective=Objective([NextToken()]), data_collator=Collator(0, route_names=("a",))
        )
    assert str(refused.value) == (
        "2 processes were started, but each would train alone: no accelerator was found; set use_cpu=True in "
        "TrainingArguments to train on CPUs together"
    )


# --- the plain loop ---------------------------------------------------------------------------------------------


def test_the_plain_loop_is_the_same_training(tmp_path: Path) -> None:
    source = Path(__file__).parents[2] / "examples/plain_loop.py"
    spec = importlib.util.spec_from_file_location("plain_loop", source)
    assert spec is not None
    assert spec.loader is not None
    plain_loop = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(plain_loop)

    made = make_trainer(tmp_path, torch.float64, 2)
    made.train()
    student, taught = steps.models(True, torch.float64)
    start, _ = steps.models(True, torch.float64)
    batches = [[toys.batch([[row] for row in rows[i : i + 4]]) for i in (0, 4)] for rows in steps.STEPS]
    optimizer = torch.optim.SGD(student.parameters(), lr=steps.LEARNING_RATE)
    plain_loop.distil(student, ModelTeacher(taught), batches, steps.objective(), optimizer)
    assert steps.distance(whole(made.model), student, start) <= 1e-7
