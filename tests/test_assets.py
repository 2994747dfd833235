"""Assets: downloads from a server of this test's own, verification, offline mode, the hub's cache, archives."""

import hashlib
import io
import json
import os
import re
import socket
import subprocess
import sys
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants

from minilib import assets, download, hub
from minilib.assets import Asset, Damaged, Missing

CONTENT = bytes(range(256)) * 4096  # 1 MiB
GIT_ID = "ea8e482b990b87c0f69d29fd1dd6a41d0f1a514b"
OTHER = CONTENT[::-1]


class Server(ThreadingHTTPServer):
    """Serves ``content`` at any path; each fault is a switch. ``seen`` holds (path, Range, status) of each request."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.etag, self.seen = CONTENT, '"one"', []
        self.cuts = []  # bytes after which the next connections break
        self.ranges, self.conditions, self.length, self.page = True, True, True, False
        self.missing = set()
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def url(self, path="file.bin"):
        return f"http://127.0.0.1:{self.server_port}/{path}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self):
        server, asked = self.server, self.headers.get("Range")
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and server.ranges else 0
        if start and server.conditions and self.headers.get("If-Range") not in (None, server.etag):
            start = 0
        status = 404 if self.path.strip("/") in server.missing else 206 if start else 200
        if start >= len(server.content):
            status = 416
        server.seen.append((self.path, asked, status))
        self.send_response(status)
        body = server.content[start:] if status < 400 else b""
        self.send_header("Content-Type", "text/html" if server.page else "application/octet-stream")
        if server.etag:
            self.send_header("ETag", server.etag)
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{len(server.content) - 1}/{len(server.content)}")
        if status == 416:
            self.send_header("Content-Range", f"bytes */{len(server.content)}")
        if server.length:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: server.cuts.pop(0)] if server.cuts else body)

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    server = Server()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """A home and a hub cache of the test's own, and no environment that says offline."""
    monkeypatch.setenv("MINILIB_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("MINILIB_OFFLINE", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(download.time, "sleep", lambda seconds: None)
    return tmp_path


@pytest.fixture
def listed(monkeypatch):
    """Puts assets in the manifest's place."""

    def put(*entries):
        monkeypatch.setattr(assets, "manifest", lambda: {entry.name: entry for entry in entries})

    return put


def entry(name="thing", *urls, **fields):
    return Asset(name=name, kind="weights", title="a thing", urls=urls, **fields)


@pytest.fixture
def no_socket(monkeypatch):
    def opened(*args, **kwargs):
        pytest.fail("a socket was opened")

    monkeypatch.setattr(socket, "socket", opened)
    monkeypatch.setattr(socket, "getaddrinfo", opened)
    monkeypatch.setattr(socket, "create_connection", opened)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# --- the manifest -----------------------------------------------------------------------------------------------------


def test_manifest_is_sound():
    """Every entry can be read, and what it points at exists; hashes look like hashes; nothing leads out of home."""
    known = assets.manifest()
    assert len(known) == len(json.loads(assets.MANIFEST.read_text()))
    for name, found in known.items():
        assert found.kind in ("weights", "denoiser", "images", "split", "list"), name
        assert found.fallback in (None, "toy", *known) and found.fallback != name
        assert set(found.parts) <= set(known) and (found.folder or not found.parts)
        assert found.homepage and re.match(r"https?://", found.homepage)
        assert bool(found.urls or found.parts) != bool(found.note), f"{name}: a URL, or the reason why there is none"
        for value, digits in ((found.sha256, 64), (found.git_blob, 40), (found.md5, 32)):
            assert value is None or re.fullmatch(f"[0-9a-f]{{{digits}}}", value), name
        for path in filter(None, (found.file, found.folder)):
            assert not Path(path).is_absolute() and ".." not in Path(path).parts
        for url in found.urls:
            revision = hub.place(url, found.revision).revision if url.startswith("hf://") else found.revision
            assert revision is None or re.fullmatch(r"[0-9a-f]{40}", revision), name
            assert re.match(r"https?://[^/]+/|hf://", url)


def test_fallbacks_end():
    for name in assets.manifest():
        chain = [name]
        while chain[-1] in assets.manifest():
            chain.append(assets.manifest()[chain[-1]].fallback)
            assert len(chain) < 6


def test_openai_files_are_known_by_the_hash_in_their_address():
    own = [found for name, found in assets.manifest().items() if name.endswith("/openai.pt")]
    assert len(own) == 6
    assert all(found.urls[0].split("/")[-2] == found.sha256 for found in own)


def test_all_seventeen_sets_have_an_entry():
    shifts = {"imagenet-v2", "imagenet-sketch", "imagenet-a", "imagenet-r", "imagenet-lt", "places-lt"}
    plain = {"imagenet", "caltech101", "oxford_pets", "stanford_cars", "oxford_flowers", "food101", "fgvc", "sun397"}
    names = shifts | plain | {"dtd", "eurosat", "ucf101"}
    assert len(names) == 17 and names <= set(assets.manifest())
    assert all(assets.manifest()[name].fallback == "toy" for name in names)


@pytest.mark.parametrize("name", ["stanford_cars/images", "sun397/images"])
def test_dead_links_are_called_dead(name):
    with pytest.raises(Missing, match=r"links are dead.*get it from https.*put it at .*so that it holds"):
        assets.fetch(name)


def test_unknown_name_gets_the_nearest():
    with pytest.raises(ValueError, match=r"no asset 'oxford-pets'; near it: .*oxford_pets"):
        assets.find("oxford-pets")


# --- downloads --------------------------------------------------------------------------------------------------------


def test_download_arrives_once(server, listed):
    listed(entry("thing", server.url(), sha256=sha256(CONTENT), size=len(CONTENT)))
    assert assets.find("thing") is None
    path = assets.fetch("thing", quiet=True)
    assert path.read_bytes() == CONTENT and assets.find("thing") == path
    assert assets.fetch("thing") == path and len(server.seen) == 1
    assert sorted(file.name for file in path.parent.iterdir()) == ["file.bin"]
    assert assets.recorded()["thing"]["sha256"] == sha256(CONTENT)


def test_cut_connection_goes_on_where_it_stopped(server, listed):
    listed(entry("thing", server.url(), sha256=sha256(CONTENT)))
    server.cuts = [300_000, 200_000]
    assert assets.fetch("thing", quiet=True).read_bytes() == CONTENT
    assert [(asked, status) for _, asked, status in server.seen] == [
        (None, 200), ("bytes=300000-", 206), ("bytes=500000-", 206),
    ]  # fmt: skip


def test_a_later_call_goes_on_where_an_earlier_one_gave_up(server, listed):
    listed(entry("thing", server.url(), sha256=sha256(CONTENT)))
    server.cuts = [1000, 0]
    with pytest.raises(Missing, match=r"cut off; 1,000 bytes are kept in .*file\.bin\.part"):
        assets.fetch("thing", quiet=True)
    server.seen.clear()
    assert assets.fetch("thing", quiet=True).read_bytes() == CONTENT
    assert server.seen == [("/file.bin", "bytes=1000-", 206)]


@pytest.mark.parametrize("fault", ["ranges ignored", "changed", "changed, condition ignored", "shorter now"])
def test_never_mixes_two_files(server, listed, fault):
    """Whatever the server does with the request for the rest, the bytes are those of the file that it has now."""
    listed(entry("thing", server.url()))
    server.cuts = [1000, 0]
    with pytest.raises(Missing):
        assets.fetch("thing", quiet=True)
    server.ranges = fault != "ranges ignored"
    if fault != "ranges ignored":
        server.content, server.etag = (OTHER if fault != "shorter now" else b"short"), '"two"'
    server.conditions = fault == "changed"
    server.seen.clear()
    assert assets.fetch("thing", quiet=True).read_bytes() == server.content
    if fault == "changed":
        assert len(server.seen) == 1, (
            "the request named the file that was begun, so the server gave the new one at once"
        )


def test_nothing_is_asked_twice_when_all_had_come(server, listed):
    """The process died between the last byte and the move: the server answers 416, which says that this is all."""
    listed(entry("thing", server.url(), sha256=sha256(CONTENT)))
    part = assets.home() / "files" / "thing" / "file.bin.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(CONTENT)
    (part.parent / "file.bin.part.json").write_text(json.dumps({"url": server.url(), "etag": server.etag}))
    assert assets.fetch("thing", quiet=True).read_bytes() == CONTENT
    assert [status for *_, status in server.seen] == [416]


def test_server_without_lengths(server, listed):
    server.length = False
    listed(entry("thing", server.url(), sha256=sha256(CONTENT)))
    assert assets.fetch("thing", quiet=True).read_bytes() == CONTENT


def test_second_url_where_the_first_fails(server, listed):
    server.missing = {"gone.bin"}
    listed(entry("thing", server.url("gone.bin"), "http://127.0.0.1:9/closed", server.url("here.bin")))
    assert assets.fetch("thing", quiet=True).name == "here.bin"
    assert [path for path, *_ in server.seen] == ["/gone.bin", "/here.bin"]


def test_no_url_answers_and_each_says_why(server, listed):
    server.missing = {"gone.bin"}
    listed(entry("thing", server.url("gone.bin"), "http://127.0.0.1:9/closed"))
    with pytest.raises(Missing, match=r"gone\.bin: HTTP Error 404.*closed: .*refused"):
        assets.fetch("thing", quiet=True)


def test_web_page_is_not_taken_for_the_file(server, listed):
    server.page = True
    listed(entry("thing", server.url()))
    with pytest.raises(Missing, match="the answer is a web page"):
        assets.fetch("thing", quiet=True)
    assert assets.find("thing") is None


def test_another_size_is_refused_before_it_is_downloaded(server, listed):
    listed(entry("thing", server.url(), size=7))
    with pytest.raises(Missing, match="has 1,048,576 bytes; 7 are expected"):
        assets.fetch("thing", quiet=True)


def test_full_disk_is_said_beforehand(server, listed, monkeypatch):
    listed(entry("thing", server.url()))
    usage = type("Usage", (), {"free": download.MARGIN + len(CONTENT) - 1})
    monkeypatch.setattr(download.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(ValueError, match="make room, or set MINILIB_HOME"):
        assets.fetch("thing", quiet=True)
    usage.free += 1
    assert assets.fetch("thing", quiet=True).stat().st_size == len(CONTENT)


def test_file_addresses(place, listed):
    (place / "origin.bin").write_bytes(CONTENT)
    listed(entry("thing", (place / "origin.bin").as_uri()))
    assert assets.fetch("thing", quiet=True).read_bytes() == CONTENT


def test_bar_can_be_silenced(server, listed, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    listed(entry("loud", server.url("loud.bin")), entry("still", server.url("still.bin")))
    assets.fetch("still", quiet=True)
    assert capsys.readouterr().err == ""
    assets.fetch("loud")
    assert "loud.bin" in capsys.readouterr().err


# --- verification -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sha256", "git_blob", "md5"])
def test_wrong_hash_names_both_and_keeps_the_file(server, listed, kind):
    """The id of CONTENT in Git is what `git hash-object` says of it."""
    right = {"sha256": sha256(CONTENT), "git_blob": GIT_ID, "md5": hashlib.md5(CONTENT).hexdigest()}[kind]
    listed(entry("thing", server.url(), **{kind: right}))
    server.content = OTHER
    with pytest.raises(Damaged, match=f"the manifest says {right}.*run `minilib fetch thing` again"):
        assets.fetch("thing", quiet=True)
    kept = assets.home() / "files" / "thing" / "file.bin.damaged"
    assert kept.read_bytes() == OTHER and assets.find("thing") is None
    server.content = CONTENT
    assert assets.fetch("thing", quiet=True).read_bytes() == CONTENT


def test_mirror_is_asked_where_the_first_file_is_damaged(server, listed, place):
    (place / "mirror.bin").write_bytes(OTHER)
    listed(entry("thing", server.url(), (place / "mirror.bin").as_uri(), sha256=sha256(OTHER)))
    assert assets.fetch("thing", quiet=True).read_bytes() == OTHER


def test_first_use_records_and_later_use_verifies(server, listed):
    listed(entry("thing", server.url()))
    path = assets.fetch("thing", quiet=True)
    path.write_bytes(OTHER + b"!")
    with pytest.raises(Damaged) as caught:
        assets.fetch("thing")
    for word in (sha256(CONTENT), sha256(OTHER + b"!"), "record of its first use", "take its entry out"):
        assert word in str(caught.value)
    assert assets.fetch("thing", quiet=True).read_bytes() == CONTENT


def test_hashes_again_only_when_size_or_time_changed(server, listed, monkeypatch):
    """A change that leaves both as they were is found by ``verify`` alone."""
    listed(entry("thing", server.url(), sha256=sha256(CONTENT)))
    path = assets.fetch("thing", quiet=True)
    calls, honest = [], assets._sums
    monkeypatch.setattr(assets, "_sums", lambda *args: calls.append(args) or honest(*args))
    before = path.stat().st_mtime_ns
    path.write_bytes(OTHER)
    os.utime(path, ns=(before, before))
    assert assets.fetch("thing") == path and not calls
    with pytest.raises(Damaged, match=sha256(OTHER)):
        assets.verify("thing")
    assert len(calls) == 1


def test_verify_gives_the_hash(server, listed):
    listed(entry("thing", server.url()))
    with pytest.raises(Missing, match="run `minilib fetch thing`"):
        assets.verify("thing")
    assets.fetch("thing", quiet=True)
    assert assets.verify("thing") == {"thing": sha256(CONTENT)}


def test_two_processes_record_without_loss(place, monkeypatch):
    code = ("import sys; from minilib import assets\n"
            "for i in range(25): assets._record(f'{sys.argv[1]}{i}', {'sha256': 'x'})")  # fmt: skip
    env = os.environ | {"MINILIB_HOME": str(assets.home()), "PYTHONPATH": str(Path(__file__).parent.parent)}
    running = [subprocess.Popen([sys.executable, "-c", code, name], env=env) for name in "ab"]
    assert [process.wait() for process in running] == [0, 0]
    assert set(assets.recorded()) == {f"{name}{i}" for name in "ab" for i in range(25)}


def test_damaged_record_is_named():
    assets.home().mkdir()
    (assets.home() / "recorded.json").write_text("{")
    with pytest.raises(ValueError, match=r"recorded\.json is damaged .*delete it"):
        assets.recorded()


# --- offline and fallback ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["argument", "MINILIB_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_opens_no_socket(how, server, listed, monkeypatch, no_socket):
    listed(
        entry("web", server.url(), size=2_000_000_000, fallback="toy"),
        entry("hub", "hf://owner/name/file.bin"),
        entry("folder", "hf://owner/name", files=("a.json", "b/*")),
        entry("set", folder="data/set", parts=("web", "hub")),
    )
    if how != "argument":
        monkeypatch.setenv(how, "1")
    for name in ("web", "hub", "folder", "set"):
        with pytest.raises(Missing, match="run `minilib fetch"):
            assets.fetch(name, True if how == "argument" else None)
        assert assets.find(name) is None
    with pytest.raises(Missing, match=r"\(2\.00 GB\); its fallback is toy"):
        assets.fetch("web", True)


def test_every_asset_of_the_manifest_is_missing_offline_without_a_socket(no_socket):
    for name in assets.manifest():
        with pytest.raises(Missing):
            assets.fetch(name, True)


def test_argument_overrules_the_environment(server, listed, monkeypatch):
    monkeypatch.setenv("MINILIB_OFFLINE", "1")
    listed(entry("thing", server.url()))
    assert assets.fetch("thing", False, quiet=True).read_bytes() == CONTENT


def test_missing_is_a_value_error():
    """So the command line answers it with exit code 2, and a caller can fall back to the toy tier."""
    assert issubclass(Missing, ValueError) and issubclass(Damaged, ValueError)


def test_fallback_of_a_fallback(server, listed):
    server.missing = {"a", "b"}
    listed(entry("a", server.url("a"), fallback="b"), entry("b", server.url("b"), fallback="c"),
           entry("c", server.url("c"), fallback="toy"))  # fmt: skip
    with pytest.raises(Missing, match="its fallback is b"):
        assets.fetch("a", quiet=True)
    assert assets.fetch("a", fallback=True, quiet=True) == assets.find("c")
    with pytest.raises(Missing, match=r"^b "):
        assets.fetch("b", True)


def test_toy_is_left_to_the_caller(server, listed):
    server.missing = {"a", "b"}
    listed(entry("a", server.url("a"), fallback="b"), entry("b", server.url("b"), fallback="toy"))
    with pytest.raises(Missing, match=r"^a "):
        assets.fetch("a", fallback=True, quiet=True)


def test_damage_is_not_papered_over_by_a_fallback(server, listed):
    listed(entry("a", server.url("a"), sha256="0" * 64, fallback="b"), entry("b", server.url("b")))
    with pytest.raises(Damaged):
        assets.fetch("a", fallback=True, quiet=True)


# --- archives ---------------------------------------------------------------------------------------------------------


def tar_of(files: dict[str, bytes], mode="w:gz") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def zip_of(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as bag:
        for name, data in files.items():
            bag.writestr(name, data)
    return out.getvalue()


@pytest.mark.parametrize("pack", [tar_of, zip_of])
def test_archive_is_unpacked_beside_what_is_there(pack, server, listed):
    server.content = pack({"top/data/images/1.jpg": b"one", "top/data/labels.txt": b"new", "top/readme": b""})
    listed(entry("set", server.url(), folder="data/set", strip="top/data", holds=("images", "labels.txt")))
    folder = assets.home() / "data" / "set"
    folder.mkdir(parents=True)
    (folder / "labels.txt").write_text("mine")
    assert assets.find("set") is None
    assert assets.fetch("set", quiet=True) == folder == assets.find("set")
    assert sorted(path.name for path in folder.iterdir()) == ["images", "labels.txt"]
    assert (folder / "images" / "1.jpg").read_bytes() == b"one" and (folder / "labels.txt").read_text() == "mine"
    assert assets.verify("set") == {"set": sha256(server.content)}
    assert sorted(path.name for path in folder.parent.iterdir()) == ["set"]


def test_archive_in_an_archive(server, listed):
    server.content = zip_of({"a/inner.tar.gz": tar_of({"images/1.jpg": b"one"})})
    listed(entry("set", server.url(), folder="data/set", strip="a", inner="inner.tar.gz", holds=("images",)))
    assert (assets.fetch("set", quiet=True) / "images" / "1.jpg").read_bytes() == b"one"


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil", "..\\evil", "C:/evil"])
def test_zip_entries_stay_inside(name, server, listed, place):
    server.content = zip_of({"images/1.jpg": b"one", name: b"evil"})
    listed(entry("set", server.url(), folder="data/set", holds=("images",)))
    with pytest.raises(Damaged, match="leads out of the folder"):
        assets.fetch("set", quiet=True)
    assert not [path for path in place.rglob("*") if "evil" in path.name or path.name == "images"]


def test_tar_entries_stay_inside(server, listed, place):
    server.content = tar_of({"images/1.jpg": b"one", "../evil": b"evil"})
    listed(entry("set", server.url(), folder="data/set", holds=("images",)))
    with pytest.raises(Damaged, match="outside the destination"):
        assets.fetch("set", quiet=True)
    assert not [path for path in place.rglob("*") if "evil" in path.name or path.name == "images"]


@pytest.mark.parametrize("fault", ["cut", "other content"])
def test_unsound_archive_is_kept_aside_and_fetched_anew(fault, server, listed):
    sound = tar_of({"images/1.jpg": os.urandom(100_000)})
    server.content = sound[:50_000] if fault == "cut" else tar_of({"else": b""})
    listed(entry("set", server.url(), folder="data/set", holds=("images",)))
    with pytest.raises(Damaged, match=r"cannot be unpacked .*kept as .*file\.bin\.damaged"):
        assets.fetch("set", quiet=True)
    server.content = sound
    assert (assets.fetch("set", quiet=True) / "images").is_dir()


def test_set_is_its_parts(server, listed):
    server.content = tar_of({"images/1.jpg": b"one"})
    by_hand = entry("set/c", folder="data/set", holds=("cars",), note="its links are dead", homepage="https://a.b")
    listed(
        entry("set", folder="data/set", parts=("set/a", "set/c", "set/b")),
        entry("set/a", server.url("a.tgz"), folder="data/set", holds=("images",)),
        entry("set/b", server.url("b.json"), file="data/set/split.json"),
        by_hand,
    )
    with pytest.raises(Missing, match=r"^set/c .*and its links are dead: get it from https://a.b"):
        assets.fetch("set", quiet=True)
    folder = assets.home() / "data" / "set"
    assert sorted(path.name for path in folder.iterdir()) == ["images", "split.json"], "what can be had has come"
    assert assets.find("set") is None
    (folder / "cars").mkdir()
    assert assets.fetch("set", quiet=True) == folder == assets.find("set")
    assert set(assets.verify("set")) == {"set/a", "set/b"}


# --- the hub ----------------------------------------------------------------------------------------------------------


def hub_files(cache: str, repo: str, revision: str, files: dict[str, bytes], ref: str | None = None) -> Path:
    """A repository in the hub cache's layout: blobs, and links to them in a snapshot."""
    root = Path(cache) / f"models--{repo.replace('/', '--')}"
    snapshot = root / "snapshots" / revision
    for name, data in files.items():
        blob, link = root / "blobs" / sha256(data), snapshot / name
        for path in (blob, link):
            path.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(data)
        link.symlink_to(os.path.relpath(blob, link.parent))
    if ref:
        (root / "refs").mkdir(exist_ok=True)
        (root / "refs" / ref).write_text(revision)
    return snapshot


def test_hub_file_is_found_in_its_cache(listed, no_socket):
    commit = "a" * 40
    snapshot = hub_files(constants.HF_HUB_CACHE, "owner/name", commit, {"w/file.bin": b"data"}, ref="main")
    url = "hf://owner/name/w/file.bin"
    listed(entry("newest", url), entry("pinned", url, revision=commit), entry("other", url, revision="b" * 40))
    for name in ("newest", "pinned"):
        assert assets.find(name) == assets.fetch(name, True) == snapshot / "w" / "file.bin"
    assert assets.find("other") is None
    assert assets.recorded()["newest"]["sha256"] == sha256(b"data")


def test_hub_folder_must_be_complete(listed, no_socket):
    """Its SHA-256 is that of the lines `sha256sum` would print for its files, in order of their names."""
    wanted = ("unet/config.json", "unet/w.bin", "images/*")
    listed(entry("sd", "hf://owner/name", revision="a" * 40, files=wanted))
    have = {"unet/config.json": b"{}", "other.bin": b"not wanted"}
    snapshot = hub_files(constants.HF_HUB_CACHE, "owner/name", "a" * 40, have)
    assert assets.find("sd") is None
    hub_files(constants.HF_HUB_CACHE, "owner/name", "a" * 40, {"unet/w.bin": b"w"})
    assert assets.find("sd") is None
    hub_files(constants.HF_HUB_CACHE, "owner/name", "a" * 40, {"images/a b/1.jpg": b"1"})
    assert assets.fetch("sd", True) == snapshot
    lines = [
        f"{sha256(b'1')}  images/a b/1.jpg\n",
        f"{sha256(b'{}')}  unet/config.json\n",
        f"{sha256(b'w')}  unet/w.bin\n",
    ]
    assert assets.verify("sd") == {"sd": sha256("".join(lines).encode())}
    (snapshot / "unet" / "w.bin").resolve().write_bytes(b"ww")
    with pytest.raises(Damaged, match="remove the folder"):
        assets.fetch("sd", True)


def test_damaged_hub_file_is_taken_out_of_the_cache(listed):
    """The link and its blob: else the hub's client would hand out the same bytes again."""
    snapshot = hub_files(constants.HF_HUB_CACHE, "owner/name", "a" * 40, {"file.bin": b"data"})
    blob = (snapshot / "file.bin").resolve()
    listed(entry("thing", "hf://owner/name/file.bin", revision="a" * 40, sha256="0" * 64))
    with pytest.raises(Damaged):
        assets.fetch("thing", True)
    assert not (snapshot / "file.bin").is_symlink() and not blob.exists()
    assert blob.with_name(blob.name + ".damaged").read_bytes() == b"data"


def test_hub_is_asked_for_what_the_address_says(listed, monkeypatch, place):
    asked = []

    def file(repo, path, **options):
        asked.append((repo, path, options))
        if repo == "first/name":
            raise RuntimeError("401: the repository is gone\nmore")
        (place / "got.bin").write_bytes(b"data")
        return str(place / "got.bin")

    def folder(repo, allow_patterns=None, **options):
        asked.append((repo, allow_patterns, options))
        return str(place)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", file)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", folder)
    listed(entry("file", "hf://first/name/w.bin", "hf://second/name@bbb/w.bin", revision="aaa"),
           entry("folder", "hf://datasets/o/n", revision="ccc", files=("*.bin",)),
           entry("gone", "hf://first/name/w.bin"))  # fmt: skip
    assert assets.fetch("file", quiet=True) == place / "got.bin"
    assert assets.fetch("folder", quiet=True) == place
    assert asked == [
        ("first/name", "w.bin", {"repo_type": "model", "revision": "aaa"}),
        ("second/name", "w.bin", {"repo_type": "model", "revision": "bbb"}),
        ("o/n", ["*.bin"], {"repo_type": "dataset", "revision": "ccc"}),
    ]
    with pytest.raises(Missing, match=r"first/name/w\.bin: 401: the repository is gone: run the same again later"):
        assets.fetch("gone", quiet=True)


class Hub(Handler):
    """As much of the hub as its client asks for one file."""

    def do_HEAD(self):
        name = "/owner/name/resolve/main/w/file.bin"
        self.send_response(200 if self.path == name else 404)
        self.send_header("X-Repo-Commit", "c" * 40)
        self.send_header("ETag", f'"{sha256(CONTENT)}"')
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()


def test_hubs_own_client_downloads_and_offline_finds_it(server, place):
    """In processes of their own, since the client reads its environment when it is imported."""
    server.RequestHandlerClass = Hub
    code = ("import sys; from minilib import assets\n"
            "thing = assets.Asset('t', 'weights', 't', ('hf://owner/name/w/file.bin',), sha256=sys.argv[1])\n"
            "assets.manifest = lambda: {'t': thing}; print(assets.fetch('t', quiet=True))")  # fmt: skip
    env = os.environ | {
        "HF_ENDPOINT": server.url("").rstrip("/"), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(place / "hf"), "PYTHONPATH": str(Path(__file__).parent.parent),
    }  # fmt: skip
    for more in ({}, {"MINILIB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"}):
        command = [sys.executable, "-c", code, sha256(CONTENT)]
        done = subprocess.run(command, env=env | more, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert Path(done.stdout.strip()).read_bytes() == CONTENT
        assert f"snapshots/{'c' * 40}/w/file.bin" in done.stdout


@pytest.mark.parametrize("url", ["hf://owner", "hf://", "https://owner/name", "hf://datasets/owner"])
def test_hub_addresses_have_owner_and_name(url):
    with pytest.raises(ValueError, match="OWNER/NAME"):
        hub.place(url)
