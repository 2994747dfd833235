"""minilib diva: what a person types, the files that come of it, and with which code it ends."""

import json
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from test_models import stable_diffusion, text_tower  # noqa: F401

from minilib import arms, cli, cli_diva, diva, evaluate, features, mmvp, models, world
from minilib.pictures import Pictures

pytestmark = pytest.mark.filterwarnings("ignore")
SMALL = ["--pairs", "2", "--test", "200", "--train", "200", "--shots", "3", "--device", "cpu"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for i, image in enumerate(world.make_scenes(12, seed=5).images):
        Image.fromarray(image.transpose(1, 2, 0)).save(folder / f"{i:02}.png")
    return folder


def train(pictures: Path, out: Path, *more: str, denoiser: str = "toy", clip: str = "toy-blind") -> list[str]:
    given = ["--clip", clip, "--denoiser", denoiser, "--out", str(out), "--batch", "4", "--device", "cpu"]
    return ["diva", "train", str(pictures), *given, *more]


@pytest.fixture(scope="module")
def trained(pictures, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("run") / "out"
    assert cli.main(train(pictures, out, "--steps", "2", "--warmup", "0", "--seed", "3")) == 0
    return out


# --- train ------------------------------------------------------------------------------------------------------------


def test_it_trains_as_the_library_does(pictures, trained):
    """Same pictures, crops and gap, through the library: the same weights, which plain open_clip loads."""
    clip, denoiser = models.load_clip("toy-blind", device="cpu"), models.load_denoiser("toy", device="cpu")
    images = Pictures(pictures, size=32, seed=3)
    told = world.make_scenes(1000, seed=cli_diva.TRAIN_SEED, detail=0.9).captions
    gap = diva.modality_gap(clip.encode_images(images[:]), clip.encode_texts(told))
    refined, losses = diva.train(clip, denoiser, images, diva.Config(steps=2, warmup=0, batch=4, seed=3), gap=gap)
    plain = open_clip.create_model("minilib-toy", pretrained=str(trained / "open_clip_model.safetensors"))
    wanted = refined.model.state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in plain.state_dict().items())
    assert any(not torch.equal(value, wanted[name]) for name, value in clip.model.state_dict().items())
    log = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in log] == pytest.approx(losses)


def test_it_says_what_it_did_and_names_what_it_skipped(pictures, tmp_path, capsys):
    shutil.copytree(pictures, tmp_path / "in")
    (tmp_path / "in" / "05.png").write_bytes(b"no picture")
    assert cli.main(train(tmp_path / "in", tmp_path / "out", "--steps", "3")) == 0
    said = capsys.readouterr().out
    assert "12 pictures of 32 px, 1 skipped; loss " in said and f"weights: {tmp_path}/out/open_clip_model" in said


def test_two_stages_from_flags(pictures, tmp_path):
    more = ["--preset", "two-stage", "--projector-steps", "1", "--steps", "1", "--precision", "float32", "--lora", "2"]
    assert cli.main(train(pictures, tmp_path / "out", *more, "--tokens", "random(0.5)", "--checkpointing")) == 0
    config = json.loads((tmp_path / "out" / "card.json").read_text())["config"]
    given = {"projector_steps": 1, "tokens": "random(0.5)", "lora": 2, "checkpointing": True, "condition": "add"}
    assert config.items() >= given.items() and config["timesteps"] == "logit-normal"


def test_a_stable_diffusion_folder_at_its_own_size(stable_diffusion, pictures, tmp_path, capsys):  # noqa: F811
    """Latents of 8 x 8, twice that in pixels, since the tiny autoencoder halves once."""
    more = ["--condition", "visual", "--steps", "1"]
    assert cli.main(train(pictures, tmp_path / "out", *more, denoiser=str(stable_diffusion))) == 0
    assert "12 pictures of 16 px" in capsys.readouterr().out


def test_a_text_tower_of_another_model_is_refused(stable_diffusion, text_tower, pictures, tmp_path, capsys):  # noqa: F811
    for part in ("text_encoder", "tokenizer"):
        shutil.copytree(text_tower[0] / part, stable_diffusion / part)
    more = ["--condition", "add", "--steps", "1"]
    assert cli.main(train(pictures, tmp_path / "out", *more, denoiser=str(stable_diffusion))) == 2
    assert "the text embedding is 16 wide, the denoiser's context 24" in capsys.readouterr().err


def parsed(*more: str):
    return cli._parser().parse_args(["diva", "train", "p", "--denoiser", "d", "--out", "o", *more])


def test_presets_with_the_published_tokens_of_a_backbone():
    """Of ViT-L/14 the code keeps 76 tokens drawn with replacement, the paper says 15 %; flags go before presets."""
    args = parsed("--clip", "ViT-L-14/openai", "--preset", "reference", "--batch", "16", "--no-checkpointing")
    config = cli_diva._config(args, args.clip)
    assert (config.tokens, config.batch, config.optimiser) == ("random(76, replace)", 16, "sgd")
    args = parsed("--clip", "ViT-L-14/openai", "--preset", "two-stage", "--tokens", "paper")
    assert cli_diva._config(args, args.clip).tokens == "random(0.15)"
    args = parsed("--clip", "toy-blind", "--preset", "reference")
    assert cli_diva._config(args, args.clip).tokens == "all"


def test_flags_and_names_are_those_of_the_library():
    """The parser names them itself, so that it need not import torch."""
    config = diva.Config(ema=0.5)
    assert {f.name: type(getattr(config, f.name)) for f in fields(config)} == {
        name: kind for name, (kind, _) in cli_diva.SETTINGS.items()
    }
    assert tuple(diva.CONFIGS) == cli_diva.PRESETS and cli_diva.READOUTS == mmvp.READOUTS
    assert set(cli_diva.ARMS) == set(arms.ARMS) - {"images"}  # no teacher that saw images only is shipped


def test_the_command_starts_without_torch(root):
    code = "import sys; from minilib import cli; cli._parser(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=root).returncode == 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--batch", "13"], "a batch of 13 needs at least that many pictures; got 12"),
        (["--device", "cuda:99"], "no GPU here for device='cuda:99'"),
        (["--clip", "toy-blin"], "not 'toy-blin'"),
        (["--clip", "ViT-B-32"], "ViT-B-32 needs pretrained="),
        (["--clip", "toy/nowhere"], "there is no file nowhere of weights"),
        (["--denoiser", "nowhere"], "there is no folder nowhere"),
        (["--tokens", "code"], "there are presets for"),
        (["--tokens", "many"], "how must be one of all, class"),
        (["--condition", "sum"], "condition must be one of"),
        (["--captions", "EMPTY"], "holds no caption"),
        (["--lr", "0"], "lr must be positive"),
        (["--size", "0"], "size must be a whole number"),
    ],
)
def test_bad_input_is_one_line_and_code_2(pictures, tmp_path, more, message, capsys):
    (tmp_path / "empty.txt").write_text("\n")
    more = [str(tmp_path / "empty.txt") if word == "EMPTY" else word for word in more]
    assert cli.main(train(pictures, tmp_path / "out", "--steps", "1", *more)) == 2
    said = capsys.readouterr().err
    assert message in said and said.startswith("minilib: ") and said.count("\n") == 1


def test_no_pictures_is_code_2(tmp_path, capsys):
    assert cli.main(train(tmp_path, tmp_path / "out")) == 2
    assert "there are no pictures in" in capsys.readouterr().err
    assert cli.main(train(tmp_path / "nowhere", tmp_path / "out")) == 2
    assert "there is no " in capsys.readouterr().err


@pytest.mark.parametrize(("error", "code"), [(FloatingPointError, 1), (MemoryError, 2), (KeyboardInterrupt, 130)])
def test_what_stops_a_run_is_a_line_and_a_code(pictures, tmp_path, error, code, capsys, monkeypatch):
    def stop(*given, **named):
        raise error("the loss is nan: lower lr")

    monkeypatch.setattr(diva, "train", stop)
    assert cli.main(train(pictures, tmp_path / "out")) == code
    assert ("start the same command again" if code == 130 else "lower lr") in capsys.readouterr().err


# --- eval -------------------------------------------------------------------------------------------------------------


def test_eval_compares_a_result_with_where_it_came_from(trained, tmp_path, capsys):
    """The pairs are counted again by hand, from features of the same toy world."""
    out = tmp_path / "e.json"
    command = ["diva", "eval", "--clip", f"toy-blind/{trained}", "--before", "toy-blind", "--seed", "1"]
    assert cli.main([*command, "--out", str(out), "--readout", "pooled", "local", *SMALL]) == 0
    report = json.loads(out.read_text())
    assert set(report) == {"settings", "before", "clip", "comparison"} and not list(tmp_path.glob("*.part"))
    pairs = world.make_pairs(2, seed=3 * (cli_diva.TEST_SEED + 1))
    won = {}
    for role, clip in (
        ("before", models.load_clip("toy-blind", device="cpu")),
        ("clip", models.load_clip("toy", str(trained), "cpu")),
    ):
        won[role] = evaluate.pair_accuracy(*features.pair_features(clip, pairs))
        found = report[role]["pooled"]
        assert found["pairs"] == pytest.approx(won[role].mean()) and set(report[role]) == {"pooled", "local"}
        assert {"interval", "zero_shot", "probes", "chance"} <= set(found)
    comparison = report["comparison"]["pooled"]
    assert comparison["won"] == (won["clip"] & ~won["before"]).sum()
    assert comparison["p"] == pytest.approx(evaluate.mcnemar(won["before"], won["clip"]))
    assert all("p_holm" in row for row in comparison["patterns"].values())
    assert "pooled: gain " in capsys.readouterr().out


@pytest.fixture
def benchmark(tmp_path) -> Path:
    """Two patterns with two pairs each, in MMVP-VLM's layout."""
    rows, folder = ["Question ID,Type,Statement"], tmp_path / "mmvp"
    pairs = [pair for pair in world.make_pairs(2, seed=9) if pair.pattern in ("colour", "count")]
    for i, pair in enumerate(pairs):
        place = folder / "MLLM_VLM Images" / pair.pattern
        place.mkdir(parents=True, exist_ok=True)
        for k, side in ((2 * i + 1, "a"), (2 * i + 2, "b")):
            rows.append(f"{k},{pair.pattern},{getattr(pair, f'statement_{side}')}")
            Image.fromarray(getattr(pair, f"image_{side}").transpose(1, 2, 0)).save(place / f"{k}.png")
    (folder / "Questions.csv").write_text("\n".join(rows) + "\n")
    return folder


def test_eval_on_the_benchmarks_folder(benchmark, tmp_path, capsys):
    out = tmp_path / "e.json"
    command = ["diva", "eval", "--clip", "toy", "--mmvp", str(benchmark), "--out", str(out), *SMALL]
    assert cli.main(command) == 0
    report = json.loads(out.read_text())
    clip, pairs = models.load_clip("toy", device="cpu"), mmvp.read_mmvp(benchmark)
    won = mmvp.solved(clip, pairs)["pooled"]
    assert report["clip"]["pooled"]["won"] == won.sum() and report["clip"]["pooled"]["n"] == 4
    assert set(report["clip"]["pooled"]["patterns"]) == {"colour", "count"} and "before" not in report
    (benchmark / "Questions.csv").unlink()
    assert cli.main(command) == 2 and "Questions.csv" in capsys.readouterr().err


# --- controls ---------------------------------------------------------------------------------------------------------


def test_controls_stand_beside_each_other_in_one_file(tmp_path, capsys):
    out = tmp_path / "c.json"
    out.write_text("an older file")
    given = ["--steps", "2", "--seeds", "0,1", "--arms", "noise,toy", "--batch", "8", "--out", str(out)]
    assert cli.main(["diva", "controls", *given, *SMALL]) == 0
    report = json.loads(out.read_text())
    assert list(report) == ["settings", "before", "noise", "toy"] and not list(tmp_path.glob("*.part"))
    for arm in ("before", "noise", "toy"):
        assert {"pairs", "interval", "zero_shot", "probes"} <= set(report[arm])
        assert set(report[arm]["probes"]) == set(report["before"]["probes"])
    clip = models.load_clip("toy-blind", device="cpu")
    won = evaluate.pair_accuracy(*features.pair_features(clip, world.make_pairs(2, seed=3 * cli_diva.TEST_SEED)))
    assert report["before"]["pairs"] == pytest.approx(won.mean())
    for arm in ("noise", "toy"):
        seeds = report[arm]["seeds"]
        assert set(seeds) == {"0", "1"} and seeds["0"]["probe_mean"] != seeds["1"]["probe_mean"]
        for key in ("pairs", "zero_shot"):
            assert report[arm][key] == pytest.approx(np.mean([seed[key] for seed in seeds.values()]))
        gain = report[arm]["pairs"] - report["before"]["pairs"]
        assert report[arm]["gain"]["gain"] == pytest.approx(gain) and len(report[arm]["gain"]["by_seed"]) == 2
    assert "noise, seed 1: pairs " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--arms", "toy,magic"], "arms must be of toy, noise"),
        (["--arms", "images"], "not images"),
        (["--arms", "toy,toy"], "arms must be named each once; not 'toy,toy'"),
        (["--arms", ","], "arms must name at least one"),
        (["--seeds", ""], "seeds must name at least one"),
        (["--seeds", "1,1"], "seeds must be named each once"),
        (["--seeds", "one"], "seeds must be whole numbers with commas between them; not 'one'"),
        (["--seeds=-1"], "seeds must be named from 0 on"),
        (["--out", "nowhere/c.json"], "out must be a file in a folder that exists; not nowhere/c.json"),
        (["--device", "cuda:99"], "no GPU here"),
        (["--pairs", "0"], "pairs must be at least 1; not 0"),
        (["--steps", "0"], "steps must be positive; not 0"),
    ],
)
def test_bad_controls_end_before_the_work(tmp_path, more, message, capsys):
    assert cli.main(["diva", "controls", "--out", str(tmp_path / "c.json"), *more]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1 and not list(tmp_path.iterdir())


def test_an_unknown_command_is_code_2(capsys):
    for given in (["diva"], ["diva", "teach"], ["diva", "train", "p"]):
        with pytest.raises(SystemExit) as ended:
            cli.main(given)
        assert ended.value.code == 2
