"""Keep a training run's log: one JSON object a step, and the same numbers for TensorBoard.

Taught in: notebooks/10_gpu.ipynb
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any


class Journal:
    """``log.jsonl`` in a folder, and TensorBoard's events beside it where tensorboard is installed.

    A run that goes on from step s keeps the lines before s and writes the others anew, so no step stands twice.

    Taught in: notebooks/10_gpu.ipynb
    """

    def __init__(self, folder: Path, name: str, first: int = 0) -> None:
        """``name`` tells the stages of one run apart; ``first`` is the first step that is to be written."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "log.jsonl"
        lines = path.read_text(encoding="utf8").splitlines(keepends=True) if path.exists() else []
        kept = [line.rstrip("\n") + "\n" for line in lines if _precedes(line, name, first)]
        path.write_text("".join(kept), encoding="utf8")
        self.name, self.file = name, path.open("a", encoding="utf8")
        self.board = _board(folder / "tensorboard" / name, first)

    def write(self, step: int, numbers: dict[str, Any]) -> None:
        self.file.write(json.dumps({"stage": self.name, "step": step} | numbers) + "\n")
        self.file.flush()
        if self.board:
            for key, value in numbers.items():
                self.board.add_scalar(key, value, step)

    def close(self) -> None:
        self.file.close()
        if self.board:
            self.board.close()


def _precedes(line: str, name: str, first: int) -> bool:
    """Of this stage only earlier steps are kept; of other stages all. A line cut off by a crash is dropped."""
    try:
        entry = json.loads(line)
    except ValueError:
        return False
    return entry["stage"] != name or entry["step"] < first


def _board(folder: Path, first: int) -> Any:
    """Each stage in a folder of its own: what is written anew hides all later steps of a folder."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        warnings.warn("tensorboard is not installed: the log is in log.jsonl alone (minilib[gpu] has it)", stacklevel=4)
        return None
    return SummaryWriter(str(folder), purge_step=first)
