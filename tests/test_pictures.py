"""pictures: folders and shards as one array; every kind of picture becomes RGB, every unusable one keeps its reason."""

import io
import os
import tarfile
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from minilib.pictures import Pictures

RED, WHITE, BLACK = (255, 0, 0), (255, 255, 255), (0, 0, 0)


def plain(path: Path, colour=RED, size=(40, 40)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def shard(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def png(colour, size=(40, 40)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, colour).save(out, "png")
    return out.getvalue()


def colours(pictures: Pictures) -> list[tuple[int, ...]]:
    """The one colour of each picture."""
    seen = pictures[:]
    assert (seen == seen[:, :, :1, :1]).all()
    return [tuple(map(int, picture[:, 0, 0])) for picture in seen]


@pytest.fixture
def ramp(tmp_path: Path) -> Path:
    """A picture, 200 x 100, whose red is the column and whose green is the row."""
    values = np.zeros((100, 200, 3), np.uint8)
    values[..., 0], values[..., 1] = np.arange(200), np.arange(100)[:, None]
    Image.fromarray(values).save(tmp_path / "ramp.png")
    return tmp_path / "ramp.png"


# --- where pictures come from -----------------------------------------------------------------------------------------


def test_folders_shards_files_and_globs_come_in_a_stated_order(tmp_path: Path) -> None:
    plain(tmp_path / "a" / "2.png", (2, 0, 0))
    plain(tmp_path / "a" / "deep" / "1.PNG", (1, 0, 0))
    plain(tmp_path / "a" / ".hidden.png")
    (tmp_path / "a" / "notes.txt").write_text("no picture")
    for k in (3, 4):
        inside = {f"{k}1.png": png((k, 1, 0)), f"{k}1.txt": b"a caption", f"x/{k}0.png": png((k, 0, 0))}
        shard(tmp_path / f"{k}.tar", inside)
    p = Pictures([tmp_path / "a", str(tmp_path / "*.tar"), tmp_path / "3.tar"], size=8)
    assert len(p) == 6 and colours(p) == [(2, 0, 0), (1, 0, 0), (3, 1, 0), (3, 0, 0), (4, 1, 0), (4, 0, 0)]
    assert p.names[2] == f"{tmp_path}/3.tar/31.png" and p.skipped == []
    assert colours(Pictures(tmp_path / "a" / "2.png", size=8)) == [(2, 0, 0)]
    assert len(Pictures(tmp_path, size=8)) == 6  # a folder may hold both


def test_a_shard_is_the_folder_it_was_packed_from(tmp_path: Path) -> None:
    """Rows read at random from a shard are those of the loose files, byte for byte, crop included."""
    rng = np.random.default_rng(0)
    files = {}
    for i in range(9):
        out = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (30 + i, 50, 3), dtype=np.uint8)).save(out, "png")
        files[f"{i}.png"] = out.getvalue()
        (tmp_path / f"{i}.png").write_bytes(out.getvalue())
    loose, packed = (Pictures(path, size=16, seed=3) for path in (tmp_path, shard(tmp_path / "s.tar", files)))
    rows = np.array([7, 0, 7, 3])
    assert (packed[rows] == loose[:9][rows]).all()


def test_rows_are_those_of_a_numpy_array(tmp_path: Path) -> None:
    for i in range(5):
        plain(tmp_path / f"{i}.png", (i, 0, 0))
    p = Pictures(tmp_path, size=8, threads=1)
    whole = p[:]
    assert whole.shape == (5, 3, 8, 8) and whole.dtype == np.uint8
    for rows in (np.array([4, 1, 1]), [0], 3, -1, slice(1, None, 2), np.zeros((2, 2), int), np.zeros(0, int)):
        assert np.array_equal(p[rows], whole[rows])
    assert np.array_equal(p[whole[:, 0, 0, 0] > 2], whole[3:])
    with pytest.raises(IndexError):
        p[np.array([5])]


# --- crops ------------------------------------------------------------------------------------------------------------


def test_without_a_crop_the_middle_square_is_taken(ramp: Path) -> None:
    """Of 200 x 100 the middle 100 columns, 50 to 149, at a scale of one: the very pixels."""
    (seen,) = Pictures(ramp, size=100, crop=None)[:]
    assert (seen[0] == np.arange(50, 150)).all() and (seen[1] == np.arange(100)[:, None]).all() and not seen[2].any()


def test_a_random_crop_is_a_square_of_the_share_asked_for(tmp_path: Path, ramp: Path) -> None:
    """The ramp tells where a crop lay: red spans its width, green its height, to about a pixel at each end."""
    for i in range(40):
        (tmp_path / f"copy{i:02}.png").write_bytes(ramp.read_bytes())
    seen = Pictures(sorted(tmp_path.glob("copy*")), size=50, crop=(0.25, 0.81))[:].astype(int)
    width, height = (seen[:, k].max((1, 2)) - seen[:, k].min((1, 2)) for k in (0, 1))
    assert (abs(width - height) <= 3).all() and (width >= 47).all() and (height <= 90).all()
    assert np.ptp(width) > 25 and np.ptp(seen[:, 0].min((1, 2))) > 60  # shares and places both vary
    left, right = seen[:, 0].min((1, 2)), seen[:, 0].max((1, 2))
    assert left.min() >= 0 and right.max() <= 199


def test_seed_and_row_alone_decide_a_crop(tmp_path: Path, ramp: Path) -> None:
    for i in range(6):
        (tmp_path / f"copy{i}.png").write_bytes(ramp.read_bytes())
    files = sorted(tmp_path.glob("copy*"))
    whole = Pictures(files, size=32, seed=1)[:]
    p = Pictures(files, size=32, seed=1, threads=1)
    again = np.stack([p[i] for i in (3, 1, 5, 0, 2, 4)])[[3, 1, 4, 0, 5, 2]]
    assert np.array_equal(whole, again)
    assert len({x.tobytes() for x in whole}) == 6
    assert not np.array_equal(whole, Pictures(files, size=32, seed=2)[:])


def test_small_pictures_are_enlarged_down_to_a_limit(tmp_path: Path) -> None:
    plain(tmp_path / "0.png", size=(9, 30))
    plain(tmp_path / "1.png", size=(300, 7))
    p = Pictures(tmp_path, size=64)
    with pytest.warns(UserWarning, match="1.png is skipped: 300 x 7 pixels: the shorter side must have at least 8"):
        assert p[:].shape == (2, 3, 64, 64)
    assert colours(Pictures(tmp_path, size=64, smallest=7)) == [RED, RED]


# --- every kind of picture becomes RGB --------------------------------------------------------------------------------


def kind_grey(path):
    Image.new("L", (20, 20), 7).save(path / "x.png")
    return (7, 7, 7)


def kind_bilevel(path):
    Image.new("1", (20, 20), 1).save(path / "x.png")
    return WHITE


def kind_sixteen_bits(path):
    """Half of 65,535 is 128 of 255, rounded."""
    Image.fromarray(np.full((20, 20), 32_896, np.uint16)).save(path / "x.png")
    return (128, 128, 128)


def kind_sixteen_bits_tiff(path):
    Image.fromarray(np.full((20, 20), 257, np.uint16)).save(path / "x.tif")
    return (1, 1, 1)


def kind_palette(path):
    picture = Image.new("P", (20, 20), 1)
    picture.putpalette([0, 0, 0, 10, 20, 30])
    picture.save(path / "x.png")
    return (10, 20, 30)


def kind_transparent_palette(path):
    picture = Image.new("P", (20, 20), 1)
    picture.putpalette([0, 0, 0, 10, 20, 30])
    picture.save(path / "x.png", transparency=1)
    return WHITE


def kind_alpha(path):
    """A fifth of black (51 of 255) on white leaves four fifths of 255."""
    Image.new("RGBA", (20, 20), (0, 0, 0, 51)).save(path / "x.png")
    return (204, 204, 204)


def kind_grey_alpha(path):
    Image.new("LA", (20, 20), (0, 0)).save(path / "x.png")
    return WHITE


def kind_cmyk(path):
    """No ink but all of the yellow: red and green stay, blue goes."""
    Image.new("CMYK", (20, 20), (0, 0, 255, 0)).save(path / "x.tif")
    return (255, 255, 0)


def kind_animated(path):
    frames = [Image.new("RGB", (20, 20), colour) for colour in (RED, BLACK, WHITE)]
    frames[0].save(path / "x.gif", save_all=True, append_images=frames[1:])
    return RED


def kind_webp(path):
    frames = [Image.new("RGB", (20, 20), colour) for colour in (WHITE, BLACK)]
    frames[0].save(path / "x.webp", save_all=True, append_images=frames[1:], lossless=True)
    return WHITE


@pytest.mark.parametrize("kind", [f for n, f in sorted(globals().items()) if n.startswith("kind_")])
def test_every_kind_becomes_rgb(tmp_path: Path, kind) -> None:
    expected = kind(tmp_path)
    assert colours(Pictures(tmp_path, size=8)) == [expected]


def test_a_cmyk_jpeg_is_not_inverted(tmp_path: Path) -> None:
    """Such files store ink inverted; JPEG may move a flat colour by a level or two."""
    Image.new("CMYK", (32, 32), (0, 255, 255, 0)).save(tmp_path / "x.jpg", quality=100)
    (seen,) = Pictures(tmp_path, size=8)[:].astype(int)
    assert (abs(seen - np.array(RED)[:, None, None]) <= 3).all()


def test_a_picture_is_turned_as_its_exif_says(tmp_path: Path) -> None:
    """Orientation 6: the camera was turned, so the stored left edge is the top of what was seen."""
    values = np.zeros((32, 32, 3), np.uint8)
    values[:, :16] = 255  # bright on the stored left
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(values).save(tmp_path / "x.png", exif=exif)
    (seen,) = Pictures(tmp_path, size=32, crop=None)[:]
    assert (seen[:, :16] == 255).all() and not seen[:, 16:].any()


# --- what cannot be used ----------------------------------------------------------------------------------------------


def bomb() -> bytes:
    """A PNG header that claims 20,000 x 20,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = (20_000).to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def floating() -> bytes:
    out = io.BytesIO()
    Image.new("F", (20, 20), 0.5).save(out, "tiff")
    return out.getvalue()


def beyond() -> bytes:
    out = io.BytesIO()
    Image.new("I", (20, 20), 70_000).save(out, "tiff")
    return out.getvalue()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "no format that PIL reads"),
        (b"<html>not found</html>", "no format that PIL reads"),
        (png(RED, (64, 64))[:60], "cannot be decoded"),
        (bomb(), "exceeds limit"),
        (floating(), "floating-point numbers of unknown range"),
        (beyond(), "beyond 16 bits"),
    ],
)
def test_an_unusable_picture_is_replaced_by_the_next_and_named_once(tmp_path: Path, data: bytes, reason: str) -> None:
    inside = {"0.png": png((0, 0, 0)), "1.png": data, "2.png": data, "3.png": png((3, 0, 0))}
    p = Pictures(shard(tmp_path / "s.tar", inside), size=8)
    with pytest.warns(UserWarning) as said:
        assert colours(p) == [BLACK, (3, 0, 0), (3, 0, 0), (3, 0, 0)]
    messages = [str(w.message) for w in said if "skipped" in str(w.message)]
    assert len(messages) == 2 and all(reason in m for m in messages)
    assert [name for name, _ in p.skipped] == [f"{tmp_path}/s.tar/{i}.png" for i in (1, 2)]
    assert all(reason in why for _, why in p.skipped)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert colours(p) == [BLACK, (3, 0, 0), (3, 0, 0), (3, 0, 0)]


def test_pils_own_limit_holds_below_its_error(tmp_path: Path, monkeypatch) -> None:
    """PIL only warns up to twice its limit; here the limit is the limit."""
    plain(tmp_path / "0.png", BLACK, (10, 10))
    plain(tmp_path / "1.png", RED, (15, 10))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    p = Pictures(tmp_path, size=8)
    with pytest.warns(UserWarning, match="15 x 10 pixels are more than PIL's limit of 100"):
        assert colours(p) == [BLACK, BLACK]  # the last row is followed by the first


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "0.png")
    plain(tmp_path / "1.png")
    assert colours(Pictures(tmp_path, size=8)) == [RED]


def test_the_replacing_picture_does_not_depend_on_the_order_of_reading(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    for i in range(12):
        file = tmp_path / f"{i:02}.png"
        Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(file)
        if i in (0, 4, 5, 11):
            file.write_bytes(file.read_bytes()[:200])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        p, q = (Pictures(tmp_path, size=16, threads=t) for t in (4, 1))
        backwards = np.stack([q[i] for i in range(11, -1, -1)])[::-1]
        assert np.array_equal(p[:], backwards) and p.skipped == q.skipped and len(p.skipped) == 4
    assert np.array_equal(p[11], p[1]) and np.array_equal(p[4], p[6])


def test_nothing_usable_is_an_error_and_not_a_loop(tmp_path: Path) -> None:
    for i in range(30):
        (tmp_path / f"{i}.jpg").write_bytes(b"no picture")
    p = Pictures(tmp_path, size=8)
    for _ in range(2):
        with warnings.catch_warnings(), pytest.raises(ValueError, match=r"none of 30 pictures .*0\.jpg: no"):
            warnings.simplefilter("ignore")
            p[np.arange(20)]


def test_a_file_that_vanishes_is_a_reason(tmp_path: Path) -> None:
    plain(tmp_path / "0.png", BLACK)
    gone = plain(tmp_path / "1.png")
    p = Pictures(tmp_path, size=8)
    gone.unlink()
    with pytest.warns(UserWarning, match="1.png is skipped: cannot be decoded .*No such file"):
        assert colours(p) == [BLACK, BLACK]


@pytest.mark.parametrize("cut", ["in a picture", "in a header", "before the end mark", "garbled"])
def test_a_damaged_shard_gives_what_is_whole_and_names_the_rest(tmp_path: Path, cut: str) -> None:
    """Each picture takes a header of 512 bytes and its data, filled up to 512."""
    data = png(RED)
    assert len(data) <= 512
    whole = shard(tmp_path / "s.tar", {f"{i}.png": data for i in range(4)}).read_bytes()
    at = {"in a picture": 3 * 1024 + 520, "in a header": 3 * 1024 + 100, "before the end mark": 4 * 1024}.get(cut)
    content = whole[:at] if at else whole[: 3 * 1024] + b"?" * 512 + whole[3 * 1024 + 512 :]
    (tmp_path / "s.tar").write_bytes(content)
    with pytest.warns(UserWarning, match=r"s\.tar: the shard is damaged \(.*what comes after is not read"):
        p = Pictures(tmp_path, size=8)
    assert (
        len(p) == {"in a picture": 4, "before the end mark": 4}.get(cut, 3) and p.skipped[0][0] == f"{tmp_path}/s.tar"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert colours(p) == [RED] * len(p)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path / "nowhere", "there is no .*nowhere: give folders, globs"),
        (lambda path: str(path / "*.tar"), r"there is no .*\*\.tar"),
        (lambda path: path, r"there are no pictures in .*: looked for pictures \(\.bmp, \.gif, .*or \.tar shards"),
        (lambda path: [], "there are no pictures in no path at all"),
        (lambda path: shard(path / "s.tar", {"a.txt": b"words"}), "there are no pictures in .*s.tar"),
    ],
)
def test_no_pictures_is_an_error_that_says_what_was_looked_for(tmp_path: Path, make, message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        Pictures(make(tmp_path), size=8)


def test_other_files_are_refused_by_name(tmp_path: Path) -> None:
    for name, message in (
        ("s.tar.gz", "s.tar.gz is not a plain shard.*unpack it"),
        ("x.csv", "x.csv is not a picture"),
    ):
        (tmp_path / name).write_bytes(b"1")
        with pytest.raises(ValueError, match=message):
            Pictures(tmp_path / name, size=8)
    (tmp_path / "torn.tar").write_bytes(b"1")
    with pytest.warns(UserWarning), pytest.raises(ValueError, match=r"no pictures in .*torn.tar.*the shard is damaged"):
        Pictures(tmp_path / "torn.tar", size=8)


@pytest.mark.parametrize("wrong", [{"size": 0}, {"size": 8.0}, {"smallest": 0}, {"threads": 0}])
def test_numbers_out_of_range_are_named(tmp_path: Path, wrong: dict) -> None:
    (name,) = wrong
    with pytest.raises(ValueError, match=f"{name} must be a whole number, at least 1; not {wrong[name]}"):
        Pictures(tmp_path, **({"size": 8} | wrong))


@pytest.mark.parametrize("crop", [(0, 1), (0.9, 1.1), (1.0, 0.9), (0.5,)])
def test_a_crop_out_of_range_is_named(tmp_path: Path, crop) -> None:
    with pytest.raises(ValueError, match="crop must be None or two shares"):
        Pictures(tmp_path, size=8, crop=crop)
