"""The exercises of the part "Feed it": hints, right answers and known mistakes.

Used in: notebooks/05_metadata.ipynb, notebooks/06_balance.ipynb, notebooks/07_does_it_matter.ipynb
"""

from __future__ import annotations

from minilib.judges import Exercise

EXERCISES: dict[str, Exercise] = {}
