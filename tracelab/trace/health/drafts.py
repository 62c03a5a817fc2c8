"""A repaired trace while it is made: hard links to the damaged one, and files of its own.

Nothing of the damaged trace is written. A repair ends in two renames: the damaged folder to its
new name, then the finished draft to the old one. Whatever kills it, one of both is at the path, or
the finished draft lies beside it and `finish` moves it there.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from tracelab.errors import UsageError
from tracelab.trace.places import files
from tracelab.trace.places.files import PARTIAL, Part
from tracelab.trace.writing.lock import LOCK_FILE

__all__ = ["Draft", "begin", "finish", "put", "swap"]

_NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.EXDEV, errno.EACCES})


@dataclass(frozen=True, slots=True)
class Draft:
    """Where changes to a trace go; without a folder they go nowhere.

    Parameters
    ----------
    folder : Path or None
        The draft's folder.
    written : list of str
        Keys of the files that were put there.
    """

    folder: Path | None
    written: list[str] = field(default_factory=list)

    def put(self, key: str, parts: Iterable[Part]) -> None:
        """Store a file in place of what is there."""
        if self.folder is not None:
            _clear_way(self.folder, key)
            put(self.folder / key, parts)
            self.written.append(key)

    def remove(self, key: str) -> None:
        """Remove a file or a folder with all that is in it."""
        if self.folder is not None:
            _clear_way(self.folder, key)
            _remove(self.folder / key)

    def at(self, prefix: str) -> Draft:
        """Return the draft of a trace inside."""
        return Draft(None if self.folder is None else self.folder / prefix)


def _clear_way(folder: Path, key: str) -> None:
    """Remove files and links that are in the place of a folder on the way to a key."""
    # Through a link, what is written or removed would be the damaged trace's, or anyone's.
    for name in key.split("/")[:-1]:
        folder = folder / name
        if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
            folder.unlink()


def put(path: Path, parts: Iterable[Part]) -> None:
    """Store a file in one instant, whatever is in its place."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    files.put(path, parts)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _names(folder: Path) -> tuple[Path, Path]:
    """Return the paths of the draft of a folder, before and after it is finished."""
    return (
        folder.with_name(f".{folder.name}.repair.partial"),
        folder.with_name(f".{folder.name}.repaired"),
    )


def begin(folder: Path) -> Draft:
    """Make a draft of a trace: links to all its files, copies where there can be no links.

    Raises
    ------
    UsageError
        If nothing can be written beside the trace.
    """
    unfinished, finished = _names(folder)
    try:
        # What a killed repair left; the trace at the path is as it was.
        for old in (unfinished, finished):
            if old.exists():
                shutil.rmtree(old)
        unfinished.mkdir()
    except OSError as error:
        raise UsageError(
            f"{folder} cannot be repaired where it is: nothing can be written beside it "
            f"({error.strerror}); copy it to a folder of your own and repair that"
        ) from error
    _link(folder, unfinished)
    return Draft(unfinished)


def _link(source: Path, target: Path) -> None:
    lock = source / LOCK_FILE
    for parent, folders, names in os.walk(source):
        place = target / os.path.relpath(parent, source)
        links = [name for name in folders if os.path.islink(os.path.join(parent, name))]
        folders[:] = [name for name in folders if name not in links]
        for name in folders:
            (place / name).mkdir()
        for name in (*names, *links):
            old = Path(parent, name)
            if old != lock and not name.endswith(PARTIAL):
                _link_file(old, place / name)


def _link_file(old: Path, new: Path) -> None:
    try:
        os.link(old, new, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        shutil.copy2(old, new, follow_symlinks=False)


def swap(folder: Path, draft: Draft) -> Path:
    """Put a finished draft in the place of its trace; return where the damaged one is now."""
    unfinished, finished = _names(folder)
    assert draft.folder == unfinished
    for parent, _, _ in os.walk(unfinished):
        _sync(Path(parent))
    unfinished.replace(finished)
    _sync(folder.parent)
    copy = _copy_name(folder)
    folder.rename(copy)
    finished.rename(folder)
    _sync(folder.parent)
    return copy


def _copy_name(folder: Path) -> Path:
    stem = folder.name.removesuffix(".zarr")
    number = 1
    while os.path.lexists(path := folder.with_name(f"{stem}.damaged-{number}.zarr")):
        number += 1
    return path


def finish(folder: Path) -> bool:
    """Finish a repair that was killed between its two renames; return whether there was one."""
    finished = _names(folder)[1]
    if os.path.lexists(folder) or not finished.is_dir():
        return False
    finished.rename(folder)
    _sync(folder.parent)
    return True


def _sync(folder: Path) -> None:
    # Not every file system can flush a folder.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
