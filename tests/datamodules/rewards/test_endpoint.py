"""A judge behind an OpenAI-compatible endpoint, here a small HTTP server of our own."""

import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from datamodules import TextGenerationEnv
from datamodules.rewards import judge
from datamodules.rewards.endpoint import score_in
from datamodules.rewards.functions import RewardError
from datamodules.text.prompts import Prompt
from rlmodules.models.embedded import tiny_tokenizer

KEY = "sk-very-secret-123"


class Server:
    """Answers each request by ``reply(text of the response, how often it was asked for)``."""

    def __init__(self):
        self.requests, self.headers, self.asked = [], [], {}
        self.now = self.most = 0
        self.lock, self.reply = threading.Lock(), lambda text, times: verdict(len(text))
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                user = body["messages"][-1]["content"]
                text = re.search(r"<response>\n(.*)\n</response>", user, re.DOTALL)[1]
                with outer.lock:
                    outer.requests.append((self.path, body))
                    outer.headers.append(dict(self.headers))
                    outer.asked[text] = outer.asked.get(text, 0) + 1
                    outer.now += 1
                    outer.most = max(outer.most, outer.now)
                status, content, extra = outer.reply(text, outer.asked[text])
                with outer.lock:
                    outer.now -= 1
                self.send_response(status)
                for name, value in extra.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *args):
                pass

        class Threaded(ThreadingHTTPServer):
            daemon_threads, block_on_close, request_queue_size = True, False, 64

            def handle_error(self, *args):
                pass

        self.http = Threaded(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"


def says(content, status=200, **headers):
    body = {"choices": [{"message": {"role": "assistant", "content": content}}]}
    return status, json.dumps(body).encode(), headers


def verdict(score):
    return says(json.dumps({"reason": "so", "score": score}))


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    made = Server()
    yield made
    made.http.shutdown()
    made.http.server_close()


def asked(server, texts, rows=None, **options):
    made = judge(server.url, "tiny-judge", **{"timeout_s": 20.0, **options})
    made.require({name for row in rows or () for name in row})
    return made(["Q"] * len(texts), texts, rows)


def test_the_score_becomes_a_reward_from_0_to_1_and_the_request_is_openais(server):
    rows = [{"answer": f"A{i}", "other": 1} for i in range(3)]
    options = {"rubric": "Is it long? See {answer}.", "max_tokens": 99}
    rewards = asked(server, ["", "12345", "1234567890"], rows, **options)
    assert rewards == [0.0, 0.5, 1.0]
    path, body = next(r for r in server.requests if "12345\n" in r[1]["messages"][1]["content"])
    assert path == "/v1/chat/completions" and body["model"] == "tiny-judge"
    assert (body["temperature"], body["max_tokens"]) == (0.0, 99)
    assert body["response_format"]["json_schema"]["schema"]["required"] == ["reason", "score"]
    system, user = (message["content"] for message in body["messages"])
    assert "Is it long? See A1." in system and "0 (worst) to 10 (best)" in system
    assert "<prompt>\nQ\n</prompt>" in user
    assert all("Authorization" not in headers for headers in server.headers)


def test_as_many_are_asked_for_at_once_as_may_be(server):
    def slow(text, times):
        time.sleep(0.1)
        return verdict(5)

    server.reply = slow
    began = time.monotonic()
    assert asked(server, list("abcdefghijkl"), concurrency=6) == [0.5] * 12
    assert server.most == 6 and time.monotonic() - began < 5


def test_too_many_requests_and_a_server_that_fails_are_tried_again(server, monkeypatch):
    waited = []
    real = __import__("datamodules.rewards.invoking", fromlist=["wait_s"]).wait_s
    monkeypatch.setattr(
        "datamodules.rewards.invoking.wait_s", lambda e, n: waited.append(real(e, n)) or 0.001
    )
    states = {1: (429, {"Retry-After": "7"}), 2: (500, {})}

    def reply(text, times):
        if text == "flaky" and times in states:
            status, headers = states[times]
            return says("busy", status, **headers)
        return verdict(10)

    server.reply = reply
    assert asked(server, ["fine", "flaky"], retries=2) == [1.0, 1.0]
    assert server.asked == {"fine": 1, "flaky": 3} and waited[0] == 7.0
    server.asked.clear()
    with pytest.raises(RewardError, match=r"said 500: .*busy.*\n.*response 2 of 2"):
        asked(server, ["fine", "flaky"], retries=1)
    assert server.asked["flaky"] == 2


def test_a_slow_answer_is_asked_for_again_and_then_an_error(server, monkeypatch):
    monkeypatch.setattr("datamodules.rewards.invoking.wait_s", lambda error, tries: 0.001)

    def reply(text, times):
        time.sleep(1.0 if text == "slow" and times <= hang else 0)
        return verdict(10)

    server.reply, hang = reply, 1
    assert asked(server, ["slow", "quick"], timeout_s=0.3, retries=1) == [1.0, 1.0]
    server.asked.clear()
    hang = 9
    with pytest.raises(RewardError, match=r"within reward\.timeout_s=0\.3 seconds\n.*1 of 2"):
        asked(server, ["slow", "quick"], timeout_s=0.3, retries=1)


def test_what_was_judged_is_not_asked_for_after_a_restart(server, tmp_path):
    options = {"cache": str(tmp_path / "verdicts.db"), "rubric": "Good? {answer}"}
    rows = [{"answer": "4", "id": 1}, {"answer": "5", "id": 2}]
    assert asked(server, ["aaaaa", "b"], rows, **options) == [0.5, 0.1]
    others = [row | {"id": 9} for row in rows]
    assert asked(server, ["aaaaa", "b"], others, **options) == [0.5, 0.1]
    assert len(server.requests) == 2
    changed = ({"rubric": "Bad? {answer}"}, {"scale": [0, 20]}, {"temperature": 1.0})
    for number, change in enumerate(changed, start=3):
        asked(server, ["b"], rows[1:], **options | change)
        assert len(server.requests) == number


GARBAGE = [
    says("I like it"), says(""), says('{"score": 11}'), says('{"score": true}'), says('{"a": 1}'),
    says('{"score": NaN}'), says('{"score": "high"}'), says('<think>{"score": 5}</think>'),
    says('<think>{"score": 5}'), says("[7]"), says('{"score": -1}'),
]  # fmt: skip


@pytest.mark.parametrize("reply", GARBAGE)
def test_an_answer_without_a_score_is_an_error_or_no_reward(server, reply):
    server.reply = lambda text, times: reply if text == "x" else verdict(5)
    with pytest.raises(RewardError, match=r"holds no score from 0 to 10 .*on_unreadable=skip"):
        asked(server, ["x", "y"])
    assert asked(server, ["x", "y"], on_unreadable="skip") == [None, 0.5]


@pytest.mark.parametrize(
    "reply", [(200, b"<html>", {}), (200, b"{}", {}), (200, b'{"choices": []}', {})]
)
def test_what_is_no_chat_completion_is_an_error_whatever_may_be_skipped(server, reply):
    server.reply = lambda text, times: reply
    with pytest.raises(RewardError, match="answered what is no chat completion"):
        asked(server, ["x"], on_unreadable="skip")


READABLE = {
    '{"reason": "fine", "score": 7}': 7.0,
    '```json\n{"score": 7.5}\n```': 7.5,
    'It is {"score": 3}. No: {"score": 8}': 8.0,
    '<think>{"score": 1}</think>\n{"score": "6"}': 6.0,
    '{"score": 0}': 0.0,
}


@pytest.mark.parametrize("text", READABLE)
def test_the_last_object_with_a_score_counts(text):
    assert score_in(text, (0, 10)) == READABLE[text]


def test_the_key_is_sent_and_shown_nowhere(server, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    made = judge(server.url, "m", api_key_env="JUDGE_KEY")
    assert made(["Q"], ["12345"]) == [0.5]
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    server.reply = lambda text, times: says(f"wrong key {KEY}", 401)
    with pytest.raises(RewardError, match=r"said 401: .*wrong key \(key\)") as caught:
        made(["Q"], ["x"])
    assert KEY not in str(caught.value) and len(server.requests) == 2  # not tried again
    with pytest.raises(ValueError, match="no name of an environment variable") as caught:
        judge(server.url, "m", api_key_env=KEY)
    assert KEY not in str(caught.value)
    with pytest.raises(ValueError, match=r"api_key_env=NO_SUCH_KEY: there is no such"):
        judge(server.url, "m", api_key_env="NO_SUCH_KEY")


def test_no_server_is_an_error_that_names_the_response(monkeypatch):
    monkeypatch.setattr("datamodules.rewards.invoking.wait_s", lambda error, tries: 0.001)
    with pytest.raises(RewardError, match=r"ConnectError.*\n.*response 1 of 1"):
        judge("http://127.0.0.1:9/v1", "m", retries=1, timeout_s=5.0)(["Q"], ["x"])


WRONG = [
    ({"url": "localhost:8000"}, r"reward\.url='localhost:8000' is no address"),
    ({"url": "http://me:pw@host/v1"}, "url holds a password"),
    ({"scale": [10, 0]}, r"reward\.scale=\[10, 0\] must be two numbers"),
    ({"scale": [1]}, r"reward\.scale"),
    ({"response_format": "xml"}, r"reward\.response_format='xml': use one of json_schema"),
    ({"on_unreadable": "zero"}, r"reward\.on_unreadable='zero': use one of raise, skip"),
    ({"concurrency": 0}, r"reward\.concurrency=0"),
    ({"retries": -1}, r"reward\.retries=-1"),
]


@pytest.mark.parametrize(("options", "sentence"), WRONG)
def test_options_out_of_range_are_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        judge(**{"url": "http://host/v1", "model": "m"} | options)
    assert "pw" not in str(caught.value)


def test_a_rubric_with_a_column_that_no_row_has_is_refused_before_it_plays():
    made = judge("http://host/v1", "m", rubric="Like {reference}?")
    prompts = [Prompt("Q", {"response": "a column of its own", "answer": "4"})]
    with pytest.raises(ValueError, match="a parameter reference, which no row has"):
        TextGenerationEnv(tiny_tokenizer(), prompts, reward_fn=made)
    TextGenerationEnv(
        tiny_tokenizer(), prompts, reward_fn=judge("http://host/v1", "m", rubric="{answer}?")
    )
