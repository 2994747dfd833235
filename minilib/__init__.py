"""minilib, the companion library of the book: CLIP adapted, fed and taught to see.

- ``minilib.gda``: few-shot classifiers for CLIP features in closed form (Wang et al. 2024), with its inner rooms
  ``minilib.gaussian``, ``minilib.loo`` and ``minilib.beyond``.
- ``minilib.curate``, ``minilib.metadata``: which image-text pairs to train on (Xu et al. 2024).
- ``minilib.diva``: a diffusion model's error as a teacher for CLIP's eye (Wang et al. 2025).
- ``minilib.world``: a small world of drawn scenes whose truth is known; ``minilib.models``, ``minilib.features``,
  ``minilib.evaluate``, ``minilib.plotting``: the tools that all three share; ``minilib.exercises``: answers checked.

Nothing is imported here, so that ``import minilib.curate`` does not wait for torch.
"""

__version__ = "0.1.0"
