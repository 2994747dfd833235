"""MMVP-VLM: folders sound and damaged, readouts against layers read by hand, and the rule against its softmax."""

import copy
import csv
import doctest
import math
import random
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torch import nn

from minilib import evaluate, features, mmvp, models, world
from minilib.mmvp import FOLDERS, READOUTS, image_features, read_mmvp, solved

QUESTIONS = [(1, "Text", "a sign, with STOP"), (2, "Text", "a sign with GO"), (3, "Colour", "a red cup"),
             (4, "Colour", "a blue cup"), (9, "Text", "the letter A"), (10, "Text", "the letter B")]  # fmt: skip


def write_questions(folder: Path, rows, header=mmvp.COLUMNS, encoding="utf8") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "Questions.csv").open("w", newline="", encoding=encoding) as file:
        csv.writer(file).writerows([header, *rows])
    return folder


def write_folder(folder: Path, rows=QUESTIONS, name=FOLDERS[0], suffix=".jpg", **options) -> Path:
    write_questions(folder, rows, **options)
    for number, kind, _ in rows:
        path = folder / name / str(kind) / f"{number}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (int(number), 0, 0)).save(path)
    return folder


@pytest.fixture(scope="module")
def clip():
    return models.load_clip("toy-blind", device="cpu")


def test_docstring_examples():
    assert doctest.testmod(mmvp).failed == 0


# Folders -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", mmvp.SUFFIXES)
@pytest.mark.parametrize("name", FOLDERS)
def test_pairs_of_a_folder_in_each_spelling(tmp_path, name, suffix):
    """By hand: Text has 1 with 2 and 9 with 10, Colour 3 with 4; a comma within quotes stays in the statement."""
    pairs = read_mmvp(write_folder(tmp_path, name=name, suffix=suffix))
    assert [(p.pattern, p.path_a.name, p.path_b.name) for p in pairs] == [
        ("Text", f"1{suffix}", f"2{suffix}"), ("Text", f"9{suffix}", f"10{suffix}"),
        ("Colour", f"3{suffix}", f"4{suffix}"),
    ]  # fmt: skip
    assert [(p.statement_a, p.statement_b) for p in pairs[:1]] == [("a sign, with STOP", "a sign with GO")]
    assert all(p.path_a == tmp_path / name / p.pattern / p.path_a.name and p.path_b.is_file() for p in pairs)


def test_the_order_of_rows_says_nothing(tmp_path):
    sound = read_mmvp(write_folder(tmp_path))
    for seed in range(5):
        write_questions(tmp_path, random.Random(seed).sample(QUESTIONS, len(QUESTIONS)))
        assert read_mmvp(tmp_path) == sound


def test_the_published_size_is_nine_patterns_of_fifteen_pairs(tmp_path):
    rows = [(i, f"pattern {(i - 1) // 30}", f"statement {i}") for i in range(1, 271)]
    pairs = read_mmvp(write_folder(tmp_path, rows))
    assert [sum(p.pattern == f"pattern {k}" for p in pairs) for k in range(9)] == [15] * 9
    assert all(int(p.statement_b.split()[1]) == int(p.statement_a.split()[1]) + 1 for p in pairs)


def test_a_byte_order_mark_blank_lines_and_more_columns_do_no_harm(tmp_path):
    sound = read_mmvp(write_folder(tmp_path))
    rows = [row for a, b, c in QUESTIONS for row in ([c, "note", f" {a} ", b], [])]
    header = ["Statement", "Remark", "Question ID ", "Type"]
    assert read_mmvp(write_questions(tmp_path, rows, header, "utf-8-sig")) == sound


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([*QUESTIONS, (11, "Text", "one more")], r"'Text' has 5 questions, an odd number; no partner for \[11\]"),
        ([*QUESTIONS[:4], (8, "Text", "x"), (9, "Text", "y")], r"'Text' has 4 questions; no partner for \[8, 9\]"),
        ([(2, "Text", "x"), (3, "Text", "y")], r"no partner for \[2, 3\]: an odd id goes with the even one after it"),
        ([*QUESTIONS, (4, "Colour", "a blue cup")], r"line 8: id 4 comes twice in type 'Colour'"),
        ([*QUESTIONS, ("x7", "Text", "a")], r"line 8: a question is a positive whole number, .* not \['x7', 'Text'"),
        ([(0, "Text", "a"), (1, "Text", "b")], "line 2: a question is a positive whole number"),
        ([("1.0", "Text", "a"), (2, "Text", "b")], "line 2"),
        ([(1, "", "a"), (2, "Text", "b")], "line 2: .*, a type and"),
        ([(1, "Text", "a"), (2, "Text", "")], "line 3: .* and a statement"),
        ([(1, "Text", "a", "with a comma"), (2, "Text", "b")], r"line 2: .*in quotes, if it holds a comma"),
        ([(1, "Text")], "line 2"),
        ([], "holds no questions"),
    ],
)
def test_rows_that_are_no_questions_are_named(tmp_path, rows, said):
    with pytest.raises(ValueError, match=said):
        read_mmvp(write_questions(tmp_path, rows))


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (["Question ID", "Type", "Text"], r"it has \['Question ID', 'Type', 'Text'\], without \['Statement'\]"),
        (["id", "Statement"], r"without \['Question ID', 'Type'\]"),
        ([1, "Text", "a sign"], "must have the columns"),
    ],
)
def test_wrong_columns_are_named(tmp_path, header, said):
    with pytest.raises(ValueError, match=said):
        read_mmvp(write_questions(tmp_path, QUESTIONS, header))


def test_an_empty_file_and_another_encoding_are_named(tmp_path):
    (tmp_path / "Questions.csv").write_bytes(b"")
    with pytest.raises(ValueError, match=r"without .*'Statement'"):
        read_mmvp(tmp_path)
    for encoding in ("utf-16", "latin-1"):
        write_questions(tmp_path, [(1, "Text", "un café"), (2, "Text", "un thé")], encoding=encoding)
        with pytest.raises(ValueError, match=r"Questions\.csv is not UTF-8 .*: save it as UTF-8"):
            read_mmvp(tmp_path)


def test_missing_folders_and_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere: give the one that holds Questions\.csv"):
        read_mmvp(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"there is no .*Questions\.csv"):
        read_mmvp(tmp_path)
    write_questions(tmp_path, QUESTIONS)
    (tmp_path / "MMVP_VLM Images").mkdir()  # nearly
    with pytest.raises(FileNotFoundError, match=", ".join(map(repr, FOLDERS))):
        read_mmvp(tmp_path)


def test_missing_pictures_are_counted_and_the_first_listed(tmp_path):
    images = write_folder(tmp_path) / FOLDERS[0]
    (images / "Text" / "9.jpg").unlink()
    (images / "Colour" / "4.jpg").rename(images / "Colour" / "4.gif")
    with pytest.raises(FileNotFoundError, match=r"2 of 6 pictures are missing in .*: Text/9, Colour/4 \(each as \.jpg"):
        read_mmvp(tmp_path)
    for path in images.glob("*/*"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"6 of 6 .*: Text/1, Text/2, Text/9, Text/10, Colour/3, \.\.\. \(each"):
        read_mmvp(tmp_path)


# Readouts ------------------------------------------------------------------------------------------------------------

TEXT = {"context_length": 24, "vocab_size": 72, "width": 16, "heads": 2, "layers": 1}


def random_clip(model: nn.Module) -> models.Clip:
    """Random weights everywhere, norms and biases too, so that none of them is the identity."""
    generator = torch.Generator().manual_seed(0)
    for p in model.visual.parameters():
        nn.init.normal_(p, std=0.3, generator=generator)
    model.visual.image_mean, model.visual.image_std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    return models.Clip(model, models.WordTokenizer(), "random")


def vit(**vision) -> models.Clip:
    tower = {"image_size": 32, "patch_size": 8, "width": 48, "layers": 2, "head_width": 16} | vision
    return random_clip(open_clip.CLIP(24, tower, TEXT))


def siglip_like() -> models.Clip:
    """A timm trunk that pools by attention and has no projection, as SigLIP's, but small and with a class token."""
    vision = {"image_size": 224, "timm_model_name": "vit_tiny_patch16_224", "timm_pool": "map", "timm_proj": "none"}
    clip = random_clip(open_clip.CustomTextCLIP(192, vision, TEXT))
    clip.model.visual.trunk.blocks = clip.model.visual.trunk.blocks[:2]
    return clip


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@torch.no_grad()
@pytest.mark.parametrize("make", [lambda: models.load_clip("toy", device="cpu"), vit, siglip_like])
def test_readouts_by_hand_from_what_leaves_the_last_norm(make):
    """Tokens after the final norm, caught on the way and projected in float64 where there is a projection."""
    clip, caught = make(), []
    images = world.make_scenes(5, seed=0).images
    visual = clip.model.visual
    norm = visual.trunk.norm if hasattr(visual, "trunk") else visual.ln_post
    handle = norm.register_forward_hook(lambda module, args, output: caught.append(output.double().numpy()))
    own = unit(clip.model.encode_image(clip.preprocess(images)).double().numpy())
    handle.remove()
    (tokens,) = caught
    projection = np.eye(192) if hasattr(visual, "trunk") else visual.proj.double().numpy()
    local = unit((tokens[:, 1:] @ projection).mean(1))
    expected = {"pooled": own, "local": local, "pooled+local": unit(own + local)}
    got = image_features(clip, images)
    assert list(got) == list(READOUTS)
    for name, values in expected.items():
        assert got[name].dtype == torch.float32
        assert np.allclose(got[name].numpy(), values, atol=1e-5), name


def test_a_tower_that_pools_by_the_mean_has_one_readout_in_three_names():
    got = image_features(vit(pool_type="avg"), world.make_scenes(3, seed=0).images)
    assert all(torch.allclose(got["pooled"], got[name], atol=1e-6) for name in READOUTS)


def test_features_are_bit_for_bit_the_same_again_and_do_not_hang_on_the_batch(clip):
    images = world.make_scenes(40, seed=1).images
    a, b, parts = (image_features(clip, images, batch_size=n) for n in (40, 40, 7))
    tensor = image_features(clip, torch.from_numpy(images), batch_size=40)
    for name in READOUTS:
        assert torch.equal(a[name], b[name]) and torch.equal(a[name], tensor[name])
        assert torch.allclose(a[name], parts[name], atol=1e-5)
        assert torch.allclose(a[name].norm(dim=1), torch.ones(40))
    assert torch.equal(image_features(clip, images, ["local"], batch_size=40)["local"], a["local"])
    assert torch.allclose(image_features(clip, images, ["pooled"])["pooled"], clip.encode_images(images), atol=1e-6)


def test_training_mode_neither_changes_features_nor_is_changed():
    """Patch dropout would draw another half of the tokens each time."""
    clip, images = vit(patch_dropout=0.5), world.make_scenes(4, seed=0).images
    settled = image_features(clip, images)
    clip.model.train()
    clip.model.transformer.eval()  # a frozen text tower keeps its own mode
    modes, state = [layer.training for layer in clip.model.modules()], torch.get_rng_state()
    trained = image_features(clip, images)
    assert all(torch.equal(settled[name], trained[name]) and not trained[name].requires_grad for name in READOUTS)
    assert [layer.training for layer in clip.model.modules()] == modes and any(modes) and not all(modes)
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(ValueError, match="uint8"):
        image_features(clip, images.astype(float))
    assert [layer.training for layer in clip.model.modules()] == modes


def test_a_tower_in_bfloat16_is_read_in_its_own_precision(clip):
    coarse, images = copy.deepcopy(clip), world.make_scenes(4, seed=0).images
    coarse.model.to(torch.bfloat16)
    got, exact = image_features(coarse, images), image_features(clip, images)
    for name in READOUTS:
        assert got[name].dtype == torch.float32
        assert (got[name] * exact[name]).sum(1).min() > 0.99


def test_a_resnet_has_its_own_feature_and_no_local_ones():
    clip = random_clip(open_clip.CLIP(32, {"layers": (1, 1, 1, 1), "width": 16, "image_size": 32}, TEXT))
    images = world.make_scenes(2, seed=0).images
    assert image_features(clip, images, ["pooled"])["pooled"].shape == (2, 32)
    with pytest.raises(TypeError, match="ModifiedResNet"):
        image_features(clip, images)


def test_files_are_prepared_by_open_clips_own_transform(tmp_path, clip, rng):
    """Oblong, grey and transparent pictures too: as features.extract_features has them, and as open_clip's own."""
    paths = []
    for i, (mode, shape) in enumerate([("RGB", (40, 70, 3)), ("L", (90, 33)), ("RGBA", (32, 32, 4))]):
        paths.append(tmp_path / f"{i}.png")
        Image.fromarray(rng.integers(256, size=shape).astype(np.uint8), mode).save(paths[-1])
    got = image_features(clip, paths)
    expected = features.extract_features(clip, paths, progress=False)
    assert torch.allclose(got["pooled"], expected, atol=1e-6)
    config = open_clip.transform.PreprocessCfg(**open_clip.get_model_preprocess_cfg(clip.model))
    transform = open_clip.transform.image_transform_v2(config, is_train=False)
    by_hand = torch.stack([transform(Image.open(path)) for path in paths])
    assert torch.equal(mmvp.load_pixels(clip, paths), by_hand)


@pytest.mark.parametrize("readouts", [["class"], [], "pooled", ["pooled", "Local"]])
def test_unknown_readouts_are_refused(clip, readouts):
    with pytest.raises(ValueError, match="readouts must be a list of names from"):
        image_features(clip, world.make_scenes(1, seed=0).images, readouts)


def test_pictures_that_are_none_are_refused(tmp_path, clip):
    for images in ([], np.zeros((0, 3, 32, 32), np.uint8), "a.png"):
        with pytest.raises(ValueError, match="images must be uint8 pictures or paths, at least one"):
            image_features(clip, images)
    (tmp_path / "text.jpg").write_text("no picture")
    for name in ("text.jpg", "nothing.jpg"):
        with pytest.raises(ValueError, match=rf"{name} cannot be read as a picture"):
            image_features(clip, [tmp_path / name])
    with pytest.raises(ValueError, match="at least one pair"):
        solved(clip, [])


# The rule ------------------------------------------------------------------------------------------------------------


def literal_rule(image_a, image_b, text_a, text_b, scale=100.0) -> list[bool]:
    """As the benchmark says it: a softmax over the two images for each statement, and both must choose their own."""
    won = []
    for a, b, says_a, says_b in zip(image_a, image_b, text_a, text_b, strict=True):
        right = 0
        for statement, own in ((says_a, 0), (says_b, 1)):
            logits = [scale * sum(x * y for x, y in zip(picture, statement, strict=True)) for picture in (a, b)]
            odds = [math.exp(v - max(logits)) for v in logits]
            shares = [v / sum(odds) for v in odds]
            right += shares[own] > shares[1 - own]
        won.append(right == 2)
    return won


def test_pair_accuracy_is_the_literal_rule(rng):
    vectors = rng.normal(size=(4, 300, 6))
    vectors /= np.linalg.norm(vectors, axis=2, keepdims=True)
    assert evaluate.pair_accuracy(*vectors).tolist() == literal_rule(*vectors)


def test_solved_is_the_literal_rule_with_the_benchmarks_prompt(clip):
    pairs = world.make_pairs(4, seed=2)
    sides = [np.stack([getattr(p, f"image_{s}") for p in pairs]) for s in "ab"]
    texts = [clip.encode_texts(["a photo of " + getattr(p, f"statement_{s}") for p in pairs]) for s in "ab"]
    won = solved(clip, pairs)
    for name in READOUTS:
        images = [image_features(clip, side)[name] for side in sides]
        assert won[name].tolist() == literal_rule(*(x.double().tolist() for x in (*images, *texts)))
    assert 0 < won["pooled"].sum() < len(pairs)


def test_a_folder_of_toy_pairs_is_answered_like_the_arrays(tmp_path, clip):
    """Lossless files of the tower's own size: nothing is resized, so files and arrays are the same pictures."""
    pairs, rows = world.make_pairs(3, seed=4), []
    for i, pair in enumerate(pairs):
        for number, side in ((2 * i + 1, "a"), (2 * i + 2, "b")):
            path = tmp_path / FOLDERS[1] / pair.pattern / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(getattr(pair, f"image_{side}").transpose(1, 2, 0)).save(path)
            rows.append((number, pair.pattern, getattr(pair, f"statement_{side}")))
    read = read_mmvp(write_questions(tmp_path, rows[::-1]))
    assert [p.pattern for p in read] == [p.pattern for p in pairs]
    from_files, from_arrays = solved(clip, read), solved(clip, pairs)
    for name in READOUTS:
        assert from_files[name].tolist() == from_arrays[name].tolist()
