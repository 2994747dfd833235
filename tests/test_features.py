"""Prompts, pairs and pictures to features; the cache returns the right features or none."""

import copy
import doctest
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from minilib import features, models, world
from minilib.gda import GDA


@pytest.fixture(scope="module")
def clip():
    return models.load_clip("toy", device="cpu")


@pytest.fixture(scope="module")
def scenes():
    return world.make_scenes(10, seed=0)


@pytest.fixture
def encoded(clip, monkeypatch):
    """The number of pictures in each call of the encoder, in a list that grows."""
    return count(clip, monkeypatch)


@pytest.fixture
def files(tmp_path):
    """Four pictures of different sizes and modes on disk, as a list of paths."""
    (tmp_path / "pictures").mkdir()
    rng = np.random.default_rng(0)
    kinds = {"wide.png": ((40, 90), "RGB"), "tall.webp": ((77, 35), "RGB"), "small.png": ((20, 20), "L"),
             "clear.png": ((50, 64), "RGBA")}  # fmt: skip
    for name, (size, mode) in kinds.items():
        smooth = Image.fromarray(rng.integers(0, 256, (5, 5, 4), dtype=np.uint8)).resize(size[::-1])
        smooth.convert(mode).save(tmp_path / "pictures" / name)
    return [tmp_path / "pictures" / name for name in kinds]


def count(clip, monkeypatch, fail_at=None):
    sizes, encode = [], type(clip.model).encode_image

    def counted(pixels):
        if len(sizes) == fail_at:
            raise KeyboardInterrupt
        sizes.append(len(pixels))
        return encode(clip.model, pixels)

    monkeypatch.setattr(clip.model, "encode_image", counted)
    return sizes


def extract(clip, images, **options):
    return features.extract_features(clip, images, progress=False, **options)


def duplicate(clip):
    return models.Clip(copy.deepcopy(clip.model), clip.tokenizer, clip.name)


def test_docstring_examples():
    assert doctest.testmod(features).failed == 0


@pytest.mark.equation("eq-clip-zeroshot")
def test_class_embedding_is_the_normalised_mean_over_templates(clip):
    templates = ("a photo of a {}", "{} for sale")
    got = features.class_embeddings(clip, ["red circle", "blue tee"], templates)
    for row, name in zip(got, ("red circle", "blue tee"), strict=True):
        mean = clip.encode_texts([t.format(name) for t in templates]).mean(0)
        assert torch.allclose(row, mean / mean.norm(), atol=1e-6)


def test_templates_without_room_for_the_name_are_refused(clip):
    for bad in ((), ("a photo",), ("{} {}",)):
        with pytest.raises(ValueError, match="each template must hold one"):
            features.class_embeddings(clip, ["red circle"], bad)


def test_pair_features_come_in_the_order_of_the_pairs(clip):
    pairs = world.make_pairs(2, seed=0)
    a, b, text_a, text_b = features.pair_features(clip, pairs)
    assert a.shape == b.shape == text_a.shape == text_b.shape == (18, 128)
    assert torch.allclose(b[7], clip.encode_images(pairs[7].image_b[None])[0], atol=1e-6)
    assert torch.allclose(text_a[5], clip.encode_texts([f"a photo of {pairs[5].statement_a}"])[0], atol=1e-6)


def test_features_of_an_array_are_those_of_the_model(clip, scenes):
    got = extract(clip, scenes.images, batch_size=4)
    assert got.shape == (10, 128) and got.dtype == torch.float32 and not got.requires_grad
    assert torch.allclose(got, clip.encode_images(scenes.images), atol=1e-6)
    assert torch.equal(got, extract(clip, torch.from_numpy(scenes.images), batch_size=4))


@pytest.mark.parametrize("mode", ["shortest", "squash", "longest"])
def test_features_of_files_are_those_of_open_clips_own_preprocessing(clip, files, mode):
    """An independent path: open_clip's factory loads the shipped file and returns its own transform."""
    weights = str(models.WEIGHTS / "clip-toy" / "open_clip_model.safetensors")
    plain, _, transform = open_clip.create_model_and_transforms(
        "minilib-toy", pretrained=weights, image_resize_mode=mode
    )
    with torch.no_grad():
        expected = [plain.eval().encode_image(transform(Image.open(f))[None], normalize=True)[0] for f in files]
    ours = models.Clip(plain, clip.tokenizer, "toy")
    assert torch.allclose(extract(ours, [str(f) for f in files], batch_size=3), torch.stack(expected), atol=1e-6)


def test_shorter_side_is_resized_and_the_centre_cropped(clip, tmp_path, scenes):
    """A scene between two grey borders of any width has the features of the scene alone."""
    scene = Image.fromarray(scenes.images[0].transpose(1, 2, 0))
    wide = Image.new("RGB", (96, 32), "grey")
    wide.paste(scene, (32, 0))
    wide.save(tmp_path / "wide.png")
    assert torch.allclose(extract(clip, [tmp_path / "wide.png"]), clip.encode_images(scenes.images[:1]), atol=1e-6)


def test_what_the_cache_holds_is_not_computed_again(clip, scenes, files, tmp_path, encoded):
    for images in (scenes.images, files):
        first = extract(clip, images, cache=tmp_path / "new" / "cache", batch_size=4)
        assert torch.equal(first, extract(clip, images, batch_size=4))
        encoded.clear()
        again = extract(clip, images, cache=str(tmp_path / "new" / "cache"), batch_size=4)
        assert encoded == [] and torch.equal(first, again)
    assert {file.suffix for file in (tmp_path / "new" / "cache").iterdir()} == {".safetensors"}


def test_an_interrupted_extraction_resumes(clip, scenes, tmp_path, monkeypatch):
    """10 pictures in batches of 3, 3, 3, 1; the third is interrupted, so 3 and 1 are left to do."""
    count(clip, monkeypatch, fail_at=2)
    with pytest.raises(KeyboardInterrupt):
        extract(clip, scenes.images, cache=tmp_path, batch_size=3)
    encoded = count(clip, monkeypatch)
    resumed = extract(clip, scenes.images, cache=tmp_path, batch_size=3)
    assert encoded == [3, 1]
    assert torch.equal(resumed, extract(clip, scenes.images, batch_size=3))


def test_an_interrupted_write_leaves_no_file(clip, scenes, tmp_path, monkeypatch, encoded):
    plain = Path.write_bytes

    def half(path, content):
        plain(path, content[:200])
        raise OSError("no space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="no space"):
        patch.setattr(Path, "write_bytes", half)
        extract(clip, scenes.images, cache=tmp_path)
    assert list(tmp_path.iterdir()) == []
    extract(clip, scenes.images, cache=tmp_path)
    assert encoded == [10, 10] and len(list(tmp_path.iterdir())) == 1


def weights_changed(clip, files):
    with torch.no_grad():
        clip.model.visual.proj[0, 0] += 0.5
    return clip, files


def layers_changed(clip, files):
    def swap(parent):
        for name, child in parent.named_children():
            setattr(parent, name, torch.nn.ReLU()) if isinstance(child, torch.nn.GELU) else swap(child)

    swap(clip.model.visual)
    return clip, files


def transform_changed(clip, files):
    clip.model.visual.preprocess_cfg = clip.model.visual.preprocess_cfg | {"interpolation": "bilinear"}
    return clip, files


def file_changed(clip, files):
    Image.open(files[1]).rotate(180).save(files[1], lossless=True)
    return clip, files


def order_changed(clip, files):
    return clip, files[::-1]


def file_left_out(clip, files):
    return clip, files[:-1]


@pytest.mark.parametrize(
    "change", [weights_changed, layers_changed, transform_changed, file_changed, order_changed, file_left_out]
)
def test_a_stale_cache_is_never_used(clip, files, tmp_path, change):
    """Whatever decides a feature is changed; the features must be those of a run without a cache."""
    before = extract(clip, files, cache=tmp_path / "cache")
    changed, images = change(duplicate(clip), files)
    got = extract(changed, images, cache=tmp_path / "cache")
    assert torch.equal(got, extract(changed, images))
    assert got.shape != before.shape or not torch.allclose(got, before, atol=1e-4)


def test_a_model_of_another_name_or_normalisation_shares_nothing(clip, scenes, tmp_path, monkeypatch):
    extract(clip, scenes.images, cache=tmp_path)
    named, bright = duplicate(clip), duplicate(clip)
    named.name, bright.model.visual.image_mean = "another", (0.1, 0.1, 0.1)
    for other in (named, bright):
        encoded = count(other, monkeypatch)
        assert torch.equal(extract(other, scenes.images, cache=tmp_path), extract(other, scenes.images))
        assert encoded == [10, 10]


def test_the_same_bytes_cut_otherwise_are_other_pictures(clip, scenes, files, tmp_path):
    """Rows of an array taken as columns; and a picture's bytes moved from the end of one file to the start of the next.

    PIL reads the first picture in a file: (wide + small, clear) shows wide and clear, (wide, small + clear) wide and
    small.
    """
    flat = scenes.images.reshape(10, 3, 16, 64)
    for images in (flat, scenes.images):
        assert torch.equal(extract(clip, images, cache=tmp_path / "cache"), extract(clip, images))
    wide, small, clear = (files[i].read_bytes() for i in (0, 2, 3))
    for first, second in ((wide + small, clear), (wide, small + clear)):
        files[0].write_bytes(first)
        files[1].write_bytes(second)
        assert torch.equal(extract(clip, files[:2], cache=tmp_path / "cache"), extract(clip, files[:2]))


def test_a_file_of_the_same_content_elsewhere_is_known(clip, files, tmp_path, encoded):
    first = extract(clip, files, cache=tmp_path / "cache")
    moved = [file.rename(file.with_name(f"moved-{file.name}")) for file in files]
    assert torch.equal(first, extract(clip, moved, cache=tmp_path / "cache")) and encoded == [4]


def flip(file, at=-1):
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)


def rewrite(file, change):
    with features.safe_open(file, framework="pt") as stored:
        save_file({"features": change(stored.get_tensor("features"))}, file, stored.metadata())


DAMAGES = {
    "flipped byte": flip,
    "truncated": lambda file: file.write_bytes(file.read_bytes()[:-100]),
    "empty": lambda file: file.write_bytes(b""),
    "wrong shape": lambda file: rewrite(file, lambda x: x.reshape(-1, 64)),
    "wrong type": lambda file: rewrite(file, lambda x: x.view(torch.int32)),
    "fewer rows": lambda file: rewrite(file, lambda x: x[:-1].clone()),
    "NaN": lambda file: rewrite(file, lambda x: x.index_fill(0, torch.tensor([1]), torch.nan)),
    "no checksum": lambda file: save_file(load_file(file), file),
    "another tensor": lambda file: save_file({"other": torch.zeros(4, 128)}, file),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_file_is_named_and_rebuilt(clip, scenes, tmp_path, encoded, damage):
    sound = extract(clip, scenes.images, cache=tmp_path, batch_size=5)
    file = max(tmp_path.iterdir())
    damage(file)
    encoded.clear()
    with pytest.warns(UserWarning, match=f"{file.name} is damaged"):
        assert torch.equal(extract(clip, scenes.images, cache=tmp_path, batch_size=5), sound)
    assert encoded == [5]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(extract(clip, scenes.images, cache=tmp_path, batch_size=5), sound)
    assert encoded == [5]


def test_no_flipped_byte_passes(clip, scenes, tmp_path):
    sound = extract(clip, scenes.images[:1], cache=tmp_path)
    (file,) = tmp_path.iterdir()
    for at in range(0, file.stat().st_size, 13):
        flip(file, at)
        with pytest.warns(UserWarning, match="is damaged"):
            assert torch.equal(extract(clip, scenes.images[:1], cache=tmp_path), sound)


def test_a_sound_file_under_another_name_is_refused(clip, scenes, tmp_path):
    sound = extract(clip, scenes.images, cache=tmp_path, batch_size=5)
    one, other = tmp_path.iterdir()
    other.write_bytes(one.read_bytes())
    with pytest.warns(UserWarning, match=f"{other.name} is damaged"):
        assert torch.equal(extract(clip, scenes.images, cache=tmp_path, batch_size=5), sound)


def test_the_weights_are_hashed_once_a_call(clip, scenes, tmp_path, monkeypatch):
    visual, calls = clip.model.visual, []
    plain = type(visual).state_dict
    monkeypatch.setattr(visual, "state_dict", lambda: calls.append(1) or plain(visual))
    extract(clip, scenes.images, batch_size=2)
    assert len(calls) == 0
    extract(clip, scenes.images, batch_size=2, cache=tmp_path)
    assert len(calls) == 1


def test_features_that_are_not_finite_are_neither_returned_nor_stored(clip, files, tmp_path, monkeypatch):
    broken = torch.ones(4, 128).index_fill(0, torch.tensor([2]), torch.inf)
    monkeypatch.setattr(clip.model, "encode_image", lambda pixels: broken)
    with pytest.raises(ValueError, match=r"toy gives values that are not finite for .*small.png: run it in float32"):
        extract(clip, files, cache=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize(("n", "count", "batch_size"), [(10, 3, 1), (10, 3, 2), (1000, 3, 256), (7, 7, 1), (5, 1, 9)])
def test_shards_are_whole_batches_and_together_the_whole(n, count, batch_size):
    shards = [features.shard_rows(n, (rank, count), batch_size) for rank in range(count)]
    assert [row for rows in shards for row in range(n)[rows]] == list(range(n))
    assert all(rows.start % batch_size == 0 for rows in shards)
    batches = [-(-(rows.stop - rows.start) // batch_size) for rows in shards]
    assert min(batches) >= 1 and max(batches) - min(batches) <= 1


def test_shards_fill_the_cache_of_the_whole(clip, scenes, tmp_path, encoded):
    shards = [extract(clip, scenes.images, cache=tmp_path, batch_size=3, shard=(rank, 2)) for rank in (0, 1)]
    assert encoded == [3, 3, 3, 1]
    assert torch.equal(extract(clip, scenes.images, cache=tmp_path, batch_size=3), torch.cat(shards))
    assert encoded == [3, 3, 3, 1]


def test_statistics_of_shards_merge_into_the_one_pass_fit(clip):
    """Three processes each see a third of the pictures; their Gaussians, merged, are those of one process."""
    scenes = world.make_scenes(600, seed=3)
    fitted = []
    for rank in range(3):
        rows = features.shard_rows(600, (rank, 3), 64)
        x = extract(clip, scenes.images, batch_size=64, shard=(rank, 3)).double()
        fitted.append(GDA().partial_fit(x, scenes.concepts[rows], classes=range(len(world.CONCEPTS))))
    assert [int(sum(model.statistics_.counts)) for model in fitted] == [192, 192, 216]  # 3, 3 and 4 of 10 batches
    whole = GDA().fit(extract(clip, scenes.images, batch_size=64).double(), scenes.concepts)
    merged = GDA.merge(fitted)
    for name in ("coef_", "intercept_"):
        np.testing.assert_allclose(getattr(merged, name), getattr(whole, name), rtol=1e-9)


WORKER = """
import sys
from accelerate import PartialState
from minilib import features, models, world
state = PartialState(cpu=True)
clip, scenes = models.load_clip("toy", device="cpu"), world.make_scenes(10, seed=0)
shard = (state.process_index, state.num_processes)
x = features.extract_features(clip, scenes.images, cache=sys.argv[1], batch_size=3, shard=shard, progress=False)
print(shard, len(x), flush=True)
state.wait_for_everyone()
state.destroy_process_group()
"""


def test_two_processes_share_the_work(clip, scenes, tmp_path, root, encoded):
    """Started by torchrun and numbered by accelerate: 4 batches, two for each, and nothing left for a third process."""
    pytest.importorskip("accelerate", reason="the extra gpu has it")
    (tmp_path / "worker.py").write_text(WORKER)
    cache = tmp_path / "cache"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    pinned = {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}  # a host's name need not resolve
    done = subprocess.run(
        [*launch, str(tmp_path / "worker.py"), str(cache)],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root), **pinned},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split("\n")) == ["", "(0, 2) 6", "(1, 2) 4"]
    gathered = extract(clip, scenes.images, cache=cache, batch_size=3)
    assert encoded == [] and torch.allclose(gathered, clip.encode_images(scenes.images), atol=1e-6)


def test_progress_is_shown_when_asked_for(clip, scenes, capsys):
    features.extract_features(clip, scenes.images, batch_size=5)
    assert "2/2" in capsys.readouterr().err
    features.extract_features(clip, scenes.images, batch_size=5, progress=False)
    assert capsys.readouterr().err == ""


def test_a_file_that_is_no_picture_is_named(clip, files, tmp_path):
    truncated, text = tmp_path / "truncated.png", tmp_path / "text.jpg"
    truncated.write_bytes(files[0].read_bytes()[:-200])
    text.write_text("not a picture")
    for bad in (truncated, text, tmp_path / "missing.png", tmp_path):
        for cache in (None, tmp_path / "cache"):
            with pytest.raises(ValueError, match=rf"{bad.name} cannot be read as a picture .* leave it out of images"):
                extract(clip, [*files, bad], cache=cache)


@pytest.mark.parametrize(
    ("images", "options", "said"),
    [
        ([], {}, "at least one picture; got none"),
        (np.zeros((0, 3, 32, 32), np.uint8), {}, "at least one picture; got none"),
        ("a.png", {}, "got one path, 'a.png': put it in a list"),
        ([np.zeros((3, 32, 32), np.uint8)], {}, r"images\[0\] must be a path; not a ndarray: give paths, or one uint8"),
        (np.zeros((2, 3, 32, 32)), {}, "must be uint8"),
        (np.zeros((2, 32, 32, 3), np.uint8), {}, r"\(n, 3, height, width\)"),
        (np.zeros((2, 3, 32, 32), np.uint8), {"shard": (2, 2)}, r"0 <= rank < count; not \(2, 2\)"),
        (np.zeros((2, 3, 32, 32), np.uint8), {"shard": (-1, 2)}, r"0 <= rank < count; not \(-1, 2\)"),
        (np.zeros((8, 3, 32, 32), np.uint8), {"shard": (0, 3)}, "8 pictures .* 1 batches, .* lower batch_size to 2,"),
        (np.zeros((2, 3, 32, 32), np.uint8), {"batch_size": 0}, "batch_size must be at least 1; not 0"),
    ],
)
def test_bad_input_is_named(clip, tmp_path, images, options, said):
    with pytest.raises(ValueError, match=said):
        extract(clip, images, cache=tmp_path / "cache", **options)
    assert not (tmp_path / "cache").exists()


def test_a_cache_that_is_a_file_is_named(clip, scenes, tmp_path):
    (tmp_path / "file").write_text("")
    for cache in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ValueError, match=r"cache must be a folder; .*file.* is a file: give another path"):
            extract(clip, scenes.images, cache=cache)
