"""The error tree.

    DistillError
    ├── UserError          the recipe, a file, a key or a model is wrong: one line, exit code 2, no traceback
    │   ├── Unreachable    nobody is there to be asked: wrong as it stands, and may be right in an hour
    │   └── DiskFull       nothing can be written any more, whatever was asked for
    ├── FellShort          the work ended but owes something (budget, failed rows): one line, exit code 1
    ├── Interrupted        the user asked to stop: everything answered is kept, exit code 130
    ├── Unavailable        a call may succeed later: retried, then recorded as the row's reason
    └── Rejected           this one request will never succeed: recorded as the row's reason

Anything else that escapes is a bug and keeps its traceback.
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable

#: The numbers of an OSError that say that there is no room: on the disk, for this user, in one file.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class DistillError(Exception):
    """Root of every error that this package raises on purpose."""


class UserError(DistillError):
    """Something the user can repair; the message says what was found, what is allowed and the repair."""


class Unreachable(UserError):
    """Nobody answers where a model should be."""


class DiskFull(UserError):
    """The disk ran out in the middle of training."""


class FellShort(DistillError):
    """The run stopped in good order before everything asked for was done.

    passes: what may have changed if the same is run later: `trouble` of somebody else's (a provider that is down), or a
    budget once its `day`, `week` or `month` is over; None where it would stop again.
    """

    def __init__(self, reason: str = "", *, passes: str | None = None) -> None:
        super().__init__(reason)
        self.passes = passes


class Interrupted(DistillError):
    """Ctrl-C: stop now, keep everything."""


class Unavailable(DistillError):
    """A failure that may pass (429, 5xx, a reset, a cut body).

    retry_after_s: the wait in seconds that the server asked for. crowded: it turned us away because of load.
    billed: the provider may have done the work all the same; usage: (prompt, completion) tokens of it, if it said so.
    """

    def __init__(
        self,
        reason: str,
        retry_after_s: float | None = None,
        *,
        crowded: bool = False,
        billed: bool = False,
        usage: tuple[int, int] | None = None,
    ) -> None:
        super().__init__(reason)
        self.retry_after_s, self.crowded, self.billed, self.usage = retry_after_s, crowded, billed, usage


class Rejected(DistillError):
    """A failure of this request alone (400, context too long)."""


def did_you_mean(found: str, allowed: Iterable[str]) -> str:
    """A suggestion and the allowed names, as the tail of an error message."""
    names = sorted(allowed)
    close = difflib.get_close_matches(found, names, n=1)
    return (f" Did you mean {close[0]!r}?" if close else "") + f" Allowed: {', '.join(names) or 'none'}."
