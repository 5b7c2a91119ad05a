"""Configuration of the site: ``sphinx-build docs FOLDER`` builds it from these pages and the docstrings, offline.

A page for each technique is generated at build time, from its docstring, its declared facts, its overlay and its
measurements, with a plot of its effect; so are pages of the modules with formulas and layers.
"""

import hashlib
import pkgutil
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import latex2mathml.converter
import matplotlib as mpl  # noqa: TID253  for the plots of pages
from docutils import nodes
from sphinx.application import Sphinx

import lightning_reg
import lightning_reg.functional
import lightning_reg.init
import lightning_reg.nn
import lightning_reg.optim
from lightning_reg.core.facts import Choice, Place
from lightning_reg.core.technique import Technique

sys.path.insert(0, str(Path(__file__).parent))
import drawing
import figures
import formulas
import generate  # the other pages generated from the classes
import interactions
import playground
import plots
import remedies
import worth

project = "lightning-reg"
version = release = lightning_reg.__version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["benchmarks", "tags.template.md", "*.py", "gallery", "textbook", "built/remedies"]
# Scripts that run when the site is built, if they or the library have changed.
sphinx_gallery_conf = {
    "examples_dirs": ["gallery", "textbook"],
    "gallery_dirs": ["built/gallery", "built/textbook"],
    "filename_pattern": r"(plot|derive)_\d",
    "within_subsection_order": "FileNameSortKey",
    "image_scrapers": ("figures.light_and_dark",),
    "reset_modules": ("figures.prepare",),
    "reset_modules_order": "before",
    "capture_repr": (),
    "download_all_examples": False,
    "show_memory": False,
    "show_signature": False,
    "write_computation_times": False,
    "min_reported_time": 1000,
    "remove_config_comments": True,
    "plot_gallery": True,
    "log_level": {"backreference_missing": "debug"},
}
html_theme = "furo"
html_title = "lightning-reg"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = [("play.js", {"defer": "defer"})]
html_math_renderer = "mathml"
html_show_sourcelink = False
html_show_copyright = False
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
napoleon_custom_sections = [("Logs", "notes_style"), ("Reference", "notes_style")]
napoleon_google_docstring, napoleon_numpy_docstring = True, False
napoleon_use_ivar = True  # attributes are documented once, in their class
autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_preserve_defaults = True
copybutton_prompt_text = ">>> "
copybutton_only_copy_prompt_lines = True
# Pages also link to files of the repository, which are checked by a test.
suppress_warnings = ["myst.xref_missing"]

_DOCS = Path(__file__).parent
_PLACE_NAMES = {Place.FORWARD: "forward pass"}  # the others are named by their values
_CARDS = _DOCS / "cards"
_BUILT = _DOCS / "built"


def _write_cards(_: Sphinx) -> None:
    """Writes a page for each technique and monitor, and their index."""
    kinds = [*generate.techniques(), *generate.monitors()]
    captions = plots.write(_BUILT / "plots", kinds, _library())
    for technique in kinds:
        _write(_CARDS / f"{technique.__name__}.md", _card(technique, captions.get(technique.__name__)))
    with mpl.rc_context(plots.STYLE):
        figures.written(worth.chart(), _BUILT / "plots" / "cost-against-gain")
    _write(_CARDS / "index.md", _cards(sorted(technique.__name__ for technique in kinds)))


def _cards(names: Iterable[str]) -> str:
    toc = "\n".join(["```{toctree}", ":hidden:", ":maxdepth: 1", "", *names, "```"])
    lists = [
        f"**{place.value.capitalize()}**: {', '.join(f'[]({technique.__name__}.md)' for technique in chosen)}"
        for place in generate.PLACES
        if (chosen := [technique for technique in generate.techniques() if technique.place is place])
    ]
    lists.append(f"**Monitors**: {', '.join(f'[]({monitor.__name__}.md)' for monitor in generate.monitors())}")
    text = (
        "What a step costs with a technique, and what that brought, where a study of ours has measured both. Costs are "
        "those of the [benchmark](../benchmarks.md) whose network is most like the study's, gains are differences from "
        "the same run without it, with their standard errors. Most of them are within chance, and all of them are of "
        "small data: what *your* network needs, a [search](../searching.md) finds."
    )
    caption = "Left how long a step takes beside a bare one, right how much the test accuracy gains."
    return (
        "\n\n".join(
            [
                "# Cards of the callbacks",
                *lists,
                "## Cost against gain",
                text,
                _picture("cost-against-gain", caption),
                worth.table(),
                toc,
            ]
        )
        + "\n"
    )


def _picture(name: str, caption: str) -> str:
    """Returns the Markdown of an image in its light and dark versions, with a caption."""
    images = [
        f"```{{image}} ../built/plots/{file}.svg\n:alt: {caption}\n:class: {where} figure\n```"
        for file, where in ((name, "only-light"), (f"{name}_dark", "only-dark"))
    ]
    return "\n".join([":::{div} plot", *images, "", caption, ":::"])


def _write_pages(_: Sphinx) -> None:
    """Writes the generated pages and the parts that other pages include."""
    _write(_BUILT / "step.md", drawing.page())
    for sign, table in remedies.tables().items():
        _write(_BUILT / "remedies" / f"{sign}.md", table)
    playground.write(_BUILT / "play", _library())


def _forget_what_an_older_library_drew(_: Sphinx) -> None:
    """Makes unchanged scripts run again if the library has changed."""
    stamp = _BUILT / "library.txt"
    if not stamp.exists() or stamp.read_text(encoding="utf-8") != _library():
        for digest in _BUILT.glob("*/*.md5"):
            digest.unlink()
        _write(stamp, _library())


def _library() -> str:
    """Returns a digest of the library's code without the command line, which no script uses."""
    digest = hashlib.sha256()
    library = _DOCS.parent / "lightning_reg"
    for path in sorted(library.rglob("*.py")):
        if path.relative_to(library).parts[0] != "cli":
            digest.update(path.read_bytes())
    return digest.hexdigest()


# Pages of modules: their titles, and their packages or modules.
_MODULES = {
    "functional": ("Functional: the formulas", (lightning_reg.functional,)),
    "layers": ("Layers, initialization, parameter groups", (lightning_reg.nn, lightning_reg.init, lightning_reg.optim)),
}


def _write_modules(_: Sphinx) -> None:
    """Writes the pages of modules, with their public members."""
    for page, (title, packages) in _MODULES.items():
        names = [
            found.name
            for package in packages
            for found in pkgutil.walk_packages(getattr(package, "__path__", []), f"{package.__name__}.")
            if not found.ispkg
        ]
        names += [module.__name__ for module in packages if not hasattr(module, "__path__")]
        parts = [
            f"## {name.removeprefix('lightning_reg.')}\n\n```{{eval-rst}}\n.. automodule:: {name}\n   :members:\n```"
            for name in names
        ]
        _write(_DOCS / "api" / f"{page}.md", "\n\n".join([f"# {title}", *parts]) + "\n")


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text(encoding="utf-8") != text:  # otherwise Sphinx would read it again
        path.write_text(text, encoding="utf-8")


def _card(technique: type[Technique], caption: str | None) -> str:
    name = technique.__name__
    place = (
        "watches a run"
        if technique.only_watches
        else f"acts on the {_PLACE_NAMES.get(technique.place, technique.place.value)}"
    )
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
    picture = [] if caption is None else [_picture(name, caption)]
    facts += worth.facts(technique)
    parts = [f"# {name}", "\n".join(facts), *picture, *worth.rows(technique), code, docs]
    parts += [*formulas.section(technique), *interactions.section(technique)]
    return "\n\n".join(parts) + "\n"


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
    """Escapes vertical bars and asterisks that would be markup, outside of formulas and code."""
    formula: int | None = None  # indentation of its directive
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
    return re.sub(r"(?<=[( ])\*(?=[a-z_.]+[),])", r"\\*", text.replace("|", r"\|").replace("‖*", r"‖\*"))


def _skip(_app: Sphinx, _what: str, _name: str, thing: Any, skip: bool, _options: Any) -> bool:
    """Skips the fields of named tuples, which their class documents."""
    return skip or type(thing).__name__ == "_tuplegetter"


def setup(app: Sphinx) -> None:
    """Registers the generation of pages, and formulas as MathML, which browsers render natively."""
    app.add_html_math_renderer("mathml", (_visit_math, None), (_visit_displayed_math, None))
    app.connect("builder-inited", _forget_what_an_older_library_drew, priority=100)  # before the gallery checks
    app.connect("builder-inited", _write_cards)
    app.connect("builder-inited", _write_pages)
    app.connect("builder-inited", _write_modules)
    app.connect("autodoc-process-docstring", _escape)
    app.connect("autodoc-skip-member", _skip)
