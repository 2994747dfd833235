"""pools: rows come out of every format as they went in, keys tell rows apart, and damage is named."""

import doctest
import gzip
import io
import json
import os
import random
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minilib import keys as key_module
from minilib import pools as module
from minilib.keys import row_keys
from minilib.pools import (
    REASONS,
    Columns,
    DamagedShard,
    atomic,
    check_columns,
    copy_rows,
    estimate_rows,
    list_shards,
    output_name,
    read_rows,
)

FORMATS = (".parquet", ".jsonl", ".jsonl.gz", ".tar")


def write_shard(path: Path, rows: list[dict]) -> Path:
    """Rows of text, url, id and image (bytes); by the suffix: columns, fields, or members of a sample."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=7)
    elif path.suffix == ".tar":
        with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
            for n, row in enumerate(rows):
                fields = json.dumps({k: v for k, v in row.items() if k not in ("text", "image")}).encode()
                text = {"txt": row["text"].encode()} if row.get("text") is not None else {}
                for extension, content in {"jpg": row.get("image", b""), **text, "json": fields}.items():
                    member = tarfile.TarInfo(f"part/{n:06d}.{extension}")
                    member.size, member.mtime, member.mode = len(content), 1e9 + n, 0o600 + n % 8
                    tar.addfile(member, io.BytesIO(content))
    else:
        lines = [json.dumps({**row, "image": row.get("image", b"").hex()}) + "\n" for row in rows]
        content = "".join(lines).encode()
        path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def read_back(path: Path) -> list[tuple]:
    """(url, image) of each row, by each format's own library."""
    if path.suffix == ".parquet":
        return [(row["url"], row["image"]) for row in pq.read_table(path).to_pylist()]
    if path.suffix == ".tar":
        with tarfile.open(path) as tar:
            found = {member.name: tar.extractfile(member).read() for member in tar}
        names = [name[:-5] for name in found if name.endswith(".json")]
        return [(json.loads(found[f"{name}.json"])["url"], found[f"{name}.jpg"]) for name in names]
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [(row["url"], bytes.fromhex(row["image"])) for row in map(json.loads, content.splitlines())]


def some_rows(n: int) -> list[dict]:
    bits = random.Random(0)
    return [{"text": f"cat é {n}", "url": f"u{n}", "id": n, "image": bits.randbytes(n * 37 % 900)} for n in range(n)]


def copied(shard: Path, folder: Path, keep: np.ndarray) -> Path:
    """The shard's rows where ``keep`` is true, in a file of the same format."""
    done = 0

    def take(n: int) -> np.ndarray:
        nonlocal done
        done += n
        return keep[done - n : done]

    target = folder / f"copy{shard.name[shard.name.index('.') :]}"
    with atomic(target) as file:
        copy_rows(shard, file, take)
    assert done == len(keep)
    return target


def test_docstring_examples() -> None:
    assert doctest.testmod(module).failed == 0
    assert doctest.testmod(key_module).failed == 0


# --- rows travel ---


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("batch", [1, 5, 16_384])
def test_rows_are_read_and_copied_as_they_are(suffix: str, batch: int, tmp_path: Path, monkeypatch) -> None:
    """Batches of any size give the same rows; a copy holds the kept ones' pictures bit for bit, in order."""
    monkeypatch.setattr(module, "BATCH_ROWS", batch)
    rows = some_rows(40)
    shard = write_shard(tmp_path / f"shard{suffix}", rows)
    batches = list(read_rows(shard, Columns()))
    assert max(len(found.codes) for found in batches) <= batch
    assert [text for found in batches for text in found.text.to_pylist()] == [row["text"] for row in rows]
    assert not any(found.codes.any() for found in batches) and all(found.once.all() for found in batches)
    keep = np.arange(40) % 3 == 1
    first, again = (copied(shard, tmp_path, keep).read_bytes() for _ in range(2))
    assert first == again
    assert read_back(tmp_path / f"copy{suffix}") == [(row["url"], row["image"]) for row in rows[1::3]]


def test_tar_members_keep_name_time_and_mode(tmp_path: Path) -> None:
    """All headers, long names of the pax format included, are copied byte for byte; so is a sample of odd members."""
    shard = tmp_path / "shard.tar"
    names = ["a.jpg", "a.seg.png", "é" * 120 + ".txt", "deep/a.txt", "deep/a.JSON", "README"]
    with tarfile.open(shard, "w", format=tarfile.PAX_FORMAT) as tar:
        for n, name in enumerate(names):
            member = tarfile.TarInfo(name)
            member.size, member.mtime, member.mode = 2, 1.5 + n, 0o640
            tar.addfile(member, io.BytesIO(b"{}"))
    (batch,) = read_rows(shard, Columns())
    assert batch.text.to_pylist() == ["", "{}", "{}", ""]
    with tarfile.open(copied(shard, tmp_path, np.array([True, True, False, True]))) as tar:
        found = [(member.name, member.mtime, member.mode) for member in tar]
    assert found == [(names[n], 1.5 + n, 0o640) for n in (0, 1, 2, 5)]


def test_parquet_keeps_types_metadata_and_compression(tmp_path: Path) -> None:
    schema = pa.schema(
        [pa.field("text", pa.dictionary(pa.int32(), pa.string())), pa.field("boxes", pa.list_(pa.float32()))],
        metadata={b"source": b"a web"},
    )
    table = pa.table({"text": pa.array(["x", "y", None]).dictionary_encode(), "boxes": [[1.5], [], None]}, schema)
    pq.write_table(table, tmp_path / "s.parquet", compression="zstd")
    target = copied(tmp_path / "s.parquet", tmp_path, np.array([True, False, True]))
    assert pq.read_table(target).equals(pq.read_table(tmp_path / "s.parquet").take([0, 2]), check_metadata=True)
    assert [batch.text.to_pylist() for batch in read_rows(target, Columns())] == [["x", ""]]
    assert pq.read_metadata(target).row_group(0).column(0).compression == "ZSTD"


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_shard_without_rows(suffix: str, tmp_path: Path) -> None:
    shard = tmp_path / f"s{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.table({"text": pa.array([], pa.string())}), shard)
    else:
        write_shard(shard, [])
    assert sum(len(batch.codes) for batch in read_rows(shard, Columns())) == 0 == estimate_rows(shard)
    assert list(read_rows(copied(shard, tmp_path, np.zeros(0, bool)), Columns())) == []


@pytest.mark.parametrize("suffix", FORMATS)
def test_rows_are_estimated_within_a_tenth(suffix: str, tmp_path: Path) -> None:
    rows = [{"text": f"cat {n}", "url": f"u{n:05d}", "image": b"abc"} for n in range(3000)]
    assert estimate_rows(write_shard(tmp_path / f"s{suffix}", rows)) == pytest.approx(3000, rel=0.1)


# --- rows that are not sound ---


def test_each_bad_line_has_its_reason(tmp_path: Path) -> None:
    lines = {
        b'{"text": "cat"}': "kept",
        b'{"text": null}': "missing caption",
        b'{"url": "u"}': "missing caption",
        b'{"text": 5}': "caption is not a string",
        b'{"text": ["cat"]}': "caption is not a string",
        b'{"text": "\xff"}': "invalid UTF-8",
        b'{"text": "\\ud800"}': "invalid UTF-8",
        b"[1]": "not a JSON object",
        b"{": "not a JSON object",
        b'{"a":' * 10**5: "not a JSON object",
        '{"text": "\\ud83d\\ude00 \u00e9"}'.encode(): "kept",
    }
    (tmp_path / "s.jsonl").write_bytes(b"\n \n".join(lines))  # blank lines are no rows
    (batch,) = read_rows(tmp_path / "s.jsonl", Columns())
    assert [REASONS[code] for code in batch.codes] == list(lines.values())
    assert [text for text in batch.text.to_pylist() if text] == ["cat", "😀 é"]


@pytest.mark.parametrize("type_", [pa.string(), pa.large_string(), pa.binary()])
def test_null_and_invalid_captions_in_parquet(type_: pa.DataType, tmp_path: Path) -> None:
    """Readers do not check UTF-8: a column that claims to hold strings can hold any bytes."""
    values = pa.array([b"cat", None, b"\xff\xfe", b""], pa.binary())
    if type_ != pa.binary():
        large = values.cast(pa.large_binary())
        kind, source = (pa.StringArray, values) if type_ == pa.string() else (pa.LargeStringArray, large)
        bitmap, offsets, data = source.buffers()
        values = kind.from_buffers(4, offsets, data, bitmap)
    pq.write_table(pa.table({"text": values}), tmp_path / "s.parquet")
    (batch,) = read_rows(tmp_path / "s.parquet", Columns())
    assert [REASONS[code] for code in batch.codes] == ["kept", "missing caption", "invalid UTF-8", "kept"]
    assert batch.text.to_pylist() == ["cat", "", "", ""]


def test_rows_need_an_id_where_ids_are_asked_for(tmp_path: Path) -> None:
    values = [7, "7", None, True, 1.5, "x"]
    (tmp_path / "s.jsonl").write_text("\n".join(json.dumps({"text": "cat", "key": v}) for v in values))
    (batch,) = read_rows(tmp_path / "s.jsonl", Columns(id="key"))
    assert [REASONS[code] for code in batch.codes] == ["kept", "kept", *["missing id"] * 3, "kept"]
    assert batch.keys[0] == batch.keys[1] != batch.keys[5]


# --- damage ---


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl.gz", ".tar"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 0.99])
def test_a_truncated_shard_is_damaged(suffix: str, share: float, tmp_path: Path) -> None:
    shard = write_shard(tmp_path / f"s{suffix}", some_rows(200))
    if suffix == ".tar":  # past its last member a tar holds zeros only: losing some of those loses nothing
        os.truncate(shard, shard.stat().st_size // tarfile.RECORDSIZE * tarfile.RECORDSIZE - tarfile.RECORDSIZE + 1)
    os.truncate(shard, int(shard.stat().st_size * share))
    with pytest.raises(DamagedShard, match=r"cannot be read to its end.*fetch or write it again") as caught:
        list(read_rows(shard, Columns()))
    assert 0 <= caught.value.rows < 200


def test_flipped_bytes_are_damage_too(tmp_path: Path) -> None:
    for suffix, at in ((".jsonl.gz", 0.5), (".tar", 0.5), (".parquet", 0.999)):
        shard = write_shard(tmp_path / f"s{suffix}", some_rows(200))
        content = bytearray(shard.read_bytes())
        place = int(len(content) * at) // 512 * 512 if suffix == ".tar" else int(len(content) * at)
        content[place : place + 3000] = b"\x55" * len(content[place : place + 3000])
        shard.write_bytes(content)
        with pytest.raises(DamagedShard):
            list(read_rows(shard, Columns()))


def test_a_shard_that_is_gone_is_no_damage(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        list(read_rows(tmp_path / "s.jsonl", Columns()))


# --- columns and files ---


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_missing_column_is_named_with_those_that_are_there(suffix: str, tmp_path: Path) -> None:
    shard = write_shard(tmp_path / f"s{suffix}", some_rows(3))
    with pytest.raises(ValueError, match=r"has no column 'caption': it has .*text.*; name one with --text"):
        check_columns(shard, Columns(text="caption"))
    with pytest.raises(ValueError, match=r"no column 'lang'.*--language"):
        list(read_rows(shard, Columns(language="lang")))
    assert "text" in check_columns(shard, Columns(url="nowhere"))


def test_a_column_of_the_wrong_type_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": [1, 2], "id": [0.5, 1.5]}), tmp_path / "s.parquet")
    with pytest.raises(ValueError, match=r"column 'text' of .*s.parquet must hold strings; not int64"):
        check_columns(tmp_path / "s.parquet", Columns())
    pq.write_table(pa.table({"text": ["a", "b"], "id": [0.5, 1.5]}), tmp_path / "s.parquet")
    with pytest.raises(ValueError, match=r"column 'id' of .* must hold strings or whole numbers; not double"):
        check_columns(tmp_path / "s.parquet", Columns(id="id"))


def test_shards_are_found_sorted_and_once(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.tar", "deep/c.parquet", "notes.md", "d.jsonl.gz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = list_shards([tmp_path])
    assert [path.name for path in found] == ["a.tar", "b.jsonl", "d.jsonl.gz", "c.parquet"]
    assert [output_name(n, path) for n, path in enumerate(found)][2:] == ["00002-d.jsonl.gz", "00003-c.parquet"]
    with pytest.raises(ValueError, match="named twice"):
        list_shards([tmp_path, tmp_path / "a.tar"])
    with pytest.raises(ValueError, match=r"notes.md holds no shard: expected \.parquet, \.jsonl, \.jsonl\.gz, \.tar"):
        list_shards([tmp_path / "notes.md"])
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        list_shards([tmp_path / "nowhere"])


def test_atomic_files_are_whole_or_absent(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), atomic(tmp_path / "x") as file:
        file.write(b"half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


# --- keys ---


@given(st.lists(st.tuples(st.binary(max_size=20), st.binary(max_size=20)), unique=True, max_size=50))
@settings(max_examples=200, deadline=None)
def test_different_rows_have_different_keys_wherever_they_stand(pairs: list[tuple[bytes, bytes]]) -> None:
    """Zero bytes, lengths and the border between two columns all count; a slice of an array gives the same keys."""
    columns = [pa.array(column, pa.large_binary()) for column in zip(*pairs, strict=True)] or [
        pa.array([], pa.large_binary())
    ]
    keys = row_keys(*columns)
    assert len(set(keys.tolist())) == len(pairs)
    assert (row_keys(*(column.slice(len(pairs) // 2) for column in columns)) == keys[len(pairs) // 2 :]).all()


def test_keys_are_spread_evenly() -> None:
    """100,000 numbers as text: each of the 64 bits is set in half of the keys, within 5 standard errors."""
    keys = row_keys(pa.array([str(n) for n in range(100_000)], pa.large_string()))
    bits = np.unpackbits(keys.view(np.uint8)).reshape(-1, 64).mean(axis=0)
    assert len(np.unique(keys)) == len(keys)
    assert abs(bits - 0.5).max() < 5 * 0.5 / np.sqrt(len(keys))
