"""Another interpreter that runs a command of this program, and answers on a descriptor of its own.

Law: code that has been imported is never imported again in the same process; who needs a new version, or must not be
changed by user code, asks here. What user code prints stays apart from the answer.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys

from skate.core.errors import ImportPathError

ANSWER_MAX_BYTES = 1 << 30
_PROGRAM = (
    "import sys; root = sys.argv.pop(1); root in sys.path or sys.path.append(root); "
    "from skate.cli.program import main; main(prog_name='skate')"
)


class Interpreter:
    """One at a time; ``close`` ends one that is still at work."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, words: list[str], what: str, given: bytes = b"", output: int | None = None) -> bytes:
        """Runs a command with ``--to`` and ``words``; what it writes there.

        ``what``: the code, for messages. ``given``: its standard input. ``output``: where its standard output goes;
        None: where ours does. Raises ImportPathError when it ends without an answer.
        """
        root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        reader, writer = os.pipe()
        command = [sys.executable, "-P", "-c", _PROGRAM, root, words[0], f"--to={writer}", *words[1:]]
        with open(reader, "rb") as answer:
            try:
                # a session of its own, so that Ctrl-C is ours to pass on
                process = subprocess.Popen(
                    command, pass_fds=[writer], start_new_session=True, stdin=subprocess.PIPE, stdout=output
                )
            finally:
                os.close(writer)
            self._process = process
            assert process.stdin is not None
            try:
                with contextlib.suppress(BrokenPipeError), process.stdin as into:
                    into.write(given)
                data = answer.read(ANSWER_MAX_BYTES)
                process.wait()
            except BaseException:
                process.kill()
                process.wait()
                raise
        if not data:
            raise ImportPathError(
                f"importing {what} ended its process (code {process.returncode}); see its output above"
            )
        return data

    def close(self) -> None:
        """Kills it if it is still at work."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
