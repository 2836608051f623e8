"""Peak memory of the filter recipe against the number of rows: it must not grow with the data.

Writes synthetic rows of about 1 KB, filters them by a reward that costs nothing, and reads the
process's own peak (VmHWM; Linux). What may grow is what is remembered of a row: 20 bytes in a file,
and the report's arrays of numbers. `one-group` is a Parquet file of a single row group.

    python tests/benchmarks/filter_memory.py --rows 20000 200000
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

BYTES_PER_ROW = 150
"""What the report's arrays may take of a row; the row itself is about seven times as large."""
SLACK = 16 * 1024**2
"""Buffers of the allocators, which differ from run to run."""

REWARD = (
    "def score(prompts, completions, **columns):\n    return [len(c) % 97 for c in completions]\n"
)


def write_rows(path: Path, count: int) -> None:
    """So many rows of random words, in the format that the suffix names."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnop", k=rng.randint(2, 9))) for _ in range(5000)]

    def rows():
        for index in range(count):
            text = " ".join(rng.choices(words, k=rng.randint(60, 240)))
            yield {"text": text, "index": index, "source": f"s{index % 7}"}

    if path.suffix == ".parquet":
        import pyarrow as pa
        from pyarrow import parquet

        schema = pa.schema([("text", pa.string()), ("index", pa.int64()), ("source", pa.string())])
        with parquet.ParquetWriter(path, schema) as writer:
            batch = []
            for row in rows():
                batch.append(row)
                full = len(batch) == 10_000 and not path.stem.startswith("one-group")
                if full or row["index"] == count - 1:
                    table = pa.Table.from_pylist(batch, schema)
                    writer.write_table(table, row_group_size=count)
                    batch = []
    elif path.suffix == ".csv":
        with path.open("w", encoding="utf-8") as file:
            file.write("text,index,source\n")
            file.writelines(f"{r['text']},{r['index']},{r['source']}\n" for r in rows())
    else:
        with path.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows())


def peak(path: Path, reward: Path, output: Path) -> int:
    """Peak memory in bytes of a process that filters the file."""
    options = ["--reward_model", f"{reward}:score", "--keep_fraction", "0.5"]
    options += ["--subset_column", "source", "--keep_scores", "--output_dir", str(output)]
    done = subprocess.run(
        [sys.executable, __file__, "--measure", str(path), *options],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    if done.returncode:
        sys.exit(done.stderr)
    return int(done.stdout.splitlines()[-1])


def main() -> None:
    """Measures, prints, and exits with 1 where memory grows with the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs=2, default=(20_000, 200_000))
    parser.add_argument("--formats", nargs="+", default=["jsonl", "csv", "parquet", "one-group"])
    args = parser.parse_args()
    packages = ("hf_align", "pyarrow", "numpy")
    print("versions:", ", ".join(f"{name} {version(name)}" for name in packages))
    print(f"{'format':<9} {'rows':>9} {'file MB':>8} {'peak MB':>8}")
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        reward = Path(folder) / "reward.py"
        reward.write_text(REWARD, encoding="utf-8")
        for form in args.formats:
            peaks = []
            for count in args.rows:
                suffix = "parquet" if form == "one-group" else form
                path = Path(folder) / f"{form}-{count}.{suffix}"
                write_rows(path, count)
                size = path.stat().st_size
                peaks.append(peak(path, reward, Path(folder) / f"out-{form}-{count}"))
                print(f"{form:<9} {count:>9,} {size / 1e6:>8.0f} {peaks[-1] / 1e6:>8.0f}")
                path.unlink()
            growth, more = peaks[1] - peaks[0], args.rows[1] - args.rows[0]
            print(f"{form}: {growth / more:+.0f} bytes per further row", flush=True)
            if growth > SLACK + BYTES_PER_ROW * more:
                failed.append(form)
    if failed:
        sys.exit(f"memory grows with the rows: {', '.join(failed)}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        from hf_align.recipes import filter as recipe

        recipe.main(sys.argv[2:])
        # Not ru_maxrss, in which the process that started this one counts too.
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        print(int(status.split("VmHWM:")[1].split()[0]) * 1024)
    else:
        main()
