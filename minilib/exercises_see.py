"""The exercises of the part "Make it see": hints, right answers and known mistakes.

Used in: notebooks/08_diffusion.ipynb, notebooks/09_diva.ipynb, notebooks/10_gpu.ipynb
"""

from __future__ import annotations

from minilib.judges import Exercise

EXERCISES: dict[str, Exercise] = {}
