"""The methods the pocket study compares: for each model, the stage that makes it.

The premise under test is the paper's (arXiv 2406.19112). Stage 1: a teacher is worth more than its instruction data.
The public rows carry label noise, the teacher was trained on clean ones, and only the objective differs between
methods. Stage 2: a student that follows a domain expert on the domain's rows, and itself as it was on all others, gains
the domain and keeps the rest. What a user would do instead sees the same rows in the same order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

TEACHER = Path(__file__).parent / "teacher"
# bfloat16 as shipped would be slower on most CPUs, and other hardware would round otherwise.
TEACHER_SPEC: dict[str, Any] = {"path": str(TEACHER), "dtype": "float32"}
SHARE = 0.25
"""Share of domain rows in stage 2, where a method's name gives no other."""
REFERENCE, EXPERT = "kd_both", "expert"

Length = Literal["distil", "expert", "align"]
Part = Literal["distil", "align", "sweep", "pair", "clean", "few"]
"""Which part of the study a method belongs to: the demo runs the first two, `--full` all of them.

`clean` methods see the public rows without noise, `few` methods only `FEW_ROWS` of them, in recipes of their own.
"""
APART: tuple[Part, ...] = ("clean", "few")
FEW_ROWS = 2000


@dataclass(frozen=True)
class Method:
    """One model of the study: a stage of the recipe.

    `title` names it in tables; `stage` holds the keys in which its stage differs from the others'; `learning_rate` is
    its best of one grid, the same for every method (docs/results.md has the grid), None where nothing is trained;
    `length` says which of `Size`'s lengths it trains for; `cost` is its time relative to plain SFT, by which jobs are
    ordered.
    """

    title: str
    stage: Mapping[str, Any]
    part: Part
    cost: float
    learning_rate: float | None = None
    length: Length = "distil"


def _distill(*objective: Mapping[str, Any]) -> dict[str, Any]:
    return {"kind": "distill", "student": "stage:student", "teacher": TEACHER_SPEC, "objective": list(objective)}


def _align(teacher: Any, share: float = SHARE, student: str = REFERENCE, **stage: Any) -> dict[str, Any]:
    return {
        "kind": "distill",
        "student": f"stage:{student}",
        "teacher": teacher,
        "objective": ALIGN_OBJECTIVE,
        "data": {"shop": share, "public": 1 - share},
        **stage,
    }


def _routes(shop: str = EXPERT, public: str = REFERENCE) -> dict[str, Any]:
    return {"routes": {"shop": f"stage:{shop}", "public": f"stage:{public}"}}


def _replay(share: float = SHARE) -> dict[str, Any]:
    return {"kind": "sft", "model": f"stage:{REFERENCE}", "data": {"shop": share, "public": 1 - share}}


def _merge(alpha: float) -> dict[str, Any]:
    return {"kind": "merge", "models": [f"stage:{REFERENCE}", f"stage:{EXPERT}"], "alpha": alpha}


ALIGN_OBJECTIVE = [{"kind": "logits"}, {"kind": "attention"}]
MOL_OBJECTIVE = [{"kind": "next_token", "routes": ["shop"]}, {"kind": "logits", "routes": ["public"]}]
SHARES = (0.05, 0.1, 0.25, 0.5)

# A term of weight 0 is measured and not minimised: the loss curves of all three runs then show both losses.
METHODS: Mapping[str, Method] = {
    "sft": Method("SFT", {"kind": "sft", "model": "stage:student"}, "distil", 1.0, 1.5e-3),
    "kd_prediction": Method(
        "KD, prediction", _distill({"kind": "logits"}, {"kind": "attention", "weight": 0.0}), "distil", 1.5, 1.5e-3
    ),
    # Alone it answers nothing (see docs/losses.md), so it is not worth a minute of the demo.
    "kd_attention": Method(
        "KD, attention", _distill({"kind": "logits", "weight": 0.0}, {"kind": "attention"}), "sweep", 1.7, 3e-3
    ),
    REFERENCE: Method("KD, both", _distill({"kind": "logits"}, {"kind": "attention"}), "distil", 1.8, 3e-3),
    EXPERT: Method(
        "expert (domain SFT)",
        {"kind": "sft", "model": f"stage:{REFERENCE}", "data": "shop"},
        "align",
        0.6,
        3e-3,
        "expert",
    ),
    "dae": Method("DAE", _align(_routes()), "align", 2.0, 3e-3, "align"),
    "replay": Method("replay", _replay(), "align", 1.3, 1.5e-3, "align"),
    **{
        f"merge_{a}": Method(
            f"interpolation, {a / 100:g}", _merge(a / 100), "align" if a in (30, 50, 70) else "sweep", 0.05
        )
        for a in range(10, 100, 10)
    },
    "swapped": Method("DAE, routes swapped", _align(_routes(REFERENCE, EXPERT)), "sweep", 2.0, 3e-3, "align"),
    "dae_logits": Method(
        "DAE, prediction only", _align(_routes(), objective=[{"kind": "logits"}]), "sweep", 1.8, 3e-3, "align"
    ),
    "dae_teacher": Method(
        "DAE, general from the teacher",
        _align({"routes": {"shop": f"stage:{EXPERT}", "public": TEACHER_SPEC}}),
        "sweep",
        2.5,
        3e-3,
        "align",
    ),
    "mol": Method(
        "CE on domain, KL elsewhere (MoL)",
        _align({"routes": {"public": f"stage:{REFERENCE}"}}, objective=MOL_OBJECTIVE),
        "sweep",
        1.8,
        1.5e-3,
        "align",
    ),
    **{
        f"{name}_{round(100 * share):02d}": Method(f"{title}, {share:.0%} shop", stage, "sweep", cost, rate, "align")
        for share in SHARES
        if share != SHARE
        for name, title, stage, cost, rate in (
            ("dae", "DAE", _align(_routes(), share), 2.0, 3e-3),
            ("replay", "replay", _replay(share), 1.3, 1.5e-3),
        )
    },
    # Two of two experts per token, as in the paper's 2x7B: a dense ensemble of twice the MLP, whose router learns.
    "pair": Method(
        "2x, composed",
        {"kind": "compose", "experts": ["stage:sft", "stage:kd_prediction"], "experts_per_token": 2},
        "pair",
        0.05,
    ),
    "kd_pair": Method(
        "2x: KD, both",
        {**_distill({"kind": "logits"}, {"kind": "attention"}), "student": "stage:pair"},
        "pair",
        3.0,
        3e-3,
    ),
    "expert_pair": Method(
        "2x: expert", {"kind": "sft", "model": "stage:kd_pair", "data": "shop"}, "pair", 1.0, 3e-3, "expert"
    ),
    "dae_pair": Method(
        "2x: DAE",
        _align(_routes("expert_pair", "kd_pair"), student="kd_pair"),
        "pair",
        4.0,
        3e-3,
        "align",
    ),
    "sft_clean": Method("SFT, no noise", {"kind": "sft", "model": "stage:student"}, "clean", 1.0, 1.5e-3),
    "dae_10_clean": Method("DAE, 10 % shop, no noise", _align(_routes(), 0.1), "clean", 2.0, 3e-3, "align"),
    "replay_10_clean": Method("replay, 10 % shop, no noise", _replay(0.1), "clean", 1.3, 1.5e-3, "align"),
    "dae_few": Method(f"DAE, {FEW_ROWS:,} public rows", _align(_routes()), "few", 2.0, 3e-3, "align"),
    "replay_few": Method(f"replay, {FEW_ROWS:,} public rows", _replay(), "few", 1.3, 1.5e-3, "align"),
}
DISTILLED = ("sft", "kd_prediction", "kd_attention", REFERENCE)
