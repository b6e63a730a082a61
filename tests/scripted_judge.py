"""A judge over HTTP that misbehaves on demand."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEY = "sk-test-0123456789-secret"
GOOD = '{"grammar": 6, "creativity": 4, "consistency": 7}'


class Scripted(ThreadingHTTPServer):
    """Speaks the chat API. ``script`` holds what the next requests meet; then ``GOOD``.

    A status, "hang", "page", "usageless" or an answer's text; an object to send, as it is if in bytes; or a function of the handler.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.script, self.seen, self.times, self.headers_seen = [], [], [], []
        self.lock, self.now, self.most, self.pause = threading.Lock(), 0, 0, 0.0
        self.retry_after: str | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.seen.append(body)
            server.times.append(time.monotonic())
            server.headers_seen.append(self.headers)
            server.now += 1
            server.most = max(server.most, server.now)
            step = server.script.pop(0) if server.script else GOOD
        time.sleep(server.pause)
        try:
            self.reply(step, body)
        finally:
            with server.lock:
                server.now -= 1

    def reply(self, step, body):
        if callable(step):
            return step(self)
        if isinstance(step, bytes | dict | list):
            return self.send(200, step if isinstance(step, bytes) else json.dumps(step).encode())
        if step == "hang":
            time.sleep(1.5)
            return
        if step == "page":
            return self.send(200, b"<html>Please log in</html>", "text/html")
        if isinstance(step, int):
            # As some endpoints do: quoting the key that they were sent.
            said = {"error": {"message": f"status {step} for {self.headers['Authorization']}", "type": "t"}}
            return self.send(step, json.dumps(said).encode())
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": None if step == "null" else step}}
        answer = {"id": "1", "object": "chat.completion", "created": 1, "model": f"{body['model']}-0125", "choices": [choice]}
        if step == "usageless":
            choice["message"]["content"] = GOOD
        else:
            answer["usage"] = {"prompt_tokens": 400, "completion_tokens": 20, "total_tokens": 420}
        self.send(200, json.dumps(answer).encode())

    def send(self, status, content, kind="application/json", **headers):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        if self.server.retry_after and status == 429:
            self.send_header("Retry-After", self.server.retry_after)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass
