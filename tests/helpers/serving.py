"""`memory serve` as a process of its own."""

import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.helpers.command_line import start


@contextmanager
def serving(*options: str, **process_options: Any) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A server and its address; `process_options` as of `subprocess.Popen`."""
    process, reader = start("serve", "--port", "0", *options, **process_options), None
    try:
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line.decode())
            if "listening on " in said[-1]:
                break
        else:
            raise AssertionError("".join(said))
        reader = threading.Thread(target=process.stderr.read)  # never a full pipe
        reader.start()
        yield process, said[-1].split("listening on ")[1].strip()
    finally:
        process.kill()
        process.wait()
        if reader is not None:
            reader.join()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
