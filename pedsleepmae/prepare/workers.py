"""Work spread over processes or a Dask cluster by joblib, and what to do when a worker dies."""

import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import distributed
import joblib
from joblib.externals.loky.process_executor import TerminatedWorkerError

from pedsleepmae.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")
_TRIES = 3  # Dask itself gives up after the fourth


class WorkersError(UserError):
    """There are no workers, or no folder that they may write to."""


@dataclass(frozen=True)
class Workers:
    """Who does the work: processes of this machine (backend "loky"), or a Dask cluster's workers.

    With one process all is done in this one.
    """

    n_jobs: int
    backend: str = "loky"

    def run(self, calls: Iterable, **options) -> Iterator[Any]:
        """Results of ``joblib.delayed`` calls as they come."""
        own = {}  # a killed run cannot tell its processes to end
        if self.backend == "loky":
            own = {"initializer": _end_with, "initargs": (os.getpid(),)}
        with joblib.parallel_config(self.backend, n_jobs=self.n_jobs, **own):
            pool = joblib.Parallel(return_as="generator_unordered", **options)
        return pool(calls)


def _end_with(parent_pid: int) -> None:
    """Let this process end when its parent is gone."""

    def watch() -> None:
        while os.getppid() == parent_pid:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def open_workers(n_processes: int, cluster_address: str | None = None) -> Iterator[Workers]:
    """This many processes, or the workers of the Dask cluster of that address."""
    if cluster_address is None:
        yield Workers(n_processes)
        return
    try:
        client = distributed.Client(cluster_address)
    except (OSError, ValueError) as error:
        raise WorkersError(
            f"no Dask scheduler answers at {cluster_address} ({error}); start one with "
            "`dask scheduler` and workers with `dask worker`, then give its address"
        ) from error
    with client:
        yield Workers(-1, "dask")


def in_parallel(
    workers: Workers,
    work: Callable[[Item], Result],
    items: Sequence[Item],
    if_deadly: Callable[[Item], Result],
    folder: Path,
) -> Iterator[tuple[Item, Result]]:
    """(item, ``work(item)``) of all items, in any order.

    A worker that dies (killed for its memory, crashed in a library) takes no other item with it.
    Processes: the items that were in hand are done one at a time, and ``if_deadly(item)`` stands
    for the result of one whose worker dies once more. Dask hands the item to another worker, until
    _TRIES have died of it. With one process its death is the run's.

    ``folder``: on a disk that all workers see, for a count of the tries while they last.
    """
    left = list(enumerate(items))
    with tempfile.TemporaryDirectory(
        dir=folder, prefix=".tries.", suffix=".partial", ignore_cleanup_errors=True
    ) as tries:

        def run(numbered: Iterable[tuple[int, Item]]) -> Iterator[tuple[int, Result]]:
            call = joblib.delayed(partial(_count_tries, work, if_deadly, Path(tries)))
            return workers.run((call(i, item) for i, item in numbered), batch_size=1)

        while left:
            done = set()
            try:
                for i, result in run(left):
                    done.add(i)
                    yield items[i], result
                return
            except TerminatedWorkerError:
                left = [(i, item) for i, item in left if i not in done]
            n_in_hand = min(2 * workers.n_jobs, len(left))  # joblib's pre_dispatch
            print(
                "a worker died (out of memory? then fewer workers are faster); going on with "
                f"the next {n_in_hand} one at a time",
                file=sys.stderr,
            )
            for i, item in left[:n_in_hand]:
                try:
                    ((_, result),) = run([(i, item)])
                except TerminatedWorkerError:
                    result = if_deadly(item)
                yield item, result
            left = left[n_in_hand:]


def _count_tries(
    work: Callable, if_deadly: Callable, tries: Path, i: int, item: Item
) -> tuple[int, Result]:
    """``work(item)``, or ``if_deadly(item)`` when _TRIES workers died of it.

    joblib waits for ever for a task that Dask has given up, so it must not come to that.
    """
    count = tries / str(i)  # a byte for each try that did not end
    if count.exists() and count.stat().st_size >= _TRIES:
        return i, if_deadly(item)
    with open(count, "ab") as file:
        file.write(b".")
    result = work(item)
    count.unlink()
    return i, result
