"""Figures: drawn where there is data and only there, fit for a page, the same bytes each time, whatever the names."""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree

import pytest
from matplotlib.figure import Figure

from preceptor.report.figures import (
    alpaca_eval,
    draw,
    flips,
    gradient_norms,
    losses,
    mt_bench,
    retention,
    routes,
    scores,
    suites,
    tasks,
    throughput,
)
from preceptor.report.figures.curves import MOST_POINTS, line, stages_of
from preceptor.report.figures.looks import PAPER, Look, Looks, legible, readable, readable_all
from preceptor.report.figures.losses import three_way
from preceptor.report.figures.rows import put_row
from report_dicts import HOSTILE, hostile, poor, rich

NAMES = [
    "scores", "retention", "flips", "tasks", "mt_bench", "alpaca_eval", "suites", "losses", "routes",
    "gradient_norms", "throughput",
]  # fmt: skip
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def drawn() -> dict[str, Any]:
    return draw(rich())


def test_a_rich_report_has_every_figure_and_a_poor_one_none(drawn: dict[str, Any]) -> None:
    assert list(drawn) == NAMES
    assert draw(poor()) == {}


@pytest.mark.parametrize(
    ("figure", "without"),
    [
        (scores, {"general": None, "domain": None}),
        (retention, {"domain": None}),
        (flips, {"flips": None}),
        (tasks, {"tasks": {}}),
        (mt_bench, {"mt_bench": None}),
        (alpaca_eval, {"alpaca_eval": None}),
        (suites, {"suites": {}}),
    ],
)
def test_nothing_is_drawn_without_data(figure: Any, without: dict[str, Any]) -> None:
    report = rich()
    for model in report["models"].values():
        model.update(without)
    looks = () if figure is flips else (Looks(report),)
    assert figure.draw(report, *looks) is None


def test_published_figures_alone_are_no_figure() -> None:
    report = rich()
    for model in report["models"].values():
        if model["kind"] != "published":
            model.update(mt_bench=None, alpaca_eval=None)
    assert mt_bench.draw(report, Looks(report)) is None
    assert alpaca_eval.draw(report, Looks(report)) is None


def test_what_was_not_logged_is_not_drawn() -> None:
    report = rich()
    for curve in report["curves"]:
        curve["series"] = {"loss": curve["series"]["loss"]}
    looks = Looks(report)
    assert (routes.draw(report), gradient_norms.draw(report, looks), throughput.draw(report, looks)) == (None,) * 3
    assert losses.draw(report, looks) is not None


def test_a_figure_that_cannot_be_drawn_does_not_take_the_others_with_it() -> None:
    report = rich(models=3, tasks=1) | {"curves": []}
    report["models"]["m0"]["mt_bench"]["score"] = {"score": "seven"}
    told: list[tuple[str, str]] = []
    drawn = draw(report, failed=lambda name, error: told.append((name, type(error).__name__)))
    assert [name for name, _ in told] == ["mt_bench"]
    assert list(drawn) == [name for name in NAMES[:7] if name != "mt_bench"]
    with pytest.raises((TypeError, ValueError)):
        draw(report)


def test_the_same_report_gives_the_same_bytes(drawn: dict[str, Any]) -> None:
    again = draw(rich())
    for name, figure in drawn.items():
        assert figure.svg == again[name].svg, name
        assert figure.png == again[name].png, name
    assert all(figure.png.startswith(b"\x89PNG") for figure in drawn.values())


def test_ids_of_all_figures_are_unique_and_every_reference_has_its_target(drawn: dict[str, Any]) -> None:
    seen: set[str] = set()
    for figure in drawn.values():
        ids = re.findall(r'\bid="([^"]+)"', figure.svg)
        assert len(ids) == len(set(ids))
        assert not seen & set(ids)
        seen |= set(ids)
        pointed = re.findall(r'href="#([^"]+)"', figure.svg) + re.findall(r"url\(#([^)]+)\)", figure.svg)
        assert pointed
        assert set(pointed) <= set(ids)


def test_the_svg_says_what_it_shows_and_keeps_its_text_as_text(drawn: dict[str, Any]) -> None:
    for name, figure in drawn.items():
        root = ElementTree.fromstring(figure.svg)
        assert root.get("role") == "img"
        title, description = root.find(f"{SVG}title"), root.find(f"{SVG}desc")
        assert title is not None
        assert title.text == figure.title
        assert description is not None
        assert description.text == figure.alt
        assert root.get("aria-labelledby") == f"{title.get('id')} {description.get('id')}"
        assert len(figure.alt) > 40
        assert figure.caption.endswith(".")
        assert root.findall(f".//{SVG}text"), name
    scores = ElementTree.fromstring(drawn["scores"].svg)
    assert {"model 0", "model 5"} <= {each.text for each in scores.iter(f"{SVG}text")}


def test_the_svg_follows_the_theme_and_asks_a_strict_policy_for_nothing(drawn: dict[str, Any]) -> None:
    for name, figure in drawn.items():
        assert "style=" not in figure.svg, name
        assert "<style" not in figure.svg, name
        assert "font-family" not in figure.svg.partition(">")[2], name
        assert "currentColor" in figure.svg, name
        fixed = set(re.findall(r'(?:fill|stroke)="([^"]+)"', figure.svg))
        assert all(each in ("none", "currentColor") or each.startswith(("var(--", "url(")) for each in fixed), fixed
        assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", figure.svg), name
        assert "<metadata" not in figure.svg


def test_names_that_are_markup_tex_or_no_text_at_all_stay_names() -> None:
    for figure in draw(hostile()).values():
        root = ElementTree.fromstring(figure.svg)  # well-formed whatever the names
        assert {each.tag.removeprefix(SVG) for each in root.iter()} <= {
            "svg", "title", "desc", "g", "path", "use", "text", "tspan", "defs", "clipPath", "rect",
        }  # fmt: skip
        assert not [key for each in root.iter() for key in each.attrib if key.startswith("on")]
        figure.svg.encode("utf-8")
        assert not set(figure.svg) & set("\x00\x1b\u2028\u202e")


def test_25_models_with_long_names_keep_apart() -> None:
    report = rich(models=25, name="checkpoints/experiment-2026-alpha/distilled-student-{}-of-a-long-family")
    drawn = scores.draw(report, Looks(report))
    assert drawn is not None
    texts = [each.text for each in ElementTree.fromstring(drawn.svg).iter(f"{SVG}text")]
    names = [text for text in texts if text and "student" in text]
    assert len(names) == len(set(names)) == 25
    assert max(map(len, names)) <= 34


def test_many_tasks_are_drawn_in_part_and_the_caption_says_so() -> None:
    report = rich(models=3, tasks=30)
    figure = tasks.draw(report, Looks(report))
    assert figure is not None
    assert figure.alt.startswith("20 dot charts")
    assert "The 20 tasks with the most rows are drawn of 30" in figure.caption


def test_the_three_way_comparison_goes_by_the_weights_and_not_by_what_is_logged() -> None:
    report = rich()
    assert three_way(report) == {
        "prediction only": ["kd_prediction"],
        "attention only": ["kd_attention"],
        "both": ["kd_both"],
    }
    caption = _losses(report)
    assert "prediction only: kd_prediction; attention only: kd_attention; both: kd_both" in caption
    report["curves"] = [curve for curve in report["curves"] if curve["stage"] == "kd_both"]
    assert three_way(report) == {}
    assert "Figure 4" not in _losses(report)


def _losses(report: dict[str, Any]) -> str:
    figure = losses.draw(report, Looks(report))
    assert figure is not None
    return figure.caption


def test_seeds_of_a_stage_are_one_line_with_a_range_and_other_runs_are_lines_of_their_own() -> None:
    report = rich()
    stages = stages_of(report)
    assert list(stages) == ["kd_prediction", "kd_attention", "kd_both", "dae"]
    both = line("kd_both", stages["kd_both"], "logits")
    values = [curve["series"]["logits"] for curve in stages["kd_both"]]
    assert both is not None
    assert both.low is not None
    assert both.high is not None
    assert both.mean[0] == pytest.approx((values[0][0] + values[1][0]) / 2)
    assert (both.low[0], both.high[0]) == (min(values[0][0], values[1][0]), max(values[0][0], values[1][0]))
    for curve in report["curves"]:
        curve["seed"] = 43
    assert list(stages_of(report))[:2] == ["run-43/kd_prediction", "run-44/kd_prediction"]


def test_a_seed_that_was_stopped_does_not_hide_the_finished_ones() -> None:
    curves = [
        {
            "run": f"run-{seed}",
            "seed": seed,
            "finished": seed != 1,
            "step": steps,
            "series": {"loss": [seed] * len(steps)},
        }
        for seed, steps in ((1, [1]), (2, [1, 2, 3]), (3, [1, 2]), (4, [1, 2, 3]))
    ]
    found = line("kd", curves, "loss")
    assert found is not None
    assert (found.step.tolist(), found.mean.tolist()) == ([1, 2, 3], [3, 3, 3])
    assert found.left_out == ("seed 1", "seed 3")
    alone = line("kd", curves[:1], "loss")
    assert alone is not None
    assert (alone.mean.tolist(), alone.left_out) == ([1], ())
    only = line("kd", curves[:2], "loss")
    assert only is not None
    assert (only.mean.tolist(), only.left_out) == ([2, 2, 2], ("seed 1",))


def test_captions_name_the_seeds_left_out_and_finished_ones_come_first() -> None:
    report = rich()
    assert "Left out" not in "".join(figure.caption for figure in draw(report).values())
    for curve in report["curves"]:
        curve["finished"] = not (curve["seed"] == 43 and curve["stage"] in ("kd_both", "dae"))
    assert [curve["seed"] for curve in stages_of(report)["kd_both"]] == [44, 43]
    captions = {name: figure.caption for name, figure in draw(report).items()}
    told = "Left out because they were stopped or logged at other steps: "
    assert f"{told}kd_both without seed 43." in captions["losses"]
    assert f"{told}dae without seed 43." in captions["routes"]
    assert f"{told}kd_both without seed 43; dae without seed 43." in captions["gradient_norms"]


def test_a_value_without_an_interval_is_a_hollow_point_and_no_line() -> None:
    axes = Figure().subplots()
    look = Look("#112233", "o")
    put_row(axes, 0, 0.5, None, None, look=look, stem=False)
    (point,) = axes.lines
    assert point.get_markerfacecolor() == PAPER
    put_row(axes, 1, 0.5, 0.4, 0.6, look=look, stem=False)
    assert [len(each.get_xdata()) for each in axes.lines] == [1, 2, 1]
    assert axes.lines[2].get_markerfacecolor() == "#112233"


def test_gaps_are_left_out_and_long_logs_are_averaged() -> None:
    curve = {"step": list(range(4)), "series": {"loss": [1.0, None, float("nan"), 4.0], "none": [None] * 4}}
    found = line("x", [curve], "loss")
    assert found is not None
    assert found.step.tolist() == [0, 3]
    assert found.mean.tolist() == [1, 4]
    assert line("x", [curve], "none") is None
    assert line("x", [curve], "absent") is None
    long = {"step": list(range(10_000)), "series": {"loss": [float(step) for step in range(10_000)]}}
    thinned = line("x", [long], "loss")
    assert thinned is not None
    assert len(thinned.mean) == MOST_POINTS
    assert thinned.mean.mean() == pytest.approx(4999.5)


def test_a_model_looks_the_same_in_every_figure_and_unlike_the_others() -> None:
    looks = Looks(rich(models=40))
    found = [looks.of(f"model {n}") for n in range(40)]
    assert len({(look.colour, look.marker) for look in found}) == 40
    assert looks.of("model 7") is found[7]


def test_names_are_shortened_only_as_far_as_they_stay_apart() -> None:
    assert readable("a" * 34) == "a" * 34
    assert readable("a" * 40 + "tail") == "a" * 22 + "…" + "a" * 7 + "tail"
    assert readable(HOSTILE[3]) == "� [31m"
    assert readable("\x00") == "unnamed"
    assert legible("a\n\tb\u2028c") == "a b c"
    long = [f"{'x' * 40}{n}{'y' * 40}" for n in range(3)]
    assert len(set(readable_all(long))) == 3
    assert readable_all(["short", *long])[0] == "short"
