"""An engine's server as a process: started, watched, and ended with all that it started."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from rlmodules.engines.errors import SamplerError

SUPERVISE = Path(__file__).with_name("supervise.py")
SHOWN_LINES = 12
"""Of the end of its log, where it says no error."""


class Server:
    """A running server; ``stop`` ends it, and so does the end of this process, however that comes.

    Args:
        command: program and arguments.
        environment: all that it finds in its environment.
        log: file that gets what it prints.

    Raises:
        SamplerError: there is no such program.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            file.write(f"$ {' '.join(command)}\n".encode())
            file.flush()
            self._from = file.tell()
            self._process = subprocess.Popen(
                [sys.executable, "-I", str(SUPERVISE), str(os.getpid()), *command],
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C is not for it, and its group can be ended
            )

    def require_running(self) -> None:
        """
        Raises:
            SamplerError: it has ended; shows what it said last.
        """
        if self._process.poll() is not None:
            raise SamplerError(f"the sampler's server has ended{self.last_words()}")

    def last_words(self) -> str:
        """What its log says of the end, to be put behind a sentence."""
        text = self.log.read_bytes()[self._from :].decode(errors="replace")
        lines = [line for line in text.splitlines() if line.strip()]
        errors = [i for i, line in enumerate(lines) if "Error" in line]
        shown = lines[-SHOWN_LINES:] + ([lines[errors[-1]]] if errors else [])
        told = "".join(f"\n  {line[:300]}" for line in dict.fromkeys(shown))
        return f"; its log, {self.log}, ends:{told}" if told else f"; its log is {self.log}"

    def stop(self) -> None:
        """End it and all that it started: by asking, and by force where that does not help."""
        for number, patience in ((signal.SIGTERM, 15.0), (signal.SIGKILL, 15.0)):
            if self._process.poll() is None:
                if number == signal.SIGTERM:
                    self._process.terminate()  # which ends the group, in order
                else:
                    self._kill_group()
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(patience)
        self._kill_group()  # members that its end left

    def _kill_group(self) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
