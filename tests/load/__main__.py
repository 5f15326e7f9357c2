"""`make load`: many people at once, a kill in the middle; then every word is looked up.

Runs on a tiny random model. Ends with 1 where something acknowledged is missing or doubled.
"""

import argparse
import asyncio
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import httpx

from memory_service.bootstrap import open_store
from memory_service.domain.memory import MemoryId
from memory_service.settings import read_settings
from tests.helpers.command_line import make_tiny_model, settings_for

START_S = 120.0


def main() -> int:
    """Serve, load, kill, serve again, compare."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--people", type=int, default=50)
    parser.add_argument("--seconds", type=int, default=300)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        make_tiny_model(home)
        os.environ.update(settings_for(home, home))
        memory = [sys.executable, "-m", "memory_cli"]
        subprocess.run([*memory, "db", "upgrade"], check=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        address = f"http://127.0.0.1:{port}"
        serve = [*memory, "serve", "--port", str(port)]
        server = subprocess.Popen(serve)
        os.environ.update(LOAD_NOTES=str(home / "notes"), LOAD_MODEL=_model(address, server))
        (home / "notes").touch()
        load = subprocess.Popen(
            [
                *(sys.executable, "-m", "locust", "-f", "tests/load/locustfile.py"),
                *("--headless", "--only-summary", "--host", address, "--spawn-rate", "10"),
                *("--users", str(given.people), "--run-time", f"{given.seconds}s"),
                *("--exit-code-on-error", "0"),
            ]
        )
        time.sleep(given.seconds / 2)
        server.kill()
        server.wait()
        before = len((home / "notes").read_text().splitlines())
        sys.stdout.write(
            f"killed the server after {before:,} acknowledgements; starting it again\n"
        )
        server = subprocess.Popen(serve)
        failed = load.wait()
        server.terminate()
        failed = server.wait() or failed
        return asyncio.run(_compare(home / "notes", before)) or failed


def _model(address: str, server: "subprocess.Popen[bytes]") -> str:
    """Wait until the server answers; the name of its model."""
    until = time.monotonic() + START_S
    while server.poll() is None and time.monotonic() < until:
        try:
            return str(httpx.get(f"{address}/readyz").json()["model"])
        except httpx.TransportError:
            time.sleep(0.3)
    raise RuntimeError("the server does not answer")


async def _compare(notes: Path, before: int) -> int:
    """Look every acknowledged word up in the database."""
    lines = [line.split("\t") for line in notes.read_text().splitlines()]
    counts = Counter(kind for kind, _, _ in lines)
    lost = doubled = 0
    async with open_store(read_settings()) as store:
        for user in {user for _, user, _ in lines}:
            kept = Counter(one.turn.text for one in await store.inspect.turns(MemoryId(user)))
            said = {text for _, owner, text in lines if owner == user}
            lost += len(said - set(kept))
            doubled += sum(kept[text] > 1 for text in said)
    sys.stdout.write(
        f"acknowledged: {counts['turn']:,} turns and {counts['chat']:,} chats of "
        f"{len({user for _, user, _ in lines})} people, {before:,} of them before the kill\n"
        f"lost: {lost}, stored twice: {doubled}\n"
    )
    return int(lost > 0 or doubled > 0 or before in {0, len(lines)})


if __name__ == "__main__":
    raise SystemExit(main())
