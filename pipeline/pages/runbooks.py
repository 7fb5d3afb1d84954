"""The page /runbooks: docs/runbooks.md as HTML, with a section for each alert. Made once, when first asked for."""

from __future__ import annotations

from functools import cache
from importlib import resources
from itertools import pairwise

from pipeline.pages import File, filled

NAME = "runbooks"


@cache
def document() -> File:
    """Return the page. The id of a section is the name of its alert in small letters, as in the links of alerts."""
    # Not at the start of every process: most never show the page.
    from markdown_it import MarkdownIt

    markdown = MarkdownIt("commonmark")
    tokens = markdown.parse(resources.files("pipeline.docs").joinpath(f"{NAME}.md").read_text())
    for heading, text in pairwise(tokens):
        if heading.type == "heading_open" and heading.tag == "h2":
            heading.attrSet("id", text.content.lower())
    return filled(f"{NAME}.html", content=markdown.renderer.render(tokens, markdown.options, {}))
