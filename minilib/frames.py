"""A slider that needs no kernel: frames drawn beforehand, one shown at a time, and a table for readers without it.

Taught in: notebooks/02_gda.ipynb, notebooks/06_balance.ipynb, notebooks/08_diffusion.ipynb
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

_MOVE = (
    "const box = this.closest('.frames');"
    "box.querySelectorAll('[data-frame]').forEach((frame, i) => frame.hidden = i != this.value);"
    "this.setAttribute('aria-valuetext', box.querySelectorAll('[data-frame] figcaption')[this.value].textContent)"
)


class Slider:
    """Frames of one chart, a value each, as HTML; a notebook shows it by itself.

    ``draw(ax, value)`` draws a frame, ``say(value)`` describes it in a sentence (caption and alternative text), and
    ``row(value)`` gives the numbers of its line in the table. ``start`` is the frame that is shown first.

    Raises ``ValueError`` for fewer than two values, or a start outside them.

    >>> dial = Slider("t", [1, 2], draw=lambda ax, t: ax.plot([0, t]), say=lambda t: f"A line up to {t}.",
    ...               row=lambda t: {"t": t})
    >>> dial._repr_html_().count("<img")
    2

    Taught in: notebooks/02_gda.ipynb, notebooks/06_balance.ipynb, notebooks/08_diffusion.ipynb
    """

    def __init__(
        self,
        name: str,
        values: Sequence[Any],
        *,
        draw: Callable[[Axes, Any], Any],
        say: Callable[[Any], str],
        row: Callable[[Any], Mapping[str, Any]],
        start: int = 0,
        size: tuple[float, float] = (7.0, 4.0),
    ) -> None:
        if len(values) < 2 or not 0 <= start < len(values):
            raise ValueError(f"a slider needs two values or more and a start among them; not {len(values)}, {start}")
        self.name, self.start = name, start
        self.sentences = [say(value) for value in values]
        self.rows = [dict(row(value)) for value in values]
        self.images = [_png(draw, value, size) for value in values]

    def __repr__(self) -> str:
        return f"Slider({self.name!r}, {len(self.images)} frames)"

    def _repr_html_(self) -> str:
        frames = "".join(
            f'<figure data-frame="{i}"{"" if i == self.start else " hidden"}>'
            f'<img alt="{html.escape(sentence)}" src="data:image/png;base64,{image}">'
            f"<figcaption>{html.escape(sentence)}</figcaption></figure>"
            for i, (image, sentence) in enumerate(zip(self.images, self.sentences, strict=True))
        )
        said = html.escape(self.sentences[self.start])
        scale = f'min="0" max="{len(self.images) - 1}" value="{self.start}" aria-valuetext="{said}"'
        dial = f'<label>{html.escape(self.name)} <input type="range" {scale} oninput="{_MOVE}"></label>'
        return f'<div class="frames">{dial}{frames}{self._table()}</div>'

    def _table(self) -> str:
        def line(cells: Any, tag: str) -> str:
            return "<tr>" + "".join(f"<{tag}>{html.escape(str(cell))}</{tag}>" for cell in cells) + "</tr>"

        head, body = line(self.rows[0], "th"), "".join(line(row.values(), "td") for row in self.rows)
        table = f"<table><thead>{head}</thead><tbody>{body}</tbody></table>"
        return f"<details><summary>The same as a table</summary>{table}</details>"


def _png(draw: Callable[[Axes, Any], Any], value: Any, size: tuple[float, float]) -> str:
    """A frame as base64. Sixty-four colours are enough for lines, and halve the page."""
    from PIL import Image

    figure = Figure(figsize=size, layout="constrained")
    draw(figure.subplots(), value)
    raw, small = io.BytesIO(), io.BytesIO()
    figure.savefig(raw, format="png")
    Image.open(raw).convert("RGB").quantize(64).save(small, format="png", optimize=True)
    return base64.b64encode(small.getvalue()).decode()
