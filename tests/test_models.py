"""The door to open_clip and diffusers: shipped models, real layouts on random weights, and refusals."""

import json
import shutil

import numpy as np
import open_clip
import pytest
import torch
from layouts import write_stable_diffusion, write_text_tower
from open_clip.transformer import QuickGELU
from safetensors.torch import save_file

from minilib import models, training, world


@pytest.fixture(scope="module")
def scenes():
    return world.make_scenes(6, seed=0)


@pytest.mark.parametrize("name", models.TOY_CLIPS)
def test_toy_clips_give_unit_float32_features(name, scenes):
    clip = models.load_clip(name, device="cpu")
    seen, told = clip.encode_images(scenes.images), clip.encode_texts(scenes.captions)
    for features in (seen, told):
        assert features.shape == (6, 128) and features.dtype == torch.float32 and not features.requires_grad
        assert torch.allclose(features.norm(dim=1), torch.ones(6), atol=1e-5)


def test_features_are_those_of_open_clip_itself(scenes):
    """The wrapper adds nothing: open_clip's own model, preprocessing constants and tokenizer give the same numbers."""
    clip = models.load_clip("toy", device="cpu")
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD))
    pixels = (torch.from_numpy(scenes.images).float() / 255 - mean) / std
    with torch.no_grad():
        image = clip.model.encode_image(pixels, normalize=True)
        text = clip.model.encode_text(clip.tokenizer(scenes.captions), normalize=True)
    assert torch.allclose(clip.encode_images(scenes.images), image, atol=1e-6)
    assert torch.allclose(clip.encode_texts(scenes.captions), text, atol=1e-6)


def test_batches_do_not_change_features(scenes):
    clip = models.load_clip("toy", device="cpu")
    whole, split = (clip.encode_images(scenes.images, batch_size=b) for b in (6, 4))
    assert torch.allclose(whole, split, atol=1e-6)


def test_plain_open_clip_reads_the_shipped_file():
    path = models.WEIGHTS / "clip-toy" / "open_clip_model.safetensors"
    plain = open_clip.create_model("minilib-toy", pretrained=str(path))
    ours = models.load_clip("toy", device="cpu").model
    assert all(torch.equal(a, b) for a, b in zip(plain.state_dict().values(), ours.state_dict().values(), strict=True))


def test_larger_pictures_are_resized_to_what_the_model_takes():
    clip = models.load_clip("toy", device="cpu")
    small, large = (world.make_scenes(20, seed=1, size=s).images for s in (32, 64))
    assert clip.preprocess(large).shape == (20, 3, 32, 32)
    likeness = (clip.encode_images(small) * clip.encode_images(large)).sum(1)
    assert likeness.mean() > 0.5


def test_a_real_architecture_from_a_local_file(tmp_path):
    """ViT-B-32 at its real shape with random weights, saved and loaded through open_clip's pretrained argument."""
    torch.manual_seed(0)
    model = open_clip.create_model("ViT-B-32")
    file = tmp_path / "vit.safetensors"
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, file)
    clip = models.load_clip("ViT-B-32", pretrained=str(file), device="cpu")
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 32, 32), dtype=np.uint8)
    assert clip.encode_images(images).shape == (2, 512) and clip.encode_texts(["a dog"]).shape == (1, 512)


def test_tokenizer_frames_cuts_and_pads():
    tokenizer = models.WordTokenizer()
    tokens = tokenizer("red zyzzyva circle")[0].tolist()
    red, circle = tokenizer.encoder["red"], tokenizer.encoder["circle"]
    assert tokens == [70, red, 1, circle, 71] + [0] * 19
    long = tokenizer(["red " * 50])[0].tolist()
    assert len(long) == 24 and long[0] == 70 and long[-1] == 71
    assert tokenizer.decode(tokenizer.encode("A red circle.")) == "a red circle"
    assert max(tokenizer.encoder.values()) < tokenizer.sot_token_id


def test_pca_latents_are_orthonormal_uncorrelated_and_lose_little():
    images = torch.from_numpy(world.make_scenes(800, seed=2).images).float() / 255
    codec = models.PatchPCA().fit(images)
    assert torch.allclose(codec.basis @ codec.basis.T, torch.eye(16), atol=1e-5)
    z = codec.encode(images)
    assert z.shape == (800, 16, 8, 8)
    covariance = torch.cov(z.transpose(0, 1).flatten(1))
    assert abs(covariance.trace() / 16 - 1) < 1e-3 and (covariance - covariance.diag().diag()).abs().max() < 2e-3
    assert (covariance.diag().diff() <= 1e-4).all()  # the strongest first
    lost = (codec.decode(z) - images).square().mean() / images.var()
    assert lost < 0.07


def test_pca_with_all_components_loses_nothing():
    images = torch.rand(40, 3, 16, 16)
    codec = models.PatchPCA(channels=48).fit(images)
    assert torch.allclose(codec.decode(codec.encode(images)), images, atol=1e-5)


@pytest.mark.parametrize("name", models.TOY_DENOISERS)
def test_toy_denoisers_predict_noise_and_are_frozen(name, scenes):
    denoiser = models.load_denoiser(name, device="cpu")
    z = denoiser.encode(scenes.images)
    assert z.shape == (6, 16, 8, 8) and denoiser.steps == 1000 and denoiser.context_width == 128
    assert denoiser(z, torch.full((6,), 10), torch.zeros(6, 1, 128)).shape == z.shape
    assert not any(p.requires_grad for p in denoiser.parameters())
    noise, times = torch.ones_like(z), torch.full((6,), 700)
    a = denoiser.scheduler.alphas_cumprod[700]
    assert torch.allclose(denoiser.target(z, noise, times), a.sqrt() * noise - (1 - a).sqrt() * z, atol=1e-5)  # v
    denoiser.scheduler.register_to_config(prediction_type="epsilon")
    assert denoiser.target(z, noise, times) is noise


@pytest.fixture
def stable_diffusion(tmp_path):
    """A folder in Stable Diffusion's layout, small and with random weights, predicting v as the 768-pixel 2.1 does."""
    return write_stable_diffusion(tmp_path)


def test_a_folder_in_stable_diffusions_layout(stable_diffusion, scenes):
    denoiser = models.load_denoiser(stable_diffusion, device="cpu")
    z = denoiser.encode(scenes.images)
    pixels = torch.from_numpy(scenes.images).float() / 127.5 - 1
    mean = denoiser.codec.encode(pixels).latent_dist.mean
    assert torch.allclose(z, 0.18215 * mean, atol=1e-5)
    assert denoiser(z, torch.full((6,), 3), torch.zeros(6, 5, 24)).shape == z.shape
    noise, times = torch.randn_like(z), torch.full((6,), 400)
    a = denoiser.scheduler.alphas_cumprod[400]
    assert torch.allclose(denoiser.target(z, noise, times), a.sqrt() * noise - (1 - a).sqrt() * z, atol=1e-5)


def test_each_teacher_uses_its_condition_on_scenes_no_card_was_made_from():
    """The floor of the toy world: told of the right picture, a teacher errs at least 15 % less than told of another."""
    scenes = world.make_scenes(600, seed=32_000, split="test")
    told = models.load_clip("toy-blind", device="cpu").encode_images(scenes.images)[:, None] * 128**0.5
    for name in models.TOY_DENOISERS:
        denoiser = models.load_denoiser(name, device="cpu")
        z = denoiser.encode(scenes.images)
        noise, times = training.draw_noise(z, denoiser.steps, torch.Generator().manual_seed(0))
        with torch.no_grad():
            right, wrong = (
                training.noise_prediction_loss(denoiser, z, c, noise, times).mean() for c in (told, told.roll(1, 0))
            )
        assert 1 - right / wrong > 0.15, name


def test_a_damaged_file_is_refused(tmp_path, monkeypatch):
    shutil.copytree(models.WEIGHTS / "clip-toy", tmp_path / "clip-toy")
    monkeypatch.setattr(models, "WEIGHTS", tmp_path)
    models.load_clip("toy", device="cpu")
    file = tmp_path / "clip-toy" / "open_clip_model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"clip-toy/open_clip_model.safetensors is damaged.*git checkout"):
        models.load_clip("toy", device="cpu")
    file.unlink()
    with pytest.raises(ValueError, match="missing"):
        models.load_clip("toy", device="cpu")


def test_saved_denoisers_and_clips_come_back(tmp_path):
    torch.manual_seed(1)
    denoiser, clip = models.new_denoiser(), models.new_clip()
    models.save_denoiser(denoiser, tmp_path / "d", {"seed": 1})
    back = models.load_denoiser(tmp_path / "d", device="cpu")
    for a, b in zip(denoiser.unet.parameters(), back.unet.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-3) and b.dtype == torch.float32
    models.save_clip(clip, tmp_path / "c", {"seed": 1})
    card = json.loads((tmp_path / "c" / "card.json").read_text())
    assert card["seed"] == 1 and len(card["sha256"]["open_clip_model.safetensors"]) == 64


def test_cards_say_what_the_models_are():
    for name in [f"clip-{n}" for n in models.TOY_CLIPS] + [f"denoiser-{n}" for n in models.TOY_DENOISERS]:
        card = models.read_card(name)
        assert {"data", "seed", "recipe", "hardware", "minutes", "date", "final_losses", "metrics", "sha256"} <= set(
            card
        )
    total = sum(f.stat().st_size for f in models.WEIGHTS.rglob("*.safetensors"))
    assert total < 10_000_000


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: models.load_clip("toi"), "not 'toi'"),
        (lambda: models.load_clip("ViT-B-32"), "would have random weights"),
        (lambda: models.load_clip("toy").encode_images(np.zeros((2, 32, 32, 3), np.uint8)), "(n, 3, height, width)"),
        (lambda: models.load_clip("toy").encode_images(np.zeros((2, 3, 32, 32))), "must be uint8"),
        (lambda: models.load_clip("toy").encode_texts("a red circle"), "list of at least one string"),
        (lambda: models.load_clip("toy").encode_texts([]), "list of at least one string"),
        (lambda: models.WordTokenizer(vocab_size=10), "the model room for 10"),
    ],
)
def test_bad_input_is_named(call, said):
    with pytest.raises(ValueError) as error:
        call()
    assert said in str(error.value)


def test_floors_measured_again_on_scenes_no_card_was_made_from():
    """The floors of the toy world, on a fresh seed: both see colour and shape, the blind one misses most details."""
    from minilib import evaluate, features

    scenes, pairs = world.make_scenes(1000, seed=31_000, split="test"), world.make_pairs(60, seed=31_000)
    for name in models.TOY_CLIPS:
        clip = models.load_clip(name, device="cpu")
        text = features.class_embeddings(clip, world.CONCEPTS)
        assert evaluate.zero_shot_accuracy(clip.encode_images(scenes.images), text, scenes.concepts) > 0.85
    won = evaluate.pair_accuracy(*features.pair_features(models.load_clip("toy-blind", device="cpu"), pairs))
    assert (won.reshape(9, 60).mean(1) < 0.45).sum() >= 4


# --- weights in files -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def toy():
    return models.load_clip("toy", device="cpu")


@pytest.fixture(scope="module")
def blind():
    return models.load_clip("toy-blind", device="cpu")


def same(a, b):
    return set(a) == set(b) and all(torch.equal(x, b[k]) for k, x in a.items())


@pytest.mark.parametrize("prefix", ["", "module.", "class_model.model.", "model.", "module.class_model.model."])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_checkpoint_may_carry_what_training_put_before_its_names(tmp_path, toy, prefix, suffix, scenes, caplog):
    """The forms the released DIVA files come in; weights that do not share the prefix belong to something else."""
    file, held = tmp_path / f"x{suffix}", {prefix + k: v for k, v in toy.model.state_dict().items()}
    if prefix:
        held["visual_proj.weight"] = torch.zeros(3)
    save_file(held, file) if suffix == ".safetensors" else torch.save({"state_dict": held}, file)
    assert same(models.load_state(file), toy.model.state_dict())
    loaded = models.load_clip("minilib-toy", pretrained=str(file), device="cpu")
    assert not caplog.records  # no talk of random weights
    assert torch.equal(loaded.encode_images(scenes.images), toy.encode_images(scenes.images))
    assert torch.equal(loaded.encode_texts(scenes.captions), toy.encode_texts(scenes.captions))


@pytest.mark.parametrize("prefix", ["", "visual.", "module.visual.", "class_model.model.visual.", "module."])
def test_a_vision_tower_alone_goes_on_top_of_a_whole_clip(tmp_path, toy, blind, prefix, scenes):
    file = tmp_path / "tower.pth"
    torch.save({prefix + k: v for k, v in toy.model.visual.state_dict().items()}, file)
    mixed = models.load_clip("toy-blind", device="cpu", visual=file)
    assert torch.equal(mixed.encode_images(scenes.images), toy.encode_images(scenes.images))
    assert torch.equal(mixed.encode_texts(scenes.captions), blind.encode_texts(scenes.captions))
    with pytest.raises(ValueError, match=r"tower.pth holds a vision tower alone: give it as visual="):
        models.load_clip("toy-blind", str(file), device="cpu")


def test_a_folder_that_save_clip_wrote_is_loaded_whole(tmp_path, toy, blind, scenes):
    models.save_clip(blind, tmp_path, {"name": "x"}, torch.float32)
    again = models.load_clip("toy", pretrained=tmp_path, device="cpu")
    assert same(again.model.state_dict(), blind.model.state_dict())
    plain = open_clip.create_model("minilib-toy", pretrained=str(tmp_path / "open_clip_model.safetensors"))
    assert same(plain.state_dict(), blind.model.state_dict())


@pytest.fixture
def tiny(tmp_path):
    """An architecture of open_clip with one layer, of a name nothing else has."""
    shape = {"vision_cfg": {"image_size": 16, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
             "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1}}  # fmt: skip
    (tmp_path / "tiny-for-tests.json").write_text(json.dumps({"embed_dim": 16, **shape}))
    open_clip.add_model_config(tmp_path / "tiny-for-tests.json")
    torch.manual_seed(0)
    return "tiny-for-tests"


def activations(clip):
    return {type(layer) for layer in clip.model.modules() if "GELU" in type(layer).__name__}


def test_a_tag_decides_activation_and_preprocessing_and_a_card_remembers_them(tmp_path, tiny, monkeypatch):
    """A tag of SigLIP's preprocessing and OpenAI's activation: right when loaded, and when its child is loaded."""
    told = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "interpolation": "bicubic", "resize_mode": "squash"}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, tiny, {"seen": told | {"url": "", "quick_gelu": True}})
    save_file(open_clip.create_model(tiny).state_dict(), tmp_path / "w.safetensors")
    monkeypatch.setattr(open_clip.factory, "download_pretrained", lambda *a, **k: str(tmp_path / "w.safetensors"))
    clip = models.load_clip(tiny, "seen", device="cpu")
    assert activations(clip) == {QuickGELU} and clip.model.visual.image_mean == (0.5, 0.5, 0.5)
    models.save_clip(clip, tmp_path / "child", {}, torch.float32)
    child = models.load_clip(tiny, str(tmp_path / "child"), device="cpu")
    assert activations(child) == {QuickGELU} and same(child.model.state_dict(), clip.model.state_dict())
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 16, 16), dtype=np.uint8)
    assert torch.equal(child.encode_images(images), clip.encode_images(images))
    assert child.model.visual.preprocess_cfg["resize_mode"] == "squash"
    (tmp_path / "child" / "card.json").unlink()  # then the tags, which agree, still tell the preprocessing
    alone = models.load_clip(tiny, str(tmp_path / "child"), device="cpu")
    assert alone.model.visual.image_mean == (0.5, 0.5, 0.5) and activations(alone) == {torch.nn.GELU}


def test_a_checkpoint_of_another_backbone_is_refused_with_both(tmp_path, toy, tiny):
    file = tmp_path / "toy.safetensors"
    save_file(toy.model.state_dict(), file)
    with pytest.raises(ValueError) as error:
        models.load_clip(tiny, str(file), device="cpu")
    said = str(error.value)
    assert str(file) in said and f"another model than {tiny}" in said
    assert (
        "of another shape, such as" in said
        and "positional_embedding (24, 128) for (77, 8)" in said
        and "unknown, such as" in said
    )
    with pytest.raises(ValueError, match=r"another model than toy: .* of another shape"):
        models.load_clip("toy", device="cpu", visual=_saved(open_clip.create_model(tiny).visual, tmp_path / "v.pth"))


def _saved(module, file):
    torch.save(module.state_dict(), file)
    return file


class Harmful:
    def __reduce__(self):
        return print, ("this must not run",)


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (lambda file: None, "there is no file"),
        (lambda file: file.write_bytes(b"no weights"), "cannot be read as weights"),
        (lambda file: file.write_bytes(b""), "cannot be read as weights"),
        (lambda file: torch.save({"visual.proj": Harmful()}, file), "cannot be read as weights"),
        (lambda file: torch.save([1, 2], file), "cannot be read as weights"),
        (lambda file: torch.save({"encoder.weight": torch.zeros(2)}, file), "holds no CLIP vision tower"),
    ],
)
def test_files_that_are_no_weights_are_named(tmp_path, write, said, capsys):
    write(tmp_path / "x.pth")
    with pytest.raises(ValueError, match=said) as error:
        models.load_clip("toy", str(tmp_path / "x.pth"), device="cpu")
    assert "x.pth" in str(error.value) and "must not run" not in capsys.readouterr().out


def test_an_unknown_tag_is_named_with_the_known_ones():
    with pytest.raises(ValueError, match=r"there is no file openia of weights, and no tag: those are .*openai, "):
        models.load_clip("ViT-B-32", "openia", device="cpu")


@pytest.mark.parametrize(
    "load", [lambda d: models.load_clip("toy", device=d), lambda d: models.load_denoiser("toy", d)]
)
def test_a_gpu_that_is_not_there_is_an_error(load, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ValueError, match=r"no GPU here for device='cuda' \(found 0\): use device='cpu'"):
        load("cuda")
    with pytest.raises(ValueError, match="not 'gpu'"):
        load("gpu")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="no GPU here for device='cuda:1'"):
        load("cuda:1")


# --- what a denoiser must be ------------------------------------------------------------------------------------------


def test_other_schedulers_and_unets_are_refused_when_loaded(stable_diffusion):
    def changed(part, **what):
        file = next((stable_diffusion / part).glob("*config.json"))
        before = file.read_text()
        file.write_text(json.dumps(json.loads(before) | what))
        with pytest.raises(ValueError) as error:
            models.load_denoiser(stable_diffusion, device="cpu")
        file.write_text(before)
        return str(error.value)

    assert "must be one of epsilon, v_prediction; not 'sample'" in changed("scheduler", prediction_type="sample")
    xl = {"addition_embed_type": "text_time", "addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": 32}
    assert "addition_embed_type is 'text_time', as in SDXL" in changed("unet", **xl)
    models.load_denoiser(stable_diffusion, device="cpu")


def test_a_unet_without_text_is_refused(stable_diffusion):
    denoiser = models.load_denoiser(stable_diffusion, device="cpu")
    for width, said in ((None, r"one width; not \['None'\]"), ((24, 32), r"one width; not \['24', '32'\]")):
        denoiser.unet.register_to_config(cross_attention_dim=width)
        with pytest.raises(ValueError, match=said):
            models.Denoiser(denoiser.unet, denoiser.scheduler, denoiser.codec)
    denoiser.unet.register_to_config(cross_attention_dim=(24, 24))
    assert models.Denoiser(denoiser.unet, denoiser.scheduler, denoiser.codec).context_width == 24
    denoiser.scheduler.register_to_config(prediction_type="sample")
    with pytest.raises(ValueError, match="not 'sample'"):
        denoiser.target(torch.zeros(1), torch.zeros(1), torch.zeros(1))


@pytest.mark.parametrize("missing", ["scheduler", "unet", "vae"])
def test_a_part_that_is_missing_is_named(stable_diffusion, missing):
    shutil.rmtree(stable_diffusion / missing)
    with pytest.raises(ValueError, match=f"holds no {missing}/: give a folder in diffusers' layout"):
        models.load_denoiser(stable_diffusion, device="cpu")


def test_a_folder_that_is_missing_is_named(tmp_path):
    for name in (tmp_path / "nowhere", str(tmp_path / "nowhere"), "toi"):
        with pytest.raises(ValueError, match=r"there is no folder .*: give one that holds scheduler/ .*'toy-web'"):
            models.load_denoiser(name, device="cpu")


# --- the constant text ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def text_tower(tmp_path_factory):
    """A Stable Diffusion's text tower and tokenizer, tiny and with random weights: letters, and one merged word."""
    folder = tmp_path_factory.mktemp("sd")
    return folder, *write_text_tower(folder)


def test_a_prompt_is_embedded_by_the_towers_own_last_norm(text_tower):
    """Tokens by hand: start, "a", "cat", ".", end, then 72 times the tokenizer's padding."""
    folder, tower, ids = text_tower
    said = [ids[t] for t in ("<|startoftext|>", "a</w>", "cat</w>", ".</w>", "<|endoftext|>")] + [ids["!"]] * 72
    found = models.embed_prompt(folder, "A cat.")
    with torch.no_grad():
        out = tower(torch.tensor([said]), output_hidden_states=True)
        norm = next(layer for name, layer in tower.named_modules() if name.endswith("final_layer_norm"))
        assert torch.allclose(found, norm(out.hidden_states[-1])[0], atol=1e-6)
    assert found.shape == (77, 16) and found.dtype == torch.float32 and found.device.type == "cpu"
    assert not found.requires_grad and torch.equal(models.embed_prompt(folder), models.embed_prompt(folder, ""))
    assert not torch.allclose(found, models.embed_prompt(folder), atol=0.1)


def test_prompts_and_text_towers_that_do_not_fit_are_named(text_tower, tmp_path):
    folder = text_tower[0]
    assert models.embed_prompt(folder, "cat " * 75).shape == (77, 16)
    with pytest.raises(ValueError, match="the prompt takes 78 tokens with its marks, the tower 77"):
        models.embed_prompt(folder, "cat " * 76)
    with pytest.raises(ValueError, match="'toy' has no text tower of its own"):
        models.embed_prompt("toy")
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    vocabulary = json.loads((tmp_path / "tokenizer" / "vocab.json").read_text())
    (tmp_path / "tokenizer" / "vocab.json").write_text(json.dumps(vocabulary | {"more": len(vocabulary)}))
    with pytest.raises(
        ValueError, match=r"the tokenizer has 61 tokens, the text tower 60: tokenizer/ and text_encoder/"
    ):
        models.embed_prompt(tmp_path)
    shutil.rmtree(tmp_path / "tokenizer")
    with pytest.raises(ValueError, match="holds no tokenizer/"):
        models.embed_prompt(tmp_path)


def small_gpu(room: int):
    """A function of rows that fits ``room`` rows at a time, and the sizes it was asked for."""
    asked = []

    def encode(rows):
        asked.append(len(rows))
        if len(rows) > room:
            raise torch.cuda.OutOfMemoryError("no room")
        return torch.as_tensor(rows, dtype=torch.float32) ** 2

    return encode, asked


def test_a_full_gpu_is_answered_by_smaller_batches():
    """Eleven rows, room for three: 11 -> 5 + 6 -> (2 + 3) + (3 + 3), in order, and every warning names the size."""
    encode, asked = small_gpu(3)
    with pytest.warns(UserWarning, match="full at 11 rows: going on with 5"):
        found = models.in_halves(encode, list(range(11)))
    assert found.tolist() == [float(i) ** 2 for i in range(11)]
    assert asked == [11, 5, 2, 3, 6, 3, 3]


def test_one_row_that_does_not_fit_is_an_error():
    encode, _ = small_gpu(0)
    with pytest.raises(MemoryError, match="one row alone"), pytest.warns(UserWarning):
        models.in_halves(encode, [1, 2])


def test_pictures_and_texts_are_encoded_on_a_small_gpu(monkeypatch, rng):
    clip = models.load_clip("toy", device="cpu")
    images = rng.integers(0, 256, (7, 3, 32, 32), dtype=np.uint8)
    texts = ["a red circle", "a square", "two stars"]
    whole = clip.encode_images(images), clip.encode_texts(texts)
    for name, room in (("embed_images", 2), ("embed_texts", 1)):
        real = getattr(clip, name)

        def narrow(rows, real=real, room=room):
            if len(rows) > room:
                raise torch.cuda.OutOfMemoryError("no room")
            return real(rows)

        monkeypatch.setattr(clip, name, narrow)
    with pytest.warns(UserWarning, match="memory is full"):
        torch.testing.assert_close(clip.encode_images(images), whole[0])
        torch.testing.assert_close(clip.encode_texts(texts), whole[1])
