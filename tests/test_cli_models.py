"""``minilib models`` and ``minilib fetch``: what they print, what they refuse, and that they start without torch."""

import argparse
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import constants

from minilib import assets, cli_models, zoo
from minilib.assets import Asset

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("MINILIB_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    return tmp_path


@pytest.fixture
def no_socket(monkeypatch):
    def opened(*args, **kwargs):
        pytest.fail("a socket was opened")

    monkeypatch.setattr(socket, "socket", opened)
    monkeypatch.setattr(socket, "getaddrinfo", opened)


def run(*arguments):
    parser = argparse.ArgumentParser()
    cli_models.add_commands(parser.add_subparsers(required=True))
    args = parser.parse_args(arguments)
    args.run(args)


@pytest.fixture
def listed(monkeypatch, place):
    (place / "origin.bin").write_bytes(b"data")
    entries = (
        Asset("thing", "weights", "a thing", ((place / "origin.bin").as_uri(),), licence="MIT"),
        Asset(
            "cars",
            "images",
            "cars",
            folder="data/cars",
            holds=("x",),
            note="its links are dead",
            homepage="https://a.b",
        ),
    )
    monkeypatch.setattr(assets, "manifest", lambda: {entry.name: entry for entry in entries})


def test_models_shows_every_backbone_and_diffusion(capsys, no_socket):
    run("models")
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split()[0] == "name" and len(lines) == len(zoo.BACKBONES) + len(zoo.STABLE_DIFFUSION)
    (row,) = [line for line in lines if line.startswith("OpenAI ViT-L/14 ")]
    # 427,616,513 parameters: 1.71 GB at four bytes, 0.86 GB at two
    assert row.split("  ") and "427.6 M" in row and "1.71 GB" in row and "0.86 GB" in row and row.endswith("no")


def test_models_as_json_says_what_is_cached(capsys, place, no_socket):
    file = place / "hub/models--timm--ViT-SO400M-14-SigLIP/snapshots"
    file = file / assets.asset("ViT-SO400M-14-SigLIP/webli").revision / "open_clip_model.safetensors"
    own = place / "home/files/RN50/openai.pt/RN50.pt"
    for path in (file, own):
        path.parent.mkdir(parents=True)
        path.write_bytes(b"")
    run("models", "--json")
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert {name: row["cached"] for name, row in rows.items() if row["cached"]} == {
        "SigLIP SO400M/14": str(file), "RN50": str(own),
    }  # fmt: skip
    for name, row in rows.items():
        assert row["memory"] == {"float16": 2 * row["parameters"], "float32": 4 * row["parameters"]}
        assert row["licence"] and row["px"] in (224, 336, 378, 384, 512, 768), name


def test_starts_without_torch():
    code = ("import sys; from minilib import cli_models as c; import argparse\n"
            "p = argparse.ArgumentParser(); c.add_commands(p.add_subparsers())\n"
            "a = p.parse_args(['models']); a.run(a)\n"
            "sys.exit('torch' in sys.modules or 'open_clip' in sys.modules)")  # fmt: skip
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", code], env=env, stdout=subprocess.DEVNULL).returncode == 0


def test_fetch_brings_and_verifies(listed, capsys):
    run("fetch", "thing", "--verify", "--quiet")
    where, digest = capsys.readouterr().out.splitlines()
    # printf data | sha256sum
    assert digest.strip() == "thing: SHA-256 3a6eb0790f39ac87c94f3856b2dd2c5d110e6811602261a9a923d3bb23adc8b7"
    assert Path(where.removeprefix("thing: ")).read_bytes() == b"data"


def test_fetch_offline(listed, no_socket):
    with pytest.raises(ValueError, match="run `minilib fetch thing`"):
        run("fetch", "thing", "--offline")


def test_fetch_list(listed, capsys, no_socket):
    run("fetch", "--list")
    assert [line.split("\t")[:4] for line in capsys.readouterr().out.splitlines()] == [
        ["thing", "weights", "to fetch", "MIT"], ["cars", "images", "by hand", "licence unknown"],
    ]  # fmt: skip


def test_fetch_needs_known_names(no_socket):
    with pytest.raises(ValueError, match="fetch needs names"):
        run("fetch")
    with pytest.raises(ValueError, match=r"there is no asset 'RN5O'; near it: .*RN50/openai"):
        run("fetch", "RN5O", "--offline")


@pytest.mark.parametrize(
    ("name", "asset"),
    [
        ("OpenAI ViT-L/14", "ViT-L-14/openai"),
        ("Stable Diffusion 1.5", "stable-diffusion-1-5"),
        ("mmvp-vlm", "mmvp-vlm"),
    ],
)
def test_papers_names_are_taken_too(name, asset, no_socket):
    with pytest.raises(ValueError, match=f"run `minilib fetch {asset}`"):
        run("fetch", name, "--offline")
