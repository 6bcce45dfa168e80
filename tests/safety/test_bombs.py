"""Small files that unfold to gigabytes or minutes: one error of ours, soon, in little memory."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from tests.fuzz import reports
from tests.fuzz.targets_files import statistics_file
from tests.fuzz.targets_texts import RECIPE
from zenconvert.base.processes import child_environment
from zenconvert.errors import CorruptFile
from zenconvert.texts.parquet_footer import Column, unfolded
from zenconvert.texts.sample_sources import load_samples

SECONDS = 6.0
"""Of the processor: three times what is right, for machines that do other work as well."""
MEMORY = 300 << 20
"""Bytes beyond what the process had before."""
MEGABYTE = 1 << 20

# one process for all: what is loaded once is nobody's fault, and the peak is forgotten each time
CHILD = """
import json, resource, sys, time, warnings
from pathlib import Path
from zenconvert import Report
from zenconvert.calib.statistics_reader import open_statistics
from zenconvert.errors import ZenError
from zenconvert.publication import recipe_reader
from zenconvert.publication.release_report import read_record, variants_of
from zenconvert.texts.sample_sources import load_samples
from zenconvert.verification.policy import Policy

def recipe(path):
    _, problems = recipe_reader.read(path)
    if problems:
        raise ZenError("; ".join(text for _, text in problems))

READERS = {
    "recipe": recipe, "policy": Policy.load, "report": Report.from_json, "samples": load_samples,
    "record": lambda path: variants_of(read_record(path), "x"),
    "statistics": lambda path: open_statistics(path).importance("layers.0.attn.q"),
}

def status(key):
    row = next(r for r in open("/proc/self/status") if r.startswith(key))
    return int(row.split()[1]) << 10

warnings.simplefilter("ignore")
resource.setrlimit(resource.RLIMIT_CPU, (600, 600))
for line in sys.stdin:
    reader, path = json.loads(line)
    Path("/proc/self/clear_refs").write_text("5")
    before, began = status("VmRSS"), time.process_time()
    told = ""
    try:
        READERS[reader](Path(path))
    except ZenError as error:
        told = f"{type(error).__name__}: {error}"
    except BaseException as error:
        told = f"fault: {type(error).__name__}: {error!s:.200}"
    spent = time.process_time() - began
    print(json.dumps([told, spent, status("VmHWM") - before]), flush=True)
"""

Read = Callable[[str, Path], tuple[str, float, int]]


@pytest.fixture(scope="module")
def read() -> Iterator[Read]:
    """Reads a file in the child: the error, seconds of the processor, bytes at the peak."""
    child = subprocess.Popen(
        [sys.executable, "-P", "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True, env=child_environment(),
    )  # fmt: skip
    assert child.stdin is not None
    assert child.stdout is not None

    def ask(reader: str, path: Path) -> tuple[str, float, int]:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(json.dumps([reader, str(path)]) + "\n")
        child.stdin.flush()
        told, seconds, peak = json.loads(child.stdout.readline() or '["ended", 0, 0]')
        return told, seconds, peak

    yield ask
    child.stdin.close()
    child.wait()


def report(**changes: Any) -> bytes:
    return json.dumps({**json.loads(reports.report_bytes()), **changes}).encode()


def many_documents() -> bytes:
    """A report of the largest size, right up to its last document."""
    value = json.loads(reports.report_bytes())
    document = value["documents"][0]
    value["documents"] = [document] * (7 * MEGABYTE // len(json.dumps(document)))
    value["documents"][-1] = {**document, "tokens": "x"}
    return json.dumps(value).encode()


def many_variants() -> bytes:
    """A record of the largest size, right up to its last variant."""
    value = json.loads(reports.release()["report.json"])
    variant = value["variants"][0]
    value["variants"] = [variant] * (15 * MEGABYTE // len(json.dumps(variant)))
    value["variants"][-1] = {**variant, "size": "x"}
    return json.dumps(value).encode()


def statistics(**facts: Any) -> bytes:
    """A statistics file with other metadata."""
    data = statistics_file()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header["__metadata__"] |= facts
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


KEYS = "".join(f"k{n}=1\n" for n in range(40))
VARIANT = '[[variant]]\ntarget="gguf:q8_0"\nname="{n}"\n'
Bomb = tuple[str, str, Callable[[], bytes], str]
LISTS = b"[]," * (4 * MEGABYTE) + b"[]"
TEXTS: dict[str, Bomb] = {
    "recipe: variants": (
        "recipe", "x.toml",
        lambda: (RECIPE + "".join(VARIANT.format(n=f"v{n}") for n in range(2300)) + "x=1").encode(),
        "no key 'x'",
    ),
    "recipe: unknown keys of variants": (
        "recipe", "x.toml", lambda: (RECIPE + ("[[variant]]\n" + KEYS) * 440).encode(),
        "no key 'k0'",
    ),
    "recipe: tables in tables": (
        "recipe", "x.toml",
        lambda: "".join(f"[a{n}.b.c.d.e.f.g.h]\n" for n in range(5000)).encode(), "no key 'a0'",
    ),
    "recipe: arrays": (
        "recipe", "x.toml", lambda: b"x = [" + b"[]," * 42_000 + b"]", "no key 'x'",
    ),
    "recipe: longer than any": ("recipe", "x.toml", lambda: b"x" * (1 << 18), "characters"),
    "policy: overrides": (
        "policy", "x.toml", lambda: (reports.POLICY + "[[override]]\nname=1\n" * 6000).encode(),
        "'name' and conditions",
    ),
    "policy: unknown keys": (
        "policy", "x.toml",
        lambda: ("".join(f"k{n}=1\n" for n in range(13_000)) + reports.POLICY).encode(),
        "unknown keys",
    ),
    "report: documents": ("report", "x.json", many_documents, "documents/.*/tokens"),
    "report: unknown keys": (
        "report", "x.json", lambda: report(**{f"k{n}": 1 for n in range(500_000)}),
        "must not contain",
    ),
    "report: lists": ("report", "x.json", lambda: report(documents=[[]] * 1_900_000), "object"),
    "record: variants": ("record", "x.json", many_variants, "variants/.*/size"),
    "record: longer than any": ("record", "x.json", lambda: bytes(17 * MEGABYTE), "at most"),
    "statistics: coverage": (
        "statistics", "x.stats",
        lambda: statistics(coverage=json.dumps([{"tokens": 1}] * 700_000)), "metadata has more",
    ),
    "statistics: inputs": (
        "statistics", "x.stats",
        lambda: statistics(inputs=json.dumps({f"l{n}": [] for n in range(500_000)})),
        "no statistics of|metadata has more",
    ),
    "statistics: a header": (
        "statistics", "x.stats", lambda: (90 << 20).to_bytes(8, "little") + b"{", "header claims",
    ),
    "samples: one line of JSON": (
        "samples", "x.jsonl", lambda: b'{"text": "' + b"a" * (10 * MEGABYTE) + b'"}\n', "a row of",
    ),
    "samples: one line of lists": (
        "samples", "x.jsonl", lambda: b'{"x": [' + LISTS + b"]}\n", "a row of",
    ),
    "samples: an array of lists": (
        "samples", "x.json", lambda: b'[{"x": [' + LISTS + b"]}]", "a row of",
    ),
    "samples: a value of lists": ("samples", "x.json", lambda: b'{"x": [' + LISTS + b"]}", "a row"),
    "samples: one line of a table": (
        "samples", "x.csv", lambda: b"text\n" + b"," * (10 * MEGABYTE), "a row of",
    ),
    "samples: columns": (
        "samples", "x.csv", lambda: b"text" + b"," * (2 * MEGABYTE) + b"\n", "columns; at most",
    ),
    "samples: a cell of a table": (
        "samples", "x.csv", lambda: b'text\n"' + b"a\n" * (5 * MEGABYTE), "field larger|a row of",
    ),
    "samples: a row of many lines": (
        "samples", "x.csv", lambda: b"text\n" + (b"," * 99_999 + b'"\n"') * 100, "a row of",
    ),
    "samples: one document": (
        "samples", "x.txt", lambda: b"a" * (65 * MEGABYTE), "at most 67108864",
    ),
    "samples: gzip": (
        "samples", "x.jsonl", lambda: b"\x1f\x8b" + zlib.compress(bytes(1 << 20)), "gzip",
    ),
    "samples: zstd": ("samples", "x.json", lambda: b"\x28\xb5\x2f\xfd" + bytes(1 << 20), "zstd"),
    "samples: packed": (
        "samples", "x.jsonl.gz", lambda: b"\x1f\x8b" + bytes(1 << 20), "no plain text",
    ),
}  # fmt: skip


def check(read: Read, reader: str, path: Path, words: str) -> None:
    told, seconds, peak = read(reader, path)
    assert re.search(words, told)
    assert not told.startswith("fault"), told
    assert seconds < SECONDS, told
    assert peak < MEMORY, told


@pytest.mark.parametrize("bomb", TEXTS)
def test_texts(bomb: str, read: Read, tmp_path: Path) -> None:
    reader, name, make, words = TEXTS[bomb]
    path = tmp_path / name
    path.write_bytes(make())
    check(read, reader, path, words)
    path.unlink()


# Parquet: tables whose footers say little of what their pages hold


def number(value: int) -> bytes:
    """A varint."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def fields(*values: tuple[int, int | bytes]) -> bytes:
    """A struct of Thrift's compact protocol: whole numbers, and structs as their bytes."""
    out, last = b"", 0
    for key, value in values:
        kind, data = (
            (12, value)
            if isinstance(value, bytes)
            else (5, number(value << 1 if value >= 0 else (-value << 1) - 1))
        )
        out, last = out + bytes([(key - last) << 4 | kind]) + data, key
    return out + b"\0"


def with_page(path: Path, size: int) -> None:
    """A table whose one page holds ``size`` zeros, of which its footer says nothing."""
    table = pyarrow.table({"text": ["a" * 4000]})
    plain = {"use_dictionary": False, "store_schema": False, "write_statistics": False}
    parquet.write_table(table, path, compression="gzip", **plain)
    data = path.read_bytes()
    end = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    squeeze = zlib.compressobj(1, wbits=31)
    page = b"".join(squeeze.compress(bytes(MEGABYTE)) for _ in range(size // MEGABYTE))
    page += squeeze.flush()
    header = fields((1, 0), (2, size), (3, len(page)), (5, fields((1, 1), (2, 0), (3, 3), (4, 3))))
    pages = header + page
    old = number((end - 4) << 1)
    footer = data[end:-8].replace(old, number(len(pages) << 1))
    whole = b"PAR1" + pages + footer + len(footer).to_bytes(4, "little") + b"PAR1"
    path.write_bytes(whole)


def test_a_page_that_its_footer_says_nothing_of(read: Read, tmp_path: Path) -> None:
    with_page(tmp_path / "x.parquet", 300 * MEGABYTE)
    check(read, "samples", tmp_path / "x.parquet", "unfolds to 314572800 bytes")


@pytest.mark.parametrize(
    "header",
    [
        fields((2, 1)),
        fields((2, -1), (3, 1)),
        fields((2, 1), (3, 1), (5, fields((1, fields())))),
        fields((2, fields()), (3, 1)),
    ],
)
def test_pages_without_a_size(header: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    path.write_bytes(b"PAR1" + header)
    with pytest.raises(CorruptFile, match="has no size"):
        unfolded(path, Column(0, "text", 1, 1, 4, 100))


def test_one_message_thousands_of_times(read: Read, tmp_path: Path) -> None:
    """A kilobyte that unfolds to a gigabyte in one row."""
    each = pyarrow.array([0] * 1000, pyarrow.int32())
    parts = [pyarrow.DictionaryArray.from_arrays(each, [word]) for word in ("user", "a " * 500_000)]
    said = pyarrow.StructArray.from_arrays(parts, names=["role", "content"])
    rows = pyarrow.ListArray.from_arrays(pyarrow.array([0, 1000], pyarrow.int32()), said)
    path = tmp_path / "x.parquet"
    parquet.write_table(pyarrow.table({"messages": rows}), path, compression="zstd")
    assert path.stat().st_size < 5000
    check(read, "samples", path, "a row unfolds to 1000004000 bytes")


def test_a_list_of_nothing(read: Read, tmp_path: Path) -> None:
    """One row of five million members, each of them absent: hundreds of bytes."""
    said = pyarrow.nulls(5_000_000, pyarrow.struct({"role": pyarrow.string()}))
    rows = pyarrow.ListArray.from_arrays(pyarrow.array([0, 5_000_000], pyarrow.int32()), said)
    path = tmp_path / "x.parquet"
    parquet.write_table(pyarrow.table({"messages": rows}), path, compression="zstd")
    check(read, "samples", path, "has 5000000 values")


def test_texts_that_share_their_beginnings(read: Read, tmp_path: Path) -> None:
    """The second text takes a few bytes, and is one of megabytes."""
    path, how = tmp_path / "x.parquet", {"text": "DELTA_BYTE_ARRAY"}

    def write(*texts: str) -> None:
        table = pyarrow.table({"text": texts})
        parquet.write_table(table, path, use_dictionary=False, column_encoding=how)

    write("a text", "a text too", "another")
    assert [s.text for s in load_samples(path)] == ["a text", "a text too", "another"]
    write(*["ab" * (5 * MEGABYTE)] * 3)
    check(read, "samples", path, "a row unfolds to 10485760 bytes")
