"""How the documentation is built: ``make docs``. Nothing on its pages comes from the network.

Docstrings are plain text with formulas, Google's sections and some reStructuredText. Three hooks
make pages of them: roles become links to where a name is documented, what would be markup by
accident (``|x|``, ``2 * x``) is escaped, and formulas are written as MathML, which browsers draw.
"""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import fnn  # noqa: E402

project = "fnn"
copyright = "the fnn authors"
version = release = fnn.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "myst_parser",
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]
default_role = "literal"
maximum_signature_line_length = 80
toc_object_entries_show_parents = "hide"

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
autodoc_class_signature = "mixed"
python_display_short_literal_types = True

napoleon_numpy_docstring = False
napoleon_use_param = False
napoleon_use_rtype = False
napoleon_preprocess_types = False

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True

html_theme = "furo"
html_title = f"fnn {release}"
html_static_path = ["_static"]
html_css_files = ["fnn.css"]
html_show_sphinx = False
html_copy_source = False
html_math_renderer = "mathml"
highlight_language = "none"
pygments_style = "friendly"
pygments_dark_style = "github-dark"

log = logging.getLogger(__name__)

# ---- where names are documented --------------------------------------------------------------

DIRECTIVE = re.compile(r"^\s*\.\. auto(module|function|class|exception|data|method):: (\S+)", re.M)
PAGES = sorted((HERE / "reference").glob("*.rst"))
DOCUMENTED = {
    name: "mod" if kind == "module" else {"function": "func", "exception": "exc"}.get(kind, kind)
    for page in PAGES
    for kind, name in DIRECTIVE.findall(page.read_text("utf-8"))
}


def thing(name: str) -> Any:
    """The object of a dotted name, or None."""
    parts = name.split(".")
    for n in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:n]))
        except ImportError:
            continue
        for part in parts[n:]:
            found = getattr(found, part, None)
        return found
    return None


PLACES = [(name, thing(name)) for name in DOCUMENTED]


def link(role: str, module: str, where: str) -> str:
    """A role as it is written in a docstring, pointing to the page that documents its object."""
    target = role.lstrip("~")
    if thing(f"{where}.{target}") is not None:
        return f":meth:`{where}.{target}`"
    for name in (f"{module}.{target}", target, f"fnn.{target}"):
        found = thing(name)
        if found is None:
            continue
        for place, documented in PLACES:
            if found is documented:
                return f":{DOCUMENTED[place]}:`{place}`"
        return f"``{target}``"
    log.warning("%s refers to %s, which does not exist", where, role)
    return f"``{target}``"


# ---- docstrings ------------------------------------------------------------------------------

MARKUP = re.compile(
    r"(``.+?``|:[a-z:]+:`[^`]+`|`[^`]+`_?|(?<![\w*])\*[a-zA-Z][^*`\n]*\*(?!\w))", re.S
)
ROLE = re.compile(r":(?:py:)?(?:func|class|mod|meth|data|exc|attr|obj):`([^`]+)`")
LABEL = re.compile(
    r"^(Residuals|Derivatives?|Backward|Forward|Gradients?|Parameters|Inputs?|Example|Source)"
    r"((?: [\w ]{1,30})?): (?=\S)"
)
FIELD = re.compile(
    r"``[^`]+``(?: \([^)]*\))?(?:, ``[^`]+``(?: \([^)]*\))?)*: "
)  # of a record: one a line
NARROWER = re.compile(
    r"~[\w.]+Annotated\[(.*?), Needs\(words=.*?, fits=<function \S+ at \w+>\)\]"
)  # of fnn.arguments
SECTION = re.compile(r"^(Args|Returns|Raises|Yields|Attributes|Example|Examples|Note):$")


def prose(text: str, module: str, where: str) -> str:
    """Text with links where it has roles, and nothing that is markup by accident."""
    parts = MARKUP.split(text)
    for i, part in enumerate(parts):
        role = ROLE.fullmatch(part)
        if role:
            parts[i] = link(role[1], module, where)
        elif i % 2 == 0:
            part = re.sub(r"([*|`])|(?<=\w)_(?!\w)", r"\\\g<0>", part)
            parts[i] = re.sub(r"(?m)(^\s*|: )(\w)\.(?!\S)", r"\1\2\\.", part)  # not a list
    return "".join(parts)


def paragraphs(lines: list[str]) -> list[list[str]]:
    result: list[list[str]] = [[]]
    for line in lines:
        if line.strip():
            result[-1].append(line)
        elif result[-1]:
            result.append([])
    return [lines for lines in result if lines]


def indent_of(line: str) -> int:
    return len(line) - len(line.lstrip())


def docstring(
    app: Sphinx, what: str, name: str, subject: Any, options: Any, lines: list[str]
) -> None:
    """Rewrites the lines of a docstring as reStructuredText, before its sections are read."""
    module = getattr(subject, "__module__", None) or getattr(subject, "__name__", "fnn")
    result: list[str] = []
    margin, literal = 0, False
    for block in paragraphs(lines):
        first = block[0]
        indent = indent_of(first)
        in_section = bool(SECTION.match(first.strip()))
        if first.lstrip().startswith(">>>") or (literal and indent > margin):
            result += [*block, ""]
            continue
        literal = False
        if indent > margin and not in_section and not result[-2].lstrip().startswith("- "):
            # Something set apart, such as a formula or a command: as it stands.
            start = [".. code-block:: none", "   :class: formula", ""]
            result += [*([] if result[-2].endswith("::") else start), *block, ""]
            literal = True
            continue
        margin = indent if not in_section else margin
        text = prose("\n".join(block), module, name)
        text = LABEL.sub(r"**\1\2:** ", text)
        if first.strip() in ("Returns:", "Yields:"):
            text = without_type(text)
        if FIELD.match(text) and result:
            lines_of = text.split("\n")
            text = "\n".join(("- " if FIELD.match(line) else "  ") + line for line in lines_of)
        # A list begins its own paragraph.
        text = re.sub(r"(?m)(?<=[^\n])\n(?=- )", "\n\n", text, count=1)
        literal = text.endswith("::")
        result += [*text.split("\n"), ""]
    lines[:] = result


def without_type(section: str) -> str:
    """What is returned, its first line broken before a colon, which would end a type."""
    head, first, *rest = section.split("\n")
    plain = MARKUP.sub(lambda match: "x" * len(match[0]), first)
    space = plain.rfind(" ", indent_of(first), plain.find(":")) if ":" in plain else -1
    if space > indent_of(first):
        first = f"{first[:space]}\n{' ' * indent_of(first)}{first[space + 1 :]}"
    return "\n".join([head, first, *rest])


def arguments(
    app: Sphinx, what: str, name: str, subject: Any, options: Any, lines: list[str]
) -> None:
    """Napoleon calls arguments parameters, which a network has too."""
    lines[:] = [line.replace(":Parameters:", ":Arguments:") for line in lines]


def signature(
    app: Sphinx, what: str, name: str, subject: Any, options: Any, arguments: Any, returns: Any
) -> tuple[str, str]:
    """Narrower kinds of numbers by their type; the docstring has the range.

    A protocol is called, not made: its docstring begins with how.
    """
    if getattr(subject, "_is_protocol", False):
        return "", ""
    return arguments and NARROWER.sub(r"\1", arguments), returns


# ---- the table of formulas -------------------------------------------------------------------


def table_of_formulas(app: Sphinx, page: str, source: list[str]) -> None:
    """Adds ``fnn.whiteboard.FORMULAS`` to the page that introduces it."""
    if page != "formulas":
        return
    rows = ["| block | forward | backward |", "| :-- | :-- | :-- |"]
    for name, general in fnn.whiteboard.FORMULAS.items():
        formula = general.filled(())
        has_several = len(formula.local) > 1 or "{1}" in formula.value
        inputs = ("a", "b", "c", "d") if has_several else ("x",)
        back = [formula.local_of(i, inputs, "y") for i in range(len(formula.local))]
        back += [formula.written(template, inputs, "y") for template in formula.params.values()]
        cells = (formula.written(formula.value, inputs, "y"), "<br>".join(back))
        rows.append(f"| {{py:func}}`~fnn.{name}` | " + " | ".join(map(escaped, cells)) + " |")
    source[0] += "\n" + "\n".join(rows) + "\n"


def escaped(cell: str) -> str:
    return re.sub(r"[|*_\[\]$^]", r"\\\g<0>", cell)


# ---- files that are pages here and stand elsewhere ---------------------------------------------

PAGE_OF = {
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "experiments/benchmarks/ACCURACY.md": "accuracy.md",
    "experiments/benchmarks/FAILURES.md": "failures.md",
}


def links_to_pages(app: Sphinx, path: Path, page: str, text: list[str]) -> None:
    """Links of the README lead to these pages, not to the files that the pages include."""
    for file, place in PAGE_OF.items():
        text[0] = text[0].replace(f"]({file})", f"](docs/{place})")


# ---- formulas --------------------------------------------------------------------------------


def inline_formula(self: Any, node: nodes.math) -> None:
    self.body.append(tex2mathml(node.astext()))
    raise nodes.SkipNode


def formula(self: Any, node: nodes.math_block) -> None:
    self.body.append(f'<div class="formula">{tex2mathml(node.astext(), as_block=True)}</div>')
    raise nodes.SkipNode


# ---- nothing from the network ------------------------------------------------------------------

REMOTE = re.compile(r"<(?:script|link|img|iframe|source)\b[^>]*(?:src|href)=\"(?:https?:)?//[^>]*>")


def check_offline(app: Sphinx, error: Exception | None) -> None:
    """Fails where a page would load something from elsewhere. Links to elsewhere are fine."""
    for page in Path(app.outdir).rglob("*.html"):
        for tag in REMOTE.findall(page.read_text("utf-8")):
            log.warning("%s loads %s", page.name, tag)
            app.statuscode = 1


# ---- links within the documentation ------------------------------------------------------------

LINK = re.compile(r'href="([^"#:]*)#([^"]+)"')


def check_anchors(app: Sphinx, error: Exception | None) -> None:
    """Fails where a link's anchor is not there. Links back from the source know a public name by
    its module, fnn.block.Block; they get the name under which it is documented, fnn.Block."""
    pages = {path: path.read_text("utf-8") for path in Path(app.outdir).rglob("*.html")}
    ids = {path: set(re.findall(r'\bid="([^"]+)"', text)) for path, text in pages.items()}
    for path, text in pages.items():

        def mended(link: re.Match[str], path: Path = path) -> str:
            place, anchor = link.groups()
            there = ids.get((path.parent / place).resolve() if place else path, {anchor})
            if anchor in there:
                return link[0]
            for other in sorted(there):
                if other.startswith("fnn.") and other.split(".")[-1] == anchor.split(".")[-1]:
                    return f'href="{place}#{other}"'
            log.warning("%s: %s has no anchor %s", path.name, place, anchor)
            app.statuscode = 1
            return link[0]

        if (new := LINK.sub(mended, text)) != text:
            path.write_text(new, "utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", docstring, priority=100)  # before napoleon
    app.connect("autodoc-process-docstring", arguments, priority=900)  # after it
    app.connect("autodoc-process-signature", signature)
    app.connect("source-read", table_of_formulas)
    app.connect("include-read", links_to_pages)
    app.connect("build-finished", check_offline)
    app.connect("build-finished", check_anchors)
    app.add_html_math_renderer("mathml", (inline_formula, None), (formula, None))
    return {"parallel_read_safe": True}
