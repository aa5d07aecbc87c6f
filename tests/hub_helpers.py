"""A hub on loopback with the few endpoints that an upload by ``huggingface_hub`` calls."""

import base64
import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from urllib.parse import urlsplit

import huggingface_hub.constants
from huggingface_hub.utils import _http

TOKEN = "hf_" + "a" * 34


class Hub(ThreadingHTTPServer):
    """Repositories by name, as ``{"private": ..., "files": {path: bytes}}``.

    Attributes:
        fails: what becomes of requests whose path contains a text: a status, or ``drop``.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos, self.objects, self.fails, self.cards = {}, {}, {}, []
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def do(self):
        length, self.path = int(self.headers.get("Content-Length", 0)), urlsplit(self.path).path
        for text, what in self.server.fails.items():
            if text in self.path:
                if what == "drop":
                    self.rfile.read(min(length, 10))
                    self.connection.close()
                    self.close_connection = True
                    return
                self.rfile.read(length)
                return self.answer({"error": "the hub is on fire"}, what)
        body = self.body(length)
        known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if not (known or self.path.startswith("/object/")):
            return self.answer({"error": "Invalid username or password."}, 401)
        self.route(self.path.strip("/").split("/"), body)

    do_GET = do_POST = do_PUT = do

    def body(self, length):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(length)
        found = b""
        while size := int(self.rfile.readline(), 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return found

    def answer(self, value, status=200, **headers):
        content = json.dumps(value).encode()
        self.send_response(status)
        headers |= {"Content-Type": "application/json", "Content-Length": str(len(content))}
        for name, text in headers.items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(content)

    def route(self, parts, body):
        hub = self.server
        if parts[0] == "object":
            assert hashlib.sha256(body).hexdigest() == parts[1]
            hub.objects[parts[1]] = body
            return self.answer({})
        told = json.loads(body) if body and "commit" not in parts else {}
        if parts[1:] == ["repos", "create"]:
            name = f"{told.get('organization') or 'someone'}/{told['name']}"
            status = 409 if name in hub.repos else 200
            hidden = bool(told.get("private")) or told.get("visibility") == "private"
            hub.repos.setdefault(name, {"private": hidden, "files": {}})
            return self.answer({"url": f"{hub.url}/{name}", "id": name}, status)
        if parts[1:] == ["validate-yaml"]:
            hub.cards.append(told["content"])
            return self.answer({"errors": [], "warnings": []})
        if parts[-1] == "batch":
            return self.answer({"transfer": "basic", "objects": [
                {**o, "actions": {"upload": {"href": f"{hub.url}/object/{o['oid']}"}}}
                for o in told["objects"]
            ]})  # fmt: skip
        repo = hub.repos.get("/".join(parts[2:4]))
        if repo is None:
            return self.answer({"error": "no"}, 404, **{"X-Error-Code": "RepoNotFound"})
        self.of_repo("/".join(parts[2:4]), repo, parts[4:], told, body)

    def of_repo(self, name, repo, parts, told, body):
        if not parts or parts[0] == "revision":
            siblings = [{"rfilename": path} for path in repo["files"]]
            return self.answer({"id": name, "private": repo["private"], "siblings": siblings})
        if parts[0] == "tree":
            files = repo["files"].items()
            return self.answer([{"type": "file", "path": p, "size": len(c), "oid": "0" * 40}
                                for p, c in files])  # fmt: skip
        if parts[0] == "preupload":
            kinds = {True: "lfs", False: "regular"}
            return self.answer({"files": [
                {"path": f["path"], "shouldIgnore": False,
                 "uploadMode": kinds[f["path"].endswith(".safetensors")]} for f in told["files"]
            ]})  # fmt: skip
        assert parts[0] == "commit"
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                repo["files"][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                repo["files"][value["path"]] = self.server.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                del repo["files"][value["path"]]
        self.answer({"commitUrl": f"{self.server.url}/{name}/commit/1", "commitOid": "1" * 40})


@contextmanager
def hub(monkeypatch):
    """A hub that ``huggingface_hub`` takes for its own, with a token, no waits and no Xet."""
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    quick = SimpleNamespace(**vars(_http.time) | {"sleep": lambda seconds: None})
    monkeypatch.setattr(_http, "time", quick)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
