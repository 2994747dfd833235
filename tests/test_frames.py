"""frames: a slider shows one described frame at a time, and its table holds every frame's numbers."""

import base64
import doctest
import io
import re

import pytest
from PIL import Image

from minilib import frames as module
from minilib.frames import Slider


def make(**options) -> Slider:
    return Slider(
        "t < 9",
        [1, 5, 8],
        draw=lambda ax, t: ax.plot([0, t]),
        say=lambda t: f'A "line" up to {t}.',
        row=lambda t: {"t": t, "square": t * t},
        **options,
    )


def test_docstring_examples() -> None:
    assert doctest.testmod(module).failed == 0


def test_one_frame_is_shown_and_each_is_described() -> None:
    page = make(start=1)._repr_html_()
    assert re.findall(r'data-frame="(\d)"( hidden)?', page) == [("0", " hidden"), ("1", ""), ("2", " hidden")]
    assert re.findall(r'<img alt="([^"]*)"', page) == [f"A &quot;line&quot; up to {t}." for t in (1, 5, 8)]
    assert 'max="2" value="1"' in page and "t &lt; 9" in page
    assert "<td>8</td><td>64</td>" in page and 'src="http' not in page


def test_frames_are_small_pictures_that_differ() -> None:
    images = [base64.b64decode(image) for image in make().images]
    assert len(set(images)) == 3 and all(len(image) < 30_000 for image in images)
    assert Image.open(io.BytesIO(images[0])).format == "PNG"


def test_slider_refuses_what_it_cannot_show() -> None:
    with pytest.raises(ValueError, match="two values or more and a start among them; not 3, 3"):
        make(start=3)
