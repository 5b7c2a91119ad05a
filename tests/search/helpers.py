"""Searches that take no time."""

from lightning_reg.search.overlay import with_cocktail
from lightning_reg.search.spaces.space_file import space_of
from lightning_reg.search.trials.first_trials import First
from lightning_reg.search.trials.storage import Driver, open_storage, silenced
from lightning_reg.search.trials.trials import Trials
from lightning_reg.studies.runs import Measured, Run, key_of

SPACE = {
    "switches": {
        "dropout": {"set": {"model.drop_prob": {"linear": [0.0, 0.8]}}, "without": {"model.drop_prob": 0.0}},
        "decay": {"set": {"model.weight_decay": {"log": [1e-5, 1e-1]}}, "without": {"model.weight_decay": 0.0}},
        "mixup": {
            "group": "mixing",
            "set": {"data.mix": {"class_path": "Mixup", "init_args": {"alpha": {"linear": [0.1, 1.0]}}}},
            "without": {"data.mix": None},
        },
        "cutmix": {"group": "mixing", "set": {"data.mix": {"class_path": "CutMix"}}, "without": {"data.mix": None}},
        "noise": {"callback": "GradientNoise"},
        "l1": {"callback": "L1Penalty", "title": "L1"},
    },
    "presets": {"two": {"dropout": {"drop_prob": 0.1}, "decay": {}}},
}
BASE = {
    "trainer": {"callbacks": None},
    "model": {"class_path": "MLP", "init_args": {"drop_prob": 0.3, "weight_decay": 0.01}},
    "data": {"class_path": "ImageData", "init_args": {"mix": None, "seed": 0}},
}


def make_space():
    return space_of("example", SPACE)


def first_of(space):
    names = list(space.switches)
    return [
        First("plain", "plain", {}),
        First("base", "base", None),
        *(First("preset", name, trial) for name, trial in space.presets.items()),
        *(First("alone", f"{name} alone", space.alone(name)) for name in names[:2]),
    ]


def quality(cocktail):
    """The higher, the better: some dropout helps, decay a little, everything else hurts."""
    if cocktail is None:
        return 0.55
    value = 0.5 - 0.03 * len(cocktail)
    if "dropout" in cocktail:
        value += 0.2 - (cocktail["dropout"]["drop_prob"] - 0.3) ** 2
    return value + (0.05 if "decay" in cocktail else 0)


def make_runs(space=None, splits=1, base=BASE):
    space = space or make_space()

    def runs(name, cocktail):
        settings = base if cocktail is None else with_cocktail(space, base, cocktail)
        return [
            Run(variant=name, seed=split, key=key_of([settings, split]), arguments={"cocktail": cocktail})
            for split in range(splits)
        ]

    return runs


def perform(run, folder):
    return Measured({"val/accuracy": quality(run.arguments["cocktail"]) + 0.001 * run.seed, "seconds per step": 0.01})


def make_trials(folder, space=None, driver=None, *, seed=0, first=None, **settings):
    space = space or make_space()
    first = first_of(space) if first is None else first
    folder.mkdir(parents=True, exist_ok=True)
    with silenced():
        return Trials(
            open_storage(folder),
            "example",
            space,
            first,
            prefers_less=False,
            seed=seed,
            driver=driver or Driver(folder),
            **settings,
        )
