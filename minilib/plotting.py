"""Turn arrays into matplotlib axes in the book's one style: one chart a function, drawn on the ``ax`` it is given.

Nothing here computes a result or knows a model. Colours follow Okabe and Ito (2008), which readers with the common kinds of
colour blindness can tell apart, on an opaque light ground that also stands on a dark page.

Taught in: notebooks/01_clip.ipynb
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import seaborn as sns

#: Blue, vermilion, green, orange, purple, sky, yellow, grey: the order in which charts use them.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#F0E442", "#6B6B6B")
GROUND = "#FFFFFF"
INK = "#222222"


def use_theme() -> None:
    """Set the book's look for every figure drawn afterwards.

    Changes matplotlib's global settings (``plt.rcdefaults()`` undoes it): seaborn's white grid, the colour-blind-safe
    :data:`PALETTE`, no top and right spines, figures of 7 x 4 inches that stay sharp on dense screens.

    Taught in: notebooks/01_clip.ipynb
    """
    sns.set_theme(context="notebook", style="whitegrid", palette=list(PALETTE))
    plt.rcParams.update(
        {
            "axes.edgecolor": INK,
            "axes.labelcolor": INK,
            "axes.spines.right": False,
            "axes.spines.top": False,
            "axes.titlelocation": "left",
            "axes.titleweight": "bold",
            "figure.constrained_layout.use": True,
            "figure.dpi": 110,
            "figure.facecolor": GROUND,
            "figure.figsize": (7.0, 4.0),
            "grid.color": "#E3E3E3",
            "legend.frameon": False,
            "savefig.dpi": 110,
            "savefig.facecolor": GROUND,
            "text.color": INK,
            "xtick.color": INK,
            "ytick.color": INK,
        }
    )
