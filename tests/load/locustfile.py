"""What the people of `make load` do; what was acknowledged is noted in a file."""

import itertools
import os
from pathlib import Path

from locust import HttpUser, between, task

NOTES = Path(os.environ["LOAD_NOTES"])
NUMBERS = itertools.count()


class Person(HttpUser):
    """One user of the memory, who asks again with the same id when no answer came."""

    wait_time = between(0.1, 1.0)

    def on_start(self) -> None:
        """Become somebody."""
        self.name = f"person{next(NUMBERS)}"
        self.said = itertools.count()
        self.unsure = None
        self.model = os.environ["LOAD_MODEL"]

    def acknowledged(self, kind: str, text: str) -> None:
        """Note it; one write, so that lines stay whole."""
        with NOTES.open("a", encoding="utf-8") as notes:
            notes.write(f"{kind}\t{self.name}\t{text}\n")

    @task(3)
    def append(self) -> None:
        """Append a turn under an id; the one before again where nobody knows whether it came."""
        text = self.unsure or f"{self.name} says {next(self.said)}"
        self.unsure = text
        body = {"turns": [{"text": text, "id": text, "session": "said"}]}
        path = f"/v1/memory/users/{self.name}/turns"
        answer = self.client.post(path, json=body, name="append", timeout=30)
        if answer.ok:
            self.unsure = None
            self.acknowledged("turn", text)

    @task(2)
    def chat(self) -> None:
        """Chat in a session of its own."""
        text = f"{self.name} asks {next(self.said)}"
        body = {
            "model": self.model,
            "user": self.name,
            "messages": [{"role": "user", "content": text}],
            "max_tokens": 4,
            "memory": {"session": "asked"},
        }
        answer = self.client.post("/v1/chat/completions", json=body, name="chat", timeout=60)
        if answer.ok:
            self.acknowledged("chat", text)

    @task(1)
    def look(self) -> None:
        """Read the newest turns."""
        self.client.get(f"/v1/memory/users/{self.name}/turns?limit=5", name="look", timeout=30)
