"""The model card names teacher, data, losses and results."""

from __future__ import annotations

import re

import yaml

from preceptor.models.card import render_card


def test_a_distilled_model() -> None:
    card = render_card(
        name="shop",
        stage="kd",
        kind="distill",
        student="org/base",
        base_model="org/base",
        teacher="org/big",
        data={"general": 0.9, "shop": 0.1},
        losses=[{"kind": "logits", "weight": 1.0, "temperature": 2.0}, {"kind": "attention", "weight": 0.5}],
        training={"learning_rate": 2e-5},
        results={"after": {"general": {"logits": 0.25361}}},
        seed=43,
        versions={"torch": "2.13"},
    )
    for line in (
        "base_model: org/base",
        "- knowledge-distillation",
        "# shop: kd",
        "Distilled from the teacher `org/big` into `org/base`.",
        "| general | 0.9 |",
        "| logits | 1 | temperature 2 |",
        "| attention | 0.5 | – |",
        "| learning_rate | 2e-05 |",
        "| after.general.logits | 0.2536 |",
        "Made with preceptor (seed 43, torch 2.13).",
    ):
        assert line in card.splitlines()


def test_teachers_by_route_and_cells_that_would_break_the_table() -> None:
    card = render_card(
        name="shop",
        stage="dae",
        kind="distill",
        teacher={"shop": "expert", "general": "base"},
        data=["a", "b"],
        results={"odd|name\n": 1234567},
    )
    assert "Distilled into a new model from the teachers below, each on its own rows." in card
    assert "| shop | expert |" in card
    assert "- a\n- b" in card
    assert "| odd\\|name | 1,234,567 |" in card


HOSTILE = "x`\n---\n# owned\n<script>alert(1)</script>[go](javascript:x)|\x1b[31m\u202e&lt;"


def test_names_that_would_be_markup() -> None:
    card = render_card(
        name=HOSTILE,
        stage=HOSTILE,
        kind="distill",
        student=HOSTILE,
        base_model="evil: {a: b}\n---\nowned: true",
        teacher={HOSTILE: HOSTILE},
        data=[HOSTILE],
        losses=[{"kind": HOSTILE, "weight": 1.0, HOSTILE: HOSTILE}],
        training={HOSTILE: HOSTILE},
        results={HOSTILE: HOSTILE},
        versions={HOSTILE: HOSTILE},
    )
    front, _, body = card.removeprefix("---\n").partition("\n---\n")
    assert yaml.safe_load(front)["base_model"] == "evil: {a: b}\n---\nowned: true"
    assert not any(line.startswith(("# owned", "---")) for line in body.splitlines())
    assert not re.search(r"[\x00-\x09\x0b-\x1f\u202e]", card)
    spans = re.sub(r"`[^`]*`", "", body.replace("\\`", ""))  # nothing in a code span is markup
    assert "<script" not in spans
    assert not re.search(r"(?<!\\)\[go", spans)
    assert {line.replace("\\|", "").count("|") for line in body.splitlines() if line.startswith("|")} == {3, 4}


def test_a_teacher_and_a_student_in_code_spans() -> None:
    card = render_card(name="a", stage="b", kind="distill", student=HOSTILE, teacher=HOSTILE)
    [line] = [line for line in card.splitlines() if line.startswith("Distilled")]
    assert line.count("`") == 4


def test_untrained_and_fine_tuned() -> None:
    assert "A model with untrained weights, drawn from a seed." in render_card(name="a", stage="b", kind="init")
    card = render_card(name="a", stage="b", kind="sft", student="./local")
    assert "Fine-tuned from `./local` on the data below." in card
    assert "base_model" not in card
