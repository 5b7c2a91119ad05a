"""What holds for everything public."""

import importlib
import inspect
import pkgutil
import subprocess
import sys

import docstring_parser
import pytest
from lightning.pytorch import callbacks as stock_callbacks

import lightning_reg

MODULES = [
    (name, is_package)
    for _, name, is_package in pkgutil.walk_packages(lightning_reg.__path__, "lightning_reg.")
    if not name.rpartition(".")[2].startswith("_")
]
# What users import: what packages export, and the rooms that are read file by file.
READ_BY_FILE = ("lightning_reg.functional.", "lightning_reg.optim", "lightning_reg.monitors.inspection")


def exported(kind):
    things = {}
    for name, is_package in MODULES:
        if is_package or name.startswith(READ_BY_FILE):
            module = importlib.import_module(name)
            for attribute in getattr(module, "__all__", []):
                thing = getattr(module, attribute)
                if kind(thing) and thing.__module__.startswith("lightning_reg."):
                    things[f"{thing.__module__}.{attribute}"] = thing
    return [pytest.param(thing, id=name) for name, thing in sorted(things.items())]


def documented(docstring):
    return {parameter.arg_name for parameter in docstring_parser.parse(docstring or "").params}


@pytest.mark.parametrize("cls", exported(inspect.isclass))
def test_class_docstring_explains_each_argument(cls):
    """The command line's --help is made of it."""
    own_init = cls.__init__ if "__init__" in vars(cls) else None
    if own_init is None or issubclass(cls, Exception):
        assert cls.__doc__
        return
    arguments = set(inspect.signature(own_init).parameters) - {"self"}
    assert documented(cls.__doc__) >= arguments


@pytest.mark.parametrize("function", exported(inspect.isfunction))
def test_function_docstring_explains_each_argument(function):
    assert documented(function.__doc__) >= set(inspect.signature(function).parameters)


def test_no_callback_has_a_name_of_lightnings():
    """Short names on the command line would become ambiguous for everybody who imports us."""
    from lightning_reg import callbacks

    assert not set(callbacks.__all__) & set(stock_callbacks.__all__)


def test_a_technique_is_read_with_three_classes_at_the_most():
    from lightning_reg import callbacks

    for name in callbacks.__all__:
        ours = [base for base in getattr(callbacks, name).__mro__ if base.__module__.startswith("lightning_reg.")]
        assert len(ours) <= 3, name


def printed(script):
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    return run.stdout.strip()


def test_importing_the_package_imports_nothing_heavy():
    """Not even where it is asked what it has."""
    heavy = "{'torch', 'lightning', 'sklearn', 'yaml'} & set(sys.modules)"
    script = f"import sys, lightning_reg; dir(lightning_reg); lightning_reg.__all__; print(len({heavy}))"
    assert printed(script) == "0"


def test_layers_come_without_lightning():
    assert printed("import sys; from lightning_reg import DropBlock2d; print('lightning' in sys.modules)") == "False"


# Not exported from the top: the maths, which users read file by file; what the package is made of; what is for
# pytorch_lightning, under names that are taken; and the search, whose function is called as its package.
NOT_AT_THE_TOP = {"functional", "core", "cli", "pytorch_lightning", "search"}


def test_everything_public_is_importable_from_the_top_and_no_name_is_there_twice():
    modules = [
        importlib.import_module(name)
        for name, is_package in MODULES
        if name.count(".") == 1 and is_package and name.rpartition(".")[2] not in NOT_AT_THE_TOP
    ]
    modules += map(importlib.import_module, ("lightning_reg.optim", "lightning_reg.monitors.inspection"))
    exports = [(name, module) for module in modules for name in getattr(module, "__all__", [])]
    assert sorted(name for name, _ in exports) == lightning_reg.__all__
    assert set(lightning_reg.__all__) <= set(dir(lightning_reg))
    submodules = {name.rpartition(".")[2] for name, _ in MODULES if name.count(".") == 1}
    assert not submodules & set(lightning_reg.__all__)
    for name, module in exports:
        assert getattr(lightning_reg, name) is getattr(module, name)


def test_no_other_name_is_importable_from_the_top():
    with pytest.raises(AttributeError, match="module 'lightning_reg' has no attribute 'L3Penalty'"):
        _ = lightning_reg.L3Penalty
    assert not hasattr(lightning_reg, "__wrapped__")


def test_importing_the_command_line_leaves_scikit_learn_alone():
    """It is needed for the digits and for splits, not for everybody."""
    assert printed("import sys, lightning_reg.cli.command; print('sklearn' in sys.modules)") == "False"


def test_callbacks_and_layers_bring_nothing_heavy_beside_lightning():
    """Where tables are read, something is drawn, or a study is counted, it is imported then."""
    heavy = "{'duckdb', 'matplotlib', 'sklearn', 'scipy', 'jinja2', 'ray', 'pandas', 'polars', 'pyarrow'}"
    script = (
        "import sys, lightning.pytorch, torchvision.transforms.v2; before = set(sys.modules); "
        f"import lightning_reg.callbacks, lightning_reg.nn; print({heavy} & (set(sys.modules) - before) or 'nothing')"
    )
    assert printed(script).splitlines()[-1] == "nothing"
