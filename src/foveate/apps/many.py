"""One task over many inputs, in processes of this machine or on a Ray cluster.

An input that is bad costs a sentence and does not stop the others. A worker process that dies
(killed, out of memory) costs its input one attempt; after two it is reported as failed. Nothing is
kept here: a task writes its own result, finished or absent, so that the work can be killed at any
moment and started again.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Generic, TypeVar

from foveate.errors import FoveateError

__all__ = ["Job", "Outcome", "folders_for", "many"]

Result = TypeVar("Result")
_ATTEMPTS = 2


@dataclass(frozen=True)
class Job:
    """One input and the folder of its result; `options` are handed to the task as they are."""

    source: Path
    folder: Path
    options: Any = None


@dataclass(frozen=True)
class Outcome(Generic[Result]):
    """What became of one input: a result, or the sentence that says why there is none."""

    job: Job
    result: Result | None
    error: str | None = None


Task = Callable[[Job], Result]


def many(
    work: Sequence[Job],
    task: Task[Result],
    *,
    verb: str,
    jobs: int | None = None,
    ray: str | None = None,
) -> Iterator[Outcome[Result]]:
    """Do `task` for every job, several at a time; outcomes as they come.

    Parameters
    ----------
    task
        A function of a module (it is sent to other processes).
    verb
        What the task did to an input, for sentences: ``watched``.
    jobs
        Processes at once; default: the number of cores, at most one for each input.
    ray
        Address of a Ray cluster (``local`` starts one here); sources and folders must lie on a
        file system that every machine of the cluster sees under the same path.

    Raises
    ------
    FoveateError
        `jobs` is below 1, or Ray is not installed or reachable.
    """
    if jobs is not None and jobs < 1:
        raise FoveateError(f"--jobs is {jobs}; expected a number of at least 1")
    return _on_ray(work, task, verb, ray) if ray else _in_pool(work, task, verb, jobs)


def folders_for(sources: Sequence[Path], out: Path, taken: set[str]) -> list[Path]:
    """A folder for each input, by its stem; with the suffix where stems collide.

    `taken` are names in `out` that stand for something else.
    """
    # `..` and `.` have no name of their own, and would lead out of `out`.
    stems = [source.stem.strip(".") or "input" for source in sources]
    taken = set(taken)
    names = []
    for source, stem in zip(sources, stems, strict=True):
        suffixed = source.name.strip(".").replace(".", "-") or stem
        name = stem if stems.count(stem) == 1 else suffixed
        candidate, number = name, 2
        while candidate in taken or (candidate != stem and candidate in stems):
            candidate, number = f"{name}-{number}", number + 1
        taken.add(candidate)
        names.append(candidate)
    return [out / name for name in names]


def _one(job: Job, task: Task[Result]) -> Outcome[Result]:
    """Do one; bad input becomes a sentence, so that the others go on."""
    try:
        return Outcome(job, task(job))
    except FoveateError as error:
        return Outcome(job, None, str(error))
    except OSError as error:
        return Outcome(job, None, f"{job.source.name}: {error.strerror or error}")
    except Exception as error:  # one input must not stop the others
        kind = type(error).__name__
        return Outcome(
            job, None, f"{job.source.name}: an error of foveate itself ({kind}: {error})"
        )


def _leave_with_parent(parent: int) -> None:
    """End this worker when the process that started it is gone (even by kill -9).

    Ctrl-C reaches the whole process group; the parent alone decides what follows.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def guard() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=guard, daemon=True).start()


def _in_pool(
    work: Sequence[Job], task: Task[Result], verb: str, jobs: int | None
) -> Iterator[Outcome[Result]]:
    strikes: dict[Path, int] = {}
    todo = list(work)
    workers = min(jobs or os.cpu_count() or 1, max(len(work), 1))
    while todo:
        # After a crash the culprit is unknown: suspects run alone.
        alone = any(strikes.values())
        batch = [todo.pop(0)] if alone else todo
        todo = todo if alone else []
        pool = ProcessPoolExecutor(
            1 if alone else workers,
            mp_context=get_context("spawn"),
            initializer=_leave_with_parent,
            initargs=(os.getpid(),),
        )
        running: dict[Future[Outcome[Result]], Job] = {}
        try:
            running = {pool.submit(_one, job, task): job for job in batch}
            while running:
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    job = running.pop(future)
                    try:
                        yield future.result()
                    except BrokenProcessPool:
                        strikes[job.source] = strikes.get(job.source, 0) + (1 if alone else 0)
                        if strikes[job.source] >= _ATTEMPTS:
                            yield Outcome(
                                job,
                                None,
                                f"the process that {verb} {job.source.name} died {_ATTEMPTS} times "
                                "(killed, or out of memory); try it alone with --jobs 1",
                            )
                        else:
                            strikes[job.source] = max(strikes[job.source], 1)
                            todo.append(job)
        finally:
            workers_left = list((getattr(pool, "_processes", None) or {}).values())
            pool.shutdown(wait=False, cancel_futures=True)
            if running:  # interrupted: do not wait for what is in flight
                for process in workers_left:
                    process.kill()


def _on_ray(
    work: Sequence[Job], task: Task[Result], verb: str, address: str
) -> Iterator[Outcome[Result]]:
    try:
        import ray
    except ImportError as error:
        raise FoveateError(
            "--ray needs Ray, which is not installed; run `pip install 'foveate[cluster]'`"
        ) from error
    try:
        ray.init(address=address, ignore_reinit_error=True, log_to_driver=False,
                 logging_level="ERROR")  # fmt: skip
    except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
        raise FoveateError(
            f"no Ray cluster answers at {address} ({str(error).splitlines()[0]}); "
            "start one with `ray start --head`, or use --ray local"
        ) from error
    try:
        remote = ray.remote(num_cpus=1, max_retries=_ATTEMPTS - 1)(_one)
        pending: dict[Any, Job] = {}
        for job in work:
            there = dataclasses.replace(
                job, source=job.source.resolve(), folder=job.folder.resolve()
            )
            pending[remote.remote(there, task)] = job
        while pending:
            ready, _ = ray.wait(list(pending), num_returns=1)
            job = pending.pop(ready[0])
            try:
                yield dataclasses.replace(ray.get(ready[0]), job=job)
            except ray.exceptions.RayError as error:
                first = str(error).splitlines()[0]
                name = job.source.name
                yield Outcome(job, None, f"the Ray task that {verb} {name} failed: {first}")
    finally:
        ray.shutdown()
