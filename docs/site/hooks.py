"""What the site's pages need beyond MkDocs: equations, and links to files outside of ``docs/``.

Equations are TeX, in ```` ```math ```` blocks and ``$`...`$``, which GitHub shows too. They become
MathML as the site is built, so that a browser needs no script to show them.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from latex2mathml.converter import convert
from markdown import Extension, Markdown
from markdown.inlinepatterns import InlineProcessor
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
PAGES = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""Pages at the root, and what they are called in the site."""
HOME = {"README.md": "index.md", "AGENTS.md": "contributing.md"}
"""What stands for those that are no pages of the site."""
LINK = re.compile(r"(\]\()(?!https?:|#|mailto:)([^)#\s]+)")
SOURCES = "sources"
BEFORE_BACKTICKS = 195
BLOCK = re.compile(r"^```math\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class InlineMath(InlineProcessor):
    """``$`x`$`` as MathML."""

    def handleMatch(self, m, data):
        return self.md.htmlStash.store(convert(m.group(1))), m.start(0), m.end(0)


class Maths(Extension):
    def extendMarkdown(self, md: Markdown) -> None:
        md.inlinePatterns.register(InlineMath(r"\$`(.+?)`\$", md), "maths", BEFORE_BACKTICKS)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    config.markdown_extensions.append(Maths())
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages at the root, and every file outside of ``docs/`` that a page links to."""
    for name, page in PAGES.items():
        text = LINK.sub(lambda m: m[1] + _from_root(m[2]), (ROOT / name).read_text())
        files.append(File.generated(config, page, content=text))
    for file in list(files.documentation_pages()):
        for _, link in LINK.findall(file.content_string):
            if _is_source(link):
                path = (ROOT / "docs" / link).resolve()
                if not path.exists():
                    raise PluginError(f"{file.src_uri}: there is no {link}")
                uri = f"{SOURCES}/{path.relative_to(ROOT)}"
                if path.is_file() and files.get_file_from_path(uri) is None:
                    files.append(File.generated(config, uri, content=path.read_text()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links out of ``docs/`` lead to copies in the site, and blocks of TeX become MathML."""
    markdown = LINK.sub(lambda m: m[1] + _to_copy(m[2]), markdown)
    return BLOCK.sub(lambda m: convert(m[1].strip(), display="block") + "\n", markdown)


def _is_source(link: str) -> bool:
    return link.startswith("../") and link[3:] not in PAGES | HOME


def _from_root(link: str) -> str:
    """A link of a page at the root, as a page in ``docs/`` would write it."""
    return link.removeprefix("docs/") if link.startswith("docs/") else f"../{link}"


def _to_copy(link: str) -> str:
    names: Mapping[str, str] = PAGES | HOME
    if not link.startswith("../"):
        return link
    return names.get(link[3:]) or f"{SOURCES}/{link[3:]}"
