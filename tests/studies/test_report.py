"""The report: what it says is what the numbers say, and the page needs nothing but itself."""

import csv
import re
import sys
from html.parser import HTMLParser

import pytest

from lightning_reg.settings import SettingError
from lightning_reg.studies.outcome import Axis, Failure, Outcome, Result, Study
from lightning_reg.studies.report import write_report
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


def results(accuracies, seeds=SEEDS, curves=None, collected=lambda *_: {}):
    return [
        Result(
            variant,
            seed,
            {
                "train/accuracy": 0.99,
                "test/accuracy": accuracy + WOBBLE[seed] + 0.001 * (seed % 2),
                "test/loss": 1 - accuracy,
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
    assert "L2 is best: its test accuracy is 90.25 ± 0.40 %" in words
    assert "none follows with 80.25 ± 0.40 % (p < .001)" in words
    assert "better than none: L2 (+10.00 ± 0.00 points)" in words
    assert "worse than none: L1 (−10.00 ± 0.00 points)" in words
    assert "widest with L1 (28.8 points) and smallest with L2 (8.75 points)" in words


def test_the_headline_turns_round_where_the_numbers_do():
    words = told({"none": 0.90, "L2": 0.80, "L1": 0.70})
    assert "none is best" in words
    assert "worse than none: L2 (−10.00 ± 0.00 points) and L1 (−20.00 ± 0.00 points)" in words
    assert "better than" not in words


def test_chance_is_called_chance():
    noisy = {"none": [0.5, 0.9, 0.7, 0.6], "L2": [0.9, 0.5, 0.6, 0.71]}
    runs = [Result(name, seed, {"test/accuracy": x}) for name, each in noisy.items() for seed, x in enumerate(each)]
    words = " ".join(headline(Outcome(study(["none", "L2"]), runs)))
    assert "No variant is best beyond chance. L2 has the highest test accuracy" in words
    assert "None of the 1 other variants differs from none by more than chance." in words


def test_one_seed_tells_no_difference():
    runs = results({"none": 0.8, "L2": 0.9}, seeds=[0])
    words = " ".join(headline(Outcome(study(["none", "L2"], seeds=[0]), runs)))
    assert "L2 has the highest test accuracy, 90.00 %" in words
    assert "With one seed no difference can be told from chance" in words


def test_lower_is_better_for_losses_and_errors():
    words = told({"none": 0.80, "L2": 0.90}, metric="test/loss")
    assert "L2 is best: its test loss is 0.1 ± 0, lowest" in words


def test_a_variant_that_is_a_number_is_called_by_what_it_is():
    axis = Axis("dropout rate", [0.0, 0.3])
    assert "dropout rate 0.3 is best" in told({"0": 0.80, "0.3": 0.90}, axis=axis)


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
        command="python train.py study some.yaml",
        commands={name: f"python train.py fit --name '{name}'" for name in variants},
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
    by_run = {(each.variant, each.seed): each for each in outcome.results}
    for line in lines:
        run = by_run[line["variant"], int(line["seed"])]
        assert {name: float(line[name]) for name in run.metrics} == run.metrics


def test_every_picture_is_a_file_too_and_old_ones_go(whole, tmp_path):
    _, path = whole
    pictures = sorted(each.name for each in (path.parent / "plots").iterdir())
    assert len(pictures) == path.read_text().count("<figure")
    assert {"every-run.png", "parts-of-the-error.png", "curve-loss-none.png", "weights-l1-b.png"} <= set(pictures)
    assert all(each.read_bytes().startswith(b"\x89PNG") for each in (path.parent / "plots").iterdir())
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "old.png").touch()
    write_report(Outcome(study(["a"]), []), tmp_path)
    assert not (tmp_path / "plots" / "old.png").exists()


def test_the_same_study_makes_the_same_page(whole, tmp_path):
    outcome, path = whole
    assert write_report(outcome, tmp_path).read_text() == path.read_text()


def test_variants_whose_names_differ_in_signs_alone_keep_their_pictures(tmp_path):
    names = {"L1 0.1": 0.8, "L1-0.1": 0.9, "L1 (0.1)": 0.7}
    path = write_report(Outcome(study(list(names)), results(names)), tmp_path)
    page = Page(path.read_text())
    assert len(page.ids) == len(set(page.ids))
    assert len(list((tmp_path / "plots").iterdir())) == path.read_text().count("<figure") == 7


def test_without_matplotlib_it_is_said_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SettingError, match=r"pip install 'lightning-reg\[study\]'"):
        write_report(Outcome(study(["a", "b"]), results({"a": 0.8, "b": 0.9})), tmp_path)
