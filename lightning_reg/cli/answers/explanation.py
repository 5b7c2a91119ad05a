"""Parser errors as one sentence: the setting, its valid values, its value, and similar names."""

import ast
import collections.abc
import inspect
import pkgutil
import re
import textwrap
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import timedelta
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from jsonargparse import Namespace
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from typing_extensions import override

import lightning_reg
from lightning_reg.settings import near_matches

__all__ = ["SECTIONS", "as_plain", "described", "explained", "hint_of", "parameters_of", "problem_in", "shown"]

SECTIONS: Mapping[str, type] = {"trainer": Trainer, "checkpoint": ModelCheckpoint}
"""Sections of a configuration whose settings are the arguments of one class."""

_HINTS: Mapping[str, Any] = {
    "model": LightningModule,
    "data": LightningDataModule,
    "seed_everything": bool | int,
    "ckpt_path": str | None,
    "weights_only": bool | None,
}
_NAMES = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    type(None): "null",
    timedelta: "a duration such as 0:10:00",
}
_KEY = re.compile(r'\s*Parser key "([^"]+)":\s*')
_PROBLEM = re.compile(
    r"^( *)(?:- )?Problem with given class_path '([\w.]+)':\n((?:(?:\1 {2,}.*)?\n|\1 {2,}.*\Z)+)", re.MULTILINE
)
_VALUE = re.compile(r".*(?:Given value|Got value): (.*?)(?:\n *Subclass types expect one of:.*)?\Z", re.DOTALL)
_OF_CLASS = re.compile(r"Expected a <class '(?:[\w.]+\.)?(\w+)'>\. Got value: (\S+)\. Got value: ")
_NESTED = re.compile(r"NestedArg\(key='([\w.]+)', val=(.*?)\)(?:\n|\Z)", re.DOTALL)
_UNREAD = re.compile(r"Unable to load config '(.*?)'")
_UNKNOWN = re.compile(r"[Oo]ption '([^']+)'|unrecognized arguments?: (\S+)")
_REQUIRED = re.compile(r"the following arguments are required: ([\w.]*\w(?:, [\w.]*\w)*)")
_HELP = re.compile(r"--([\w.]+)\.help: .*: (\S+)\Z")
_MAKER = re.compile(r"class_path='([\w.]+)'")
_RENAMED: Mapping[str, str] = {"BatchPicture": "BatchImages"}
"""Current names by former ones, where the two aren't similar."""
_CONTAINERS = ("builtins", "collections.abc", "typing")
_MISSING = object()


def explained(message: str, options: Iterable[str] = ()) -> str:  # noqa: PLR0911  # one line per kind
    r"""Condenses a parser's error message into one sentence.

    The parser explains for every possible type why a value doesn't match it. Only the setting, the requested class and
    the value are taken from its message; the expected type comes from the signature.

    Args:
        options: Names of all settings, to suggest one that resembles an unknown name.

    >>> explained('Parser key "trainer.max_epochs": Expected a <class \'int\'>. Got value: many')
    "trainer.max_epochs must be a whole number or null, but is 'many'"
    """
    asked = _HELP.match(message)
    if asked:
        return _fault_of_name(f"{asked[1]}.help", asked[2], tuple(_classes_in(_HINTS.get(asked[1])))) or message
    path, hint, owner, is_made = "", None, None, False
    whole: Any = _MISSING  # what the key has, by the last value that a message shows
    nested = _NESTED.search(message)  # a nested setting given on the command line
    while True:
        key = _KEY.match(message)
        if key:
            message = message[key.end() :]
            hint = _hint(owner, key[1])
            path = f"{path}.{key[1]}" if path else key[1]
            whole = _argument(whole, key[1])
        # The message about a callable's argument ends with the whole.
        value = whole if is_made and whole is not _MISSING else _value(message)
        whole = whole if value is _MISSING else value
        about_config = _about_config(message, path)
        if about_config:
            return about_config
        # The parser treats a mapping without a class as arguments of the base class.
        problems = [found for found in _PROBLEM.finditer(message) if _resolved(found[2]) not in _classes_in(hint)]
        if nested and path.endswith(f".{nested[1]}"):
            value = _read(nested[2])  # the whole, where the message is about an entry of it
        # A mapping with init_args alone changes arguments of a class that another configuration has named.
        is_overlay = isinstance(value, dict) and "init_args" in value and "class_path" not in value
        is_untold = value is _MISSING and not problems and isinstance(whole, dict) and "class_path" in whole
        found = whole if is_untold else value
        fault = None if problems and (is_overlay or problems[0].start() == 0) else _fault_of_class(path, found, hint)
        if fault:
            return fault
        inner = message.find('Parser key "')
        maker = _MAKER.findall(message) if not problems else []
        if maker and inner > 0:  # a callable that creates an object later reports its arguments in one line
            owner, message, is_made = _resolved(maker[-1]), message[inner:], True
            continue
        if not problems:
            break
        owner = _resolved(problems[0][2])
        message = textwrap.dedent(problems[0][3])
    # Where it is about the arguments of the object that a callable creates, an optimizer or a scheduler.
    about_names = _about_names(message, path, _resolved(maker[-1]) if maker else owner, options)
    if about_names:
        return about_names
    of_class = _of_class(owner)
    if hint is not None and value is not _MISSING and re.search("Expected|Not a valid subclass", message):
        return f"{path}{of_class} must be {described(hint)}, but is {shown(value)}"
    if nested and value is _MISSING and _classes_in(hint):
        return f"{path} must name {_kind_of(_classes_in(hint))} before {path}.{nested[1]} can be set: --{path} NAME"
    if nested and value is _MISSING and hint is not None and f".{nested[1]}." not in f"{path}.":
        return f"{path} must be {described(hint)}, given as a whole, but has {path}.{nested[1]}"
    return _as_told(f"{path}{of_class}", message, value)


def problem_in(messages: Iterable[str]) -> tuple[str, str] | None:
    r"""Returns a class that can't be made, and why, from messages of a parser that has tried several types.

    >>> problem_in(["Errors:\n  - Not a list\n  - Problem with given class_path 'a.B':\n      c is too large\n"])
    ('a.B', 'c is too large')
    """
    for message in messages:
        found = _PROBLEM.search(message)
        if found:
            return found[2], " ".join(found[3].split())
        given = re.search(r"Given value: Namespace\(class_path='([\w.]+)'", message)
        reasons = re.findall(r"^  - (?!Import path|Expected a|Not a valid subclass)(.+)$", message, re.MULTILINE)
        if given and reasons:
            return given[1], reasons[0]
    return None


def _about_config(message: str, path: str) -> str | None:
    """Explains a message about a whole configuration, or a whole section; None if it is about something else."""
    if message.startswith("Unexpected config:"):
        return f"config must be a mapping of settings, but is {shown(_read(message.partition(':')[2]) or None)}"
    unread = _UNREAD.match(message)
    if unread and path:
        return f"{path} must be a mapping of settings, or a file with one, but is {shown(_read(unread[1]))}"
    return None


def _argument(value: Any, name: str) -> Any:
    arguments = value.get("init_args") if isinstance(value, dict) else None
    return arguments.get(name, _MISSING) if isinstance(arguments, dict) else _MISSING


def _of_class(owner: Any) -> str:
    return f" of {owner.__name__}" if isinstance(owner, type) else ""


def _about_names(message: str, path: str, owner: Any, options: Iterable[str]) -> str | None:
    """Explains a message about arguments that are missing or unknown; None if it is about something else."""
    required, unknown = _REQUIRED.search(message), _UNKNOWN.search(message)
    if required:
        names = [re.sub(r"^(fit|validate|test|predict)\.", "", name) for name in required[1].split(", ")]
        missing = " and ".join(f"{path}.{name}" if path else name for name in names)
        return f"{missing}{_of_class(owner)} {'is' if len(names) == 1 else 'are'} missing"
    if unknown is None:
        return None
    option = (unknown[1] or unknown[2].split("=")[0]).lstrip("-")
    known = list(options if owner is None else parameters_of(owner))
    if owner is None and option in known:
        return f"{option} must be written --{option}"
    if path and "." not in path and not isinstance(owner, type):  # nothing has named a class so far
        return f"{path}.{option} must come after --{path}, or the --config, that names a class"
    near = near_matches(option, [name for name in known if name != option], most=1)
    of_which = f"{_of_class(owner)} ({path})" if path else ""
    return f"{option} is no setting{of_which}" + (f"; did you mean {near[0]}?" if near else "")


def _as_told(place: str, message: str, value: Any) -> str:
    """Returns the parser's message, shortened only if it is about a value of another class or of no type it lists."""
    expected = _OF_CLASS.match(message)
    if expected:  # for an annotation that only type checkers can resolve
        return f"{place} must be {_a(expected[1])}, but is {shown(_read(expected[2]))}"
    if place and value is not _MISSING and "Does not validate against any of the Union subtypes" in message:
        return f"{place} must be of another type, but is {shown(value)}"
    told = " ".join(message.split())
    return f"{place}: {told}" if place else told


def _hint(owner: Any, key: str) -> Any:
    section, _, name = key.partition(".")
    if owner is None and name and section in SECTIONS:
        owner, key = SECTIONS[section], name
    return _HINTS.get(key) if owner is None else hint_of(owner, key)


def _value(message: str) -> Any:
    """Returns the value at the end of a message, as a Python literal or as text."""
    if 'Parser key "' not in message:  # a value that is followed by the object it belongs to
        message = re.sub(r"\. Got value: Namespace\(.*\Z", "", message.rstrip())
    found = _VALUE.match(message)
    if found is None or re.match(r"NestedArg\(|Namespace\(", found[1]):  # the parser's objects
        return _MISSING
    return _read(found[1])


class _Plain(ast.NodeTransformer):
    """Turns the parser's namespaces, ``Namespace(name=value)``, into dictionaries, and ``nan`` within into a number."""

    @override
    def visit_Name(self, node: ast.Name) -> ast.AST:
        return ast.Constant(float(node.id)) if node.id in ("nan", "inf") else node

    @override
    def visit_Call(self, node: ast.Call) -> ast.AST:
        names: list[ast.expr | None] = [ast.Constant(keyword.arg) for keyword in node.keywords]
        return ast.Dict(names, [self.visit(keyword.value) for keyword in node.keywords])


def _read(text: str) -> Any:
    if text.strip().isidentifier() and text.strip() not in ("None", "True", "False"):
        return text.strip()
    try:
        value = ast.literal_eval(_Plain().visit(ast.parse(text.strip(), mode="eval")))
        # What only Python takes for a number, such as 0o10, is text in YAML.
        return text.strip() if type(value) is int and str(value) != text.strip() else value
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return text.strip()


def shown(value: Any) -> str:
    """Returns the text of a value, truncated to 100 characters.

    >>> shown(None), shown("abc"), shown([1, 2])
    ('null', "'abc'", '[1, 2]')
    """
    text = "null" if value is None else " ".join(repr(value).split())
    return text if len(text) < 100 else f"{text[:97]}..."


def as_plain(config: Any) -> Any:
    """Converts a parser's namespaces to plain dictionaries and lists."""
    if isinstance(config, (Namespace, dict)):
        return {name: as_plain(value) for name, value in (config if isinstance(config, dict) else vars(config)).items()}
    return [as_plain(value) for value in config] if isinstance(config, list) else config


def _resolved(path: str) -> Any:
    try:
        return pkgutil.resolve_name(path)
    except (ImportError, AttributeError, ValueError):
        return None


def hint_of(owner: Any, name: str) -> Any:
    """Returns the annotation of a class's argument, possibly from a base class; None if there is none."""
    for base in getattr(owner, "__mro__", [owner]):
        make = base.__dict__.get("__init__") if isinstance(base, type) else base
        hints = getattr(make, "__annotations__", {})
        if name not in hints:
            continue
        # Without the other annotations, whose names perhaps only type checkers import; they also import those of abc.
        alone = types.SimpleNamespace(__annotations__={name: hints[name]})
        known = {**vars(collections.abc), **getattr(make, "__globals__", {})}
        try:
            return get_type_hints(alone, globalns=known)[name]
        except (NameError, TypeError, AttributeError):
            continue
    return None


def parameters_of(owner: Any) -> dict[str, inspect.Parameter]:
    """Returns the parameters of a class, including those it passes on to its bases."""
    found: dict[str, inspect.Parameter] = {}
    for base in getattr(owner, "__mro__", [owner]):
        try:
            own = inspect.signature(base).parameters
        except (TypeError, ValueError):
            continue
        found = {**own, **found}
        if not any(argument.kind is inspect.Parameter.VAR_KEYWORD for argument in own.values()):
            break
    return found


def described(hint: Any) -> str:  # noqa: PLR0911  # one line per kind
    """Describes in words which values a type hint allows.

    >>> described(Literal["min", "max"]), described(list[int] | None)
    ('one of min, max', 'a list (of a whole number) or null')
    """
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        parts = [described(arg) for arg in args if get_origin(arg) is not Literal]
        choices = [choice for arg in args if get_origin(arg) is Literal for choice in get_args(arg)]
        if choices:
            parts.insert(0, f"one of {', '.join(dict.fromkeys(map(str, choices)))}")
        return " or ".join(dict.fromkeys(parts))
    if origin is Literal:
        return f"one of {', '.join(map(str, args))}"
    if hint in _NAMES:
        return _NAMES[hint]
    if origin is Callable or hint is Callable:
        return "the import path of a callable"
    kind = origin or hint
    if kind is Any or not isinstance(kind, type):
        return "a value"
    if issubclass(kind, dict) or kind is Mapping:
        return "a mapping"
    if issubclass(kind, Iterable) and not issubclass(kind, (str, bytes)) and kind.__module__ in _CONTAINERS:
        elements = [described(arg) for arg in args if arg is not Ellipsis]
        is_fixed = kind is tuple and Ellipsis not in args
        return f"a list (of {', '.join(elements if is_fixed else dict.fromkeys(elements))})" if elements else "a list"
    return _a(kind.__name__)


def _a(noun: str) -> str:
    return f"{'an' if noun[0] in 'AEIOU' else 'a'} {noun}"


def _classes_in(hint: Any) -> list[type]:
    """Returns the classes that an annotation allows to be configured by ``class_path``."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType) or (isinstance(origin, type) and origin.__module__ in _CONTAINERS):
        if origin is Callable and args:  # a factory: the class it returns
            return _classes_in(args[-1])
        return [found for arg in args for found in _classes_in(arg)]
    plain = not isinstance(hint, type) or hint in (*_NAMES, Tensor) or hint.__module__ in _CONTAINERS
    return [] if plain else [hint]


def _fault_of_class(path: str, value: Any, hint: Any) -> str | None:
    classes = tuple(dict.fromkeys(_classes_in(hint)))
    if not classes or value is _MISSING or _allows_plain(hint):
        return None
    # The trainer's callbacks may be one or a list.
    for entry in value if isinstance(value, list) and value else [value]:
        fault = _fault_of_entry(path, entry, classes)
        if fault:
            return fault
    return None


def _allows_plain(hint: Any) -> bool:
    """Whether an annotation allows a number or text, possibly in a list."""
    if get_origin(hint) in (Union, types.UnionType, list, tuple, collections.abc.Sequence):
        return any(_allows_plain(arg) for arg in get_args(hint))
    return hint in (int, float, str)


def _fault_of_entry(path: str, entry: Any, classes: tuple[type, ...]) -> str | None:  # noqa: PLR0911
    kind, names = _kind_of(classes), list(_names(classes))
    if isinstance(entry, str):
        return _fault_of_name(path, entry, classes)
    if not isinstance(entry, dict):
        return f"{path} must be the name of {kind} or a mapping with class_path and init_args, but is {shown(entry)}"
    if "class_path" not in entry:
        example = next((name for name in entry if name in names), names[0] if names else kind)
        return f"{path} must name {kind} by class_path, as in class_path: {example}, but is {shown(entry)}"
    if not isinstance(entry["class_path"], str):
        return f"class_path of {path} must be the name of {kind}, but is {shown(entry['class_path'])}"
    fault = _fault_of_name(path, entry["class_path"], classes)
    if fault:
        return fault
    others = [name for name in entry if name not in ("class_path", "init_args", "dict_kwargs", "__path__")]
    if others:
        return f"{path} has {others[0]!r} beside class_path: arguments of {entry['class_path']} go into init_args"
    arguments = entry.get("init_args", {})
    if not isinstance(arguments, dict):
        return f"init_args of {entry['class_path']} must be a mapping, but is {shown(arguments)}"
    odd = [name for name in arguments if not isinstance(name, str)]
    return f"init_args of {entry['class_path']} must have names as keys, but has {shown(odd[0])}" if odd else None


def _kind_of(classes: Iterable[type]) -> str:
    return " or ".join(_a(cls.__name__) for cls in dict.fromkeys(classes))


def _fault_of_name(path: str, name: str, classes: tuple[type, ...]) -> str | None:  # noqa: PLR0911
    kind, names = _kind_of(classes), _names(classes)
    if name in names:
        paths = [f"{chosen.__module__}.{chosen.__name__}" for chosen in names[name]]
        if len(paths) > 1:
            return f"{path} must be a full class path where a name is ambiguous: {' or '.join(sorted(paths))}"
        return None
    last = name.rpartition(".")[2]
    if last in _RENAMED:
        return f"{path} must be {kind} by its name of now: {last} is called {_RENAMED[last]}"
    near = [other for other in names if other.lower() == last.lower()] or near_matches(last, names, most=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    ours = getattr(lightning_reg, last) if last in dir(lightning_reg) else None
    found = _resolved(name) if "." in name else ours
    if found is None:
        return f"{path} must be the name or the import path of {kind}, but is {name!r}{hint}"
    if found is ours and isinstance(found, type) and not issubclass(found, classes):
        is_ours_meant = bool(near) and near[0] in dir(lightning_reg)
        return f"{path} must be {kind}, but {last} is another class: {_use_of(found)}{hint if is_ours_meant else ''}"
    if isinstance(found, type):
        return None if issubclass(found, classes) else f"{path} must be {kind}, but {name} is another class{hint}"
    return None if inspect.isfunction(found) and path == "" else f"{path} must be {kind}, but {name} is none{hint}"


def _use_of(kind: type) -> str:
    """Returns from a class's card what it does, and how the command line has it where that is by itself."""
    sentences = re.split(r"(?<=[\w`)]\.)\s+", inspect.getdoc(kind) or "")
    chosen = [text for text in sentences if text is sentences[0] or text.startswith("From the command line")]
    return " ".join(" ".join(chosen).replace("``", "").split()).removesuffix(".")


def _names(classes: tuple[type, ...]) -> dict[str, list[type]]:
    """Returns the imported subclasses of some classes, themselves included, by short name."""
    found: dict[str, list[type]] = {}
    for kind in dict.fromkeys(_with_subclasses(classes)):
        if not kind.__name__.startswith("_"):
            found.setdefault(kind.__name__, []).append(kind)
    return found


def _with_subclasses(classes: Iterable[type]) -> Iterator[type]:
    for cls in classes:
        yield cls
        yield from _with_subclasses(type.__subclasses__(cls))
