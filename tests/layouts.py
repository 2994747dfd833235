"""Small models with random weights in the layout of the real ones, for tests without a network."""

import json
from pathlib import Path
from typing import Any

import open_clip
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel


def write_stable_diffusion(
    folder: Path, width: int = 24, prediction: str = "v_prediction", widths: tuple[int, ...] = (32, 64)
) -> Path:
    """UNet, autoencoder and scheduler as diffusers keeps them.

    ``width`` is that of the text which the UNet takes; ``widths`` are the autoencoder's, each but the first halving the
    picture.
    """
    torch.manual_seed(0)
    blocks = {"block_out_channels": (32, 64), "norm_num_groups": 8, "layers_per_block": 1}
    UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, cross_attention_dim=width, attention_head_dim=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        **blocks,
    ).save_pretrained(folder / "unet")  # fmt: skip
    AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        latent_channels=4,
        **blocks | {"block_out_channels": widths},
    ).save_pretrained(folder / "vae")
    DDPMScheduler(prediction_type=prediction, beta_schedule="scaled_linear").save_pretrained(folder / "scheduler")
    return folder


def write_text_tower(folder: Path, width: int = 16) -> tuple[CLIPTextModel, dict[str, int]]:
    """Text tower and tokenizer of a Stable Diffusion: letters, and one merged word. Returns both, as they are."""
    letters = "abcdefghijklmnopqrstuvwxyz.!"
    tokens = [*letters, *(f"{c}</w>" for c in letters), "ca", "cat</w>", "<|startoftext|>", "<|endoftext|>"]
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "tokenizer" / "merges.txt").write_text("#version: 0.2\nc a\nca t</w>\n")
    marks = {"bos_token": tokens[-2], "eos_token": tokens[-1], "unk_token": tokens[-1], "pad_token": "!"}
    own = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77}
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(marks | own))
    torch.manual_seed(0)
    ends = {"bos_token_id": len(tokens) - 2, "eos_token_id": len(tokens) - 1}
    config = CLIPTextConfig(
        vocab_size=len(tokens), hidden_size=width, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        **ends,
    )  # fmt: skip
    tower = CLIPTextModel(config).eval()
    torch.nn.init.normal_(dict(tower.named_parameters())[next(n for n, _ in tower.named_parameters() if "final" in n)])
    tower.save_pretrained(folder / "text_encoder")
    return tower, {token: i for i, token in enumerate(tokens)}


def small_config(name: str, size: int | None = None) -> dict[str, Any]:
    """open_clip's architecture of that name, layers and widths shrunk; patches and words as they are, ``size`` ours."""
    found = open_clip.get_model_config(name)
    found["vision_cfg"] |= {} if size is None else {"image_size": size}
    found["embed_dim"] = 32
    found["vision_cfg"] |= {"layers": 2, "width": 64, "head_width": 32}
    found["text_cfg"] |= {"layers": 2, "width": 32, "heads": 2}
    return found


def snapshot(hub: Path, repository: str, revision: str) -> Path:
    """An empty folder where huggingface_hub looks for that revision, known as ``main`` too."""
    home = hub / f"models--{repository.replace('/', '--')}"
    (home / "refs").mkdir(parents=True, exist_ok=True)
    (home / "refs" / "main").write_text(revision)
    folder = home / "snapshots" / revision
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def write_small_clip(hub: Path, configs: Path, name: str, tag: str, size: int | None = None) -> None:
    """A shrunk architecture under its real name, and weights of it where the hub's cache would have the tag's."""
    configs.mkdir(parents=True, exist_ok=True)
    small = small_config(name, size)
    (configs / f"{name}.json").write_text(json.dumps(small))
    repository = open_clip.get_pretrained_cfg(name, tag)["hf_hub"].rstrip("/")
    torch.manual_seed(0)
    model = open_clip.CLIP(**small, quick_gelu=True)
    save_file(model.state_dict(), snapshot(hub, repository, "0" * 40) / "open_clip_model.safetensors")
