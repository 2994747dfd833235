"""Towers: tokens of every backbone at its real shapes, their choice, and the condition made of them."""

import copy
import math
from types import SimpleNamespace

import numpy as np
import open_clip
import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from torch import nn

from minilib import models
from minilib.towers import (
    PRESETS,
    Condition,
    Selection,
    Tokens,
    context_width,
    preset,
    select_tokens,
    visual_tokens,
)

# name: width of the joint space, patches a side (image size over patch size). Worked out from the papers' names:
# 224 / 32 = 7, 224 / 16 = 14, 224 / 14 = 16, 336 / 14 = 24, 378 / 14 = 27, 384 / 14 = 27 and six pixels over.
WHOLE = {"ViT-B-32": (512, 7), "ViT-B-16": (512, 14), "ViT-B-16-SigLIP": (768, 14)}
SHALLOW = {
    "ViT-L-14": (768, 16),
    "ViT-L-14-336": (768, 24),
    "ViT-L-14-quickgelu": (768, 16),
    "ViT-H-14-quickgelu": (1024, 16),
    "ViT-H-14-378-quickgelu": (1024, 27),
    "ViT-SO400M-14-SigLIP": (1152, 16),
    "ViT-SO400M-14-SigLIP-384": (1152, 27),
}
TINY = {"image_size": 32, "patch_size": 8, "width": 48, "layers": 2, "head_width": 16}
TEXT = {"context_length": 8, "vocab_size": 16, "width": 16, "heads": 2, "layers": 1}


def shallow(name: str) -> nn.Module:
    """An open_clip architecture with its own width, patches and pooling, but two blocks and random weights.

    It is laid out without memory, cut, and only then given numbers, so that the largest costs a fraction of a second.
    The text tower stays without memory.
    """
    with torch.device("meta"):
        model = open_clip.create_model(name, pretrained=None, device="meta")
    holder, key = (model.visual.trunk, "blocks") if hasattr(model.visual, "trunk") else (None, "resblocks")
    holder = holder or model.visual.transformer
    setattr(holder, key, getattr(holder, key)[:2])
    return shaken(model.visual.to_empty(device="cpu"), model)


def shaken(visual: nn.Module, model: nn.Module) -> nn.Module:
    """Random weights everywhere, norms and biases too, so that none of them is the identity."""
    for key, p in visual.named_parameters():
        is_scale = p.ndim == 1 and key.endswith("weight")
        nn.init.normal_(
            p, mean=float(is_scale), std=0.2 if p.ndim == 1 else 0.02 if p.ndim > 2 else p.shape[-1] ** -0.5
        )
    return model.eval()


def tiny(**vision) -> nn.Module:
    """A CLIP of 4 x 4 patches with any of open_clip's options, 24 wide in the joint space."""
    model = open_clip.CLIP(24, TINY | vision, TEXT)
    return shaken(model.visual, model)


def pictures(model: nn.Module, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, *model.visual.image_size, generator=torch.Generator().manual_seed(0))


def caught(model: nn.Module, layer: nn.Module, images: torch.Tensor) -> tuple[torch.Tensor, np.ndarray]:
    """``encode_image``'s feature, and what one layer gave on the way, in float64."""
    outputs = []
    handle = layer.register_forward_hook(lambda module, args, output: outputs.append(output))
    feature = model.encode_image(images, normalize=False)
    handle.remove()
    assert len(outputs) == 1
    return feature, outputs[0].double().numpy()


def layer_norm(x: np.ndarray, norm: nn.LayerNorm) -> np.ndarray:
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + norm.eps)
    return x * norm.weight.double().numpy() + norm.bias.double().numpy()


def assert_close(ours: torch.Tensor, theirs: np.ndarray | torch.Tensor) -> None:
    """Within float32's error, relative to the largest entry."""
    theirs = torch.as_tensor(theirs).double()
    assert ours.shape == theirs.shape
    assert (ours.double() - theirs).abs().max() < 2e-5 * theirs.abs().max()


@torch.no_grad()
@pytest.mark.parametrize(("name", "width", "side"), [(k, *v) for k, v in (WHOLE | SHALLOW).items()])
def test_tokens_of_every_backbone(name, width, side):
    """B/32, B/16 and SigLIP B/16 as they are, the larger ones at two blocks; one code path, real shapes."""
    model = open_clip.create_model(name, pretrained=None).eval() if name in WHOLE else shallow(name)
    images = pictures(model)
    tokens = visual_tokens(model, images)
    assert tokens.pooled.shape == (2, width)
    assert tokens.local.shape == (2, side * side, width) and tokens.grid == (side, side)
    is_timm = hasattr(model.visual, "trunk")
    feature, normed = caught(model, model.visual.trunk.norm if is_timm else model.visual.ln_post, images)
    assert_close(tokens.pooled, feature)
    if is_timm:  # SigLIP: every token is a patch, and nothing projects it
        assert_close(tokens.local, normed)
        assert_close(tokens.pooled, model.visual.trunk.attn_pool(tokens.local))
    else:
        projection = model.visual.proj.double().numpy()
        assert_close(tokens.local, normed[:, 1:] @ projection)
        assert_close(tokens.pooled, normed[:, 0] @ projection)
        assert model.visual.output_tokens is False


@torch.no_grad()
@pytest.mark.parametrize("name", models.TOY_CLIPS)
def test_tokens_of_the_toy(name):
    model = models.load_clip(name, device="cpu").model
    images = pictures(model, 5)
    feature, normed = caught(model, model.visual.ln_post, images)
    tokens = visual_tokens(model, images)
    assert_close(tokens.pooled, feature)
    assert_close(tokens.local, normed[:, 1:] @ model.visual.proj.double().numpy())
    assert tokens.grid == (4, 4)


def test_local_tokens_lie_row_by_row():
    """Without blocks and position, a token depends on its own patch: move one patch, and one token moves."""
    model = tiny(layers=0)
    images = pictures(model, 1)
    moved = images.clone()
    moved[:, :, 8:16, 24:32] += 1  # second row, fourth column: token 1 * 4 + 3
    a, b = (visual_tokens(model, x).local for x in (images, moved))
    assert ((a - b).abs().amax((0, 2)) > 1e-4).nonzero().flatten().tolist() == [7]


@torch.no_grad()
def test_mean_pooling_is_the_mean_of_the_local_tokens():
    """A projection is linear, so the projected mean is the mean of the projected."""
    for model in (tiny(pool_type="avg"), timm_model("avg", "linear")):
        tokens = visual_tokens(model, pictures(model))
        assert_close(tokens.pooled, model.encode_image(pictures(model)))
        assert_close(tokens.pooled, tokens.local.mean(1))


@torch.no_grad()
@pytest.mark.parametrize("pool_type", ["tok", "avg"])
def test_norm_after_pooling_is_applied_to_local_tokens_too(pool_type):
    """There open_clip hands back tokens before the norm; by hand from what leaves the last block."""
    model = tiny(pool_type=pool_type, final_ln_after_pool=True)
    feature, last = caught(model, model.visual.transformer, pictures(model))
    tokens = visual_tokens(model, pictures(model))
    assert_close(tokens.pooled, feature)
    assert_close(tokens.local, layer_norm(last[:, 1:], model.visual.ln_post) @ model.visual.proj.double().numpy())


@torch.no_grad()
def test_a_tower_without_projection_gives_tokens_as_wide_as_itself():
    model = tiny()
    model.visual.proj = None
    feature, normed = caught(model, model.visual.ln_post, pictures(model))
    tokens = visual_tokens(model, pictures(model))
    assert_close(tokens.pooled, feature)
    assert_close(tokens.local, normed[:, 1:])
    assert tokens.local.shape[2] == 48


@torch.no_grad()
@pytest.mark.parametrize(("kind", "queries", "local"), [(True, 17, 16), ("parallel", 5, 5), ("cascade", 16, 16)])
def test_attention_pooling_gives_queries_without_a_grid(kind, queries, local):
    """The plain form takes the first query as the pooled token; the others pool once more. 16 are still no patches."""
    model = tiny(width=24, head_width=8, attentional_pool=kind, attn_pooler_queries=queries, attn_pooler_heads=2)
    tokens = visual_tokens(model, pictures(model))
    assert_close(tokens.pooled, model.encode_image(pictures(model)))
    assert tokens.local.shape == (2, local, 24) and tokens.grid is None
    with pytest.raises(ValueError, match="on a grid"):
        select_tokens(tokens, "pooled(2)")


@torch.no_grad()
def test_coca_keeps_its_own_switch():
    """Its tower always gives tokens, and its encode_image normalises unless told otherwise."""
    model = shallow("coca_ViT-B-32")
    tokens = visual_tokens(model, pictures(model))
    assert_close(tokens.pooled, model.encode_image(pictures(model), normalize=False))
    assert tokens.local.shape == (2, 255, 512) and model.visual.output_tokens is True


def timm_model(pool: str, proj: str) -> nn.Module:
    vision = {"image_size": 224, "timm_model_name": "vit_tiny_patch16_224", "timm_pool": pool, "timm_proj": proj}
    model = open_clip.CustomTextCLIP(24, vision, TEXT)
    return shaken(model.visual, model)


@torch.no_grad()
@pytest.mark.parametrize("pool", ["token", "avg"])
@pytest.mark.parametrize("proj", ["linear", ""])
def test_timm_projections_wherever_they_stand(pool, proj):
    """Linear adapter or the trunk's own head; final norm in the trunk or, for a mean with it, after pooling."""
    model = timm_model(pool, proj)
    trunk = model.visual.trunk
    feature, last = caught(model, trunk.blocks, pictures(model))
    tokens = visual_tokens(model, pictures(model))
    head, norm = model.visual.head.proj if proj else trunk.head, trunk.norm
    if isinstance(norm, nn.Identity):
        norm = trunk.fc_norm
    by_hand = layer_norm(last, norm) @ head.weight.double().numpy().T
    by_hand += head.bias.double().numpy() if head.bias is not None else 0
    assert_close(tokens.pooled, feature)
    assert_close(tokens.local, by_hand[:, 1:])
    assert tokens.grid == (14, 14) and tokens.local.shape == (2, 196, 24)


@torch.no_grad()
def test_eva_is_read_like_the_others():
    model = open_clip.create_model("EVA02-B-16", pretrained=None).eval()
    shaken(model.visual, model)
    images, trunk = pictures(model, 1), model.visual.trunk
    tokens = visual_tokens(model, images)
    assert_close(tokens.pooled, model.encode_image(images))
    options = {"indices": 1, "norm": True, "output_fmt": "NLC", "intermediates_only": True}
    (normed,) = trunk.forward_intermediates(images, **options)  # timm's own way to the last block's patches
    assert_close(tokens.local, trunk.head(normed))
    assert tokens.local.shape == (1, 196, 512) and tokens.grid == (14, 14)


@pytest.mark.parametrize("given", [False, True])
def test_the_switch_is_put_back_even_after_an_error(given):
    model = tiny()
    model.visual.output_tokens = given
    before = {key: value.clone() for key, value in model.state_dict().items()}

    def fail(*_):
        raise RuntimeError("the pass broke")

    visual_tokens(model, pictures(model))
    assert model.visual.output_tokens is given and not model.training
    handle = model.visual.transformer.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="the pass broke"):
        visual_tokens(model, pictures(model))
    handle.remove()
    assert model.visual.output_tokens is given
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize(("make", "layers"), [
    (tiny, ("conv1.weight", "ln_post.weight", "proj")),
    (lambda: timm_model("token", "linear"), ("trunk.patch_embed.proj.weight", "trunk.norm.weight", "head.proj.weight")),
    (lambda: shallow("ViT-SO400M-14-SigLIP"), ("trunk.patch_embed.proj.weight", "trunk.norm.weight")),
])  # fmt: skip
def test_gradients_reach_first_and_last_layers_from_both_kinds_of_token(make, layers):
    """In training mode; no model drops anything, so the feature stays the model's own."""
    model = make().train()
    images = pictures(model, 1)
    weights = [model.visual.get_parameter(name) for name in layers]
    tokens = visual_tokens(model, images)
    assert model.training and torch.allclose(tokens.pooled, model.encode_image(images), atol=1e-5)
    for part in (tokens.pooled, tokens.local):
        for grad in torch.autograd.grad(part.square().sum(), weights, retain_graph=True):
            assert grad.isfinite().all() and grad.abs().max() > 0


def test_the_gradient_is_that_of_finite_differences():
    """In float64: moving the first layer by h changes the sum by the gradient times h; what bends is far smaller."""
    torch.manual_seed(0)
    model = tiny().double()
    images = pictures(model, 1).double()
    weight = model.visual.conv1.weight
    direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)).double()

    def total() -> torch.Tensor:
        return visual_tokens(model, images).local.tanh().sum()

    (grad,) = torch.autograd.grad(total(), weight)
    with torch.no_grad():
        values = []
        for step in (1e-6, -2e-6):
            weight += step * direction
            values.append(total())
    assert math.isclose((values[0] - values[1]) / 2e-6, (grad * direction).sum(), rel_tol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("make", [tiny, lambda: timm_model("token", "linear")])
def test_any_precision(make, dtype):
    model = make().to(dtype)
    images = pictures(model).to(dtype)
    tokens = visual_tokens(model, images)
    assert tokens.pooled.dtype == tokens.local.dtype == dtype
    assert torch.equal(tokens.pooled, model.encode_image(images))


@torch.no_grad()
def test_autocast_gives_both_kinds_one_precision():
    model = tiny()
    with torch.autocast("cpu", torch.bfloat16):
        tokens = visual_tokens(model, pictures(model))
        assert torch.equal(tokens.pooled, model.encode_image(pictures(model)))
    assert tokens.pooled.dtype == tokens.local.dtype
    assert select_tokens(tokens, "all").shape == (2, 17, 24)


def test_patch_dropout_leaves_fewer_tokens_and_no_grid():
    """In training a quarter of 16 goes; in evaluation none does."""
    model = tiny(patch_dropout=0.25)
    assert visual_tokens(model, pictures(model)).grid == (4, 4)
    model.train()
    torch.manual_seed(0)
    tokens = visual_tokens(model, pictures(model))
    torch.manual_seed(0)
    assert torch.equal(tokens.pooled, model.encode_image(pictures(model)))
    assert tokens.local.shape[1] == 12 and tokens.grid is None


@pytest.mark.parametrize(("name", "tower"), [("RN50", "ModifiedResNet"), ("convnext_base", "ConvNeXt")])
def test_other_towers_are_refused_by_name(name, tower):
    with torch.device("meta"):
        model = open_clip.create_model(name, pretrained=None, device="meta")
    with pytest.raises(TypeError, match=rf"tower {tower};.*VisionTransformer.*Eva.*SigLIP"):
        visual_tokens(model, torch.zeros(1, 3, 224, 224))


def test_what_is_no_clip_is_refused():
    with pytest.raises(TypeError, match=r"Clip has the vision tower none.*its \.model"):
        visual_tokens(models.load_clip("toy", device="cpu"), torch.zeros(1, 3, 32, 32))
    unpooled = tiny()
    unpooled.visual.pool_type = "none"
    with pytest.raises(TypeError, match="with a pooled token"):
        visual_tokens(unpooled, torch.zeros(1, 3, 32, 32))


@pytest.mark.parametrize("images", [
    torch.zeros(2, 3, 32, 32, dtype=torch.uint8), torch.zeros(3, 32, 32), torch.zeros(2, 1, 32, 32),
    torch.zeros(2, 3, 33, 33),
])  # fmt: skip
def test_images_of_another_kind_are_refused(images):
    with pytest.raises(ValueError, match=r"\(B, 3, 32, 32\); not .*use Clip.preprocess"):
        visual_tokens(tiny(), images)


def numbered(pictures: int, grid: tuple[int, int], width: int = 3) -> Tokens:
    """Token i of picture b holds 1000 b + i in all entries, the pooled token -1 - b: who is who can be read off."""
    count = grid[0] * grid[1]
    local = 1000 * torch.arange(pictures)[:, None] + torch.arange(count)  # (B, L)
    pooled = -1 - torch.arange(pictures)
    return Tokens(*(x.float()[..., None].repeat(*[1] * x.ndim, width) for x in (pooled, local)), grid)


def test_all_and_class():
    tokens = numbered(2, (2, 2))
    assert select_tokens(tokens, "all")[:, :, 0].tolist() == [[-1, 0, 1, 2, 3], [-2, 1000, 1001, 1002, 1003]]
    assert select_tokens(tokens, "class")[:, :, 0].tolist() == [[-1], [-2]]


@pytest.mark.parametrize(
    ("how", "n"), [("random(5)", 5), ("random(20)", 20), ("random(0.25)", 5), ("random(0.001)", 1)]
)
def test_random_draws_each_picture_a_subset_of_its_own(how, n):
    tokens = numbered(64, (4, 5))
    chosen = select_tokens(tokens, how, generator=torch.Generator().manual_seed(0))
    assert chosen.shape == (64, 1 + n, 3) and torch.equal(chosen[:, 0], tokens.pooled)
    ids = chosen[:, 1:, 0] - 1000 * torch.arange(64)[:, None]
    assert all(set(row) <= set(range(20)) and len(set(row)) == n for row in ids.tolist())
    assert len({tuple(row) for row in ids.tolist()}) > 64 * 0.25  # of one token each, 20 can differ


def test_random_follows_its_generator_and_leaves_the_global_one_alone():
    tokens = numbered(8, (4, 5))
    before = torch.get_rng_state()
    a, b, c = (
        select_tokens(tokens, how, generator=torch.Generator().manual_seed(seed))
        for how, seed in (("random(6)", 1), (Selection("random", 6), 1), ("random(6)", 2))
    )
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(3)
    d = select_tokens(tokens, "random(6)")
    torch.manual_seed(3)
    assert torch.equal(d, select_tokens(tokens, "random(6)"))


@pytest.mark.parametrize("how", ["random(6)", "random(6, replace)"])
def test_random_is_uniform(how):
    """6 of 20 in 4,000 pictures: each token 1,200 times, standard deviation at most sqrt(4000 * 6 / 20) = 34.6."""
    tokens = numbered(4000, (4, 5), width=1)
    chosen = select_tokens(tokens, how, generator=torch.Generator().manual_seed(0))[:, 1:, 0]
    counts = torch.bincount((chosen % 1000).long().flatten(), minlength=20)
    assert (counts - 1200).abs().max() < 5 * 34.6


def test_with_replacement_tokens_come_twice():
    """76 draws of 20 must repeat; without replacement they cannot be had."""
    tokens = numbered(3, (4, 5))
    chosen = select_tokens(tokens, "random(76, replace)", generator=torch.Generator().manual_seed(0))
    assert chosen.shape == (3, 77, 3)
    with pytest.raises(ValueError, match=r"random\(76\) asks for more than the 20 local tokens.*random\(76, replace\)"):
        select_tokens(tokens, "random(76)")


def test_gradient_reaches_the_drawn_tokens_and_no_others():
    tokens = numbered(2, (4, 5))
    pooled, local = (x.clone().requires_grad_() for x in tokens[:2])
    leaves = tokens._replace(pooled=pooled, local=local)
    chosen = select_tokens(leaves, "random(6)", generator=torch.Generator().manual_seed(0))
    chosen.sum().backward()
    assert torch.equal(pooled.grad, torch.ones_like(pooled))
    for b in range(2):
        drawn = sorted(int(i) % 1000 for i in chosen[b, 1:, 0])
        assert local.grad[b].any(1).nonzero().flatten().tolist() == drawn
        assert torch.equal(local.grad[b, drawn], torch.ones(6, 3))


@pytest.mark.parametrize(("grid", "k", "expected"), [
    # 0  1  2  3 / 4  5  6  7 / 8 ... 15: the mean of 0 1 4 5 is 2.5, of 2 3 6 7 it is 4.5, and 8 more below
    ((4, 4), 2, [2.5, 4.5, 10.5, 12.5]),
    # 0 1 2 / 3 4 5 / 6 7 8: two windows over three rows share the middle one; the mean of 0 1 3 4 is 2
    ((3, 3), 2, [2, 3, 5, 6]),
    # 0 1 2 3 / 4 5 6 7: windows of one row and two columns
    ((2, 4), 2, [0.5, 2.5, 4.5, 6.5]),
    ((3, 3), 3, list(range(9))),
    ((3, 3), 1, [4]),
])  # fmt: skip
def test_pooled_by_hand(grid, k, expected):
    pooled = select_tokens(numbered(2, grid), f"pooled({k})")
    assert pooled[0, :, 1].tolist() == [-1, *expected]
    assert pooled[1, :, 1].tolist() == [-2, *(1000 + x for x in expected)]


@pytest.mark.parametrize(("side", "k"), [(16, 7), (27, 9), (24, 5)])
def test_pooled_agrees_with_loops_and_no_window_crosses_a_row(side, k):
    values = torch.randn(1, side * side, 2, generator=torch.Generator().manual_seed(0))
    ours = select_tokens(Tokens(values[:, 0], values, (side, side)), f"pooled({k})")[0, 1:]
    plane = values[0].double().numpy().reshape(side, side, 2)
    edges = [(math.floor(i * side / k), math.ceil((i + 1) * side / k)) for i in range(k)]
    windows = [plane[a:b, c:d].mean((0, 1)) for a, b in edges for c, d in edges]
    assert_close(ours, np.array(windows))
    left_to_right = torch.arange(side).float().repeat(side)[None, :, None]  # each row rises from 0 to side - 1
    means = select_tokens(Tokens(left_to_right[:, 0], left_to_right, (side, side)), f"pooled({k})")[0, 1:, 0]
    rows = means.view(k, k)
    assert torch.equal(rows, rows[:1].expand(k, -1)) and (rows.diff(dim=1) > 0).all()


def test_pooled_needs_enough_patches():
    with pytest.raises(ValueError, match=r"pooled\(4\) asks for more windows than the grid of \(3, 5\)"):
        select_tokens(numbered(1, (3, 5)), "pooled(4)")


@pytest.mark.parametrize("text", ["all", "class", "random(76)", "random(0.15)", "random(76, replace)", "pooled(7)"])
def test_selections_survive_their_text(text):
    assert str(Selection.parse(text)) == text
    assert Selection.parse(str(Selection.parse(text))) == Selection.parse(text)


def test_one_token_is_not_all_of_them():
    tokens = numbered(1, (3, 3))
    assert select_tokens(tokens, "random(1)").shape[1] == 2
    assert select_tokens(tokens, "random(1.0)").shape[1] == 10


@pytest.mark.parametrize("text", [
    "", "none", "all(3)", "random", "random()", "random(0)", "random(1.5)", "random(-3)", "pooled", "pooled(0)",
    "pooled(2.0)", "pooled(3, replace)", "class(1)", "random(3) please",
])  # fmt: skip
def test_unknown_selections_are_refused_with_the_forms(text):
    with pytest.raises(ValueError, match=r"how must be one of all, class, random\(76\).*; not "):
        Selection.parse(text)


def test_presets_keep_what_paper_and_code_keep():
    """76 + 1 tokens meet 77 text positions; half of 729 is 364; averages come nearest to 6 and to 10 patches each."""
    sides = {"ViT-L-14-336/openai": 24, "ViT-H-14-378-quickgelu/dfn5b": 27, "ViT-SO400M-14-SigLIP-384/webli": 27}
    told = {}
    for name, sources in PRESETS.items():
        side = sides.get(name, 16)
        for source in sources:
            tokens = select_tokens(numbered(1, (side, side)), preset(name, source))
            told[name.removeprefix("ViT-"), source] = tokens.shape[1] - 1
    assert told == {
        ("L-14/openai", "code"): 76, ("L-14/openai", "paper"): round(0.15 * 256),
        ("L-14-336/openai", "code"): 76, ("L-14-336/openai", "paper"): round(0.30 * 576),
        ("L-14-quickgelu/metaclip_fullcc", "code"): 256, ("H-14-quickgelu/metaclip_fullcc", "code"): 256,
        ("H-14-quickgelu/dfn5b", "code"): 256,
        ("H-14-378-quickgelu/dfn5b", "code"): 364, ("H-14-378-quickgelu/dfn5b", "paper"): 364,
        ("SO400M-14-SigLIP/webli", "code"): 49, ("SO400M-14-SigLIP/webli", "paper"): 49,
        ("SO400M-14-SigLIP-384/webli", "code"): 81, ("SO400M-14-SigLIP-384/webli", "paper"): 81,
    }  # fmt: skip
    for patches, wanted, k in ((256, 6, 7), (729, 10, 9)):
        assert min(range(1, 16), key=lambda side: abs(patches / side**2 - wanted)) == k


def test_presets_are_named_as_open_clip_names_its_weights():
    assert {tuple(name.split("/")) for name in PRESETS} <= set(open_clip.list_pretrained())
    with pytest.raises(ValueError, match=r"ViT-L-14/openai.*not for 'RN50/openai'"):
        preset("RN50/openai")
    with pytest.raises(ValueError, match="has code; not 'paper'"):
        preset("ViT-H-14-quickgelu/dfn5b", "paper")


@pytest.fixture
def draw():
    return torch.Generator().manual_seed(5)


@torch.no_grad()
def test_add_by_hand(draw):
    """Weights 1 2 / 0 1, bias 10 20: token (1, 2) becomes (15, 22). Text (1, 1), (3, 5); their mean is (2, 3)."""
    condition = Condition(2, 2, torch.tensor([[1.0, 1.0], [3.0, 5.0]]), "add")
    condition.project.weight.copy_(torch.tensor([[1.0, 2.0], [0.0, 1.0]]))
    condition.project.bias.copy_(torch.tensor([10.0, 20.0]))
    tokens = torch.tensor([[[1.0, 2.0], [0.0, 0.0]]])
    assert condition(tokens).tolist() == [[[16, 23], [13, 25]]]  # position by position
    three = torch.cat([tokens, tokens[:, :1]], dim=1)
    assert condition(three).tolist() == [[[17, 25], [12, 23], [17, 25]]]  # other counts: the mean everywhere
    assert condition(tokens[:, :1]).tolist() == [[[17, 25]]]


@torch.no_grad()
def test_concat_has_the_text_first_and_visual_has_none(draw):
    text, tokens = torch.randn(77, 12, generator=draw), torch.randn(3, 5, 8, generator=draw)
    concat = Condition(8, 12, text, "concat")
    assert concat(tokens).shape == (3, 82, 12)
    assert torch.equal(concat(tokens)[:, :77], text.expand(3, -1, -1))
    assert torch.equal(concat(tokens)[:, 77:], concat.project(tokens))
    for given in (None, text):
        alone = Condition(8, 12, given, "visual")
        assert torch.equal(alone(tokens), alone.project(tokens))


@pytest.mark.parametrize("how", ["add", "concat", "visual"])
@pytest.mark.parametrize("count", [6, 4])
def test_gradient_reaches_projection_and_tokens_but_not_the_text(how, count, draw):
    text = torch.randn(6, 12, generator=draw, requires_grad=True)
    tokens = torch.randn(3, count, 8, generator=draw, requires_grad=True)
    condition = Condition(8, 12, text, how)
    condition(tokens).square().sum().backward()
    assert text.grad is None and not condition.text.requires_grad
    assert tokens.grad.abs().min() > 0
    assert all(p.grad.abs().max() > 0 for p in condition.parameters())
    assert set(dict(condition.named_parameters())) == set(condition.state_dict()) == {"project.weight", "project.bias"}


def test_the_text_embedding_is_a_copy(draw):
    text = torch.randn(1, 6, 12, generator=draw)  # as a text tower gives it
    condition = Condition(8, 12, text)
    kept = condition.text.clone()
    text.zero_()
    assert kept.shape == (6, 12) and torch.equal(condition.text, kept)


@torch.no_grad()
def test_share_by_hand():
    """Two tokens (3, 0), (0, 4) have norm 5 together; text (6, 8) twice has norm sqrt(200) = 14.142."""
    text = torch.tensor([[6.0, 8.0], [6.0, 8.0]])
    tokens = torch.tensor([[[3.0, 0.0], [0.0, 4.0]], [[0.0, 0.0], [0.0, 0.0]]])
    for how, share in (("add", 5 / (5 + 200**0.5)), ("concat", 5 / (5 + 200**0.5)), ("visual", 1.0)):
        condition = Condition(2, 2, text, how)
        condition.project.weight.copy_(torch.eye(2))
        condition.project.bias.zero_()
        assert torch.allclose(condition.visual_share(tokens), torch.tensor([share, 0.0]), atol=1e-6)
        one = condition.visual_share(tokens[:, :1])[0]  # one token of norm 3; added, it meets one text token of norm 10
        expected = {"add": 3 / 13, "concat": 3 / (3 + 200**0.5), "visual": 1.0}[how]
        assert math.isclose(one, expected, rel_tol=1e-6)


def test_share_keeps_no_graph(draw):
    condition = Condition(8, 12, torch.randn(6, 12, generator=draw))
    assert not condition.visual_share(torch.randn(3, 4, 8, generator=draw, requires_grad=True)).requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("how", ["add", "concat", "visual"])
def test_condition_in_any_precision(how, dtype, draw):
    tokens = torch.randn(3, 4, 8, generator=draw)
    condition = Condition(8, 12, torch.randn(6, 12, generator=draw), how)
    single = condition(tokens)
    half = copy.deepcopy(condition).to(dtype)(tokens.to(dtype))
    assert half.dtype == dtype and torch.allclose(half.float(), single, atol=0.05)


def test_wrong_widths_are_named():
    with pytest.raises(ValueError, match="text embedding is 768 wide, the denoiser's context 1024"):
        Condition(512, 1024, torch.zeros(77, 768))
    condition = Condition(512, 1024, torch.zeros(77, 1024))
    with pytest.raises(ValueError, match=r"\(B, N, 512\).*not \(2, 77, 768\)"):
        condition(torch.zeros(2, 77, 768))
    with pytest.raises(ValueError, match=r"\(B, N, 512\).*not \(2, 512\)"):
        condition(torch.zeros(2, 512))


def test_text_is_asked_for_where_needed():
    with pytest.raises(ValueError, match=r"add needs the text embedding, \(T, 4\).*how='visual'"):
        Condition(8, 4)
    with pytest.raises(ValueError, match=r"one embedding, .*not \(2, 77, 4\)"):
        Condition(8, 4, torch.zeros(2, 77, 4))
    with pytest.raises(ValueError, match="one of add, concat, visual; not 'sum'"):
        Condition(8, 4, torch.zeros(77, 4), "sum")


def small_unet(width) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"), cross_attention_dim=width,
    )  # fmt: skip


def test_width_is_read_from_the_unet():
    assert context_width(models.load_denoiser("toy", device="cpu").unet) == 128
    assert context_width(small_unet(20)) == context_width(small_unet((20, 20))) == 20
    assert context_width(SimpleNamespace(config=SimpleNamespace(cross_attention_dim=[1024, 1024]))) == 1024
    for unet, found in ((small_unet((20, 24)), r"\(20, 24\)"), (UNet2DModel(block_out_channels=(32,) * 4), "None")):
        with pytest.raises(ValueError, match=f"must be one width, or equal ones; not {found}"):
            context_width(unet)


@torch.no_grad()
@pytest.mark.parametrize("how", ["add", "concat", "visual"])
@pytest.mark.parametrize("selection", ["all", "class", "random(0.3)", "pooled(2)"])
def test_a_unet_reads_the_condition(how, selection, draw):
    """From pictures to predicted noise, with the shipped toy CLIP and a UNet of another width."""
    model, unet = models.load_clip("toy", device="cpu").model, small_unet((20, 20))
    chosen = select_tokens(visual_tokens(model, pictures(model)), selection, generator=draw)
    condition = Condition(chosen.shape[2], context_width(unet), torch.randn(6, 20, generator=draw), how)
    noise = unet(torch.randn(2, 4, 8, 8, generator=draw), 10, encoder_hidden_states=condition(chosen)).sample
    assert noise.shape == (2, 4, 8, 8) and noise.isfinite().all()
