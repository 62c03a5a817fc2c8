"""Faults done to real processes and files, and what is left afterwards."""

import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import xarray as xr
from traces import write_trace

import tracelab
from faults import hostile
from faults.rows import LAYERS, Recording, append, check, continued
from tracelab.errors import DamagedError, TraceError, TracelabError, UsageError

COMMAND = [sys.executable, "-c", "from tracelab.cli import main; main()"]


@dataclass
class Outcome:
    """What a fault did.

    ``lost`` counts committed rows that cannot be read although nothing happened to their bytes.
    """

    tried: int = 0
    committed: int = 0
    lost: int = 0
    told: list[str] = field(default_factory=list)


def tracelab_command(*arguments, **options):
    return subprocess.run(
        [*COMMAND, *map(str, arguments)], capture_output=True, text=True, check=False, **options
    )


def sigkill_of_the_writer(folder, trials, seed):
    """Killed at random moments, resumed, killed again, five times a trace."""
    rng, found = random.Random(seed), Outcome()
    for trial in range(trials):
        path = folder / f"killed-{trial // 5}.zarr"
        recording = Recording(path, rng.random())
        recording.wait(rng.choice([0, 1, 2, 5, 20, 60]))
        time.sleep(rng.uniform(0, 0.02))
        recording.kill()
        found.tried += 1
        if recording.acknowledged < 0 and not (path / "zarr.json").exists():
            continue
        following = check(tracelab.open(path))
        found.committed += following
        found.lost += max(0, recording.acknowledged - following)
        report = tracelab.verify(path)
        assert not report.damages, report
        if trial % 5 == 4:
            first = continued(tracelab.open(path))
            with tracelab.create(path, LAYERS, resume=first or True) as writer:
                for step in range(first, first + 50):
                    append(writer, step)
            assert tracelab.open(path).state == "complete"
            check(tracelab.open(path))
    return found


def sigkill_of_a_rank(folder, trials, seed):
    """Rank 0 and three others write one trace; one of them is killed, the others go on."""
    rng, found = random.Random(seed), Outcome()
    for trial in range(trials):
        path = folder / f"ranks-{trial}.zarr"
        recordings = {rank: Recording(path, rng.random(), rank) for rank in (None, 1, 2, 3)}
        for recording in recordings.values():
            recording.wait(1)
        victim = rng.choice(list(recordings))
        time.sleep(rng.uniform(0, 0.05))
        recordings[victim].kill()
        for rank, recording in recordings.items():
            if rank != victim:
                recording.wait(2)
                recording.kill()
        for rank, recording in recordings.items():
            trace = tracelab.open(path)
            following = check(trace if rank is None else trace.ranks[rank])
            found.committed += following
            found.lost += max(0, recording.acknowledged - following)
        found.tried += 1
    return found


def sigkill_of_an_analysis(folder, trials, seed):
    """Killed at random moments; the same command then gives what an undisturbed one gives."""
    rng, found = random.Random(seed), Outcome()
    reference = write_trace(folder / "reference.zarr", steps=tuple(range(0, 40, 2)))
    started = time.monotonic()
    arguments = ["-a", "gaussianity", "-a", "tail_index", "-a", "weight_diffusion"]
    assert tracelab_command("analyze", reference, *arguments).returncode == 0
    duration = time.monotonic() - started
    wanted = {name: tracelab.open(reference).results[name].load() for name in arguments[1::2]}
    rows = sum(tracelab.open(reference).rows.values())
    for trial in range(trials):
        path = folder / f"analysis-{trial}.zarr"
        shutil.copytree(reference, path, ignore=shutil.ignore_patterns("results"))
        process = subprocess.Popen(
            [*COMMAND, "analyze", str(path), *arguments],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(rng.uniform(0.3, 1.0) * duration)
        process.kill()
        process.wait()
        found.tried += 1
        found.committed += rows
        found.lost += rows - sum(tracelab.open(path).rows.values())
        for name in tracelab.open(path).results:
            _same(tracelab.open(path).results[name], wanted[name])
        again = tracelab_command("analyze", path, *arguments)
        assert again.returncode == 0, again.stderr
        for name, result in wanted.items():
            _same(tracelab.open(path).results[name], result)
        assert not tracelab.verify(path).damages
        shutil.rmtree(path)
    return found


def _same(result, wanted):
    # Every number; the attributes hold times and seconds.
    xr.testing.assert_identical(result.load().drop_attrs(), wanted.drop_attrs())


@contextlib.contextmanager
def small_disk(folder, size):
    """Mount a file system of so many bytes.

    Raises
    ------
    PermissionError
        If it cannot be mounted here.
    """
    folder.mkdir()
    options = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    mounted = subprocess.run(options, capture_output=True, text=True, check=False)
    if mounted.returncode:
        raise PermissionError(f"no small file system can be mounted: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def disk_full_while_recording(folder, trials, seed):
    """Rows are appended until nothing fits any more."""
    rng, found = random.Random(seed), Outcome()
    for trial in range(trials):
        size = rng.randrange(300_000, 3_000_000)
        with small_disk(folder / f"disk-{trial}", size) as disk:
            path, acknowledged, told = disk / "run.zarr", 0, None
            writer = tracelab.create(
                path, LAYERS, flush_seconds=0.005, queue_bytes=100_000, compression="none"
            )
            try:
                for step in range(10**6):
                    append(writer, step)
                    if step % 20 == 0:
                        writer.flush()
                        acknowledged = step + 1
            except TraceError as error:
                told = str(error)
            with contextlib.suppress(TraceError):
                writer.close()
            assert told is not None
            assert "No space left on device" in told
            following = check(tracelab.open(path))
            found.committed += following
            found.lost += max(0, acknowledged - following)
            assert not tracelab.verify(path).damages
            found.told.append(told)
        found.tried += 1
    return found


def disk_full_while_analysing(folder, trials, seed):
    """The trace fits and its results do not."""
    rng, found = random.Random(seed), Outcome()
    source = write_trace(folder / "source.zarr", steps=tuple(range(8)))
    size = 2 * sum(512 * file.stat().st_blocks for file in source.rglob("*"))
    for trial in range(trials):
        with small_disk(folder / f"disk-{trial}", size) as disk:
            path = disk / "run.zarr"
            shutil.copytree(source, path)
            rows = sum(tracelab.open(path).rows.values())
            _fill(disk / "other", leave=4096 * rng.randrange(0, 16))
            done = tracelab_command("analyze", path, "-a", "tail_index", "-a", "gaussianity")
            assert "Traceback" not in done.stderr, done.stderr
            assert done.returncode == 1, (done.returncode, done.stderr, done.stdout)
            assert "No space left on device" in done.stderr
            found.told.append(done.stderr.strip().splitlines()[-1])
            found.committed += rows
            found.lost += rows - sum(tracelab.open(path).rows.values())
            assert not tracelab.verify(path).damages
        found.tried += 1
    return found


def _fill(file, leave):
    with contextlib.suppress(OSError), file.open("wb", buffering=0) as opened:
        while True:
            opened.write(bytes(4096))
    os.truncate(file, file.stat().st_size - leave)


def _damaged(kind):
    """Return the scenario in which one shard of a trace is damaged in one way."""

    def scenario(folder, trials, seed):
        rng, found = random.Random(seed), Outcome()
        whole = folder / f"{kind}.zarr"
        with tracelab.create(whole, LAYERS, compression="lz4" if seed % 2 else "none") as writer:
            for step in range(400):
                append(writer, step)
        before = {name: rows.load() for name, rows in tracelab.open(whole).groups.items()}
        shards = sorted(
            str(file.relative_to(whole))
            for file in whole.rglob("c.*")
            if "layers" not in file.parts and file.parent.name not in ("layer", "step")
        )
        for trial in range(trials):
            path = folder / f"{kind}-{trial}.zarr"
            shutil.copytree(whole, path)
            shard = rng.choice(shards)
            group, array = shard.split("/")[:2]
            _DAMAGE[kind](path / shard, rng)
            trace = tracelab.open(path)
            report = tracelab.verify(path)
            assert {(each.group, each.array) for each in report.damages} == {(group, array)}
            found.told.append(report.damages[0].sentence)
            for name, rows in before.items():
                for variable in rows.variables:
                    if (name, variable) != (group, array):
                        np.testing.assert_array_equal(
                            trace.groups[name][variable].values, rows[variable].values
                        )
                found.committed += rows.sizes["step"]
                found.lost += rows.sizes["step"] - trace.rows[name]
            with contextlib.suppress(DamagedError):
                damaged = trace.groups[group][array].values
                # What is read is never wrong.
                np.testing.assert_array_equal(damaged, before[group][array].values)
                raise AssertionError(f"{shard} is damaged and was read")
            repaired = tracelab_command("repair", path)
            assert repaired.returncode == 0, repaired.stderr
            assert not tracelab.verify(path).damages
            assert any(each.name.startswith(path.stem) for each in folder.glob("*damaged*"))
            found.tried += 1
        return found

    return scenario


def _truncate(file, rng):
    with file.open("r+b") as opened:
        opened.truncate(rng.randrange(file.stat().st_size))


def _flip(file, rng):
    content = bytearray(file.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(content)


_DAMAGE = {"truncated": _truncate, "flipped": _flip, "missing": lambda file, rng: file.unlink()}


def two_writers(folder, trials, seed):
    """A second writer of a live trace is refused; of a dead one's it goes on."""
    rng, found = random.Random(seed), Outcome()
    for trial in range(trials):
        path = folder / f"two-{trial}.zarr"
        first = Recording(path, rng.random())
        first.wait(2)
        for arguments in ({"resume": True}, {"overwrite": True}):
            try:
                tracelab.create(path, LAYERS, **arguments)
            except UsageError as error:
                found.told.append(str(error))
            else:
                raise AssertionError("two writers on one trace")
        first.wait(1)
        first.kill()
        following = check(tracelab.open(path))
        found.committed += following
        found.lost += max(0, first.acknowledged - following)
        tracelab.create(path, LAYERS, resume=True).close()
        found.tried += 1
    return found


def a_future_format(folder, trials, seed):
    """A store of a later format version is refused, and left alone."""
    found = Outcome()
    for trial in range(trials):
        path = write_trace(folder / f"future-{trial}.zarr", steps=(0,))
        document = json.loads((path / "zarr.json").read_text())
        document["attributes"]["format_version"] = 2 + trial
        (path / "zarr.json").write_text(json.dumps(document))
        before = _content(path)
        for command in ("info", "analyze", "verify", "repair"):
            done = tracelab_command(command, path)
            assert done.returncode == 3, (command, done)
            assert f"format version {2 + trial}" in done.stderr
            found.told.append(done.stderr.strip())
        for arguments in ({"resume": True}, {}):
            with contextlib.suppress(TracelabError):
                tracelab.create(path, LAYERS, **arguments)
                raise AssertionError("written into a store of another version")
        assert _content(path) == before
        found.tried += 1
    return found


def _content(path):
    return {str(file): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def hostile_metadata(folder, trials, seed):
    """Each is refused in a sentence, soon and in little memory."""
    found = Outcome()
    for name, make in list(hostile.STORES.items())[:trials]:
        path = folder / f"{len(found.told)}.zarr"
        make(path)
        said, seconds, grown = hostile.attempt(path)
        assert said.startswith("refused: "), (name, said)
        assert seconds < hostile.MAX_SECONDS, (name, seconds)
        assert grown < hostile.MAX_BYTES, (name, grown)
        found.told.append(f"{name}: {said} ({seconds:.2f} s, {grown / 1e6:.0f} MB more)")
        shutil.rmtree(path)
        found.tried += 1
    return found


def clock_going_backwards(folder, trials, seed):
    """The clock of a recording and of two analyses falls at every look at it."""
    rng, found = random.Random(seed), Outcome()
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise PermissionError("no C compiler to make a wrong clock with")
    library = folder / "clock.so"
    source = Path(__file__).with_name("clock.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True)
    environment = {**os.environ, "LD_PRELOAD": str(library)}
    for trial in range(trials):
        path = folder / f"clock-{trial}.zarr"
        rows = rng.randrange(200, 400)
        done = subprocess.run(
            [sys.executable, "-c", _RECORD, str(path), str(rows)],
            capture_output=True,
            text=True,
            check=False,
            env=environment,
            cwd=Path(__file__).parents[1],
        )
        assert done.returncode == 0, done.stderr
        earlier, later = map(float, done.stdout.split())
        assert later < earlier, "the clock did not go backwards"
        following = check(tracelab.open(path))
        found.committed += following
        found.lost += rows - following
        for level in (0.01, 0.02):
            done = tracelab_command(
                "analyze",
                path,
                "-a",
                "gaussianity",
                "-p",
                f"significance={level}",
                env=environment,
            )
            assert done.returncode == 0, done.stderr
            newest = tracelab.open(path).results["gaussianity"]
            assert newest.attrs["parameters"]["significance"] == level
        found.tried += 1
    return found


_RECORD = """
import sys, time
import tracelab
from faults import hostile
from faults.rows import LAYERS, append
earlier = time.time()
with tracelab.create(sys.argv[1], LAYERS, flush_seconds=0.01) as writer:
    for step in range(int(sys.argv[2])):
        append(writer, step)
        time.sleep(0.0005)
print(earlier, time.time())
"""

SCENARIOS = {
    "SIGKILL of the writer": (sigkill_of_the_writer, 100),
    "SIGKILL of a rank": (sigkill_of_a_rank, 10),
    "SIGKILL of an analysis": (sigkill_of_an_analysis, 20),
    "disk full while recording": (disk_full_while_recording, 10),
    "disk full while analysing": (disk_full_while_analysing, 5),
    "a truncated shard": (_damaged("truncated"), 20),
    "a flipped bit": (_damaged("flipped"), 20),
    "a missing shard": (_damaged("missing"), 20),
    "two writers on one trace": (two_writers, 10),
    "a future format version": (a_future_format, 3),
    "hostile metadata": (hostile_metadata, len(hostile.STORES)),
    "a clock going backwards": (clock_going_backwards, 3),
}
