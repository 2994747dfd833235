"""The door to open_clip and diffusers: shipped models, real layouts on random weights, and refusals."""

import json
import shutil

import numpy as np
import open_clip
import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel

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
    from safetensors.torch import save_file

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
    torch.manual_seed(0)
    blocks = {"block_out_channels": (32, 64), "norm_num_groups": 8, "layers_per_block": 1}
    UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, cross_attention_dim=24, attention_head_dim=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        **blocks,
    ).save_pretrained(tmp_path / "unet")  # fmt: skip
    AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        **blocks,
    ).save_pretrained(tmp_path / "vae")
    DDPMScheduler(prediction_type="v_prediction", beta_schedule="scaled_linear").save_pretrained(tmp_path / "scheduler")
    return tmp_path


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
