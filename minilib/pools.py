"""Read a pool's shards in small batches, name each row by a 64-bit key, and copy the rows that are kept, untouched.

A shard is one file: ``.parquet``, ``.jsonl``, ``.jsonl.gz`` or a webdataset ``.tar``. A row is a table row, a line that
holds a JSON object, or all consecutive members of a tar whose names agree up to the first dot of the file name. Columns
are the table's columns or the object's fields; for a tar sample the fields of its ``.json``, its ``.txt`` as ``text``,
and its common name as ``__key__``.

Taught in: notebooks/06_balance.ipynb
"""

from __future__ import annotations

import gzip
import json
import os
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby, islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from minilib.keys import Keys, row_keys

BATCH_ROWS, BATCH_BYTES = 16_384, 1 << 26  # a batch ends at either
GROUP_ROWS = 1 << 16  # rows of a parquet row group that is written
REASONS = (
    "kept",
    "not a JSON object",
    "missing caption",
    "caption is not a string",
    "invalid UTF-8",
    "missing id",
    "duplicate id",
    "no metadata for its language",
    "duplicate",
    "no match",
    "not drawn",
    "damaged shard",
)
KEPT, NOT_JSON, MISSING, NOT_STRING, NOT_UTF8, NO_ID, TWICE, *_ = range(len(REASONS))  # 1 .. TWICE: quarantined
NO_METADATA, DUPLICATE, NO_MATCH, NOT_DRAWN, DAMAGED = range(TWICE + 1, len(REASONS))

Codes = NDArray[np.uint8]
Take = Callable[[int], NDArray[np.bool_]]


class Damage(Exception):
    """Something in the pool that cannot be read: where, and why."""


class DamagedShard(Damage):
    """A shard that cannot be read to its end; ``rows`` is the number of rows before the damage."""

    rows = 0


class Columns(NamedTuple):
    """Names of the columns that are read; ``url`` only where it exists, the others must."""

    text: str = "text"
    id: str | None = None
    url: str | None = "url"
    language: str | None = None


class Rows(NamedTuple):
    """A batch of n rows: what counting needs to know of them."""

    text: pa.Array  # (n,) large_string without nulls, "" for a row that is not sound
    codes: Codes  # (n,) 0 for a sound row, else the place in REASONS
    keys: Keys  # (n,) 64-bit hash of the id, else of url and caption
    once: NDArray[np.bool_]  # (n,) the row has an id or a url, so that an equal key means a duplicate
    language: pa.Array | None  # (n,) large_string without nulls


# --- find and write files --------------------------------------------------------------------------------------------


def list_shards(paths: Iterable[str | Path]) -> list[Path]:
    """The shards of a pool: files as given, folders searched through and sorted; absolute paths.

    Raises ``FileNotFoundError`` for a path that is not there, ``ValueError`` for another format, for a folder without
    shards, and for a shard that is named twice. Taught in: notebooks/06_balance.ipynb
    """
    shards: list[Path] = []
    for path in map(Path, paths):
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist: the pool must be shards, or folders of shards")
        inside = sorted(file for file in path.rglob("*") if _format(file)) if path.is_dir() else [path]
        if not inside or not _format(inside[0]):
            raise ValueError(f"{path} holds no shard: expected {', '.join(_COPIES)}; convert it, or name other files")
        shards += [file.absolute() for file in inside]
    if twice := [shard for shard, times in Counter(shards).items() if times > 1]:
        raise ValueError(f"{twice[0]} is named twice, so each of its rows would count twice: name it once")
    return shards


def output_name(number: int, shard: Path) -> str:
    """Name of the shard that holds what is kept of input shard ``number``: ``NNNNN-stem.format``."""
    suffix = _format(shard)
    return f"{number:05d}-{shard.name[: len(shard.name) - len(suffix)]}{suffix}"


@contextmanager
def atomic(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing that stands under its name when it is whole and on the disk, or not at all."""
    part = path.with_name(path.name + ".part")
    try:
        with open(part, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


# --- read ------------------------------------------------------------------------------------------------------------


def check_columns(shard: Path, columns: Columns) -> list[str]:
    """Names of a shard's columns (of its first 100 rows where rows may differ; none for an empty shard).

    Raises ``ValueError`` where a column is missing or of the wrong type, with the columns that are there, and
    `DamagedShard`. Taught in: notebooks/06_balance.ipynb
    """
    with _damage(shard):
        if shard.suffix == ".parquet":
            schema = pq.read_schema(shard)
            names, types = schema.names, dict(zip(schema.names, schema.types, strict=True))
        else:
            first = [record for _, record in islice(_RECORDS[_format(shard)](shard), 100)]
            names, types = sorted({name for record in first if isinstance(record, dict) for name in record}), {}
    for role in ("text", "id", "language", "url"):
        name = getattr(columns, role)
        if names and name and name not in names and role != "url":
            raise ValueError(f"{shard} has no column {name!r}: it has {', '.join(names)}; name one with --{role}")
        if name in types and not _fits(types[name], numbers=role == "id"):
            wanted = "strings or whole numbers" if role == "id" else "strings"
            raise ValueError(f"column {name!r} of {shard} must hold {wanted}; not {types[name]}: name another column")
    return names


def estimate_rows(shard: Path) -> int:
    """Number of rows: as a parquet file states it, else from the size of the first 1,000 rows."""
    with _damage(shard):
        if shard.suffix == ".parquet":
            return pq.read_metadata(shard).num_rows
        first = [payload for payload, _ in islice(_RECORDS[_format(shard)](shard), 1000)]
    if shard.suffix == ".tar":
        size = sum(stop - start for spans in first for start, stop in spans)
    else:
        size = len(zlib.compress(b"".join(first)) if shard.suffix == ".gz" else b"".join(first))
    return round(shard.stat().st_size * len(first) / size) if first else 0


def read_rows(shard: Path, columns: Columns, keep_duplicates: bool = False) -> Iterator[Rows]:
    """A shard's rows in batches of at most 16,384 rows and about 64 MB; nothing but the named columns is read.

    Raises as `check_columns` does. Taught in: notebooks/06_balance.ipynb
    """
    names, done = [name for name in columns if name], 0
    check_columns(shard, columns)
    batches = _parquet_batches if shard.suffix == ".parquet" else _record_batches
    try:
        with _damage(shard):
            for codes, arrays in batches(shard, names):
                yield _rows(codes, arrays, columns, keep_duplicates)
                done += len(codes)
    except DamagedShard as damage:
        damage.rows = done
        raise


def _rows(codes: Codes, arrays: dict[str, pa.Array], columns: Columns, keep_duplicates: bool) -> Rows:
    nothing = pa.nulls(len(codes), pa.large_string())
    text, faults = _clean(arrays.get(columns.text, nothing))
    codes = np.where(codes > 0, codes, faults).astype(np.uint8)
    url, _ = _clean(arrays.get(columns.url or "", nothing))
    if columns.id:
        id_, id_faults = _clean(arrays.get(columns.id, nothing))
        codes = np.where((codes == 0) & (id_faults > 0), NO_ID, codes).astype(np.uint8)
        keys, once = row_keys(id_), np.ones(len(codes), np.bool_)
    else:
        keys, once = row_keys(url, text), pc.binary_length(url).to_numpy() > (np.inf if keep_duplicates else 0)
    if codes.any():
        text = pc.if_else(pa.array(codes == 0), text, pa.scalar("", pa.large_string()))
    language = _clean(arrays.get(columns.language, nothing))[0] if columns.language else None
    return Rows(text, codes, keys, once, language)


def _clean(column: pa.Array) -> tuple[pa.Array, Codes]:
    """The column as large_string, with "" and a code of `REASONS` in the place of a value that is null or not UTF-8."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_integer(column.type):
        column = column.cast(pa.large_string())
    codes = np.where(column.is_null().to_numpy(zero_copy_only=False), MISSING, KEPT).astype(np.uint8)
    values = column.cast(pa.large_binary()).fill_null(b"")
    try:
        return values.cast(pa.large_string()), codes
    except pa.ArrowInvalid:  # some value is not UTF-8: look at each
        bad = np.array([not _is_utf8(value) for value in values.to_pylist()])
        values = pc.if_else(pa.array(bad), pa.scalar(b"", pa.large_binary()), values)
        return values.cast(pa.large_string()), np.where(bad, NOT_UTF8, codes).astype(np.uint8)


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode()
        return True
    except UnicodeDecodeError:
        return False


def _fits(type_: pa.DataType, numbers: bool) -> bool:
    inner = type_.value_type if pa.types.is_dictionary(type_) else type_
    kinds = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null)
    kinds += (pa.types.is_binary, pa.types.is_large_binary, *([pa.types.is_integer] if numbers else []))
    return any(kind(inner) for kind in kinds)


@contextmanager
def _damage(shard: Path) -> Iterator[None]:
    """Turn a decoder's error into `DamagedShard`; an error of the operating system stays what it is."""
    try:
        yield
    except (pa.ArrowException, OSError, EOFError, zlib.error, tarfile.TarError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise DamagedShard(f"{shard} cannot be read to its end ({error}): fetch or write it again") from error


# --- formats ---------------------------------------------------------------------------------------------------------


def _parquet_batches(shard: Path, names: Sequence[str]) -> Iterator[tuple[Codes, dict[str, pa.Array]]]:
    for batch in _parquet_stream(shard, names):
        yield np.zeros(len(batch), np.uint8), dict(zip(batch.schema.names, batch.columns, strict=True))


def _parquet_stream(shard: Path, names: Sequence[str] | None) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(shard, buffer_size=1 << 20, pre_buffer=False) as file:  # pre-buffering reads it all
        present = [name for name in file.schema_arrow.names if names is None or name in names]
        bulk = sum(file.metadata.row_group(g).total_byte_size for g in range(file.num_row_groups))
        rows = BATCH_BYTES * file.metadata.num_rows // max(bulk, 1)
        yield from file.iter_batches(max(1, min(rows, BATCH_ROWS)), columns=present)


def _record_batches(shard: Path, names: Sequence[str]) -> Iterator[tuple[Codes, dict[str, pa.Array]]]:
    for chunk in _chunks(_RECORDS[_format(shard)](shard)):
        records = [record if isinstance(record, dict) else {} for _, record in chunk]
        codes = np.array([0 if isinstance(record, dict) else record for _, record in chunk], np.uint8)
        columns = {name: [record.get(name) for record in records] for name in names}
        wrong = [not isinstance(value, str | bytes | None) for value in columns[names[0]]]
        codes[np.array(wrong) & (codes == 0)] = NOT_STRING
        yield codes, {name: pa.array(map(_bytes, column), pa.large_binary()) for name, column in columns.items()}


def _bytes(value: Any) -> bytes | None:
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    return value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value if type(value) is bytes else None


def _chunks(items: Iterable[tuple[Any, Any]]) -> Iterator[list[tuple[Any, Any]]]:
    """Runs of (payload, record) with at most BATCH_ROWS items and, but for the last item, BATCH_BYTES bytes."""
    chunk, size = [], 0
    for item in items:
        chunk.append(item)
        size += len(item[0]) if isinstance(item[0], bytes) else 0
        if len(chunk) == BATCH_ROWS or size >= BATCH_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _open_lines(shard: Path) -> BinaryIO:
    if shard.suffix != ".gz":
        return open(shard, "rb")
    if not shard.stat().st_size:
        raise EOFError("the file is empty")
    return gzip.open(shard, "rb")  # type: ignore[return-value]


def _lines(shard: Path) -> Iterator[bytes]:
    with _open_lines(shard) as lines:
        yield from (line for line in lines if not line.isspace())


def _json_records(shard: Path) -> Iterator[tuple[bytes, dict | int]]:
    return ((line, _object(line)) for line in _lines(shard))


def _object(line: bytes) -> dict | int:
    """The JSON object in a line, or the code of what is wrong with it."""
    try:
        found = json.loads(line)
        return found if isinstance(found, dict) else NOT_JSON
    except UnicodeDecodeError:
        return NOT_UTF8
    except (ValueError, RecursionError):
        return NOT_JSON


def _tar_records(shard: Path) -> Iterator[tuple[list[tuple[int, int]], dict | int]]:
    """Samples of a tar: the byte ranges of its members, headers and padding included, and its columns."""
    with open(shard, "rb") as raw, tarfile.open(fileobj=raw, mode="r:") as tar:
        for key, members in groupby(_members(tar), key=lambda member: member[0]):
            ranges, parts = [], {}
            for _, extension, span, header in members:
                ranges.append(span)
                if extension in ("txt", "json") and header.isreg():
                    raw.seek(header.offset_data)
                    parts[extension] = raw.read(header.size)
            yield ranges, _sample(key, parts)
        raw.seek(tar.offset)
        if raw.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError(f"no end mark at byte {tar.offset:,}")


def _members(tar: tarfile.TarFile) -> Iterator[tuple[str, str, tuple[int, int], tarfile.TarInfo]]:
    """Each file in a tar: its sample's name, its extension, its first byte and the next member's, its header."""
    while (member := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined]  # tarfile would remember all of them
        if not member.isdir():
            folder, slash, name = member.name.rpartition("/")
            stem, _, extension = name.partition(".")
            yield folder + slash + stem, extension.lower(), (member.offset, tar.offset), member


def _sample(key: str, parts: dict[str, bytes]) -> dict | int:
    fields = _object(parts.get("json", b"{}"))
    if not isinstance(fields, dict):
        return fields
    return {**fields, "__key__": key, **({"text": parts["txt"]} if "txt" in parts else {})}


# --- copy ------------------------------------------------------------------------------------------------------------


def copy_rows(shard: Path, target: BinaryIO, take: Take) -> None:
    """Write the kept rows of a shard into ``target``, in order and in the shard's format, all columns untouched.

    ``take(n)`` says which of the next n rows to keep. The bytes depend on nothing else: no time, no file name.
    Raises `DamagedShard`. Taught in: notebooks/06_balance.ipynb
    """
    with _damage(shard):
        _COPIES[_format(shard)](shard, target, take)


def _copy_parquet(shard: Path, target: BinaryIO, take: Take) -> None:
    with pq.ParquetFile(shard) as file:
        schema = file.schema_arrow
        first = file.metadata.row_group(0) if file.num_row_groups else None
        leaves = [first.column(c) for c in range(first.num_columns)] if first else []
        codecs = {leaf.path_in_schema: leaf.compression for leaf in leaves}
    with pq.ParquetWriter(target, schema, compression=codecs or "snappy") as writer:
        waiting: list[pa.RecordBatch] = []
        for batch in _parquet_stream(shard, None):
            waiting.append(batch.filter(pa.array(take(len(batch)))))
            rows, size = (sum(values) for values in zip(*((len(b), b.nbytes) for b in waiting), strict=True))
            if rows >= GROUP_ROWS or size >= BATCH_BYTES:
                writer.write_table(pa.Table.from_batches(waiting, schema))
                waiting = []
        if waiting:
            writer.write_table(pa.Table.from_batches(waiting, schema))


def _copy_jsonl(shard: Path, target: BinaryIO, take: Take) -> None:
    for chunk in _chunks((line, None) for line in _lines(shard)):
        kept = take(len(chunk))
        target.writelines(line.rstrip(b"\n") + b"\n" for (line, _), keep in zip(chunk, kept, strict=True) if keep)


def _copy_gzip(shard: Path, target: BinaryIO, take: Take) -> None:
    with gzip.GzipFile(filename="", mode="wb", fileobj=target, mtime=0, compresslevel=6) as packed:
        _copy_jsonl(shard, packed, take)  # type: ignore[arg-type]


def _copy_tar(shard: Path, target: BinaryIO, take: Take) -> None:
    with open(shard, "rb") as raw:
        for chunk in _chunks(_tar_records(shard)):
            kept = take(len(chunk))
            for start, stop in (span for (spans, _), keep in zip(chunk, kept, strict=True) if keep for span in spans):
                raw.seek(start)
                target.write(raw.read(stop - start))
    target.write(bytes(2 * tarfile.BLOCKSIZE))


_RECORDS: dict[str, Callable[[Path], Iterator[tuple[Any, dict | int]]]] = {
    ".jsonl": _json_records,
    ".jsonl.gz": _json_records,
    ".tar": _tar_records,
}
_COPIES: dict[str, Callable[[Path, BinaryIO, Take], None]]
_COPIES = {".parquet": _copy_parquet, ".jsonl": _copy_jsonl, ".jsonl.gz": _copy_gzip, ".tar": _copy_tar}


def _format(path: Path) -> str:
    """The suffix that names a shard's format; "" for any other file."""
    return next((suffix for suffix in _COPIES if path.name.endswith(suffix)), "")
