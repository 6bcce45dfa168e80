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
