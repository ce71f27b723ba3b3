"""Files that one process holds at a time, by a lock of the operating system, which goes when the process goes.

Such a lock (flock) belongs to the opened file, which forked children share: a data worker that outlives a killed run
would hold it on. Children therefore let go of it as they begin; programs that they start never see the file
(O_CLOEXEC, which Python sets).
"""

from __future__ import annotations

import errno
import fcntl
import os
from contextlib import suppress

# Lustre without `flock`, NFS without a lock manager, some FUSE file systems.
_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP})
_held: set[int] = set()


def hold(handle: int) -> str | None:
    """Locks an open file for this process alone, until `let_go`.

    Returns:
        None, or why the file system cannot lock files, in its own words: then nobody is kept out.

    Raises:
        BlockingIOError: another process holds it.
    """
    _held.add(handle)  # before: a child that is forked meanwhile must not keep it
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return error.strerror
        _held.discard(handle)
        raise
    return None


def let_go(handle: int) -> None:
    """Closes the file, which gives the lock back."""
    _held.discard(handle)
    os.close(handle)


def _leave_to_parent() -> None:
    for handle in _held:
        with suppress(OSError):
            os.close(handle)  # closing a child's share does not unlock; only the last one, or LOCK_UN, does
    _held.clear()


os.register_at_fork(after_in_child=_leave_to_parent)
