"""Read the weights of a CLIP from files as they are met in the wild, and put them into the model they belong to.

Reference: Wang et al. 2025 (arXiv:2407.20171), whose released checkpoints are among them.

Taught in: notebooks/10_gpu.ipynb
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

WRAPPED = r"(?:module\.|class_model\.|model\.)*"  # what training code puts before a CLIP's own names


def load_state(path: str | Path) -> dict[str, Tensor]:
    """The weights of a CLIP from a file, under open_clip's own names, on the CPU.

    Reads safetensors, and what ``torch.save`` wrote of a state dict, itself or as ``state_dict`` of a dict: no code in
    the file is run (``weights_only``). What training code puts before the names (``module.``, ``class_model.model.``,
    ``model.``, in any order) is taken off, and what does not share it is left out. A vision tower alone may come under
    its own names; it gets ``visual.`` before them. So the checkpoints released with DIVA can be read.

    Raises ValueError for a file that is missing, damaged, or holds no vision tower. Source: Wang et al. 2025, its
    released files. Taught in: notebooks/10_gpu.ipynb
    """
    file = Path(path)
    held = _read_weights(file)
    state = {k: v for k, v in held.items() if isinstance(v, Tensor)}
    found = [re.match(f"({WRAPPED})visual\\.", key) for key in state]
    prefix = next((match[1] for match in found if match), None)
    if prefix is not None:
        return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    bare = {re.sub(f"^{WRAPPED}", "", key): v for key, v in state.items()}
    if not any(key.startswith(("conv1.", "trunk.")) for key in bare):
        raise ValueError(f"{file} holds no CLIP vision tower: its names begin {list(held)[:3]}; expected visual. ...")
    return {f"visual.{key}": v for key, v in bare.items()}


def weights_file(path: str | Path, tags: Sequence[str] = ()) -> Path:
    file = Path(path) / "open_clip_model.safetensors" if Path(path).is_dir() else Path(path)
    if not file.is_file():
        known = f", and no tag: those are {', '.join(tags)}" if tags else ""
        raise ValueError(f"there is no file {file} of weights{known}")
    return file


def fill(model: nn.Module, state: dict[str, Tensor], name: str, file: Path) -> nn.Module:
    """Load weights that must be this model's, all of them and no others."""
    own = model.state_dict()
    other = [f"{k} {tuple(state[k].shape)} for {tuple(v.shape)}" for k, v in own.items()
             if k in state and state[k].shape != v.shape]  # fmt: skip
    missing, extra = [k for k in own if k not in state], [k for k in state if k not in own]
    counts = {"of another shape": other, "missing": missing, "unknown": extra}
    if any(counts.values()):
        what = "; ".join(f"{len(v)} {k}, such as {v[0]}" for k, v in counts.items() if v)
        raise ValueError(f"{file} holds the weights of another model than {name}: {what}; name the one it was made for")
    model.load_state_dict(state)
    return model


def _read_weights(file: Path) -> dict[str, Any]:
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        held = torch.load(file, map_location="cpu", weights_only=True)
        return dict(held.get("state_dict", held))
    except (SafetensorError, OSError, RuntimeError, EOFError, AttributeError, TypeError, ValueError, KeyError,
            pickle.UnpicklingError) as error:  # fmt: skip
        why = str(error).split("\n")[0]
        raise ValueError(f"{file} cannot be read as weights ({why}); expected safetensors or a state dict") from error
