"""The HTML of a report: one page that loads nothing, in light or dark as the reader's system is, on any width.

Called by `clients.report`.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from typing import Any

STYLE = """
:root { color-scheme: light dark; --ink: #222222; --ground: #ffffff; --line: #dddddd; --faint: #666666; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e4e4; --ground: #16181c; --line: #3a3d44; --faint: #a0a4ac; }
}
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1200px; margin: 1.5em auto; padding: 0 1em;
  color: var(--ink); background: var(--ground); overflow-wrap: anywhere; }
h1 { font-size: 1.6em; line-height: 1.2; }
h2 { font-size: 1.2em; line-height: 1.3; margin-top: 2em; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: 1em 0; font-size: 13px; overflow-wrap: normal; }
th, td { border-bottom: 1px solid var(--line); padding: 4px 8px; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: var(--ground);
  max-width: 45vw; white-space: normal; }
.plot svg { display: block; width: 100%; min-width: 640px; height: auto; touch-action: manipulation; }
.plot.zoomed svg { cursor: grab; touch-action: none; }
.zoom { display: flex; gap: 4px; align-items: center; color: var(--faint); font-size: 12px; }
.zoom button { font: inherit; min-width: 2.4em; padding: 4px 8px; color: var(--ink); background: transparent;
  border: 1px solid var(--line); border-radius: 4px; flex: none; white-space: nowrap; }
dl { font-size: 13px; margin: 1em 0; } dt { font-weight: 600; margin-top: .5em; }
dd { margin: 0; color: var(--faint); } code { color: var(--ink); font-size: 12px; }
"""
# Zooming changes the part of the picture that is shown: its shapes and letters stay sharp.
SCRIPT = """
for (const plot of document.querySelectorAll('.plot')) {
  const svg = plot.querySelector('svg'), whole = svg.viewBox.baseVal;
  const [x0, y0, w0, h0] = [whole.x, whole.y, whole.width, whole.height];
  let x = x0, y = y0, scale = 1, from = null;
  const show = () => {
    x = Math.min(Math.max(x, x0), x0 + w0 - w0 / scale);
    y = Math.min(Math.max(y, y0), y0 + h0 - h0 / scale);
    svg.setAttribute('viewBox', `${x} ${y} ${w0 / scale} ${h0 / scale}`);
    plot.classList.toggle('zoomed', scale > 1);
  };
  const zoom = (factor, px = .5, py = .5) => {
    const next = Math.min(Math.max(scale * factor, 1), 40);
    x += px * w0 * (1 / scale - 1 / next);
    y += py * h0 * (1 / scale - 1 / next);
    scale = next;
    show();
  };
  const at = event => {
    const box = svg.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
  };
  const bar = document.createElement('div');
  bar.className = 'zoom';
  for (const [sign, name, act] of [['+', 'Zoom in', () => zoom(1.6)], ['\\u2212', 'Zoom out', () => zoom(1 / 1.6)],
      ['1:1', 'Show all', () => zoom(0)]]) {
    const button = document.createElement('button');
    button.textContent = sign;
    button.title = button.ariaLabel = name;
    button.onclick = act;
    bar.append(button);
  }
  bar.append('or Ctrl and the wheel, double-click; then drag');
  plot.before(bar);
  svg.addEventListener('wheel', event => {
    if (!event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    zoom(event.deltaY < 0 ? 1.25 : 0.8, ...at(event));
  }, {passive: false});
  svg.addEventListener('dblclick', event => { event.preventDefault(); zoom(2, ...at(event)); });
  svg.addEventListener('pointerdown', event => {
    if (scale > 1) { from = at(event); svg.setPointerCapture(event.pointerId); }
  });
  svg.addEventListener('pointermove', event => {
    if (!from) return;
    const [px, py] = at(event);
    x -= (px - from[0]) * w0 / scale;
    y -= (py - from[1]) * h0 / scale;
    from = [px, py];
    show();
  });
  for (const end of ['pointerup', 'pointercancel']) svg.addEventListener(end, () => { from = null; });
}
"""


def page(title: str, sections: Sequence[str]) -> str:
    """The whole document."""
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style>"
    )
    body = f"<h1>{html.escape(title)}</h1>{''.join(sections)}<script>{SCRIPT}</script>"
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{body}</body></html>\n'


def section(heading: str, svg: str, below: str) -> str:
    """A picture under its heading, and what is below it, as HTML."""
    named = svg.replace("<svg ", f'<svg role="img" aria-label="{html.escape(heading)}" ', 1)
    # Ids are of the whole page; two pictures may have the same, of other things.
    prefix = re.sub(r"\W+", "-", heading)
    named = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", named)
    return f'<section><h2>{html.escape(heading)}</h2><div class="wide plot">{named}</div>{below}</section>'


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    head = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(_shown(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def origins(results: Mapping[str, Mapping[str, Any]]) -> str:
    """How each of these was made, by its name: what `clients.provenance` kept in it. Older ones have nothing."""
    parts = []
    for name, result in results.items():
        command, version, host = (result.get(key) for key in ("command", "version", "host"))
        said = [f"<code>{html.escape(str(command))}</code>"] if command else []
        said += [html.escape(f"Seesaw {version}")] if version else []
        said += [html.escape(str(host))] if host else []
        if said:
            parts.append(f"<dt>{html.escape(name)}</dt>" + "".join(f"<dd>{each}</dd>" for each in said))
    return f"<dl>{''.join(parts)}</dl>" if parts else ""


def _shown(cell: Any) -> str:
    if cell is None:
        return "-"
    if isinstance(cell, float):
        return f"{cell:,.4g}" if abs(cell) < 1000 else f"{cell:,.0f}"
    return str(cell)
