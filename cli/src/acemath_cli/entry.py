"""The console script: ends without a traceback when it is interrupted, or when what it writes finds no room.

Nothing of ours is imported above: most of a short command's time is imports, and they may be interrupted, too.
"""

from __future__ import annotations

import errno
import os
import sys

_INTERRUPTED = 130  # 128 + SIGINT, as shells have it
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def main() -> None:
    """Run the command that the arguments name; raises SystemExit with its status."""
    try:
        from acemath_cli.app import build_app  # noqa: PLC0415 - see above

        build_app()()
    except KeyboardInterrupt:
        sys.stderr.write("acemath: interrupted\n")
        raise SystemExit(_INTERRUPTED) from None
    except OSError as error:
        if error.errno not in _NO_ROOM or not _is_full(sys.stdout.fileno()):
            raise
        sys.stderr.write(
            f"acemath: standard output can not be written ({error.strerror}); what the command changed stays changed: "
            "look at it, with the output somewhere else\n"
        )
        raise SystemExit(1) from None


def _is_full(stdout: int) -> bool:
    """Whether standard output takes nothing, not some other file; what is left unwritten goes nowhere then."""
    try:
        sys.stdout.flush()
        os.write(stdout, b"\n")
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stdout)  # else the interpreter complains of the rest once more when it ends
        os.close(nowhere)
        return True
    return False
