"""A small server that speaks as vLLM does, with our own sampler behind it: tiny models, no vLLM."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from datamodules.types import SamplingParams
from rlmodules.engines.handover import count_tensors
from rlmodules.models.embedded import tiny_model
from rlmodules.sampling.decoding import sample


class FakeVLLM(ThreadingHTTPServer):
    """Computes what a real one would; ``faults`` change what it answers.

    Args:
        faults: path or name -> the answer, or what makes one of the right answer. A number is a
            status, None lets the client wait.
    """

    daemon_threads = True
    request_queue_size = 128  # whole batches are asked for at once; what is too much is hung up on

    def __init__(self, **faults):
        super().__init__(("127.0.0.1", 0), Handler)
        self.faults, self.asked, self.calls = faults, [], []
        self.model, self.tokenizer = tiny_model(seed=1)  # of other weights, until it gets some
        self.lock, self.ended = threading.Lock(), threading.Event()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address):
        """A client that hangs up is no error."""

    def answer(self, path, body):
        if path == "/health":
            return {}
        if path == "/v1/models":
            return {"data": [{"id": "tiny", "max_model_len": 512}]}
        if path == "/reset_prefix_cache":
            self.calls.append("reset")
            return {"success": True}
        if path == "/collective_rpc":
            self.calls.append(body["method"])
            (folder,) = body["args"]
            if "stale" not in self.faults:
                loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
                self.model = loaded.eval()
            return {"results": [{"tensors": count_tensors(Path(folder))}]}
        return self.complete(body)

    def complete(self, body):
        self.asked.append(body)
        params = SamplingParams(
            max_new_tokens=body["max_tokens"],
            temperature=body["temperature"],
            top_k=body["top_k"],
            top_p=body["top_p"],
            stop_strings=tuple(body["stop"]),
            stop_token_ids=tuple(body["stop_token_ids"]),
        )
        with self.lock:
            prompt, seeds = torch.tensor(body["prompt"]), [body["seed"]]
            (found,) = sample(self.model, self.tokenizer, [prompt], params, seeds)
        logprobs = torch.tensor(found.logprobs) - torch.tensor(found.kept_mass).log()
        told = {"eos": ("stop", found.tokens[-1]), "length": ("length", None)}
        reason, stopped = told.get(found.finish_reason, ("stop", "a stop string"))
        choice = {
            "index": 0,
            "token_ids": found.tokens,
            "prompt_token_ids": body["prompt"],
            "logprobs": {"token_logprobs": logprobs.tolist()},
            "finish_reason": reason,
            "stop_reason": stopped,
        }
        return {"choices": [choice]}


class Handler(BaseHTTPRequestHandler):
    server: FakeVLLM

    def do_GET(self):
        self._answer({})

    def do_POST(self):
        length = int(self.headers.get("Content-Length") or 0)
        self._answer(json.loads(self.rfile.read(length) or b"{}"))

    def _answer(self, body):
        path = self.path.partition("?")[0]
        fault = self.server.faults.get(path, lambda answer, body: answer)
        if fault is None:
            self.server.ended.wait(20)
            return
        if isinstance(fault, int):
            return self._send(fault, b'{"detail": "no"}')
        if isinstance(fault, bytes):
            return self._send(200, fault)
        self._send(200, json.dumps(fault(self.server.answer(path, body), body)).encode())

    def _send(self, status, content):
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@contextmanager
def fake_vllm(faults=()):
    """A running one."""
    server = FakeVLLM(**dict(faults))
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.ended.set()
        server.shutdown()
        server.server_close()
