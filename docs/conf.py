"""How Sphinx builds the site: `make book`. Nothing is executed, and nothing is fetched.

The source folder is the checkout, so that links lead to the same files here, on GitHub and on the site.
"""

import ast
import dataclasses
import inspect
import re
from importlib.metadata import version as version_of

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from myst_nb.core.render import NbElementRenderer
from sphinx.util import logging

project = "HRNet++ in ten notebooks"
author = copyright = "The hrnetpp-lib authors"
release = version_of("hrnetpp-lib")

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon"]
extensions += ["sphinx.ext.viewcode"]
root_doc = "docs/index"
include_patterns = [
    "docs/*.md",
    "docs/api/*.md",
    "notebooks/executed/mini/*",
    "notebooks/executed/lspet_cpu/*",
]
exclude_patterns = [".*", "build", "data", "dist", "runs"]  # not looked into: they may be large

# Executed copies as they are committed. A widget needs a kernel; the figures before it show the same.
nb_execution_mode = "off"
nb_render_markdown_format = "myst"  # what cells print has tables, which plain CommonMark does not know
nb_ipywidgets_js = {}
nb_mime_priority_overrides = [("html", "application/vnd.jupyter.widget-view+json", None)]
myst_enable_extensions = ["dollarmath", "html_image"]
myst_heading_anchors = 3
html_math_renderer = "mathml"  # what browsers draw themselves: MathJax would come from another host

# A name in backquotes is a link where it is one of ours, else plain code; only our own must resolve.
default_role = "py:obj"
nitpicky = True
nitpick_ignore_regex = [("py:.*", r"(?!hrnetpp_lib).*|.*\.Content")]  # a type variable
napoleon_use_ivar = True
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_default_options = {"members": True, "exclude-members": "set"}  # matplotlib adds a set()
maximum_signature_line_length = 64
add_module_names = False  # the headings name them
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"
highlight_language = "none"  # a fence without a language is no Python

html_theme = "furo"
html_title = project
html_static_path = ["_static"]
html_css_files = ["site.css"]
templates_path = ["_templates"]
html_extra_path = ["root"]  # the address without a page leads to docs/
html_favicon = "_static/favicon.svg"
html_copy_source = False


def separate_notes(app, what, name, thing, options, lines):
    """'Raises: ...' and 'Reference: ...' in the text, our short form of Google's sections, as paragraphs."""
    text = "\n".join(lines)
    notes = r"(?:(?<=\n)|(?<=[.;)] ))(Raises|Reference|Returns): (?=\S)"
    lines[:] = re.sub(notes, r"\n\n**\1:** ", text).splitlines()


def show_fields(app, what, name, thing, options, lines):
    """A dataclass's fields as its source writes them: what each means is said beside it, in comments."""
    if what == "class" and dataclasses.is_dataclass(thing) and "Attributes:" not in lines:
        source = inspect.cleandoc(inspect.getsource(thing)).splitlines()
        definition = ast.parse("\n".join(source)).body[0]
        fields = [node for node in definition.body if isinstance(node, ast.AnnAssign)]
        fields = [node for node in fields if not node.target.id.startswith("_")]
        if fields:
            docstring_end = definition.body[0].end_lineno
            text = source[docstring_end : fields[-1].end_lineno]
            lines += ["", ".. code-block:: python", "", *(f"   {line[4:]}" for line in text), ""]


def without_fields(app, what, name, thing, options, signature, returns):
    """`show_fields` gives them, so that the signature need not."""
    return ("", None) if what == "class" and dataclasses.is_dataclass(thing) else None


def visit_math(self, node):
    try:
        self.body.append(tex2mathml(node.astext(), as_block=node.tagname == "math_block"))
    except MathError as error:
        logging.getLogger(__name__).warning("formula %r: %s", node.astext(), error, location=node)
    raise nodes.SkipNode


def describe_image(self, data, render=NbElementRenderer.render_image):
    """myst-nb hands on a figure's size, but not its description; without one it would write a file's name."""
    (image,) = render(self, data)
    image["alt"] = data.output_metadata.get(data.mime_type, {}).get("alt", "")
    return [image]


def source_links(app, config):
    """Links to each page's source, once the checkout has a public address."""
    if config.public_repository:
        config.html_theme_options["source_view_link"] = f"{config.public_repository}/blob/HEAD/{{filename}}"


def launch_link(app, pagename, templatename, context, doctree):
    """Where a notebook can be run, once the checkout has a public address: not the copy, its source."""
    address, notebook = app.config.public_repository, re.search(r"executed/\w+/(\w+)$", pagename)
    if address and notebook:
        place = "/".join(address.rstrip("/").split("/")[-2:])
        path = f"lab/tree/notebooks/{notebook[1]}.ipynb"
        context["launch_url"] = f"https://mybinder.org/v2/gh/{place}/HEAD?urlpath={path}"


def setup(app):
    NbElementRenderer.render_image = describe_image
    # https://github.com/OWNER/NAME, once there is one; the option is -D public_repository=...
    app.add_config_value("public_repository", "", "html", str)
    app.connect("config-inited", source_links)
    app.connect("autodoc-process-docstring", separate_notes, priority=400)  # before napoleon
    app.connect("autodoc-process-docstring", show_fields, priority=400)
    app.connect("autodoc-process-signature", without_fields)
    app.connect("html-page-context", launch_link)
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math, None))
