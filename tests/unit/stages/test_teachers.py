"""From `teacher:` to teachers in memory: one copy of what they share, which teaches as copies of their own would."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import preceptor
import toys
from invariant import routed_recipes
from preceptor.errors import InputError, RunFailed
from preceptor.models.load import load_model
from preceptor.models.tokenizers import load_tokenizer
from preceptor.recipe import LoraSpec, ModelSpec, Recipe
from preceptor.signals import Needs, TokenBatch
from preceptor.stages.build import add_lora
from preceptor.stages.context import StageContext, run_directory
from preceptor.stages.teachers import build_teacher
from preceptor.teachers import AdapterTeacher, ModelTeacher, RoutedTeacher

ROUTES = ("general", "shop")
BOTH = Needs(
    logits=frozenset({0, 1}),
    attention=frozenset({0, 1}),
    layers={"teacher": (0, 1)},
)


def quiet(line: str) -> None:
    pass


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose run has a base, an expert and an adapter; also in bfloat16."""
    folder = tmp_path_factory.mktemp("made")
    for runs, dtype in (("runs", "float32"), ("low", "bfloat16")):
        for stage in ("start", "kd", "expert", "adapter"):
            preceptor.run(routed_recipes.recipe(folder, runs, dtype), only=stage, log=quiet)
    return folder


class Built:
    """The teacher of a `dae` stage, the student it was built beside, and what was said."""

    def __init__(self, recipe: Recipe, *, dropout: float = 0.5, modules_to_save: list[str] | None = None) -> None:
        self.context = StageContext(
            recipe, "dae", run_directory(recipe) / "dae", 0, lambda line: self.said.append(line)
        )
        self.said: list[str] = []
        self.recipe = recipe
        spec: Any = recipe.stages["dae"]
        student_spec = self.context.resolve_model(spec.student)
        self.student: nn.Module = load_model(student_spec, role="student")
        if spec.lora is not None:
            torch.manual_seed(7)
            lora = LoraSpec(r=2, dropout=dropout, modules_to_save=modules_to_save)
            self.student = add_lora(self.student, lora)
            with torch.no_grad():  # as after some training: a fresh adapter adds nothing
                for parameter in self.student.parameters():
                    if parameter.requires_grad:
                        parameter += torch.randn_like(parameter) * 0.3
        self.student.train()
        self.before = trainable(self.student)
        self.teacher = build_teacher(
            spec, self.context, student=self.student, tokenizer=load_tokenizer(student_spec), route_names=ROUTES,
            device=torch.device("cpu"),
        )  # fmt: skip

    def model(self, text: str) -> ModelTeacher:
        """A teacher with a model of its own."""
        resolved = self.context.resolve_model(ModelSpec(path=text))
        return ModelTeacher(load_model(resolved, role="teacher"))

    def modules(self) -> list[nn.Module]:
        assert isinstance(self.teacher, RoutedTeacher)
        return [each.model for each in self.teacher._teachers.values()]


def trainable(model: nn.Module) -> list[str]:
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def storages(modules: Iterable[nn.Module], larger_than: int = 0) -> dict[int, int]:
    """Parameters by the memory they are in, and how many numbers each holds."""
    found = {p.untyped_storage().data_ptr(): p.numel() for module in modules for p in module.parameters()}
    return {at: count for at, count in found.items() if count > larger_than}


def batch() -> TokenBatch:
    rows = toys.rows(4, [9, 6, 11, 5], [5, 2, 4, 3])
    return toys.batch([[(ids % 20, is_target)] for ids, is_target in rows], routes=[1, 0, 1, 0])


def teachings(teacher: Any) -> dict[str, list[Tensor]]:
    """Log-probabilities, and queries and keys, by name of the teacher."""
    names = list(teacher._teachers)
    needs = Needs(BOTH.logits, BOTH.attention, dict.fromkeys(names, (0, 1)))
    found = {}
    for part in teacher(batch(), needs).parts:
        logs = part.head.logits(part.hidden_ND).log_softmax(-1)
        found[part.teacher] = [logs, *(t for each in part.attention.values() for t in (each.q_BHRD, each.k_BGSD))]
    return found


def same(built: Built, shop: str, general: str, **how: float) -> None:
    """The built teacher says what separately loaded models say."""
    apart = RoutedTeacher({"shop": built.model(shop), "general": built.model(general)}, route_names=ROUTES)
    for got, expected in zip(teachings(built.teacher).values(), teachings(apart).values(), strict=True):
        for ours, theirs in zip(got, expected, strict=True):
            torch.testing.assert_close(ours.float(), theirs.float(), **({"rtol": 1e-5, "atol": 1e-5} | how))


def routes(shop: Any, general: Any) -> dict[str, Any]:
    return {"routes": {"shop": shop, "general": general}}


def numbers(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_an_adapter_and_its_base_are_one_copy(made: Path) -> None:
    built = Built(routed_recipes.recipe(made, teacher=routes("stage:adapter", "stage:kd")))
    base = numbers(load_model(built.context.resolve_model(ModelSpec(path="stage:kd")), role="teacher"))
    adapter = sum(t.numel() for t in load_file(made / "runs/r/adapter/adapter/adapter_model.safetensors").values())
    assert sum(storages(built.modules()).values()) == base + adapter
    assert not storages(built.modules()).keys() & storages([built.student]).keys(), "a student in full changes its own"
    assert built.said == [f"dae: 2 teachers on one copy of {made}/runs/r/kd/model"]
    same(built, "stage:adapter", "stage:kd")
    same(built, "stage:adapter", "stage:kd")  # and again: one call leaves nothing for the next
    assert not any(trainable(module) for module in built.modules())


def test_the_expert_is_another_than_its_base(made: Path) -> None:
    """Or the equality above would hold for an adapter that is never on."""
    built = Built(routed_recipes.recipe(made, teacher=routes("stage:adapter", "stage:kd")))
    apart = RoutedTeacher({"shop": built.model("stage:kd")}, route_names=ROUTES, default=built.model("stage:kd"))
    expert = next(words for name, (words, *_) in teachings(built.teacher).items() if "adapter" in name)
    _, (base, *_) = teachings(apart).values()
    assert float((expert - base).abs().max()) > 1e-3


def test_one_model_on_two_routes_is_loaded_once(made: Path) -> None:
    built = Built(routed_recipes.recipe(made, teacher=routes("stage:kd", "stage:kd")))
    assert len(built.modules()) == 1
    assert type(built.modules()[0]).__name__ == "MistralForCausalLM"
    assert built.said == []


def test_models_of_their_own_are_their_own(made: Path) -> None:
    built = Built(routed_recipes.recipe(made, teacher=routes("stage:expert", "stage:kd")))
    one, two = built.modules()
    assert not storages([one]).keys() & storages([two]).keys()
    same(built, "stage:expert", "stage:kd", rtol=0, atol=0)


def test_a_mixture_and_a_default(made: Path) -> None:
    shares = [{"model": "stage:expert", "weight": 0.25}, {"model": "stage:adapter", "weight": 0.75}]
    teacher = {"routes": {"shop": shares}, "default": "stage:kd"}
    built = Built(routed_recipes.recipe(made, teacher=teacher))
    needs = Needs(logits=frozenset({0, 1}))
    found = [(part.weight, part.rows.tolist()) for part in built.teacher(batch(), needs).parts if part.rows is not None]
    assert sorted(found) == [(0.25, [0, 2]), (0.75, [0, 2]), (1.0, [1, 3])]


# --- on the student's own weights -------------------------------------------------------------------------------


@pytest.mark.parametrize("modules_to_save", [None, ["lm_head"], ["embed_tokens"]], ids=str)
def test_an_adapter_student_lends_its_base_to_its_teachers(made: Path, modules_to_save: list[str] | None) -> None:
    teacher = routes("stage:adapter", "stage:kd")
    built = Built(routed_recipes.recipe(made, teacher=teacher, lora={"r": 2}), modules_to_save=modules_to_save)
    before = {name: p.detach().clone() for name, p in built.student.named_parameters() if "teacher_" not in name}
    words = own_words(built.student)
    assert built.said == ["dae: 2 teachers on the student's own base weights"]
    adapter = sum(t.numel() for t in load_file(made / "runs/r/adapter/adapter/adapter_model.safetensors").values())
    lent = storages([built.student, *built.modules()])
    own = storages([Built(built.recipe.model_copy(), modules_to_save=modules_to_save).student])
    assert sum(lent.values()) == sum(own.values()), "the student carries its teachers' adapter, and no more"
    assert sum(lent.values()) == sum(p.numel() for p in before.values()) + adapter

    same(built, "stage:adapter", "stage:kd")  # without the student's dropout of a half
    assert built.student.training
    assert trainable(built.student) == built.before
    assert built.student.active_adapter == "default"
    torch.testing.assert_close(own_words(built.student), words, rtol=0, atol=0)
    for name, parameter in built.student.named_parameters():
        if "teacher_" not in name:
            assert torch.equal(parameter, before[name]), name


def own_words(student: nn.Module) -> Tensor:
    training = student.training
    student.eval()
    with torch.no_grad():
        logits = student(input_ids=batch().input_ids, use_cache=False).logits
    student.train(training)
    return logits


def test_the_students_own_adapter_still_learns_after_its_teachers_spoke(made: Path) -> None:
    teacher = routes("stage:adapter", "stage:kd")
    built = Built(routed_recipes.recipe(made, teacher=teacher, lora={"r": 2}), modules_to_save=["lm_head"])
    teachings(built.teacher)
    built.student(input_ids=batch().input_ids, labels=batch().input_ids).loss.backward()
    learns = [name for name, p in built.student.named_parameters() if p.grad is not None and p.grad.any()]
    assert learns == built.before
    assert not any("teacher_" in name for name in learns)


def test_a_student_in_training_and_one_in_evaluation_stay_so(made: Path) -> None:
    built = Built(routed_recipes.recipe(made, teacher=routes("stage:adapter", "stage:kd"), lora={"r": 2}))
    for training in (False, True):
        built.student.train(training)
        teachings(built.teacher)
        assert all(module.training == training for module in built.student.modules())


def test_an_adapter_is_put_back_after_an_error(made: Path) -> None:
    built = Built(routed_recipes.recipe(made, teacher=routes("stage:adapter", "stage:kd"), lora={"r": 2}))
    words = own_words(built.student)
    broken = TokenBatch(**{**vars(batch()), "input_ids": torch.full((4, 11), 10**6)})
    assert isinstance(built.teacher, RoutedTeacher)
    for each in built.teacher._teachers.values():
        assert isinstance(each, AdapterTeacher)
        with pytest.raises(RunFailed, match="index out of range"):
            each(broken, Needs(logits=frozenset({0, 1})))
    assert trainable(built.student) == built.before
    assert built.student.training
    torch.testing.assert_close(own_words(built.student), words, rtol=0, atol=0)


def test_teachers_that_ask_for_something_special_have_weights_of_their_own(made: Path) -> None:
    special = {"path": "stage:kd", "dtype": "bfloat16"}
    built = Built(routed_recipes.recipe(made, teacher=routes("stage:adapter", special), lora={"r": 2}))
    assert built.said == ["dae: 1 teacher on the student's own base weights"]
    base = next(each for each in built.modules() if each is not built.student)
    assert {p.dtype for p in base.parameters()} == {torch.bfloat16}
    assert not storages([base]).keys() & storages([built.student]).keys()


def test_a_bfloat16_checkpoint_teaches_in_bfloat16_from_a_float32_student(made: Path) -> None:
    teacher = routes("stage:adapter", "stage:kd")
    built = Built(routed_recipes.recipe(made, "low", "bfloat16", teacher=teacher, lora={"r": 2}))
    assert {p.dtype for p in built.student.parameters()} == {torch.float32}
    hidden = [part.hidden_ND for part in built.teacher(batch(), Needs(logits=frozenset({0, 1}))).parts]
    apart = RoutedTeacher({"shop": built.model("stage:adapter")}, route_names=ROUTES, default=built.model("stage:kd"))
    expected = [part.hidden_ND for part in apart(batch(), Needs(logits=frozenset({0, 1}))).parts]
    for ours, theirs in zip(hidden, expected, strict=True):
        assert ours is not None
        assert theirs is not None
        torch.testing.assert_close(ours.float(), theirs.float(), rtol=0.05, atol=0.05)
    same(built, "stage:adapter", "stage:kd", rtol=0.05, atol=0.08)


# --- what does not fit ------------------------------------------------------------------------------------------


def test_an_adapter_for_another_base_names_its_route_teacher(made: Path, tmp_path: Path) -> None:
    folder = made / "runs/r/adapter/adapter"
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    stored = load_file(folder / "adapter_model.safetensors")
    save_file(
        {n: t.new_zeros([2 * s for s in t.shape]) for n, t in stored.items()}, other / "adapter_model.safetensors"
    )
    teacher = routes({"path": "stage:kd", "adapter": str(other)}, "stage:kd")
    for lora in (None, {"r": 2}):
        with pytest.raises(InputError) as caught:
            Built(routed_recipes.recipe(made, teacher=teacher, lora=lora))
        assert str(caught.value).startswith(f"adapter '{other}': does not fit the model '{made}/runs/r/kd/model' (")
        assert str(caught.value).endswith("; give the base model it was trained on")
        assert "\n" not in str(caught.value)
