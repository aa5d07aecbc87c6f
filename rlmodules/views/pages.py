"""Pages: one file of HTML that needs nothing else, written from a template of ``templates``.

``page.html`` is the frame of a page with charts (``charts.html``): it carries plotly.js and forbids
itself to fetch anything. ``static/README.md`` says what is carried.
"""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from datamodules.atomic import write_text
from rlmodules.views.tokens import KINDS

TEMPLATES, STATIC = (Path(__file__).with_name(name) for name in ("templates", "static"))
PLOTLY = "plotly-basic-4.1.1.min.js"


def static(name: str) -> Markup:
    """A script or a style sheet of ours, to stand in a page as it is."""
    return Markup((STATIC / name).read_text(encoding="utf-8"))


def write_page(path: Path, template: str, **values: Any) -> None:
    """Fill ``template`` with ``values`` and write it to ``path``, whole or not at all."""
    pages = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    pages.policies["json.dumps_kwargs"] = {"sort_keys": False, "allow_nan": False}
    pages.globals |= {"static": static, "PLOTLY": PLOTLY, "kinds": KINDS}
    write_text(path, pages.get_template(template).render(values))
