"""An engine that speaks vLLM's routes over a real socket and answers what a test tells it to."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@dataclass
class StubEngine:
    """What came over the wire, and what to answer."""

    url: str = ""
    words: list[str] = field(default_factory=lambda: ["Re", "x", "."])
    finish_reason: str = "stop"
    loaded: dict[str, Path] = field(default_factory=dict)
    requests: list[tuple[str, dict, str]] = field(default_factory=list)
    refuses: dict[str, tuple[int, dict]] = field(default_factory=dict)
    go_on: threading.Event = field(default_factory=threading.Event)
    """The answer's second word waits for it."""

    def bodies(self, route: str) -> list[dict]:
        return [body for path, body, _ in self.requests if path == f"/v1/{route}"]


class Handler(BaseHTTPRequestHandler):
    """One request; `engine` is set by a subclass for each engine."""

    protocol_version = "HTTP/1.1"
    engine: StubEngine

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.engine.requests.append((self.path, body, str(self.headers) + json.dumps(body)))
        route, loaded = self.path.removeprefix("/v1/"), self.engine.loaded
        if route in self.engine.refuses:
            self._json(*self.engine.refuses[route])
        elif route == "load_lora_adapter":
            loaded[body["lora_name"]] = Path(body["lora_path"])
            self._json(200, {})
        elif route == "unload_lora_adapter":
            self._json(200 if loaded.pop(body["lora_name"], None) else 404, {})
        elif body["model"] in loaded:
            self._stream(body["model"])
        else:
            self._json(404, {"error": {"message": "no such model", "code": 404}})

    def _json(self, status: int, body: dict) -> None:
        raw = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def _stream(self, model: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        first, *rest = self.engine.words
        try:
            self._chunk(model, {"role": "assistant", "content": first})
            self.engine.go_on.wait(30)
            for word in rest:
                self._chunk(model, {"content": word})
            self._chunk(model, {}, self.engine.finish_reason)
            usage = {"prompt_tokens": 11, "completion_tokens": 3, "total_tokens": 14}
            self._event(model, {"choices": [], "usage": usage})
            self.wfile.write(b"data: [DONE]\n\n")
        except OSError:
            return  # the caller left

    def _chunk(self, model: str, delta: dict, finish: str | None = None) -> None:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        self._event(model, {"choices": [choice]})

    def _event(self, model: str, body: dict) -> None:
        chunk = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": model}
        self.wfile.write(f"data: {json.dumps(chunk | body)}\n\n".encode())
        self.wfile.flush()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def stub_engine() -> Iterator[StubEngine]:
    engine = StubEngine()
    engine.go_on.set()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("OfEngine", (Handler,), {"engine": engine}))
    server.daemon_threads = True
    engine.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield engine
    finally:
        engine.go_on.set()
        server.shutdown()
        thread.join()
        server.server_close()
