"""Cost: arithmetic and bytes derived by hand, parts against whole steps, and the true architectures."""

import dataclasses
import json
import re

import open_clip
import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from minilib import cost, diva, models

MILLION = 1_000_000


def empty(*shape, grad=False):
    return torch.empty(*shape, device="meta", requires_grad=grad)


def tiny(device="meta"):
    """A CLIP, a UNet and an autoencoder of the real families, for pictures of 32 pixels and latents of 16."""
    with torch.device(device):
        clip = open_clip.CLIP(
            24,
            {"image_size": 32, "patch_size": 8, "width": 48, "layers": 2, "head_width": 16},
            {"context_length": 8, "vocab_size": 16, "width": 16, "heads": 2, "layers": 1},
        )
        unet = UNet2DConditionModel(
            sample_size=16, block_out_channels=(32, 64), layers_per_block=1, cross_attention_dim=24, norm_num_groups=8,
            attention_head_dim=2, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        )  # fmt: skip
        vae = AutoencoderKL(
            block_out_channels=(16, 16), norm_num_groups=8, layers_per_block=1,
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        )  # fmt: skip
    return clip.eval(), unet, vae


@pytest.fixture(scope="module")
def costs():
    return cost.measure_modules(*tiny(), tokens=1, pixels=32, precision="float32")


@pytest.fixture(scope="module")
def real():
    """OpenAI's ViT-L/14 with Stable Diffusion 2.1 at 512 pixels, in bfloat16."""
    return cost.measure("ViT-L-14", "sd-2.1")


def test_linear_by_hand():
    """7 rows through 3 -> 5: 2 x 7 x 3 x 5 = 210; backward as much for the weight, and as much for the input."""
    layer = nn.Linear(3, 5, device="meta")
    assert cost.count_flops(lambda: layer(empty(7, 3))) == (210, 210)
    assert cost.count_flops(lambda: layer(empty(7, 3, grad=True))) == (210, 420)
    layer.requires_grad_(False)
    assert cost.count_flops(lambda: layer(empty(7, 3, grad=True))) == (210, 210), "frozen: to the input only"
    assert cost.count_flops(lambda: layer(empty(7, 3))) == (210, 0), "nothing asks for a gradient"


def test_attention_by_hand():
    """2 heads, 5 queries, 7 keys, 4 wide: scores 2 x 2 x 5 x 7 x 4 = 560, their use as much; backward four such."""
    q, k, v = empty(1, 2, 5, 4, grad=True), empty(1, 2, 7, 4, grad=True), empty(1, 2, 7, 4, grad=True)
    assert cost.count_flops(lambda: F.scaled_dot_product_attention(q, k, v)) == (1120, 2240)


def test_convolution_by_hand():
    """3 x 3, 2 -> 4 channels, on 6 x 6 places: 2 x 9 x 2 x 4 x 36 = 5184; to the input of a frozen one as much."""
    layer = nn.Conv2d(2, 4, 3, padding=1, device="meta").requires_grad_(False)
    assert cost.count_flops(lambda: layer(empty(1, 2, 6, 6, grad=True))) == (5184, 5184)


def test_memory_of_a_small_network_by_hand():
    """3 rows, 4 -> 8 -> 2: the input (48 bytes); once, the 3 x 8 numbers that ReLU gives and the next layer reads.

    Alive at most, weights having gradients already: what ReLU gave (96) and its gradient (96), and of the output and
    its sum with their gradients (24 + 24 + 4 + 4), of another gradient of 3 x 8 (96), of a weight's (128) what torch
    holds at that moment.
    """
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).to("meta")
    cost.count_flops(lambda: net(empty(3, 4)))  # leaves the gradients
    saved, peak = cost.count_bytes(lambda: net(empty(3, 4)), net)
    assert saved == 3 * 4 * 4 + 3 * 8 * 4
    assert 96 + 96 <= peak <= 96 + 96 + 24 + 24 + 4 + 4 + 96 + 128
    net.requires_grad_(False)
    assert cost.count_bytes(lambda: net(empty(3, 4)), net)[0] == 0, "nothing to go back for"
    frozen = nn.Linear(4, 8, device="meta").requires_grad_(False)
    assert cost.count_bytes(lambda: frozen(empty(3, 4, grad=True)), frozen)[0] == 0, "a frozen layer needs no input"


def test_a_storage_counts_once():
    """The square of x saves x twice, and a view of x is x."""
    x = empty(10, grad=True)
    assert cost.count_bytes(lambda: x * x.view(10), nn.Identity())[0] == 40


def test_recomputing_keeps_the_inputs_of_blocks_alone():
    """4 blocks of 64 -> 256 -> 64 on 10 rows: each keeps its input (2,560 bytes) and not what lies inside."""
    blocks = nn.ModuleList([nn.Sequential(nn.Linear(64, 256), nn.Sigmoid(), nn.Linear(256, 64)) for _ in range(4)]).to(
        "meta"
    )

    def run(again):
        x = empty(10, 64, grad=True)
        for block in blocks:
            x = checkpoint(block, x, use_reentrant=False) if again else block(x)
        return x

    cost.count_flops(lambda: run(False))
    plain, small = (cost.count_bytes(lambda again=again: run(again), blocks) for again in (False, True))
    assert plain[0] == 4 * (10 * 64 * 4 + 10 * 256 * 4) and small[0] == 4 * 10 * 64 * 4
    assert small[0] < small[1] < plain[1]
    assert cost.count_flops(lambda: run(True))[1] <= sum(cost.count_flops(lambda: run(False))), "what step_flops adds"


def test_fused_attention_keeps_no_scores():
    """Twice the tokens: the fused form keeps twice as much, the plain one nearly four times."""

    def attend(n):
        q, k, v = (empty(1, 2, n, 8, grad=True) for _ in range(3))
        return F.scaled_dot_product_attention(q, k, v)

    fused = [cost.count_bytes(lambda n=n: attend(n), nn.Identity())[0] for n in (256, 512)]
    with cost._saving(nn.Identity()) as few:
        attend(256)
    with cost._saving(nn.Identity()) as many:
        attend(512)
    assert 1.9 < fused[1] / fused[0] < 2.1 and sum(many.values()) / sum(few.values()) > 3.5
    assert F.scaled_dot_product_attention.__module__ != "minilib.cost", "torch is as it was"


@pytest.mark.equation("eq-diva-cost")
def test_parts_add_up_to_a_whole_step(costs):
    """The true ``diva.Feedback`` with real numbers, its latents too, counted in one go: CLIP once, two draws."""
    torch.manual_seed(0)
    model, unet, vae = tiny("cpu")
    denoiser = models.Denoiser(unet, DDPMScheduler(), vae)
    clip = diva.pupil(models.Clip(model, None, "tiny"))
    feedback = diva.Feedback(clip, denoiser, diva.Config(batch=3, draws=2))
    pictures = torch.zeros(3, 3, 32, 32, dtype=torch.uint8)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        latents = denoiser.encode(pictures)
        assert latents.shape == (3, 4, 16, 16)
        noise, times = torch.randn(6, 4, 16, 16), torch.randint(1000, (6,))
        feedback(torch.randn(3, 3, 32, 32), latents, noise, times)[0].mean().backward()
    assert counter.get_total_flops() == 3 * cost.step_flops(costs, draws=2, schedule="once")


@pytest.mark.equation("eq-diva-cost")
def test_schedules_differ_by_what_they_leave_out(costs):
    reference, once, cached = (cost.step_flops(costs, 3, name) for name in cost.SCHEDULES)
    assert reference - once == 2 * (costs.clip.forward + costs.clip.backward)
    assert once - cached == costs.vae.forward
    again = cost.step_flops(costs, 3, "once", checkpointing=True) - once
    assert again == costs.clip.forward + 3 * costs.unet.forward


@pytest.mark.equation("eq-diva-memory")
def test_bytes_of_a_step_by_hand():
    """10 tower weights, 100 frozen ones, 50 in the autoencoder, 7 idle; 3 pictures, 2 draws; CLIP keeps 20, UNet 30."""
    clip, unet = cost.Network(1, 2, 10, 20, 5, 90, 25, 9), cost.Network(1, 1, 100, 25, 4, 90, 30, 8)
    vae = cost.Network(1, 0, 50, 0, 0, 0, 70, 70)
    parts = cost.step_bytes(cost.Costs(clip, unet, vae, 7, "bfloat16"), 3, 2, optimiser="adamw")
    assert list(parts.values()) == [40, 40, 80, 20, 2 * 150, 28, 3 * (20 + 2 * 30)]
    full = cost.step_bytes(cost.Costs(clip, unet, vae, 7, "float32"), 3, 2)
    assert list(full.values()) == [40, 40, 40, 0, 4 * 150, 28, 240]
    literal = cost.step_bytes(cost.Costs(clip, unet, vae, 7, "bfloat16"), 3, 2, "reference")
    assert literal["activations"] == 3 * 70, "one draw at a time, 20 + 30, is less than the autoencoder's 70"
    assert literal["frozen UNet and VAE"] == 4 * 150 + 2 * 100
    small = cost.step_bytes(cost.Costs(clip, unet, vae, 7, "bfloat16"), 3, 2, "cached", checkpointing=True)
    assert small["activations"] == 3 * (5 + 2 * 8)


@pytest.mark.equation("eq-diva-memory")
def test_the_bound_holds_for_a_whole_step(costs):
    """A step composed on the meta device needs what its parts say, to a hundredth: inputs are not among them."""
    model, unet, _ = tiny()
    unet.requires_grad_(False)
    batch, draws = 4, 2

    def step():
        told = model.visual(empty(batch, 3, 32, 32))[:, None].repeat(draws, 1, 1)
        times = empty(draws * batch).long()
        return unet(empty(draws * batch, 4, 16, 16), times, encoder_hidden_states=told).sample

    cost.count_flops(step)
    _, peak = cost.count_bytes(step, model.visual)
    bound = cost.step_bytes(costs, batch, draws, "cached")["activations"]
    assert 0.9 * bound < peak < 1.01 * bound


def test_bytes_grow_with_precision_and_shrink_with_recomputing(costs):
    half = cost.measure_modules(*tiny(), tokens=1, pixels=32, precision="bfloat16")
    assert half.unet.forward == costs.unet.forward and half.clip.weights == costs.clip.weights
    assert 0.5 <= half.unet.saved / costs.unet.saved < 0.6
    for network in (costs.clip, costs.unet):
        assert network.saved_checkpointed < network.saved < network.saved_unfused
        assert network.peak_checkpointed < network.peak and network.saved <= network.peak
    assert costs.vae.saved == costs.vae.backward == 0 < costs.vae.peak


@pytest.mark.parametrize("schedule", cost.SCHEDULES)
@pytest.mark.parametrize("memory", [0.8 * MILLION, 20 * MILLION])
def test_largest_batch_is_the_largest(costs, schedule, memory):
    found = cost.plan(costs, 2, schedule=schedule, memory=memory)
    room = lambda n: sum(cost.step_bytes(costs, n, 2, schedule).values()) <= 0.9 * memory  # noqa: E731
    assert not room(found.largest + 1)
    assert found.largest == 0 or room(found.largest)


def test_least_time_is_arithmetic_over_rate(costs):
    found = cost.plan(costs, 8, draws=3, rate=1e9)
    assert found.seconds == pytest.approx(8 * cost.step_flops(costs, 3) / 1e9)
    assert cost.plan(costs).seconds is None and cost.plan(costs).largest is None


def test_vit_large_by_hand(real):
    """24 blocks on 257 tokens 1024 wide: 12 w^2 weights a token, two products of attention; patches; projection.

    Backward twice that, but for the gradient that the pictures themselves do not need.
    """
    n, w, patches = 257, 1024, 2 * 256 * (3 * 14 * 14) * 1024
    forward = 24 * (2 * 12 * n * w * w + 4 * n * n * w) + patches + 2 * w * 768
    assert (real.clip.forward, real.clip.backward) == (forward, 2 * forward - patches)


def test_stable_diffusion_as_published(real):
    """866 million weights in the UNet and 84 in the autoencoder, as their files have; FLOPs as counted elsewhere."""
    assert [round(x / MILLION) for x in (real.clip.weights, real.unet.weights, real.vae.weights)] == [304, 866, 84]
    giga = [round(x / 1e9) for x in (real.unet.forward, real.unet.backward, real.vae.forward)]
    assert giga == [804, 867, 1117]
    assert [round(cost.step_flops(real, 2, name) / 1e9) for name in cost.SCHEDULES] == [5430, 4945, 3828]
    assert round(real.unet.saved_unfused / 2**30, 1) == 2.2 and round(real.unet.saved_checkpointed / 2**30, 1) == 0.1


def test_goal_and_colab(real):
    """16 pictures with two draws go into 80 GB without recomputing, and with it into the 16 GB of a T4."""
    assert cost.plan(real, 16, memory=80e9).largest >= 16
    half = dataclasses.replace(real, precision="float16")
    assert cost.plan(half, 16, checkpointing=True, memory=16e9).largest >= 16 > cost.plan(half, memory=16e9).largest


def test_stable_diffusion_1_5_has_its_published_size():
    with torch.device("meta"):
        unet = UNet2DConditionModel(**cost.DIFFUSION["sd-1.5"]["unet"])
    assert sum(p.numel() for p in unet.parameters()) == 859_520_964


def test_towers_of_timm_are_counted():
    """SigLIP B/16: 12 blocks on 196 tokens, 768 wide; its attention pooling and patches are under a tenth of it."""
    forward, backward = cost.tower_flops("ViT-B-16-SigLIP")
    blocks = 12 * (2 * 12 * 196 * 768**2 + 4 * 196**2 * 768)
    assert blocks < forward < 1.1 * blocks and 1.9 * forward < backward < 2 * forward


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: cost.measure("ViT-Q"), "clip must be one of .*ViT-L-14.*not 'ViT-Q'"),
        (lambda: cost.measure(diffusion="sdxl"), "diffusion must be one of sd-2.1, sd-1.5; not 'sdxl'"),
        (lambda: cost.measure(precision="int8"), "precision must be one of float32.*not 'int8'"),
        (lambda: cost.measure(pixels=500), "pixels must be a multiple of 64.*not 500"),
    ],
)
def test_bad_names(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize(
    "options, words",
    [
        ({"schedule": "twice"}, "schedule must be one of reference, once, cached; not 'twice'"),
        ({"optimiser": "lion"}, "optimiser must be one of sgd, adamw; not 'lion'"),
        ({"batch": 0}, "batch must be positive; not 0"),
        ({"draws": -1}, "draws must be positive; not -1"),
        ({"memory": 0}, "memory must be positive"),
        ({"rate": 0}, "rate must be positive"),
        ({"spare": 1}, r"spare is a share of the memory, in \[0, 1\); not 1"),
    ],
)
def test_bad_plans(costs, options, words):
    with pytest.raises(ValueError, match=words):
        cost.plan(costs, **options)


def test_without_a_run_every_row_says_so(tmp_path):
    found = cost.read_results(tmp_path / "none.json")
    assert found["hardware"] is None
    assert [(row["part"], row["name"]) for row in found["rows"]] == [(p, n) for p in cost.ROWS for n in cost.ROWS[p]]
    assert {row["status"] for row in found["rows"]} == {"not run"}


def test_a_cut_off_run_keeps_what_it_has(tmp_path):
    row = {"part": "real", "name": "reference", "status": "measured", "seconds": 2.0}
    path = tmp_path / "gpu.json"
    path.write_text(json.dumps({"hardware": "a card", "rows": [row]}))
    found = cost.read_results(path)
    assert found["hardware"] == "a card" and found["rows"][0] == row
    assert [r["status"] for r in found["rows"][1:]] == ["not run"] * (sum(map(len, cost.ROWS.values())) - 1)


@pytest.mark.parametrize("content", ["[]", '{"rows": 3}'])
def test_another_file_is_refused(tmp_path, content):
    path = tmp_path / "gpu.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=re.escape(str(path)) + " must hold what `make gpu` writes"):
        cost.read_results(path)


def test_resnets_are_counted():
    """RN50 at 224 pixels is published with about 6 billion products and sums a picture: twice that in FLOPs."""
    forward, backward = cost.tower_flops("RN50")
    assert 9e9 < forward < 15e9 and backward > forward
