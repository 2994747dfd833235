"""Turn pictures, prompts and pairs into unit-norm features with a CLIP; plain tensors come out.

Features of many pictures are kept on disk, one safetensors file a batch, named by the SHA-256 of all that decides them.

Taught in: notebooks/01_clip.ipynb and notebooks/03_fewshot.ipynb
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import torch.nn.functional as F
from open_clip import get_model_preprocess_cfg
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from tqdm.auto import tqdm

from minilib.models import Clip, in_halves
from minilib.world import Pair

RECIPE = b"minilib features 1"  # part of every key: raise the number when this module's features change


def class_embeddings(clip: Clip, names: Sequence[str], templates: Sequence[str] = ("a photo of a {}",)) -> Tensor:
    """One text embedding a class: the normalised mean over templates, (K, d) (``eq-clip-zeroshot``).

    ``names`` are K class names; each template holds one ``{}``. Source: Radford et al. 2021, section 3.1.4.

    Taught in: notebooks/01_clip.ipynb
    """
    if not templates or any(t.count("{}") != 1 for t in templates):
        raise ValueError(f"each template must hold one '{{}}' for the class name; not {list(templates)}")
    rows = clip.encode_texts([t.format(name) for name in names for t in templates])  # (K * templates, d)
    return F.normalize(rows.unflatten(0, (len(names), -1)).mean(1), dim=1)


def pair_features(
    clip: Clip, pairs: Sequence[Pair], prompt: str = "a photo of {}"
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features of image a, image b, statement a, statement b of each pair, four times (n, d).

    The prompt is MMVP-VLM's. ``evaluate.pair_accuracy`` takes the four as they come.

    Taught in: notebooks/09_diva.ipynb
    """
    images = [torch.stack([torch.from_numpy(getattr(p, side)) for p in pairs]) for side in ("image_a", "image_b")]
    texts = [[prompt.format(getattr(p, side)) for p in pairs] for side in ("statement_a", "statement_b")]
    a, b = (clip.encode_images(x) for x in images)
    return a, b, clip.encode_texts(texts[0]), clip.encode_texts(texts[1])


def extract_features(
    clip: Clip,
    images: np.ndarray | Tensor | Sequence[str | Path],
    *,
    cache: str | Path | None = None,
    batch_size: int = 256,
    progress: bool = True,
    shard: tuple[int, int] = (0, 1),
) -> Tensor:
    """Unit-norm float32 features (n, d) of many pictures, on the CPU; what ``cache`` holds is not computed again.

    Objective: row i is ``clip``'s feature of picture i, whether computed now or read. A batch is read only if all that
    decides its features is as it was: name, layers and weights of the vision tower, the transform, and the content and
    order of the batch's pictures. So an interrupted call goes on where it stopped, and no stale feature comes back.

    Args:
        images: uint8 (n, 3, h, w), prepared as ``clip.encode_images`` does; or n paths of picture files, prepared by
            open_clip's own transform for this model (most often: shorter side resized, centre cropped, bicubic).
        cache: a folder for the features, made if missing; None keeps nothing. Several processes may share it. Each
            file is written whole or not at all, and carries a checksum; a damaged one is named in a warning and
            rebuilt. Another ``batch_size`` makes other files. Old files stay until the folder is deleted.
        batch_size: pictures a batch, and rows a file.
        progress: show a bar.
        shard: (rank, count), to take only the rows :func:`shard_rows` names. With ``state = accelerate.PartialState()``
            that is ``(state.process_index, state.num_processes)``; afterwards, one call without ``shard`` and with the
            same cache reads what all processes computed.

    Raises:
        ValueError: no pictures; another type or shape; a file that is no picture, by name; a bad shard; a cache that
            is no folder; features that are not finite.

    >>> from minilib.models import load_clip
    >>> extract_features(load_clip("toy", device="cpu"), np.zeros((2, 3, 32, 32), np.uint8), progress=False).shape
    torch.Size([2, 128])

    Taught in: notebooks/03_fewshot.ipynb
    """
    pictures = _checked(clip, images)
    rows = shard_rows(len(pictures), shard, batch_size)
    folder = _folder(cache)
    model_key = _digest(_model_parts(clip)) if folder else ""
    starts = tqdm(range(rows.start, rows.stop, batch_size), desc="features", unit="batch", disable=not progress)
    return torch.cat([_batch(clip, pictures[i : i + batch_size], folder, model_key) for i in starts])


def shard_rows(n: int, shard: tuple[int, int], batch_size: int = 256) -> slice:
    """The rows of n that shard (rank, count) takes: a run of whole batches, so that all shards share one cache.

    Objective: in order of rank the shards are the whole; their numbers of batches differ by at most one. ValueError
    when rank is not in range(count), or there are fewer batches than shards.

    >>> [shard_rows(1000, (rank, 2)) for rank in (0, 1)]  # batches of 256, 256 | 256, 232
    [slice(0, 512, None), slice(512, 1000, None)]

    Taught in: notebooks/03_fewshot.ipynb
    """
    rank, count = shard
    if not 0 <= rank < count:
        raise ValueError(f"shard must be (rank, count) with 0 <= rank < count; not {shard}: ranks start at 0")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1; not {batch_size}")
    batches = -(-n // batch_size)
    if batches < count:
        what = f"{n} pictures in batches of {batch_size} are {batches} batches, too few for {count} shards"
        raise ValueError(f"{what}: lower batch_size to {max(n // count, 1)}, or use fewer shards")
    first, last = (batches * r // count * batch_size for r in (rank, rank + 1))
    return slice(first, min(last, n))


def _checked(clip: Clip, images: np.ndarray | Tensor | Sequence[str | Path]) -> np.ndarray | Tensor | list[Path]:
    """The pictures as an array (n, 3, h, w) or a list of paths, not yet read."""
    if isinstance(images, (str, Path)):
        raise ValueError(f"images must be an array or a list of paths; got one path, {str(images)!r}: put it in a list")
    if not len(images):
        raise ValueError("images must hold at least one picture; got none: was the folder empty, the pattern wrong?")
    if isinstance(images, (np.ndarray, Tensor)) and images.ndim > 1:
        clip.preprocess(images[:1])  # raises for another type or shape
        return images
    for i, path in enumerate(images):
        if not isinstance(path, (str, Path)):
            kind = type(path).__name__
            raise ValueError(f"images[{i}] must be a path; not a {kind}: give paths, or one uint8 array (n, 3, h, w)")
    return [Path(path) for path in images]


def _folder(cache: str | Path | None) -> Path | None:
    if cache is None:
        return None
    try:
        Path(cache).mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ValueError(f"cache must be a folder; {error.filename} is a file: give another path") from error
    return Path(cache)


def _batch(clip: Clip, batch: np.ndarray | Tensor | list[Path], folder: Path | None, model_key: str) -> Tensor:
    """Features of one batch (b, d): from its file if that is sound, else computed and, given a folder, stored."""
    contents = list(_contents(batch))
    if folder is None:
        return _encode(clip, batch, contents)
    file = folder / f"{_digest([model_key.encode(), *contents])}.safetensors"
    features = _load(file)
    if features is None:
        features = _encode(clip, batch, contents)
        _save(file, features)
    return features


def _contents(batch: np.ndarray | Tensor | list[Path]) -> Iterator[bytes]:
    """What the batch's key depends on: each file's bytes, or the array's shape and bytes."""
    if not isinstance(batch, list):
        array = batch.numpy(force=True) if isinstance(batch, Tensor) else batch
        yield from (str(array.shape).encode(), array.tobytes())
        return
    for path in batch:
        try:
            yield path.read_bytes()
        except OSError as error:
            raise _unreadable(path, error) from error


@torch.no_grad()
def _encode(clip: Clip, batch: np.ndarray | Tensor | list[Path], contents: Sequence[bytes]) -> Tensor:
    if isinstance(batch, list):
        transform = image_transform_v2(PreprocessCfg(**get_model_preprocess_cfg(clip.model)), is_train=False)
        with ThreadPoolExecutor() as pool:  # PIL decodes and resizes outside Python's lock
            pixels = torch.stack(list(pool.map(partial(_decode, transform), batch, contents)))  # (b, 3, s, s)
        encode = lambda part: F.normalize(clip.model.encode_image(part.to(clip.device)).float(), dim=1)  # noqa: E731
        features = in_halves(encode, pixels)
    else:
        features = in_halves(clip.embed_images, batch)
    bad = (~features.isfinite().all(1)).nonzero().flatten().tolist()
    if bad:
        which = batch[bad[0]] if isinstance(batch, list) else f"row {bad[0]} of a batch"
        raise ValueError(f"{clip.name} gives values that are not finite for {which}: run it in float32, check its file")
    return features.cpu()


def _decode(transform: Callable[[Image.Image], Tensor], path: Path, content: bytes) -> Tensor:
    try:
        with Image.open(BytesIO(content)) as picture:
            return transform(picture)
    except Exception as error:  # PIL raises many kinds for a damaged file
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path} cannot be read as a picture ({error}): mend the file, or leave it out of images")


def _load(file: Path) -> Tensor | None:
    """The features in a file; None when there is no file, or, with a warning, when it is damaged."""
    if not file.exists():
        return None
    try:
        with safe_open(file, framework="pt") as stored:
            features, checksum = stored.get_tensor("features"), (stored.metadata() or {}).get("sha256")
        if checksum == _checksum(file, features):
            return features
        reason = "its checksum differs"
    except SafetensorError as error:
        reason = str(error)
    warnings.warn(f"{file} is damaged ({reason}): its features are computed again", stacklevel=2)
    return None


def _save(file: Path, features: Tensor) -> None:
    """Write into a folder of its own, then move: the file is there whole or not at all."""
    with TemporaryDirectory(dir=file.parent, prefix="unfinished-") as folder:
        unfinished = Path(folder) / file.name
        unfinished.write_bytes(save({"features": features}, metadata={"sha256": _checksum(file, features)}))
        os.replace(unfinished, file)


def _model_parts(clip: Clip) -> Iterator[bytes]:
    """All of the model that decides a feature: its name, the transform, the vision tower's layers and weights."""
    visual = clip.model.visual
    yield str([clip.name, *(type(layer).__name__ for layer in visual.modules())]).encode()
    yield str([visual.image_size, visual.image_mean, visual.image_std]).encode()  # what clip.preprocess goes by
    yield str(sorted(get_model_preprocess_cfg(clip.model).items())).encode()  # what open_clip's transform goes by
    for name, tensor in visual.state_dict().items():
        yield name.encode()
        yield from _tensor_parts(tensor)


def _checksum(file: Path, features: Tensor) -> str:
    """SHA-256 of a file's key and of type, shape and bytes of its features."""
    return _digest([file.stem.encode(), *_tensor_parts(features)])


def _tensor_parts(tensor: Tensor) -> tuple[bytes, bytes]:
    raw = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)  # NumPy has no bfloat16
    return f"{tensor.dtype} {tuple(tensor.shape)}".encode(), raw.numpy().tobytes()


def _digest(parts: Iterable[bytes]) -> str:
    """SHA-256 of the parts, each after its length, so that no other cut of the same bytes looks the same."""
    sha = hashlib.sha256(RECIPE)
    for part in parts:
        sha.update(len(part).to_bytes(8, "little") + part)
    return sha.hexdigest()
