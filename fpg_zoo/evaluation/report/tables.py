"""Tables of HTML, captioned, with the first cell of a row as its header."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from fpg_zoo.evaluation.report.html import escaped


class Column(NamedTuple):
    """One column.

    Attributes:
        title: at its head.
        kind: what its cells hold, which the style sheet goes by.
        mark: what page.js finds its cells by; none by default.
    """

    title: str
    kind: Literal["name", "text", "number", "bar"] = "name"
    mark: str = ""


def table(caption: str, columns: Sequence[Column], rows: Sequence[Sequence[str]], name: str = "") -> str:
    """A table.

    Args:
        caption: above it; a text.
        columns: from left to right, the first being the rows' headers.
        rows: cells as HTML.
        name: its id; none if empty.
    """
    heads = "".join(f'<th scope="col" class="{column.kind}">{escaped(column.title)}</th>' for column in columns)
    lines = []
    for row in rows:
        first, *rest = zip(columns, row, strict=True)
        cells = "".join(_cell(column, content) for column, content in rest)
        lines.append(f'<tr><th scope="row" class="{first[0].kind}">{first[1]}</th>{cells}</tr>')
    identity = f' id="{name}"' if name else ""
    return (
        f"<table{identity}><caption>{escaped(caption)}</caption><thead><tr>{heads}</tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table>"
    )


def _cell(column: Column, content: str) -> str:
    mark = f' data-mark="{column.mark}"' if column.mark else ""
    return f'<td class="{column.kind}"{mark}>{content}</td>'
