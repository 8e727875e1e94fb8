"""The pieces that pages are made of: HTML in one self-contained file, for desktop, phone and print.

Everything that comes from data goes through `text` on its way into a page.
"""

import base64
import contextlib
import html
import io
import math
import numbers
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_DPI = 150
_CSS = """:root { --soft: #5c6370; --line: #d9dce1; --card: #f4f5f7; --warn: #fff3d6 }
@media screen and (prefers-color-scheme: dark) { :root {
  --soft: #a3abb8; --line: #3a3f47; --card: #26292f; --warn: #43340f } }
* { box-sizing: border-box; overflow-wrap: anywhere } html { color-scheme: light dark }
body { margin: 0 auto; max-width: 62rem; padding: 1.5rem 1rem 4rem;
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", sans-serif }
h1 { font-size: 1.8rem; line-height: 1.2; margin: 0 } h2 { font-size: 1.25rem; margin-top: 2.5rem }
p { max-width: 46rem; margin: .6rem 0 }
.soft, caption, dt, small { color: var(--soft); font-size: .9rem } small { white-space: nowrap }
.notice, .cards div, pre { background: var(--card); border-radius: .5rem; padding: .7rem .9rem }
.notice { background: var(--warn) } pre { white-space: pre-wrap; font-size: .85rem }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)); gap: .7rem }
dd { margin: 0; font-size: 1.6rem; line-height: 1.3 } dd small { display: block }
.scroll { overflow-x: auto; margin: .8rem 0 }
table { border-collapse: collapse; font-size: .93rem; font-variant-numeric: tabular-nums }
caption, th, td { text-align: left; vertical-align: top; padding: .32rem 1rem .32rem 0 }
th, td { border-bottom: 1px solid var(--line); overflow-wrap: normal }
:is(th, td):last-child { padding-right: 0 }
.numbers :is(th, td):nth-child(n + 2), .names :is(th, td):nth-child(n + 3) { text-align: right }
.words td + td { min-width: 9rem }
.pictures { display: flex; flex-wrap: wrap; gap: .8rem; margin: .8rem 0 }
figure { flex: 1 1 var(--width); max-width: calc(1.4 * var(--width)); min-width: 0; margin: 0;
  overflow-x: auto; padding: .4rem; background: #fff; border: 1px solid var(--line);
  border-radius: .5rem } img { display: block; width: 100%; min-width: calc(.7 * var(--width)) }
@media (max-width: 40rem) { h1 { font-size: 1.5rem } table, td small { font-size: .8rem }
  caption, th, td { padding-right: .4rem } th { font-size: .75rem } figure { padding: 0 }
  .words td + td { min-width: 7rem } }
@media print { body { max-width: none; padding: 0; font-size: 10pt } .scroll { overflow: visible }
  .cards { grid-template-columns: repeat(6, 1fr) } .cards div { border: 1px solid var(--line) }
  figure { flex-basis: calc(.8 * var(--width)); max-width: var(--width) }
  figure, .cards, .scroll, tr { break-inside: avoid } h2, caption { break-after: avoid }
  details::details-content { content-visibility: visible; height: auto } }"""


def document(title: str, body: str) -> bytes:
    """A whole page: `title` is plain text, `body` is HTML."""
    head = f'<meta charset="utf-8"><title>{text(title)}</title>\n<style>{_CSS}</style>'
    viewport = '<meta name="viewport" content="width=device-width, initial-scale=1">'
    page = f'<!doctype html>\n<html lang="en"><head>{viewport}\n{head}</head><body>\n{body}'
    # File names on disk need not be valid text: "replace" keeps one from costing the whole page.
    return f"{page}</body></html>\n".encode("utf-8", "replace")


def text(value: object) -> str:
    """Any value as escaped text: counts with thousands, other numbers to three decimals."""
    return html.escape(plain(value))


def plain(value: object) -> str:
    """As `text`, not escaped."""
    if value is None or (isinstance(value, numbers.Real) and not math.isfinite(value)):
        return "–"
    if isinstance(value, numbers.Real):
        return f"{value:,}" if isinstance(value, numbers.Integral) else f"{value:.3f}"
    return str(value)


def interval(bounds: Sequence[float | None]) -> str:
    """Two numbers as `0.540–0.607`."""
    return "–".join(map(plain, bounds))


def table(caption: str, head: Sequence, rows: Iterable[Sequence], style: str = "numbers") -> str:
    """A table that scrolls on its own; a cell that is a pair has its second value in small print.

    Style "numbers" sets all but the first column right, "names" all but the first two, "left" and
    "words" none; columns of "words" have room for sentences.
    """
    names = "".join(f"<th>{text(name)}</th>" for name in head)
    body = "</tr>\n<tr>".join("".join(f"<td>{_cell(c)}</td>" for c in row) for row in rows)
    start = f'<div class="scroll" tabindex="0"><table class="{style}">'
    if caption:
        start += f"<caption>{text(caption)}</caption>\n"
    return f"{start}<thead><tr>{names}</tr></thead>\n<tbody><tr>{body}</tr></tbody></table></div>\n"


def _cell(value: object) -> str:
    if isinstance(value, tuple):
        return f"{text(value[0])} <small>{text(value[1])}</small>"
    return text(value)


def png(figure: Figure, background: str = "white") -> bytes:
    """Draws a figure; "none" is a background that shines through."""
    figure.set(dpi=_DPI, facecolor=background)
    buffer = io.BytesIO()
    with no_glyph_warnings():
        FigureCanvasAgg(figure).print_png(buffer)  # `savefig` draws twice
    return buffer.getvalue()


@contextlib.contextmanager
def no_glyph_warnings() -> Iterator[None]:
    """Draws names in scripts that matplotlib's font lacks as boxes, without a word on each."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        yield


def _inches_wide(picture: bytes) -> float:
    """By the width in a PNG's header."""
    return int.from_bytes(picture[16:20]) / _DPI


def data_url(kind: str, content: bytes) -> str:
    """An address that holds what is there, so that a page needs no other file."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def pictures(drawn: Mapping[str, bytes]) -> str:
    """Pictures of `png` inside the page, side by side where there is room: {what it shows: PNG}."""
    figures = []
    for alt, content in drawn.items():
        rem = 5 * _inches_wide(content)  # letters about as large as the page's own
        source = data_url("image/png", content)
        image = f'<img src="{source}" alt="{text(alt)}">'
        figures.append(f'<figure style="--width: {rem:.0f}rem">{image}</figure>')
    return f'<div class="pictures">{"".join(figures)}</div>\n'
