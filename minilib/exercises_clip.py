"""The exercises of the first and the last chapter: hints, right answers and known mistakes.

Used in: notebooks/01_clip.ipynb, notebooks/11_capstone.ipynb
"""

from __future__ import annotations

from minilib.judges import Exercise

EXERCISES: dict[str, Exercise] = {}
