"""A plain, self-contained HTML page: style, tables, embedded pictures.  Nothing is fetched from anywhere."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape

STYLE = """
:root { --ink: #1f2430; --soft: #5b6270; --line: #e3e6ea; --page: #fbfbfc; --card: #ffffff;
  --good: #00734f; --bad: #b23c00; --even: #5b6270; --accent: #005b8f; --code: #f2f4f7; }
@media (prefers-color-scheme: dark) { :root { --ink: #e7e9ee; --soft: #a2a9b6; --line: #333945;
  --page: #14171d; --card: #1c2028; --good: #4fd0a0; --bad: #ff9a63; --even: #a2a9b6; --accent: #6cb8ea;
  --code: #252a34; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); line-height: 1.55;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1060px; margin: 0 auto; padding: 48px 24px 80px; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 8px; letter-spacing: -.01em; }
h2 { font-size: 1.3rem; margin: 56px 0 12px; }
p { max-width: 46rem; margin: 0 0 14px; }
.soft, figcaption, .note { color: var(--soft); font-size: .92rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(220px, 1fr)); gap: 16px;
  margin: 28px 0 8px; }
.card, .answer { background: var(--card); border: 1px solid var(--line); border-radius: 12px;
  padding: 18px 20px; }
.card .what { color: var(--soft); font-size: .92rem; }
.card .move { font-size: 1.4rem; font-weight: 650; margin: 6px 0 2px; white-space: nowrap;
  font-variant-numeric: tabular-nums; }
.better { color: var(--good); } .worse { color: var(--bad); } .even { color: var(--even); }
.verdict { font-weight: 600; font-size: .92rem; }
.scroll { overflow-x: auto; margin: 16px 0; border: 1px solid var(--line); border-radius: 12px;
  background: linear-gradient(90deg, var(--card) 40%, transparent) 0 / 36px 100% no-repeat local,
    linear-gradient(270deg, var(--card) 40%, transparent) 100% / 36px 100% no-repeat local,
    linear-gradient(90deg, #8889, transparent) 0 / 14px 100% no-repeat scroll,
    linear-gradient(270deg, #8889, transparent) 100% / 14px 100% no-repeat scroll, var(--card); }
table { border-collapse: collapse; width: 100%; font-size: .93rem; font-variant-numeric: tabular-nums; }
th, td { padding: 9px 14px; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
tr:last-child td { border-bottom: 0; }
th { color: var(--soft); font-weight: 600; }
th:first-child, td:first-child, td.text, th.text { text-align: left; }
td.text { white-space: normal; }
td:first-child { min-width: 11rem; }
td small { color: var(--soft); }
figure { margin: 20px 0; }
figure img { width: 100%; height: auto; display: block; background: #fff; border: 1px solid var(--line);
  border-radius: 12px; padding: 16px; }
figcaption { margin-top: 8px; }
.answer { margin: 14px 0; }
.answer dl { display: grid; grid-template-columns: max-content 1fr; gap: 6px 18px; margin: 12px 0 0; }
.answer dt { color: var(--soft); } .answer dd { margin: 0; overflow-wrap: anywhere; }
pre, code { font-size: .86rem;
  font-family: ui-monospace, SFMono-Regular, Menlo, "DejaVu Sans Mono", monospace; }
pre { background: var(--code); border-radius: 8px; padding: 12px 14px; margin: 0; white-space: pre-wrap;
  overflow-wrap: anywhere; }
.badge { display: inline-block; font-size: .76rem; border: 1px solid currentColor; border-radius: 99px;
  padding: 0 8px; margin-left: 6px; white-space: nowrap; }
details { margin: 12px 0; } summary { cursor: pointer; color: var(--accent); margin-bottom: 10px; }
@media (max-width: 600px) { main { padding: 32px 14px 64px; } th, td { padding: 8px; }
  td:first-child { min-width: 7.5rem; white-space: normal; } }
@media print { body { background: #fff; } .card, .answer, figure { break-inside: avoid; } }
"""


def page(title: str, body: Sequence[str]) -> str:
    """The whole document."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(body)
        + "\n</main>\n</body>\n</html>\n"
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]], text_columns: Sequence[int] = (0,)) -> str:
    """A table of cells that are HTML already."""

    def row(cells: Sequence[str], tag: str) -> str:
        marked = (
            f"<{tag}{' class=text' if column in text_columns else ''}>{cell}</{tag}>"
            for column, cell in enumerate(cells)
        )
        return "<tr>" + "".join(marked) + "</tr>"

    lines = [row(header, "th"), *(row(cells, "td") for cells in rows)]
    return '<div class="scroll"><table>\n' + "\n".join(lines) + "\n</table></div>"


def picture(png: bytes, description: str, caption: str = "") -> str:
    """An embedded PNG."""
    data = base64.b64encode(png).decode("ascii")
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure><img alt="{escape(description)}" src="data:image/png;base64,{data}">{below}</figure>'


def folded(title: str, content: str) -> str:
    """Something to open when wanted."""
    return f"<details><summary>{escape(title)}</summary>{content}</details>"
