"""The report: what it says is what the numbers say, and the page needs nothing but itself."""

import csv
import math
import re
import statistics
import sys
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from lightning_reg.settings import SettingError
from lightning_reg.studies.functions import batch_norm_backward, ridge_regression
from lightning_reg.studies.outcome import Axis, Failure, Outcome, Result, Study
from lightning_reg.studies.report import write_report
from lightning_reg.studies.report.decomposition import parts_of
from lightning_reg.studies.report.words import headline

SEEDS = range(4)
CURVES = {
    "train/loss": [(0, 2.0), (1, 1.0), (2, 0.5)],
    "validation/loss": [(0, 2.0), (1, 1.2), (2, 1.3)],
    "train/accuracy": [(0, 0.2), (1, 0.7), (2, 0.9)],
    "validation/accuracy": [(0, 0.2), (1, 0.6), (2, 0.65)],
}
WOBBLE = [0.0, 0.011, -0.007, 0.004]


def study(variants, **settings):
    given = {"metric": "test/accuracy", "baseline": variants[0], "seeds": SEEDS, **settings}
    return Study("some", "A <title> & more", "Which?", variants, **given)


def scatter(accuracy, seed):
    """So that pairs differ, too; of mean 0 over seeds."""
    return 0.05 * (accuracy - 0.8) * (1, -1, -1, 1)[seed]


def results(accuracies, seeds=SEEDS, curves=None, collected=lambda *_: {}):
    return [
        Result(
            variant,
            seed,
            {
                "train/accuracy": 0.99,
                "test/accuracy": accuracy + WOBBLE[seed] + 0.001 * (seed % 2) + scatter(accuracy, seed),
                "test/loss": 1 - accuracy + scatter(accuracy, seed),
            },
            curves or CURVES,
            collected(variant, seed),
            1.5,
        )
        for variant, accuracy in accuracies.items()
        for seed in seeds
    ]


def told(accuracies, **settings):
    return " ".join(headline(Outcome(study(list(accuracies), **settings), results(accuracies))))


def test_the_headline_says_who_is_best_and_by_how_much():
    words = told({"none": 0.80, "L2": 0.90, "L1": 0.70})
    assert "L2 is best: its test accuracy is 90.25 ± 0.49 %" in words
    assert "none follows with 80.25 ± 0.40 % (p < .001, 4 seeds)" in words
    assert "better than none: L2 (+10.00 ± 0.29 points, p < .001)" in words
    assert "worse than none: L1 (−10.00 ± 0.29 points, p < .001)" in words
    assert "widest with L1 (28.8 points) and smallest with L2 (8.75 points; p < .001)" in words


def test_the_headline_turns_round_where_the_numbers_do():
    words = told({"none": 0.90, "L2": 0.80, "L1": 0.70})
    assert "none is best" in words
    assert "worse than none: L2 (−10.00 ± 0.29 points, p < .001) and L1 (−20.00 ± 0.58 points, p < .001)" in words
    assert "better than" not in words


def test_chance_is_called_chance():
    noisy = {"none": [0.5, 0.9, 0.7, 0.6], "L2": [0.9, 0.5, 0.6, 0.71]}
    runs = [
        Result(name, seed, {"test/accuracy": x})
        for name, parameter in noisy.items()
        for seed, x in enumerate(parameter)
    ]
    words = " ".join(headline(Outcome(study(["none", "L2"]), runs)))
    assert "No variant is best beyond chance. L2 has the highest test accuracy" in words
    assert "L2 differs from none by no more than chance." in words


def test_which_test_gave_a_p_is_told(tmp_path):
    text = write_report(Outcome(study(["none", "L2"]), results({"none": 0.8, "L2": 0.9})), tmp_path).read_text()
    assert "<th>p, t-test</th><th>p, permutations</th>" in text
    assert "<td>&lt; .001</td><td>.125</td>" in text  # all four seeds agree, and 2 / 2^4 is the least there is
    assert "with 4 seeds it can&#39;t be below 0.125 before the correction" in text
    alone = write_report(Outcome(study(["none", "L2"]), results({"none": 0.8, "L2": 0.9}, [0])), tmp_path).read_text()
    assert "p, permutations" not in alone


def test_one_seed_tells_no_difference():
    runs = results({"none": 0.8, "L2": 0.9}, seeds=[0])
    words = " ".join(headline(Outcome(study(["none", "L2"], seeds=[0]), runs)))
    assert "L2 has the highest test accuracy, 90.50 %" in words
    assert "With one seed no difference can be told from chance" in words


def test_lower_is_better_for_losses_and_errors():
    words = told({"none": 0.80, "L2": 0.90}, metric="test/loss")
    assert "L2 is best: its test loss is 0.1 ± 0.0029, lowest" in words


def test_a_variant_that_is_a_number_is_called_by_what_it_is():
    axis = Axis("dropout rate", [0.0, 0.3])
    assert "dropout rate 0.3 is best" in told({"0": 0.80, "0.3": 0.90}, axis=axis)


def test_gaps_that_scatter_are_called_chance():
    gaps = {"a": [0.10, 0.02, 0.06, 0.04], "b": [0.03, 0.09, 0.05, 0.07]}
    runs = [
        Result(name, seed, {"train/accuracy": 1.0, "test/accuracy": 1 - gap})
        for name, by_seed in gaps.items()
        for seed, gap in enumerate(by_seed)
    ]
    words = " ".join(headline(Outcome(study(["a", "b"]), runs)))
    assert "Gaps of accuracy between training and test lie from 5.5 points to 6 points, within chance, p = " in words
    assert "widest" not in words


def test_differences_that_do_not_scatter_are_not_judged():
    runs = [
        Result(name, seed, {"test/accuracy": base + seed / 4})
        for name, base in (("a", 0.25), ("b", 0.5))
        for seed in (0, 1)
    ]
    words = " ".join(headline(Outcome(study(["a", "b"], seeds=[0, 1]), runs)))
    assert "b has the highest test accuracy" in words
    assert "With so few seeds, or differences that don't scatter, no difference can be told from chance" in words


def test_runs_without_a_number_are_told(tmp_path):
    values = {"a": [0.5, 0.6], "b": [float("nan"), 0.7], "c": [float("nan"), float("nan")]}
    runs = [Result(name, seed, {"test/accuracy": x}) for name, value in values.items() for seed, x in enumerate(value)]
    text = write_report(Outcome(study(list(values), seeds=[0, 1]), runs), tmp_path).read_text()
    assert "1 of 2 seeds, 1 gave no number" in text
    assert "No run of c gave a number." in text


def test_names_of_all_the_world_and_formulas_are_shown_as_they_are(tmp_path):
    names = {r"$\alpha_$ a": 0.8, "学习率": 0.9}
    text = write_report(Outcome(study(list(names)), results(names)), tmp_path).read_text()
    assert r"$\alpha_$ a" in text
    assert "学习率" in text


def test_the_shipped_study_of_batch_norm_prefers_small_differences():
    runs = [
        Result(dtype, seed, batch_norm_backward(seed=seed, dtype=dtype))
        for dtype in ("float32", "float64")
        for seed in range(5)
    ]
    words = " ".join(headline(Outcome(study(["float32", "float64"], metric="error/gradients", seeds=range(5)), runs)))
    assert "float64 is best: its error gradients is" in words


def test_a_curve_without_noise_is_reported(tmp_path):
    runs = []
    for degree in (1, 3):
        metrics, parts = ridge_regression(seed=0, degree=degree, noise=0.0, datasets=3)
        runs.append(Result(str(degree), 0, metrics, {}, parts))
    outcome = Outcome(study(["1", "3"], metric="test/error", seeds=[0], axis=Axis("degree", [1, 3])), runs)
    assert "Bias and variance" in write_report(outcome, tmp_path).read_text()


def test_an_empty_study_says_so(tmp_path):
    nothing = Outcome(study(["a", "b"]), [], [Failure("a", 0, "broke")])
    assert headline(nothing) == ["No run has ended with a value of test accuracy."]
    assert "1 run failed" in write_report(nothing, tmp_path).read_text()


class Page(HTMLParser):
    """Checks that elements are closed, and gathers names and links."""

    VOID = ("meta", "br", "path", "use", "rect", "line", "circle", "stop")

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.links, self.cells, self.text = [], [], [], [], []
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        named = dict(attributes)
        self.ids += [named["id"]] if "id" in named else []
        self.links += [value for name, value in attributes if name in ("href", "src", "xlink:href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        named = dict(attributes)
        self.ids += [named["id"]] if "id" in named else []
        self.links += [value for name, value in attributes if name in ("href", "src", "xlink:href")]

    def handle_endtag(self, tag):
        if tag in self.VOID:
            return
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def weights(zeros):
    return {"edges": [-1, 0, 1], "counts": [3, 5], "zero_fraction": zeros, "parameters": 8, "norm": 1.0}


def everything(variant, seed):
    layers = {name: {"mean": [0.1, 0.2], "std": [1.0, 0.9]} for name in ("network.0", "network.2")}
    classes = [0, 1, 1, seed % 2]
    return {
        "weights": weights(0.25),
        "activations": {"steps": [0, 10], "layers": layers},
        "reload": {"largest_difference": 0.0, "samples": 4, "same_classes": True},
        "predictions": {"targets": [0, 1, 0, 0], "classes": classes},
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    variants = {"none": 0.80, "L1 <b>": 0.90, "0.5": 0.85}
    outcome = Outcome(
        study(list(variants), axis=Axis("strength", [1e-3, 1e-2, 1e-1], logarithmic=True)),
        results(variants, collected=everything)[:-1],
        [Failure("0.5", 3, "loss is <nan>")],
        command="lightning-reg study some.yaml",
        commands={name: f"lightning-reg fit --name '{name}'" for name in variants},
        versions={"torch": "2", "Python": "3"},
        seconds=100.0,
    )
    return outcome, write_report(outcome, folder)


def test_the_page_is_whole_and_needs_no_network(whole):
    _, path = whole
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert len(page.ids) == len(set(page.ids)) > 20
    assert all(link.startswith("#") and link[1:] in page.ids for link in page.links)
    assert set(re.findall(r"url\(#([^)]+)\)", text)) <= set(page.ids)
    beside_namespaces = re.sub(r'xmlns(:xlink)?="[^"]+"', "", text)
    assert "http:" not in beside_namespaces
    assert "https:" not in beside_namespaces
    assert "prefers-color-scheme: dark" in text
    assert "width=device-width" in text
    assert "#2b2b2c" not in text.split("</style>")[1]  # ink is the page's
    assert text.count("<script>") == 1
    assert not re.search(r"\b(import|fetch|XMLHttpRequest)\b", text.split("<script>")[1])


def test_names_are_escaped_and_everything_is_told(whole):
    outcome, path = whole
    text = path.read_text(encoding="utf-8")
    shown = "".join(Page(text).text)
    for told in (
        "A <title> & more",
        "L1 <b>",
        "0.5, seed 3: loss is <nan>",
        "(3 of 4 seeds)",
        "25 % exact zeros",
        outcome.command,
        *outcome.commands.values(),
        "torch 2, Python 3",
        "11 of 11 models predict the same classes",
        "Against strength",
        "share of wrong answers",
        "1 min 40 s",
    ):
        assert told in shown, told
    assert "<b>" not in text


SVG = "{http://www.w3.org/2000/svg}"


def charts_of(text):
    """By what is said of them to those who don't see them."""
    drawn = [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL)]
    return {chart.get("aria-label"): chart for chart in drawn}


def values_of(chart, series):
    """What the script shows of a line: its points, by where the axes begin and end and which values are there."""
    places = re.findall(r"[ML] (\S+) (\S+)", series.find(f".//{SVG}path").get("d"))
    values = []
    for name, place in zip(("x", "y"), zip(*places, strict=True), strict=True):
        *numbers, scale = chart.get(f"data-{name}").split()
        start, end, first, last = map(float, numbers)
        assert scale == "linear"
        values.append([first + (float(number) - start) / (end - start) * (last - first) for number in place])
    return list(zip(*values, strict=True))


def test_the_page_knows_the_values_that_it_draws(whole):
    _, path = whole
    charts = charts_of(path.read_text(encoding="utf-8"))
    (chart,) = [chart for told, chart in charts.items() if told.startswith("accuracy of L1 <b> against epochs")]
    shown = {line.get("data-label"): values_of(chart, line) for line in chart.iter() if line.get("class") == "series"}
    assert set(shown) == {"train", "validation"}
    for split, points in shown.items():
        for point, (epoch, value) in zip(points, CURVES[f"{split}/accuracy"], strict=True):
            assert point == pytest.approx((epoch, 100 * value), abs=0.005)
    assert chart.get("data-x-label") == "epoch"
    assert chart.get("data-y-label") == "accuracy, %"


def test_every_variant_of_a_legend_has_a_line_and_a_button(whole):
    outcome, path = whole
    text = path.read_text(encoding="utf-8")
    figures = re.findall(r"<figure.*?</figure>", text, re.DOTALL)
    (figure,) = [figure for figure in figures if "loss of all variants" in figure]
    lines = re.findall(r'class="series" data-label="([^"]+), validation" data-variant="(\d)"', figure)
    buttons = re.findall(r'<button type="button" data-variant="(\d)".*?</span>(.*?)</button>', figure, re.DOTALL)
    names = [name.replace("<", "&lt;").replace(">", "&gt;") for name in outcome.study.variants]
    assert [(name, index) for index, name in buttons] == lines == [(name, str(i)) for i, name in enumerate(names)]
    # What shows one variant alone is switched off with it.
    assert text.count('<figure data-variant="1"') == 2 + 1 + 2


def test_logarithmic_axes_have_numbers_and_no_formulas(whole):
    _, path = whole
    charts = charts_of(path.read_text(encoding="utf-8"))
    weights = next(chart for told, chart in charts.items() if told.startswith("Histogram"))
    texts = [element.text for element in weights.iter(f"{SVG}text")]
    assert "10" in texts
    assert not [text for text in texts if "$" in text]


def test_a_page_of_many_variants_and_epochs_stays_small(tmp_path):
    epochs = range(300)
    curves = {name: [(epoch, math.exp(-epoch / 50)) for epoch in epochs] for name in CURVES}
    names = {f"variant {index}": 0.8 + index / 100 for index in range(6)}
    path = write_report(Outcome(study(list(names)), results(names, curves=curves)), tmp_path)
    assert path.stat().st_size < 500_000  # and as much again for what was collected
    chart = next(c for told, c in charts_of(path.read_text()).items() if told.startswith("loss of variant 3 "))
    points = values_of(chart, next(line for line in chart.iter() if line.get("class") == "series"))
    assert points[0][0] == pytest.approx(0, abs=0.01)
    assert points[-1] == pytest.approx((299, math.exp(-299 / 50)), abs=0.01)


def test_only_a_certain_best_is_marked(tmp_path):
    certain = write_report(Outcome(study(["a", "b"]), results({"a": 0.8, "b": 0.9})), tmp_path / "certain").read_text()
    assert re.search(r'<tr class="best"><td>b<span class="mark">best', certain)
    seed = write_report(Outcome(study(["a", "b"]), results({"a": 0.8, "b": 0.9}, [0])), tmp_path / "one").read_text()
    assert 'class="mark"' not in seed


def test_every_run_is_a_line_of_the_table(whole):
    outcome, path = whole
    with (path.parent / "results.csv").open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(outcome.results) == 11
    by_run = {(result.variant, result.seed): result for result in outcome.results}
    for line in lines:
        run = by_run[line["variant"], int(line["seed"])]
        assert {name: float(line[name]) for name in run.metrics} == run.metrics


def test_every_image_is_a_file_too_and_old_ones_go(whole, tmp_path):
    _, path = whole
    images = sorted(image.name for image in (path.parent / "plots").iterdir())
    assert len(images) == path.read_text().count("<figure")
    assert {"every-run.png", "parts-of-the-error.png", "curve-loss-none.png", "weights-l1-b.png"} <= set(images)
    assert all(image.read_bytes().startswith(b"\x89PNG") for image in (path.parent / "plots").iterdir())
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "old.png").touch()
    write_report(Outcome(study(["a"]), []), tmp_path)
    assert not (tmp_path / "plots" / "old.png").exists()


def test_the_same_study_makes_the_same_page(whole, tmp_path):
    outcome, path = whole
    assert write_report(outcome, tmp_path).read_text() == path.read_text()


def test_variants_whose_names_differ_in_signs_alone_keep_their_images(tmp_path):
    names = {"L1 0.1": 0.8, "L1-0.1": 0.9, "L1 (0.1)": 0.7}
    path = write_report(Outcome(study(list(names)), results(names)), tmp_path)
    page = Page(path.read_text())
    assert len(page.ids) == len(set(page.ids))
    # Every run; of two metrics all curves together and one a variant.
    assert len(list((tmp_path / "plots").iterdir())) == path.read_text().count("<figure") == 1 + 2 * (1 + 3)


def test_without_matplotlib_it_is_said_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SettingError, match="pip install matplotlib"):
        write_report(Outcome(study(["a", "b"]), results({"a": 0.8, "b": 0.9})), tmp_path)


def test_bias_and_variance_of_numbers_are_those_of_squared_errors():
    targets, values = [1.0, 2.0, 4.0], {0: [1.5, 2.0, 3.0], 1: [0.5, 3.0, 3.5], 2: [1.0, 2.5, 5.0]}

    def collected(_, seed):
        return {"predictions": {"targets": targets, "values": values[seed]}}

    outcome = Outcome(study(["a"], seeds=range(3)), results({"a": 0.8}, seeds=range(3), collected=collected))
    parts = parts_of(outcome)
    errors = [sum((v - t) ** 2 for v, t in zip(values[seed], targets, strict=True)) / 3 for seed in range(3)]
    variances = [statistics.variance(column) for column in zip(*values.values(), strict=True)]
    assert parts.measured == [pytest.approx(sum(errors) / 3)]
    assert parts.stacked["variance"] == [pytest.approx(sum(variances) / 3)]
    assert parts.stacked["bias² and noise"][0] + parts.stacked["variance"][0] == pytest.approx(parts.measured[0])


def test_a_diverged_regression_is_reported(tmp_path):
    values = {"a": [[0.5, 1.0], [0.4, 1.0]], "b": [[math.nan, math.inf], [0.5, 1.5]]}
    runs = [
        Result(name, seed, {"test/mse": 1.0}, collected={"predictions": {"targets": [0.0, 1.0], "values": found}})
        for name, pair in values.items()
        for seed, found in enumerate(pair)
    ]
    found = Outcome(study(list(values), metric="test/mse", seeds=[0, 1]), runs)
    assert math.isnan(parts_of(found).measured[1])
    text = write_report(found, tmp_path).read_text()
    assert "nan" in text.partition("Bias and variance")[2]
