"""Tables that unfold to far more than their files have."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from zenconvert.errors import CorruptFile
from zenconvert.texts import sample_sources
from zenconvert.texts.parquet_footer import columns, unfolded
from zenconvert.texts.sample_sources import load_samples

MEGABYTE = 1 << 20


# in a process of its own: what a process took once counts to its end. Not getrusage's peak: that
# one is inherited from the process that begot it
READ = """
import sys
from zenconvert.texts.sample_sources import load_samples
samples = len(load_samples(sys.argv[1]))
with open("/proc/self/status") as status:
    peak = next(row for row in status if row.startswith("VmHWM")).split()[1]
print(samples, int(peak) << 10)
"""


def test_one_text_thousands_of_times(tmp_path: Path) -> None:
    """Kilobytes that unfold to 16 GB: as many rows are read as hold 256 MB of text."""
    path = tmp_path / "x.parquet"
    column = pyarrow.array(["a " * (MEGABYTE // 2)]).dictionary_encode().indices
    texts = pyarrow.DictionaryArray.from_arrays(
        pyarrow.concat_arrays([column] * 16_000), ["a " * (MEGABYTE // 2)]
    )
    parquet.write_table(pyarrow.table({"text": texts}), path, compression="zstd")
    assert path.stat().st_size < MEGABYTE
    command = [sys.executable, "-P", "-c", READ, str(path)]
    read = subprocess.run(command, capture_output=True, text=True, check=True)
    samples, peak = map(int, read.stdout.split())
    assert peak < 2 << 30
    assert samples == 257


def test_a_row_group_larger_than_what_is_read_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.parquet"
    rows = {"text": ["ab" * 5000] * 300, "other": ["c" * 100] * 300}
    parquet.write_table(pyarrow.table(rows), path, use_dictionary=False, compression="zstd")
    monkeypatch.setattr(sample_sources, "_MOST_BYTES", 1 << 20)
    with pytest.raises(CorruptFile, match=r"text of row group 0 unfolds to \d+ bytes"):
        load_samples(path)
    parquet.write_table(
        pyarrow.table(rows), path, use_dictionary=False, compression="zstd", row_group_size=60
    )
    assert len(load_samples(path)) == 105


def test_sizes_of_a_footer_are_those_that_pyarrow_tells(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    rows = {
        "text": ["ab" * n for n in range(300)],
        "messages": [[{"role": "user", "content": "x" * n}] for n in range(300)],
        "flag": [n % 3 == 0 for n in range(300)],
        "number": [n / 7 for n in range(300)],
    }
    parquet.write_table(
        pyarrow.table(rows), path, row_group_size=70, sorting_columns=[parquet.SortingColumn(0)],
        write_page_index=True, store_decimal_as_integer=True,
    )  # fmt: skip
    metadata = parquet.read_metadata(path)
    expected = []
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        chunks = map(group.column, range(group.num_columns))
        expected += [(number, c.path_in_schema, c.total_uncompressed_size) for c in chunks]
    assert len(expected) == 5 * 5
    found = list(columns(path))
    assert [(c.group, c.name, c.unfolded) for c in found] == expected
    for column in found:
        size, values = unfolded(path, column)
        assert values == column.values
        assert size <= column.unfolded  # which counts the headers as well


@pytest.mark.parametrize("footer", [b"", b"\x19", b"\x49\xfc\xff\xff\xff\x0f", b"\x1c" * 100])
def test_footers_that_are_none(footer: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    path.write_bytes(b"PAR1" + footer + len(footer).to_bytes(4, "little") + b"PAR1")
    with pytest.raises(CorruptFile):
        list(columns(path))


DAMAGED = """
import sys
from pathlib import Path
from zenconvert.errors import ZenError
from zenconvert.texts.sample_sources import load_samples
path = Path(sys.argv[1])
whole = path.read_bytes()
begin = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
refused = 0
for at in range(begin, len(whole) - 8):
    for sign in (1, 16, 255):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ sign]) + whole[at + 1:])
        try:
            load_samples(path)
        except ZenError:
            refused += 1
print(refused)
"""


def test_no_damage_of_a_footer_ends_the_process(tmp_path: Path) -> None:
    """In a process of its own, as an exception of C++ that nobody catches ends it."""
    path = tmp_path / "x.parquet"
    rows = {"text": ["a"], "language": ["en"], "x": [["b"]]}
    parquet.write_table(pyarrow.table(rows), path, store_schema=False)
    command = [sys.executable, "-P", "-c", DAMAGED, str(path)]
    read = subprocess.run(command, capture_output=True, text=True, check=False)
    assert read.returncode == 0, read.stderr[-300:]
    assert int(read.stdout) > 100
