"""Fuzz every reader of users' bytes; exits with 1 when anything is uncaught, wrong or unbounded.

    python -m tests.fuzz --inputs 10000 --seed 0 --keep /tmp/findings

An input of the run is made again, and its files left in the folder of --keep, by

    python -m tests.fuzz --readers tsv --number 123 --seed 0 --keep /tmp/findings
"""

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"  # a process with threads cannot be forked
os.environ["TQDM_DISABLE"] = "1"

from . import pool  # noqa: E402
from .readers import READERS  # noqa: E402


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        "python -m tests.fuzz", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--inputs", type=int, default=10_000, help="inputs of all readers together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--slower", type=float, default=1.0, help="factor on every time bound")
    parser.add_argument("--readers", nargs="+", metavar="NAME", help="only these")
    parser.add_argument("--number", type=int, help="only this input")
    parser.add_argument("--keep", type=Path, help="folder for the files of the findings")
    parser.add_argument("--json", type=Path, help="file for counts and findings")
    asked = parser.parse_args(argv)
    readers = [r for r in READERS if not asked.readers or r.name in asked.readers]
    if not readers:
        parser.error(f"no such reader; there are: {', '.join(r.name for r in READERS)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    start, tally = time.monotonic(), pool.Tally()
    with tempfile.TemporaryDirectory(prefix="fuzz.") as folder:
        fuzz(asked, readers, Path(folder), tally)
    print(table(tally))
    n = sum(counts.total() for counts in tally.counts.values())
    seconds, slowest = tally.slowest
    print(
        f"{n} inputs in {time.monotonic() - start:.0f} s; highest memory of a process "
        f"{tally.peak_bytes / 1e9:.2f} GB; longest input {seconds:.1f} s ({slowest})"
    )
    if asked.json:
        asked.json.write_text(json.dumps(summary(tally), indent=1, default=str))
    return 1 if tally.n_failures() else 0


def fuzz(asked, readers: list[pool.Reader], folder: Path, tally: pool.Tally) -> None:
    """Run the inputs that are asked for and count what becomes of them."""
    pristine = folder / "pristine"
    build(readers, pristine)
    workers = pool.Pool(readers, pristine, folder, asked.workers, pool.Bounds(asked.slower))
    smaller: list[pool.Job] = []  # single edits of first findings: is one of them enough?
    try:
        for job, outcome, place in workers.run(jobs(asked, readers), smaller):
            if job.only is not None:
                found = tally.findings.get(pool.like(job, outcome))
                if found and found.number == job.number and len(found.edits) > 1:
                    found.edits = outcome.edits
                    keep(asked.keep, found, place)
                continue
            found = tally.add(job, outcome)
            n = sum(counts.total() for counts in tally.counts.values())
            if n % 500 == 0:
                print(f"{n} of {asked.inputs}, {tally.n_failures()} failures", file=sys.stderr)
            if found or asked.number is not None:
                found = found or pool.Finding(job.reader.name, outcome.kind, "", "")
                keep(asked.keep, found, place)
                if len(outcome.edits) > 1 and asked.number is None:
                    for k in range(len(job.plan())):
                        smaller.append(pool.Job(job.reader, job.number, job.seed, k))
    except (KeyboardInterrupt, SystemExit):
        print("stopped; what was found until then:")
    finally:
        workers.close()


def build(readers: list[pool.Reader], pristine: Path) -> None:
    """Write every reader's good files, in another process: the parent stays without threads."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            for reader in readers:
                (pristine / reader.name).mkdir(parents=True)
                reader.build(pristine / reader.name)
            code = 0
        finally:
            if code:
                import traceback

                traceback.print_exc()
            os._exit(code)
    if os.waitpid(pid, 0)[1] != 0:
        raise SystemExit("the good files could not be written")


def jobs(asked, readers: list[pool.Reader]) -> Iterator[pool.Job]:
    """The inputs, readers in turn by their weight."""
    if asked.number is not None:
        yield from (pool.Job(reader, asked.number, asked.seed) for reader in readers)
        return
    total, given = sum(reader.weight for reader in readers), Counter()
    for k in range(asked.inputs):
        lacks = {r: (k + 1) * r.weight / total - given[r.name] for r in readers}
        reader = max(readers, key=lacks.__getitem__)
        yield pool.Job(reader, given[reader.name], asked.seed)
        given[reader.name] += 1


def keep(folder: Path | None, found: pool.Finding, place: Path) -> None:
    """Copy an input beside the others, with what was found."""
    if folder is None or not place.exists():
        return
    found.repro = folder / f"{found.reader}-{found.number}".replace(" ", "_")
    shutil.rmtree(found.repro, ignore_errors=True)
    shutil.copytree(place, found.repro, symlinks=True, ignore=_no_special)
    text = f"{found.kind}: {found.what}\n{found.where}\n" + "\n".join(found.edits)
    (found.repro / "FINDING.txt").write_text(text, encoding="utf-8", errors="replace")


def _no_special(place: str, names: list[str]) -> list[str]:
    """Names of pipes and the like, which a copy would wait for."""
    paths = [(name, os.path.join(place, name)) for name in names]
    return [n for n, p in paths if not (os.path.isfile(p) or os.path.isdir(p))]


def table(tally: pool.Tally) -> str:
    rows = [("reader", "inputs", *pool.KINDS, "s an input")]
    total = Counter()
    for name, counts in tally.counts.items():
        total += counts
        each_s = f"{tally.seconds[name] / counts.total():.2f}"
        rows.append((name, counts.total(), *(counts[kind] for kind in pool.KINDS), each_s))
    rows.append(("all", total.total(), *(total[kind] for kind in pool.KINDS), ""))
    lines = ["  ".join(f"{cell!s:>{10 if i else 22}}" for i, cell in enumerate(r)) for r in rows]
    for found in sorted(tally.findings.values(), key=lambda f: (f.kind, -f.n)):
        lines.append(
            f"{found.n:5} x {found.kind}, {found.reader} (input {found.number}): {found.what}\n"
            f"        {found.where} | {'; '.join(found.edits)}"
        )
    return "\n".join(lines)


def summary(tally: pool.Tally) -> dict:
    return {
        "counts": {name: dict(counts) for name, counts in tally.counts.items()},
        "peak_bytes": tally.peak_bytes,
        "findings": [vars(found) for found in tally.findings.values()],
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
