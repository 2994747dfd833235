"""DIVA's training: who runs how often, who moves, parts, processes, going on, bad ends, and what is left at the end."""

import copy
import json
import os
import subprocess
import sys
import threading
import time
import warnings

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, UNet2DConditionModel
from open_clip.transformer import VisionTransformer

from minilib import diva, feedback, lora, models, training, world
from minilib.diva import Config

TINY = {"steps": 3, "batch": 4, "anchor": 0.4}


@pytest.fixture(autouse=True)
def quiet():
    """The log is written with and without tensorboard; that a missing one is told of is the journal's test."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "tensorboard is not installed")
        yield


@pytest.fixture(scope="module")
def clip():
    return models.load_clip("toy-blind", device="cpu")


@pytest.fixture(scope="module")
def images():
    return world.make_scenes(10, seed=0).images


@pytest.fixture(scope="module")
def denoiser(images):
    return small_denoiser(images, 128)


@pytest.fixture(scope="module")
def narrow(images):
    """Its context is not as wide as CLIP's features, so that a projection is needed."""
    return small_denoiser(images, 24)


@pytest.fixture(scope="module")
def text():
    return torch.randn(5, 24, generator=torch.Generator().manual_seed(1))


def small_denoiser(images, width):
    """Random weights; its latents are the four first components of patches of 8 x 8."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            sample_size=4, in_channels=4, out_channels=4, block_out_channels=(8, 16), layers_per_block=1,
            cross_attention_dim=width, attention_head_dim=2, norm_num_groups=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        )  # fmt: skip
    codec = models.PatchPCA(4, 8).fit(torch.from_numpy(images).float() / 255)
    scheduler = DDPMScheduler(prediction_type="v_prediction", clip_sample=False)
    return models.Denoiser(unet, scheduler, codec).eval().requires_grad_(False)


def weights(clip):
    return {k: v.clone() for k, v in clip.model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(v, b[k]) for k, v in a.items())


def near(a, b, start, share=1e-3):
    """Two ends of a run differ by less than a share of the way that it went."""
    way = sum((v.double() - start[k].double()).square().sum() for k, v in a.items()).sqrt()
    apart = sum((v.double() - b[k].double()).square().sum() for k, v in a.items()).sqrt()
    return way > 0 and apart < share * way


def log(folder):
    """The journal, without how fast it went."""
    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in e.items() if k != "images_per_second"} for e in entries]


class Counted:
    """Counts the pictures that pass through a method of a class."""

    def __init__(self, monkeypatch, owner, name="forward"):
        self.calls, real = [], getattr(owner, name)

        def counts(module, x, *args, **kwargs):
            self.calls.append(len(x))
            return real(module, x, *args, **kwargs)

        monkeypatch.setattr(owner, name, counts)


# Who runs, who moves


@pytest.mark.parametrize("draws", [1, 3])
@pytest.mark.parametrize("how", ["joint", "visual"])
def test_clip_runs_once_a_picture_however_many_draws(clip, denoiser, images, monkeypatch, draws, how):
    """The denoiser sees every draw in one call. Apart from the pictures one blank one tells CLIP's width."""
    seen, noised = Counted(monkeypatch, VisionTransformer), Counted(monkeypatch, UNet2DConditionModel)
    config = Config(steps=3, batch=4, draws=draws, anchor=0, condition=how, tokens="all")
    diva.train(clip, denoiser, images, config)
    assert seen.calls == [1, 4, 4, 4] and noised.calls == [4 * draws] * 3


def test_what_does_not_change_is_computed_once(clip, denoiser, images, monkeypatch):
    """Original features and latents of the ten pictures: once, though three steps look at twelve."""
    seen = Counted(monkeypatch, VisionTransformer)
    encoded = Counted(monkeypatch, models.PatchPCA, "encode")
    diva.train(clip, denoiser, images, Config(**TINY))
    assert sorted(seen.calls) == [1, 4, 4, 4, 10] and encoded.calls == [10]


def test_frozen_weights_get_no_gradient_and_the_original_stays(clip, narrow, images, text):
    before, unet = weights(clip), copy.deepcopy(narrow.state_dict())
    kept = []

    def look(step, loss, taught):
        kept.append({name for name, p in taught.model.named_parameters() if p.grad is not None})

    new, losses = diva.train(clip, narrow, images, Config(**TINY, condition="add"), text=text, on_step=look)
    assert len(losses) == 3 and same(weights(clip), before) and same(narrow.state_dict(), unet)
    assert all(name.startswith("visual.") for name in set.union(*kept)) and all(kept)
    for module in (clip.model, narrow, new.model):
        assert all(p.grad is None for p in module.parameters())
    assert not any(p.requires_grad for p in new.model.parameters())
    changed = {k for k, v in new.model.state_dict().items() if not torch.equal(v, before[k])}
    assert "visual.conv1.weight" in changed and all(k.startswith("visual.") for k in changed)


@pytest.fixture
def projections(monkeypatch):
    """Every projection that is made, with its weights at the start."""
    made, real = [], feedback._projection

    def keep(*args):
        made.append(real(*args))
        made.append({k: v.clone() for k, v in made[-1].state_dict().items()})
        return made[-2]

    monkeypatch.setattr(feedback, "_projection", keep)
    return made


@pytest.mark.parametrize("how", ["add", "concat"])
def test_one_stage_moves_tower_and_projection_but_not_the_text(clip, narrow, images, text, projections, how):
    before, words = weights(clip), text.clone()
    new, _ = diva.train(clip, narrow, images, Config(**TINY, condition=how), text=text)
    condition, start = projections
    assert not same(weights(new), before)
    assert all(not torch.equal(v, start[k]) for k, v in condition.state_dict().items())
    assert torch.equal(condition.text, words) and torch.equal(text, words) and not condition.text.requires_grad


def test_two_stages_move_the_projection_then_the_tower(clip, narrow, images, text, projections, tmp_path):
    before, seen = weights(clip), {}

    def meter(taught):
        seen[len(seen)] = (weights(taught), {k: v.clone() for k, v in projections[0].state_dict().items()})
        return {}

    config = Config(**TINY, condition="add", projector_steps=2)
    diva.train(clip, narrow, images, config, text=text, meter=meter, meter_every=1, folder=tmp_path)
    start = projections[1]
    assert len(seen) == 5
    assert all(same(seen[i][0], before) and not same(seen[i][1], start) for i in (0, 1))
    assert all(same(seen[i][1], seen[1][1]) and not same(seen[i][0], seen[i - 1][0]) for i in (2, 3, 4))


def test_every_step_of_the_tower_is_told(clip, narrow, images, text):
    told = []
    config = Config(**TINY, condition="add", projector_steps=2)
    _, losses = diva.train(clip, narrow, images, config, text=text, on_step=lambda *step: told.append(step[:2]))
    assert told == list(enumerate(losses)) and len(losses) == 3


# Parts, processes, precision, memory

SMOOTH = {"steps": 3, "batch": 4, "optimiser": "sgd", "lr": 0.5}


@pytest.mark.parametrize("accumulate", [2, 4])
@pytest.mark.parametrize("how", ["joint", "add"])
def test_a_batch_in_parts_ends_as_the_whole_one(clip, narrow, denoiser, images, text, accumulate, how):
    teacher = denoiser if how == "joint" else narrow
    whole, losses = diva.train(clip, teacher, images, Config(**SMOOTH, condition=how, tokens="all"), text=text)
    config = Config(**SMOOTH, condition=how, tokens="all", accumulate=accumulate)
    parts, other = diva.train(clip, teacher, images, config, text=text)
    assert losses == pytest.approx(other, rel=1e-4)
    assert near(weights(whole), weights(parts), weights(clip))


PROCESSES = """
import sys, torch
sys.path.insert(0, {tests!r})
from test_diva_train import SMOOTH, small_denoiser
from minilib import diva, models, world

torch.set_num_threads(1)
images = world.make_scenes(10, seed=0).images
text = torch.randn(5, 24, generator=torch.Generator().manual_seed(1))
options = dict(condition="add", tokens="all", projector_steps=2, accumulate=2)
teacher = small_denoiser(images, 24)
diva.train(models.load_clip("toy-blind", device="cpu"), teacher, images, diva.Config(**SMOOTH, **options), text=text,
           folder={folder!r})
"""


def test_two_processes_end_as_one(clip, narrow, images, text, root, tmp_path):
    """Each takes half of every batch, in two parts; they meet over gloo, and one of them writes."""
    pytest.importorskip("accelerate")
    if not (torch.distributed.is_available() and torch.distributed.is_gloo_available()):
        pytest.skip("this torch has no gloo, over which two processes of one machine meet")
    script = tmp_path / "two.py"
    script.write_text(PROCESSES.format(tests=str(root / "tests"), folder=str(tmp_path / "run")))
    env = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    done = subprocess.run(launch, env=env, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    config = Config(**SMOOTH, condition="add", tokens="all", projector_steps=2, accumulate=2)
    alone, _ = diva.train(clip, narrow, images, config, text=text)
    path = str(tmp_path / "run" / "open_clip_model.safetensors")
    together = open_clip.create_model("minilib-toy", pretrained=path)
    assert near(weights(alone), together.state_dict(), weights(clip))
    assert [(e["stage"], e["step"]) for e in log(tmp_path / "run")] == [
        ("projection", 0), ("projection", 1), ("tower", 0), ("tower", 1), ("tower", 2),
    ]  # fmt: skip


@pytest.mark.parametrize(("precision", "within"), [("bfloat16", 0.02), ("float16", 0.004)])
def test_half_precision_comes_near(clip, denoiser, images, precision, within):
    """bfloat16 keeps 8 bits and float16 11, so that a loss may be off by a few parts in 2^8 or 2^11."""
    _, exact = diva.train(clip, denoiser, images, Config(**TINY))
    teacher = copy.deepcopy(denoiser)
    new, losses = diva.train(clip, teacher, images, Config(**TINY, precision=precision))
    assert teacher.unet.dtype == diva.PRECISIONS[precision]
    assert losses == pytest.approx(exact, rel=within) and losses != exact
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in new.model.parameters())


def test_checkpointing_gives_the_same_gradient_and_is_switched_off_again(clip, denoiser, images, monkeypatch):
    """The tower's blocks run a second time in the backward pass, and the steps are the same to the bit."""
    from open_clip.transformer import ResidualAttentionBlock

    plain, losses = diva.train(clip, denoiser, images, Config(**TINY))
    blocks = Counted(monkeypatch, ResidualAttentionBlock)
    diva.train(clip, denoiser, images, Config(**TINY))
    usual, blocks.calls[:] = len(blocks.calls), []
    saved, other = diva.train(clip, denoiser, images, Config(**TINY, checkpointing=True))
    assert len(blocks.calls) == usual + 3 * 4  # three steps of four blocks
    assert losses == other and same(weights(plain), weights(saved))
    assert not saved.model.visual.transformer.grad_checkpointing
    assert not denoiser.unet.is_gradient_checkpointing


def test_checkpointing_is_switched_off_also_after_a_bad_end(clip, denoiser, images):
    with pytest.raises(KeyboardInterrupt):
        diva.train(clip, denoiser, images, Config(**TINY, checkpointing=True), on_step=stop_at(0))
    assert not denoiser.unet.is_gradient_checkpointing


# Going on


def stop_at(last):
    def stops(step, loss, taught):
        if step == last:
            raise KeyboardInterrupt

    return stops


KINDS = {
    "joint": {},
    "two stages": {"condition": "add", "projector_steps": 3, "tokens": "random(3)"},
    "average": {"condition": "concat", "ema": 0.5},
    "low rank": {"lora": 2},
    "momentum in parts": {"optimiser": "sgd", "accumulate": 2},
    "float16": {"precision": "float16"},
}


@pytest.mark.parametrize("kind", list(KINDS))
def test_stopped_and_called_again_it_ends_bit_for_bit_the_same(clip, denoiser, narrow, images, text, tmp_path, kind):
    """Stopped after the third step, the second being saved: weights, losses and the log are an undisturbed run's."""
    config = Config(**TINY | {"steps": 5} | KINDS[kind], save_every=2)
    teacher = copy.deepcopy(denoiser if config.condition == "joint" else narrow)
    whole, expected = diva.train(clip, teacher, images, config, text=text, folder=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        diva.train(clip, teacher, images, config, text=text, folder=tmp_path / "parts", on_step=stop_at(2))
    assert len(log(tmp_path / "parts")) == config.projector_steps + 3
    told = []
    again, losses = diva.train(
        clip, teacher, images, config, text=text, folder=tmp_path / "parts", on_step=lambda *step: told.append(step[0])
    )
    assert told == [2, 3, 4] and losses == expected and same(weights(whole), weights(again))
    assert log(tmp_path / "parts") == log(tmp_path / "whole")
    assert len({(e["stage"], e["step"]) for e in log(tmp_path / "parts")}) == len(log(tmp_path / "parts"))


def test_stopped_in_the_first_stage_by_its_meter_it_goes_on_too(clip, narrow, images, text, tmp_path):
    """The step in which the meter broke was not logged; it is not saved either, so its line is not lost."""
    config = Config(**TINY, condition="add", projector_steps=4, save_every=1)
    options = {"text": text, "meter_every": 1}
    quiet = lambda taught: {"seen": 1.0}  # noqa: E731
    whole, _ = diva.train(clip, narrow, images, config, folder=tmp_path / "whole", meter=quiet, **options)
    calls = []

    def breaks(taught):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return quiet(taught)

    with pytest.raises(KeyboardInterrupt):
        diva.train(clip, narrow, images, config, folder=tmp_path / "parts", meter=breaks, **options)
    again, _ = diva.train(clip, narrow, images, config, folder=tmp_path / "parts", meter=quiet, **options)
    assert same(weights(whole), weights(again)) and log(tmp_path / "parts") == log(tmp_path / "whole")
    assert [e["step"] for e in log(tmp_path / "parts")] == [0, 1, 2, 3, 0, 1, 2]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"lr": 1e-5}, "lr 0.0008, now 1e-05"),
        ({"tokens": "all"}, "tokens 'class', now 'all'"),
        ({"seed": 3}, "seed 0, now 3"),
    ],
)
def test_a_folder_of_another_setting_is_refused(clip, denoiser, images, tmp_path, change, said):
    diva.train(clip, denoiser, images, Config(**TINY), folder=tmp_path)
    with pytest.raises(ValueError, match=r"checkpoint-tower.pt is of another run: " + said):
        diva.train(clip, denoiser, images, Config(**TINY, **change), folder=tmp_path)


def test_a_folder_of_another_backbone_or_other_pictures_is_refused(clip, denoiser, images, tmp_path):
    diva.train(clip, denoiser, images, Config(**TINY), folder=tmp_path)
    with pytest.raises(ValueError, match="clip 'toy-blind', now 'toy'"):
        diva.train(models.load_clip("toy", device="cpu"), denoiser, images, Config(**TINY), folder=tmp_path)
    with pytest.raises(ValueError, match="pictures 10, now 9"):
        diva.train(clip, denoiser, images[:9], Config(**TINY), folder=tmp_path)


# Bad ends


@pytest.mark.parametrize("kind", ["loss", "gradient norm"])
def test_what_is_not_finite_stops_and_keeps_the_last_good_state(clip, denoiser, images, tmp_path, monkeypatch, kind):
    """With ten pictures in batches of four the third step, number 2, holds the last two and the next epoch's first."""
    config = Config(steps=5, batch=4)
    whole, expected = diva.train(clip, denoiser, images, config, folder=tmp_path / "whole")
    real, calls = diva.anchor_loss, []

    def breaks(features, original):
        calls.append(1)
        if len(calls) == 3 and kind == "loss":
            return real(features, original) * torch.nan
        if len(calls) == 3:
            features.register_hook(lambda slope: slope * torch.inf)
        return real(features, original)

    monkeypatch.setattr(diva, "anchor_loss", breaks)
    with pytest.raises(FloatingPointError) as caught:
        diva.train(clip, denoiser, images, config, folder=tmp_path / "broken")
    monkeypatch.undo()
    first, second = (np.random.default_rng([0, epoch]).permutation(10).tolist() for epoch in (0, 1))
    said = str(caught.value)
    for part in (f"the {kind} of step 2 is", f"rows {first[8:] + second[:2]}", "checkpoint-tower.pt", "lower lr"):
        assert part in said
    state = torch.load(tmp_path / "broken" / "checkpoint-tower.pt", weights_only=True)
    assert state["losses"] == expected[:2] and all(v.isfinite().all() for v in state["module"].values())
    again, losses = diva.train(clip, denoiser, images, config, folder=tmp_path / "broken")
    assert losses == expected and same(weights(whole), weights(again))
    assert log(tmp_path / "broken") == log(tmp_path / "whole")


def test_a_full_memory_names_the_settings(clip, denoiser, images, monkeypatch):
    def full(*args):
        raise torch.cuda.OutOfMemoryError("tried to allocate 2 GiB")

    monkeypatch.setattr(feedback, "_error", full)
    with pytest.raises(MemoryError, match=r"DIVA tower: .* full in step 0: lower batch, or raise accumulate"):
        diva.train(clip, denoiser, images, Config(**TINY))


class Shelf:
    """Pictures that are read as they are needed; it notes what was asked, and can be told to break."""

    def __init__(self, images, breaks_at=None):
        self.images, self.breaks_at, self.asked = images, breaks_at, []

    def __len__(self):
        return len(self.images)

    def __getitem__(self, rows):
        assert isinstance(rows, np.ndarray) and rows.dtype == np.int64
        self.asked.append(rows.tolist())
        if len(self.asked) - 1 == self.breaks_at:
            raise OSError("picture 7 is cut off")
        return self.images[rows]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_pictures_read_as_needed_give_the_same_and_each_part_is_read_once(clip, denoiser, images, accumulate):
    config = Config(**SMOOTH, accumulate=accumulate)
    at_once, losses = diva.train(clip, denoiser, images, config)
    shelf = Shelf(images)
    lazy, other = diva.train(clip, denoiser, shelf, config)
    assert losses == pytest.approx(other, rel=1e-5) and near(weights(at_once), weights(lazy), weights(clip))
    orders = [np.random.default_rng([0, epoch]).permutation(10).tolist() for epoch in (0, 1)]
    size = 4 // accumulate
    assert shelf.asked == [[*orders[0], *orders[1]][i : i + size] for i in range(0, 12, size)]


def test_the_next_part_is_read_while_this_one_is_computed(clip, denoiser, images):
    """Before step i is done, the pictures of step i + 1 have been asked for, in another thread; after the last none."""
    counts, readers = [], set()

    class Watched(Shelf):
        def __getitem__(self, rows):
            readers.add(threading.current_thread())
            return super().__getitem__(rows)

    shelf = Watched(images)

    def counted(step, loss, taught):
        patience = time.monotonic() + 10
        while len(shelf.asked) < min(step + 2, 3) and time.monotonic() < patience:
            time.sleep(0.01)
        counts.append(len(shelf.asked))

    diva.train(clip, denoiser, shelf, Config(**TINY), on_step=counted)
    assert counts == [2, 3, 3] and threading.main_thread() not in readers


@pytest.mark.parametrize("breaks_at", [0, 2])
def test_an_error_of_the_reader_reaches_the_caller_and_nothing_hangs(clip, denoiser, images, breaks_at):
    before = threading.active_count()
    with pytest.raises(OSError, match="picture 7 is cut off"):
        diva.train(clip, denoiser, Shelf(images, breaks_at), Config(**TINY))
    assert threading.active_count() == before


def test_pictures_on_a_shelf_need_not_have_the_clips_size(clip, denoiser):
    """48 pixels: the denoiser's latents are then 6 x 6, CLIP gets them resized."""
    large = np.random.default_rng(0).integers(0, 256, (4, 3, 48, 48), dtype=np.uint8)
    _, losses = diva.train(clip, denoiser, Shelf(large), Config(**TINY))
    assert len(losses) == 3 and np.isfinite(losses).all()


# What is left


def test_the_result_loads_by_plain_open_clip(clip, denoiser, images, tmp_path):
    new, _ = diva.train(clip, denoiser, images, Config(**TINY), folder=tmp_path)
    path = tmp_path / "open_clip_model.safetensors"
    model = open_clip.create_model("minilib-toy", pretrained=str(path))
    loaded = models.Clip(model, clip.tokenizer, "loaded")
    assert torch.equal(loaded.encode_images(images), new.encode_images(images))
    assert torch.equal(loaded.encode_texts(["a red circle"]), new.encode_texts(["a red circle"]))
    card = json.loads((tmp_path / "card.json").read_text())
    assert card["config"]["steps"] == 3 and card["pictures"] == 10 and card["name"] == "toy-blind+diva"
    assert path.name in card["sha256"]


def test_low_rank_updates_are_merged_into_plain_layers(clip, denoiser, images, tmp_path):
    """Each weight differs by a matrix of that rank or not at all; types and names are open_clip's own again, and the
    features are those that the tower had before the merge, in its last step."""
    before, seen = weights(clip), []
    look = lambda step, loss, taught: seen.append(taught.encode_images(images))  # noqa: E731
    new, _ = diva.train(clip, denoiser, images, Config(**TINY, lora=2), folder=tmp_path, on_step=look)
    kinds = lambda model: [(name, type(m)) for name, m in model.named_modules()]  # noqa: E731
    assert kinds(new.model) == kinds(clip.model) and weights(new).keys() == before.keys()
    assert torch.allclose(new.encode_images(images), seen[-1], atol=1e-5)
    assert not torch.allclose(seen[-1], clip.encode_images(images), atol=1e-5)
    ranks = {}
    for name, value in weights(new).items():
        change = (value - before[name]).double()
        if change.any():
            size = torch.linalg.svdvals(change)  # rounding of the sum leaves about 1e-7 of a weight of order one
            ranks[name] = int((size > 1e-3 * size[0]).sum())
    assert set(ranks.values()) <= {1, 2} and len(ranks) == 4 * 4  # in each block in_proj, out_proj, c_fc, c_proj
    assert all(name.startswith("visual.transformer.resblocks") and name.endswith("weight") for name in ranks)
    assert same(weights(clip), before)
    model = open_clip.create_model("minilib-toy", pretrained=str(tmp_path / "open_clip_model.safetensors"))
    assert same(model.state_dict(), weights(new))


def test_low_rank_moves_nothing_else(clip):
    """In each of four blocks: in_proj 128 -> 384, out_proj 128 -> 128, and an MLP of 128 -> 512 -> 128."""
    taught = diva.pupil(clip)
    lora.add_lora(taught.model, taught.model.visual, 2, seed=0)
    moves = sum(p.numel() for p in taught.model.parameters() if p.requires_grad)
    assert moves == 4 * 2 * ((128 + 384) + (128 + 128) + 2 * (128 + 512))


@pytest.mark.parametrize("name", ["toy", "timm"])
def test_low_rank_features_and_gradient_are_those_of_the_sum(clip, name):
    """W + B A put into the weights by hand gives the same features; B's gradient is the sum's times A, transposed."""
    model = copy.deepcopy(clip.model)
    if name == "timm":
        vision = {"timm_model_name": "vit_tiny_patch16_224", "timm_pool": "token", "timm_proj": "linear",
                  "image_size": 224}  # fmt: skip
        text = {"context_length": 8, "vocab_size": 16, "width": 16, "heads": 2, "layers": 1}
        model = open_clip.CustomTextCLIP(24, vision, text)
    taught, plain = (models.Clip(copy.deepcopy(model).double(), None, name) for _ in range(2))
    places = lora.add_lora(taught.model, taught.model.visual, 2, seed=0)
    rng = torch.Generator().manual_seed(0)
    named = {id(m): key for key, m in taught.model.named_modules()}
    sums = []
    for layer, weight in places:
        update = layer.parametrizations[weight][0]
        update.b.data = torch.randn(update.b.shape, generator=rng, dtype=torch.float64) / 10
        twin = plain.model.get_submodule(named[id(layer)])
        getattr(twin, weight).data += (update.b @ update.a).detach()
        sums.append((update, getattr(twin, weight)))
    assert len(sums) >= 16
    pixels = torch.randn(2, 3, *model.visual.image_size, generator=rng, dtype=torch.float64)
    a, b = (F.normalize(c.model.encode_image(pixels), dim=-1) for c in (taught, plain))
    assert torch.allclose(a, b, rtol=1e-10, atol=1e-12)
    aim = torch.randn(a.shape, generator=rng, dtype=torch.float64)
    ours = torch.autograd.grad((a * aim).sum(), [u.b for u, _ in sums])
    theirs = torch.autograd.grad((b * aim).sum(), [w for _, w in sums])
    for (update, _), ours_b, whole in zip(sums, ours, theirs, strict=True):
        assert torch.allclose(ours_b, whole @ update.a.T, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("options", [{"lora": 2}, {"condition": "visual", "tokens": "random(0.5)"}])
def test_a_seed_decides_first_weights_and_tokens_whatever_was_drawn_before(clip, denoiser, images, options):
    torch.manual_seed(1)
    first, losses = diva.train(clip, denoiser, images, Config(**TINY, **options))
    state = torch.get_rng_state()
    torch.manual_seed(2)
    second, other = diva.train(clip, denoiser, images, Config(**TINY, **options))
    assert losses == other and same(weights(first), weights(second))
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)  # nor does it draw from torch's global generator
    third, _ = diva.train(clip, denoiser, images, Config(**TINY, **options, seed=1))
    assert not same(weights(first), weights(third))


def test_every_picture_comes_once_an_epoch_in_an_order_of_its_own(clip, denoiser):
    shelf = Shelf(world.make_scenes(8, seed=1).images)
    diva.train(clip, denoiser, shelf, Config(steps=6, batch=4, anchor=0))
    epochs = [[*shelf.asked[i], *shelf.asked[i + 1]] for i in (0, 2, 4)]
    assert all(sorted(rows) == list(range(8)) for rows in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_the_meter_is_logged_when_it_is_due(clip, denoiser, images, tmp_path):
    meter = lambda taught: {"drift": float((taught.encode_images(images) - clip.encode_images(images)).norm())}  # noqa: E731
    diva.train(clip, denoiser, images, Config(**TINY | {"steps": 4}), folder=tmp_path, meter=meter, meter_every=2)
    entries = log(tmp_path)
    assert ["drift" in e for e in entries] == [False, True, False, True]
    assert entries[1]["drift"] > 0 and all(e["gradient_norm"] > 0 and e["lr"] > 0 for e in entries)


def test_kl_and_anchor_hold_features_back(clip, denoiser, images):
    """The heavier the term, the nearer the features stay to where they were."""
    bank, home = clip.encode_texts(["a red circle", "a blue square", "a green star"]), clip.encode_images(images)

    def drift(**terms):
        config = Config(steps=6, batch=8, lr=2e-3, **terms)
        return float((diva.train(clip, denoiser, images, config, bank=bank)[0].encode_images(images) - home).norm())

    free = drift(anchor=0)
    assert drift(anchor=10) < free and drift(anchor=0, kl=30) < free


def test_wrong_image_conditions_on_the_next_picture(clip, denoiser, images):
    """The features are the pictures' own; the condition is the neighbour's, as if CLIP had been shown that."""
    options = {"anchor": 0, "batch": 4}
    right = diva.Feedback(diva.pupil(clip), denoiser, Config(**options))
    wrong = diva.Feedback(diva.pupil(clip), denoiser, Config(**options, wrong_image=True))
    pixels, z = clip.preprocess(images[:4]), denoiser.encode(images[:4])
    noise, times = training.draw_noise(z, 1000, torch.Generator().manual_seed(0))
    shown_right, features = right(pixels, z, noise, times)
    shown_wrong, own = wrong(pixels, z, noise, times)
    as_if, _ = right(pixels.roll(1, 0), z, noise, times)
    assert torch.equal(own, features) and torch.allclose(shown_wrong, as_if, rtol=1e-5)
    assert not torch.allclose(shown_wrong, shown_right, rtol=1e-5)


# What train refuses


def test_what_cannot_work_is_named_before_anything_is_computed(clip, denoiser, narrow, images, text, monkeypatch):
    monkeypatch.setattr(diva, "optimise", lambda *args, **kwargs: pytest.fail("it began"))
    train = lambda teacher=denoiser, pictures=images, **kw: diva.train(  # noqa: E731
        clip, teacher, pictures, Config(**TINY | kw.pop("config", {})), **kw
    )
    for said, call in {
        "batch of 4 needs at least that many pictures; got 3": {"pictures": images[:3]},
        r"uint8 of shape \(n, 3, height, width\); not .*\(10, 32, 32, 3\)": {"pictures": images.transpose(0, 2, 3, 1)},
        "not float32 of shape": {"pictures": images.astype(np.float32)},
        "below the denoiser's 1000 noise levels; not 1000": {"config": {"first": 1000}},
        "kl needs bank=": {"config": {"kl": 1.0}},
        "context is 24 wide, the features are 128": {"teacher": narrow},
        r"add needs the text embedding, \(T, 24\)": {"teacher": narrow, "config": {"condition": "add"}},
        "the text embedding is 5 wide": {"teacher": narrow, "config": {"condition": "add"}, "text": text[:, :5]},
    }.items():
        with pytest.raises(ValueError, match=said):
            train(**call)


def test_pictures_of_another_shape_on_a_shelf_are_named(clip, denoiser, images):
    with pytest.raises(ValueError, match="uint8 of shape"):
        diva.train(clip, denoiser, Shelf(images.transpose(0, 2, 3, 1)), Config(**TINY))


def test_processes_and_parts_must_divide_the_batch(clip, denoiser, images, monkeypatch):
    monkeypatch.setattr(diva, "_processes", lambda device: (0, 4))
    with pytest.raises(ValueError, match="batch of 4 cannot be split evenly over 4 processes with 2 parts each"):
        diva.train(clip, denoiser, images, Config(**TINY, accumulate=2))


def test_clip_and_denoiser_must_share_a_device(clip, denoiser):
    elsewhere = copy.deepcopy(denoiser).to("meta")
    with pytest.raises(ValueError, match="CLIP is on cpu, the denoiser on meta"):
        diva.Feedback(diva.pupil(clip), elsewhere, Config())
