"""The site: ``sphinx-build docs FOLDER`` makes it of these pages and of the docstrings, and loads nothing else.

A page for each technique is written at build time, from its card, its declared facts and its overlay.
"""

import inspect
import re
import sys
from pathlib import Path
from typing import Any

import latex2mathml.converter
from docutils import nodes
from sphinx.application import Sphinx

import lightning_reg
from lightning_reg import callbacks
from lightning_reg.core.facts import Choice
from lightning_reg.core.technique import Technique

sys.path.insert(0, str(Path(__file__).parent))
import generate  # what else is read off the classes

project = "lightning-reg"
version = release = lightning_reg.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton", "sphinx_design"]
exclude_patterns = ["benchmarks", "tags.template.md", "generate.py", "conf.py"]
html_theme = "furo"
html_title = "lightning-reg"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_show_sourcelink = False
html_show_copyright = False
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
napoleon_custom_sections = [("Logs", "notes_style"), ("Reference", "notes_style")]
napoleon_google_docstring, napoleon_numpy_docstring = True, False
napoleon_use_ivar = True  # attributes are told once, in their class
autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_preserve_defaults = True
copybutton_prompt_text = ">>> "
copybutton_only_copy_prompt_lines = True
# Pages also link to files of the repository, which a test follows.
suppress_warnings = ["myst.xref_missing"]

_DOCS = Path(__file__).parent
_CARDS = _DOCS / "cards"


def _write_cards(_: Sphinx) -> None:
    """Writes a page for each technique and monitor, and the list of them."""
    _CARDS.mkdir(exist_ok=True)
    listed = []
    for name in callbacks.__all__:
        technique = getattr(callbacks, name)
        if inspect.isclass(technique) and issubclass(technique, Technique):
            _write(_CARDS / f"{name}.md", _card(technique))
            listed.append(name)
    toc = "\n".join(["```{toctree}", ":maxdepth: 1", "", *listed, "```"])
    _write(_CARDS / "index.md", f"# Cards of the callbacks\n\n{toc}\n")


def _write(path: Path, text: str) -> None:
    if not path.exists() or path.read_text(encoding="utf-8") != text:  # else Sphinx would read it anew
        path.write_text(text, encoding="utf-8")


def _card(technique: type[Technique]) -> str:
    name = technique.__name__
    place = "watches a run" if technique.only_watches else f"acts on the {technique.place.value}"
    facts = [f"- **Where in the step**: {place}."]
    for usual in technique.usual_ranges:
        found = ", ".join(map(str, usual.values)) if isinstance(usual, Choice) else f"{usual.low:g} to {usual.high:g}"
        facts.append(f"- **Usual** `{usual.setting}`: {found}.")
    example = generate.example(technique).strip("`")
    overlay = _overlay(name)
    tabs = [_tab("Python", "python", f"from lightning_reg.callbacks import {name}\n\nTrainer(callbacks=[{example}])")]
    if overlay is not None:
        body = "\n".join(line for line in overlay.read_text(encoding="utf-8").splitlines() if not line.startswith("#"))
        command = overlay.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
        tabs += [_tab("YAML", "yaml", body), _tab("Command line", "bash", command)]
    code = "\n".join(["::::{tab-set}", *tabs, "::::"])
    docs = f"```{{eval-rst}}\n.. autoclass:: lightning_reg.callbacks.{name}\n```"
    return "\n\n".join([f"# {name}", "\n".join(facts), code, docs]) + "\n"


def _tab(title: str, language: str, code: str) -> str:
    return f":::{{tab-item}} {title}\n```{language}\n{code.strip()}\n```\n:::"


def _overlay(name: str) -> Path | None:
    for path in sorted((_DOCS.parent / "configs" / "techniques").glob("*.yaml")):
        if f"class_path: {name}\n" in path.read_text(encoding="utf-8"):
            return path
    return None


def _visit_math(self: Any, node: nodes.Node) -> None:
    self.body.append(latex2mathml.converter.convert(node.astext()))
    raise nodes.SkipNode


def _visit_displayed_math(self: Any, node: nodes.Node) -> None:
    self.body.append(f'<div class="math">{latex2mathml.converter.convert(node.astext(), display="block")}</div>')
    raise nodes.SkipNode


def _escape(_app: Sphinx, _what: str, _name: str, _thing: Any, _options: Any, lines: list[str]) -> None:
    """Escapes absolute values and stars of shapes, which would be markup, outside of formulas and code."""
    formula: int | None = None  # how far its directive is indented
    for index, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        if line.lstrip().startswith(".. math::"):
            formula = indent
        elif line.strip() and formula is not None and indent <= formula:
            formula = None
        if formula is None and not line.lstrip().startswith((">>>", "...")):
            parts = re.split(r"(`+[^`]+`+)", line)
            lines[index] = "".join(part if part.startswith("`") else _escaped(part) for part in parts)


def _escaped(text: str) -> str:
    return re.sub(r"(?<=[( ])\*(?=[a-z_]+[),])", r"\\*", text.replace("|", r"\|"))


def _skip(_app: Sphinx, _what: str, _name: str, thing: Any, skip: bool, _options: Any) -> bool:
    """Leaves out the fields of named tuples, which their class explains."""
    return skip or type(thing).__name__ == "_tuplegetter"


def setup(app: Sphinx) -> None:
    """Lets Sphinx write cards before it reads pages, and formulas as MathML, which browsers draw by themselves."""
    app.add_html_math_renderer("mathml", (_visit_math, None), (_visit_displayed_math, None))
    app.connect("builder-inited", _write_cards)
    app.connect("autodoc-process-docstring", _escape)
    app.connect("autodoc-skip-member", _skip)
