"""What ``python train.py`` alone says."""

import inspect
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

import lightning_reg
from lightning_reg.text import table

__all__ = ["overview"]


def overview(root: Path = Path("configs")) -> str:
    """Returns what there is, read off the package and the configurations."""
    from lightning.pytorch import Callback

    from lightning_reg import callbacks, models, transforms
    from lightning_reg.data.sources import SOURCES
    from lightning_reg.data.tables import NAMED_TABLES

    sections = [
        f"lightning_reg {lightning_reg.__version__}: regularized networks from the command line",
        _table(
            "Commands",
            [
                ("fit --config FILE", "train; ends with a table and the command that opens TensorBoard"),
                ("fit --config FILE --config TECHNIQUE", "the same with a technique on top"),
                ("fit --config FILE --ckpt_path last", "go on from the newest run's last checkpoint"),
                ("validate|test --config FILE --ckpt_path best", "measure the newest run's best checkpoint"),
                ("predict --config FILE --ckpt_path best", "write predictions.csv"),
                ("study FILE [--quick]", "variants of one run over seeds, and a report of what each is worth"),
                ("fit --config FILE --print_config", "every setting, as YAML"),
                ("fit --help; fit --model.help MLP", "every argument, of a command or of a class"),
            ],
        ),
        _table("Configurations", _described(root.glob("*.yaml"))),
        _table("The textbook's networks", _described((root / "textbook").glob("*.yaml"))),
        _table("Techniques to append", _described((root / "techniques").glob("*.yaml"))),
        _table("Studies", _titled((root / "studies").glob("*.yaml"))),
        _table("Models", _documented(models)),
        _table(
            "Data sets (--data.dataset)",
            [
                *((name, _shape(source.input_shape)) for name, source in SOURCES.items()),
                ("image_folder", "your own images: --data.root FOLDER, in it train/<class>/*"),
                *((name, "table, with --data TabularData") for name in NAMED_TABLES),
                ("", "your own table: --data TabularData --data.path FILE --data.target COLUMN"),
            ],
        ),
        _table("Callbacks (--trainer.callbacks+=)", _documented(callbacks, Callback)),
        _table("Mixing (--data.mix)", _documented(transforms, transforms.Mixing, abstract=False)),
        "Start with:  python train.py fit --config configs/digits_mlp.yaml",
    ]
    return "\n\n".join(section for section in sections if section)


def _table(title: str, rows: list[tuple[str, str]]) -> str:
    if not rows:
        return ""
    return "\n".join([title, *table(rows, indent="  ")])


def _described(files: Iterable[Path]) -> list[tuple[str, str]]:
    """The second comment line of a configuration says what it is; the first is the command that runs it."""
    rows = []
    for file in sorted(files):
        comments = [line[1:].strip() for line in file.read_text().splitlines() if line.startswith("#")]
        rows.append((file.as_posix(), comments[1] if len(comments) > 1 else ""))
    return rows


def _titled(files: Iterable[Path]) -> list[tuple[str, str]]:
    """A study has a title, which its report begins with."""
    from lightning_reg.files import read_yaml

    return [(file.as_posix(), str(read_yaml("study file", file).get("title", ""))) for file in sorted(files)]


def _documented(module: ModuleType, base: type = object, *, abstract: bool = True) -> list[tuple[str, str]]:
    public = [(name, getattr(module, name)) for name in module.__all__]
    return [
        (name, (inspect.getdoc(thing) or "").splitlines()[0])
        for name, thing in public
        if inspect.isclass(thing) and issubclass(thing, base) and (abstract or not inspect.isabstract(thing))
    ]


def _shape(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}×{shape[2]}, {'gray' if shape[0] == 1 else 'color'}"
