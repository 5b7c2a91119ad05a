"""The overview that the command line prints when called without arguments."""

import inspect
from types import ModuleType

import lightning_reg
from lightning_reg.cli.configs import described
from lightning_reg.cli.invocation import command_line
from lightning_reg.shipped import shipped_configs
from lightning_reg.text import table

__all__ = ["overview"]

_FOLDERS = {
    "": "Configurations",
    "textbook": "The textbook's networks",
    "techniques": "Techniques to append",
    "studies": "Studies",
    "search": "Searches",
}


def overview() -> str:
    """Returns the overview text, generated from the package and its configurations."""
    from lightning.pytorch import Callback

    from lightning_reg import callbacks, models, transforms
    from lightning_reg.data.images.sources import SOURCES
    from lightning_reg.data.tables.sources import NAMED_TABLES

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
                ("soup CHECKPOINT CHECKPOINT ... --config FILE", "average checkpoints of one model into soup.ckpt"),
                ("study FILE [--quick]", "variants of one run over seeds, and a report of what each is worth"),
                (
                    "search FILE [--quick]",
                    "which regularizers a network needs, and how strong; needs lightning-reg[search]",
                ),
                ("fit --config FILE --print_config", "every setting, as YAML"),
                ("configs [NAME ...] [--to FOLDER]", "list, show or copy the configurations below"),
                ("fit --help; fit --model.help MLP", "every argument, of a command or of a class"),
            ],
        ),
        *(_table(title, _described(folder)) for folder, title in _FOLDERS.items()),
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
        "FILE is a path, or the name of a configuration above.",
        f"Start with:  {command_line()} fit --config digits_mlp",
    ]
    return "\n\n".join(section for section in sections if section)


def _table(title: str, rows: list[tuple[str, str]]) -> str:
    if not rows:
        return ""
    return "\n".join([title, *table(rows, indent="  ")])


def _described(folder: str) -> list[tuple[str, str]]:
    """Returns the names and descriptions of the shipped configurations in one folder."""
    files = {name: file for name, file in shipped_configs().items() if name.rpartition("/")[0] == folder}
    return list(described(files).items())


def _documented(module: ModuleType, base: type = object, *, abstract: bool = True) -> list[tuple[str, str]]:
    public = [(name, getattr(module, name)) for name in module.__all__]
    return [
        (name, (inspect.getdoc(thing) or "").splitlines()[0])
        for name, thing in public
        if inspect.isclass(thing) and issubclass(thing, base) and (abstract or not inspect.isabstract(thing))
    ]


def _shape(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}×{shape[2]}, {'gray' if shape[0] == 1 else 'color'}"
