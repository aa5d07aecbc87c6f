"""Pages: one file of HTML that needs nothing else, written from a template of ``templates``."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from datamodules.atomic import write_text
from rlmodules.views.tokens import KINDS

TEMPLATES = Path(__file__).with_name("templates")


def write_page(path: Path, template: str, **values: Any) -> None:
    """Fill ``template`` with ``values`` and write it to ``path``, whole or not at all."""
    pages = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    write_text(path, pages.get_template(template).render(kinds=KINDS, **values))
