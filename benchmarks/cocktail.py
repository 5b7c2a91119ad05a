"""The regularization cocktail compared with other methods: ``python -m benchmarks.cocktail --tables FOLDER``.

The network is always the same (3×256, batches of 128, 60 epochs of AdamW with a cosine schedule). A stratified fifth of
each table is set aside for testing first; searches only use the rest. Each method has the same number of trials: the
cocktail, dropout alone, and gradient boosting (scikit-learn's). The best trial of each is refitted on five new
training and validation splits of the rest, and evaluated on the test split, as is the plain network.

Every piece, a method on a table, has its own JSON file in the output folder. Pieces that have been measured, there or
in docs/benchmarks/cocktail.json, are skipped, and interrupted ones are resumed. With ``--minutes`` no new piece starts
after that time. ``--page`` writes docs/benchmarks/cocktail.json and docs/cocktail.md. The results are for one machine
and one choice of test rows.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from lightning_reg.cli import main
from lightning_reg.data import TabularData
from lightning_reg.files import read_json, write_atomically
from lightning_reg.text import table as aligned

METHODS = ("plain", "dropout", "cocktail", "boosting")
METRIC = "balanced_accuracy"
MEASURED = Path("docs/benchmarks/cocktail.json")
SEEDS = tuple(range(1000, 1005))
MOST_ROWS = 7500  # 6,000 of them for training and validation
FEW_ROWS = 2000
# Published balanced accuracies of one split each (Kadra et al. 2021): cocktail, XGBoost.
PUBLISHED: Mapping[str, tuple[float, float]] = {
    "kr-vs-kp": (99.85, 99.85),
    "credit-g": (74.64, 68.93),
    "vehicle": (82.58, 74.97),
    "phoneme": (86.62, 87.97),
    "australian": (87.09, 89.72),
    "segment": (93.72, 93.72),
}

ABOUT = """\
One net of three layers of 256 units, 60 epochs of AdamW. Of each table a stratified fifth is for testing and was set
aside before anything else. Dropout alone, the cocktail (all switches of the space `tabular`) and gradient boosting
(scikit-learn's) were each tuned by 40 trials on the rest, tables of less than 2,000 rows on five splits of it. What
each has found was fitted five times with fresh seeds and splits of the rest, and so was the plain net."""


def sampled(source: Path, folder: Path) -> Path:
    """Returns the table that all methods use: the source's rows, or a fixed sample of them if there are too many."""
    import pandas as pd  # type: ignore[import-untyped]  # from the tests' extra
    from sklearn.model_selection import train_test_split

    path = folder / "table.csv"
    if not path.exists():
        rows = pd.read_csv(source, dtype=str, keep_default_na=False)
        if len(rows) > MOST_ROWS:
            rows, _ = train_test_split(rows, train_size=MOST_ROWS, stratify=rows["class"], random_state=0)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, rows.to_csv(index=False))
    return path


def data_settings(path: Path) -> dict[str, Any]:
    """Returns the data settings: the file of the rows, and the sizes of the test and validation splits."""
    return {"path": str(path), "target": "class", "task": "classification", "test_size": 0.2, "val_size": 0.2}


def base_settings(path: Path, epochs: int) -> dict[str, Any]:
    """Returns the configuration of the plain network."""
    return {
        "seed_everything": 0,
        "trainer": {"max_epochs": epochs, "logger": False, "callbacks": [], "accelerator": "cpu"},
        "model": {
            "class_path": "MLP",
            "init_args": {
                "hidden_sizes": [256, 256, 256],
                "norm": "none",
                "drop_prob": 0.0,
                "weight_decay": 0.0,
                "optimizer": {"class_path": "AdamW", "init_args": {"lr": 0.001}},
                "lr_scheduler": {"class_path": "CosineAnnealingLR", "init_args": {"T_max": epochs}},
            },
        },
        "data": {"class_path": "TabularData", "init_args": {**data_settings(path), "batch_size": 128}},
        "checkpoint": {"monitor": f"val/{METRIC}", "mode": "max"},
    }


def searched(folder: Path, method: str, path: Path, options: argparse.Namespace) -> Path:
    """Runs a search and returns the path of the best configuration."""
    place = folder / method
    place.mkdir(exist_ok=True)
    base = place / "base.yaml"
    base.write_text(yaml.safe_dump(base_settings(path, options.epochs), sort_keys=False))
    content = {
        "base": str(base),
        "space": "tabular",
        "metric": f"val/{METRIC}",
        "trials": options.trials,
        "confirm": 0,
        **({"only": ["dropout"]} if method == "dropout" else {}),
    }
    file = place / f"{method}.yaml"
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    output = place / "search"
    if main(["search", str(file), "--output", str(output), "--jobs", str(options.jobs)]) != 0:
        raise RuntimeError(f"the search of {method} on {folder.name} hasn't ended")
    return output / "best.yaml"


def refitted(folder: Path, method: str, configuration: Path, jobs: int) -> list[float]:
    """Returns the test metric of a configuration, refitted on new training and validation splits."""
    place = folder / method
    file = place / "refit.yaml"
    study = {
        "base": str(configuration),
        "variants": {method: {}},
        "seeds": list(SEEDS),
        "metric": f"test/{METRIC}",
    }
    file.write_text(yaml.safe_dump(study, sort_keys=False))
    output = place / "refit"
    if main(["study", str(file), "--output", str(output), "--jobs", str(jobs)]) != 0:
        raise RuntimeError(f"runs of {method} on {folder.name} have failed")
    import csv

    with (output / "results.csv").open(newline="") as results:
        return [float(row[f"test/{METRIC}"]) for row in csv.DictReader(results)]


def boosted(path: Path, trials: int) -> list[float]:
    """Returns the test metric of gradient boosting, tuned by as many trials on the same rows."""
    import optuna
    import pandas as pd
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.metrics import balanced_accuracy_score

    columns = pd.read_csv(path)
    labels = columns.pop("class").astype(str).to_numpy()
    texts = [name for name in columns if not pd.api.types.is_numeric_dtype(columns[name])]
    for name in texts:
        columns[name] = columns[name].astype("category")
    few = len(columns) * 0.8 * 0.8 < FEW_ROWS

    def parts(seed: int) -> dict[str, Any]:
        data = TabularData(**data_settings(path), seed=seed)
        return {split: np.array(data.sample_names(split), dtype=np.int64) for split in ("train", "val", "test")}

    def score(settings: Mapping[str, Any], seed: int, on: str) -> float:
        rows = parts(seed)
        model = HistGradientBoostingClassifier(categorical_features="from_dtype", random_state=seed, **settings)
        model.fit(columns.iloc[rows["train"]], labels[rows["train"]])
        predicted = model.predict(columns.iloc[rows[on]])
        return float(balanced_accuracy_score(labels[rows[on]], predicted))

    def objective(trial: Any) -> float:
        settings = {
            "learning_rate": trial.suggest_float("learning_rate", 0.01, 0.5, log=True),
            "max_iter": trial.suggest_int("max_iter", 20, 400, log=True),
            "max_leaf_nodes": trial.suggest_int("max_leaf_nodes", 4, 128, log=True),
            "min_samples_leaf": trial.suggest_int("min_samples_leaf", 1, 100, log=True),
            "l2_regularization": trial.suggest_float("l2_regularization", 1e-6, 100.0, log=True),
        }
        return statistics.fmean(score(settings, seed, "val") for seed in range(5 if few else 1))

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=0))
    study.enqueue_trial({"learning_rate": 0.1, "max_iter": 100, "max_leaf_nodes": 31, "min_samples_leaf": 20})
    study.optimize(objective, n_trials=trials)
    return [score(study.best_params, seed, "test") for seed in SEEDS]


def piece(source: Path, method: str, options: argparse.Namespace) -> None:
    """Evaluates a method on a table, and writes the result."""
    name = source.name.partition(".")[0]
    folder = Path(options.output) / name
    start = time.perf_counter()
    path = sampled(source, folder)
    found = ""
    if method == "boosting":
        values = boosted(path, options.trials)
    elif method == "plain":
        (folder / method).mkdir(exist_ok=True)
        configuration = folder / method / "plain.yaml"
        configuration.write_text(yaml.safe_dump(base_settings(path, options.epochs), sort_keys=False))
        values = refitted(folder, method, configuration, options.jobs)
    else:
        values = refitted(folder, method, searched(folder, method, path, options), options.jobs)
        found = read_json("search", folder / method / "search" / "search.json")["best"]["words"]
    content = {
        "table": name,
        "method": method,
        "metric": f"test {METRIC}",
        "values": values,
        "trials": 0 if method == "plain" else options.trials,
        "epochs": options.epochs,
        "seconds": round(time.perf_counter() - start, 1),
        "found": found,
    }
    write_atomically(folder / f"{method}.json", json.dumps(content, indent=1))


def measured_pieces(output: Path) -> dict[tuple[str, str], Mapping[str, Any]]:
    """Returns the results by table and method, from docs/benchmarks and from the output folder."""
    kept = read_json("results", MEASURED) if MEASURED.exists() else []
    results = [*kept, *(read_json("result", path) for path in output.glob("*/*.json"))]
    return {(result["table"], result["method"]): result for result in sorted(results, key=_place)}


def _place(result: Mapping[str, Any]) -> tuple[str, int]:
    return result["table"], METHODS.index(result["method"])


def page(results: Sequence[Mapping[str, Any]]) -> str:
    """Returns the text of docs/cocktail.md, for the tables that all methods have been evaluated on."""
    means: dict[str, dict[str, float]] = {}
    for result in results:
        # Accuracies are computed in float32, whose last digits mustn't decide between equal ones.
        means.setdefault(result["table"], {})[result["method"]] = round(100 * statistics.fmean(result["values"]), 4)
    whole = {name: found for name, found in sorted(means.items()) if set(found) == set(METHODS)}
    lines = [
        "# What the cocktail is worth on tables",
        "",
        ABOUT,
        "",
        "Made by `python -m benchmarks.cocktail --page`; "
        f"{len(whole)} of 12 tables have been measured by all four methods.",
        "",
    ]
    if not whole:
        return "\n".join([*lines, "Nothing has been measured yet.", ""])
    head = ["table", *METHODS, "published: cocktail", "XGBoost"]
    rows = [
        [name, *(f"{found[method]:.2f}" for method in METHODS)]
        + [f"{value:.2f}" for value in PUBLISHED.get(name, ())]
        + [""] * (0 if name in PUBLISHED else 2)
        for name, found in whole.items()
    ]
    ranks = _ranks(whole)
    rows.append(["mean rank", *(f"{statistics.fmean(ranks[method]):.2f}" for method in METHODS), "", ""])
    lines += ["Balanced accuracy on the test part, in percent, means of five fresh fits.", ""]
    lines += [f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows]]
    lines += ["", *_comparisons(whole), "", "## What the searches have found", "", *_found(results, whole), ""]
    return "\n".join(lines)


def _found(results: Sequence[Mapping[str, Any]], whole: Mapping[str, Any]) -> list[str]:
    words = {(result["table"], result["method"]): result["found"] for result in results}
    rows = [[name, *(words[name, method] or "nothing" for method in ("dropout", "cocktail"))] for name in whole]
    return [f"| {' | '.join(row)} |" for row in [["table", "dropout alone", "cocktail"], ["---"] * 3, *rows]]


def _ranks(whole: Mapping[str, Mapping[str, float]]) -> dict[str, list[float]]:
    from scipy.stats import rankdata

    found: dict[str, list[float]] = {method: [] for method in METHODS}
    for values in whole.values():
        for method, rank in zip(METHODS, rankdata([-values[method] for method in METHODS]), strict=True):
            found[method].append(float(rank))
    return found


def _comparisons(whole: Mapping[str, Mapping[str, float]]) -> list[str]:
    from scipy.stats import studentized_range, wilcoxon

    methods, tables = len(METHODS), len(whole)
    critical = studentized_range.ppf(0.95, methods, np.inf) / math.sqrt(2)
    distance = critical * math.sqrt(methods * (methods + 1) / (6 * tables))
    lines = [f"Mean ranks that differ by less than {distance:.2f} can't be told apart (Nemenyi, 5 %).", ""]
    rows = [["cocktail against", "wins", "ties", "losses", "Wilcoxon's p"]]
    for other in METHODS:
        if other == "cocktail":
            continue
        differences = [values["cocktail"] - values[other] for values in whole.values()]
        p = wilcoxon(differences).pvalue if any(differences) and tables > 1 else math.nan
        counts = [sum(d > 0 for d in differences), sum(d == 0 for d in differences), sum(d < 0 for d in differences)]
        rows.append([other, *map(str, counts), "–" if math.isnan(p) else f"{p:.3f}"])
    lines += [f"| {' | '.join(row)} |" for row in [rows[0], ["---"] * 5, *rows[1:]]]
    return lines


def run() -> None:
    """Runs the remaining pieces."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--tables", help="folder of tables, CSV with a column class; perhaps with .gz behind")
    add("--only", nargs="+", default=[], help="names of tables")
    add("--methods", nargs="+", default=METHODS, choices=METHODS)
    add("--trials", type=int, default=40)
    add("--epochs", type=int, default=60)
    add("--jobs", type=int, default=1)
    add("--minutes", type=float, default=math.inf, help="after which no piece is begun any more")
    add("--output", default="runs/cocktail")
    add("--page", action="store_true", help="write docs/cocktail.md and docs/benchmarks/cocktail.json")
    options = parser.parse_args()
    began = time.monotonic()
    measured = measured_pieces(Path(options.output))
    sources = sorted(Path(options.tables).glob("*.csv*")) if options.tables else []
    for source in sources:
        name = source.name.partition(".")[0]
        for method in options.methods:
            is_left = (name, method) not in measured and (not options.only or name in options.only)
            if is_left and time.monotonic() - began < 60 * options.minutes:
                piece(source, method, options)
    results = list(measured_pieces(Path(options.output)).values())
    rows = [["table", "method", "balanced accuracy", "seconds"]]
    for result in results:
        mean = 100 * statistics.fmean(result["values"])
        rows.append([result["table"], result["method"], f"{mean:.2f}", f"{result['seconds']:.0f}"])
    print("\n".join(aligned(rows)))
    if options.page:
        write_atomically(MEASURED, json.dumps(results, indent=1) + "\n")
        write_atomically(Path("docs/cocktail.md"), page(results))


if __name__ == "__main__":
    run()
