"""Sampling for callers that ask at the same time: continuous batching.

Whoever asks while others are being answered joins them at the next token, unless something that
changes the model was queued in between: then it waits for that.
"""

import threading
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from datamodules.ends import opened
from datamodules.seeding import derive_seed
from datamodules.types import Response, SamplingParams
from rlmodules.forward_backward.lanes import Lane
from rlmodules.forward_backward.passes import Model
from rlmodules.models.modes import evaluating
from rlmodules.models.vocabulary import match_tokenizer
from rlmodules.sampling.decoding import Decoding


@dataclass
class Request:
    """One call of ``sample``."""

    prompts: list[Tensor]
    params: SamplingParams
    seeds: list[int]
    is_batch: bool
    era: int
    """How many operations that change the model were queued before."""
    future: Future = field(default_factory=Future)
    responses: list[Response] = field(default_factory=list)


class Sampler:
    """Answers requests on the model's lane.

    Args:
        tokenizer: for end tokens, strings to stop at, and prompts and answers as text.
        max_rows: texts that are written at once.
    """

    def __init__(
        self, model: Model, tokenizer: PreTrainedTokenizerBase | None, max_rows: int = 64
    ) -> None:
        self.model, self.tokenizer, self.max_rows = model, tokenizer, max_rows
        if tokenizer is not None:
            match_tokenizer(model.policy.base_model, tokenizer)
        self.lock = threading.Lock()
        self._waiting: deque[Request] = deque()
        self._era = 0

    def note_change(self) -> None:
        """An operation that changes the model is queued now; ``lock`` is held."""
        self._era += 1

    def request(
        self,
        lane: Lane,
        prompt: Any,
        params: SamplingParams,
        seed: int | None,
    ) -> Future:
        """Queue a request; returns a future of what ``ForwardBackwardPipeline.sample`` gives."""
        prompts, is_batch = self._prompts(prompt)
        first = int(torch.randint(2**31, ())) if seed is None else seed
        seeds = [derive_seed(first, row) for row in range(len(prompts))]
        with self.lock:
            request = Request(prompts, params, seeds, is_batch, self._era)
            lane.submit(self._answer, request.era)
            self._waiting.append(request)
        return request.future

    def params(
        self, max_tokens: int, temperature: float, top_k: int, top_p: float, stop: Any
    ) -> SamplingParams:
        """
        Raises:
            ValueError: a number is out of range, or there is a string to stop at and no tokenizer.
        """
        one = isinstance(stop, str) or (stop is not None and not isinstance(stop, Iterable))
        stops = [stop] if one else list(() if stop is None else stop)
        strings = tuple(s for s in stops if isinstance(s, str))
        if strings and self.tokenizer is None:
            raise ValueError(f"stop={list(strings)} takes a tokenizer: give the pipeline one")
        return SamplingParams(
            max_new_tokens=max_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            stop_strings=strings,
            stop_token_ids=tuple(int(s) for s in stops if not isinstance(s, str)),
        )

    def cancel_waiting(self) -> None:
        """Cancel what nobody has begun to answer."""
        with self.lock:
            requests = list(self._waiting)
            self._waiting.clear()
        for request in requests:  # callbacks of the futures may ask again: not under the lock
            request.future.cancel()

    # -------------------------------------------------------- on the model's thread

    def _answer(self, era: int) -> None:
        """Answer the requests of an era; those that come meanwhile join."""
        decoding = Decoding(self.model.policy, self.tokenizer)
        answering: list[Request] = []
        try:
            with evaluating(self.model.module), self.model.fabric.autocast():
                while True:
                    while (request := self._next(era, decoding)) is not None:
                        if self._begin(decoding, request):
                            answering.append(request)
                    answering = self._settle(decoding, answering)
                    if not decoding.rows:
                        return
                    decoding.step()
        except BaseException as error:
            for request in answering:
                request.future.set_exception(error)

    def _next(self, era: int, decoding: Decoding) -> Request | None:
        """The first waiting request, if there is room for it now."""
        rows = len(decoding.rows)
        with self.lock:
            if not self._waiting or self._waiting[0].era != era:
                return None
            if rows and rows + len(self._waiting[0].prompts) > self.max_rows:
                return None
            return self._waiting.popleft()

    def _begin(self, decoding: Decoding, request: Request) -> bool:
        if not request.future.set_running_or_notify_cancel():
            return False
        try:
            params = [request.params] * len(request.prompts)
            request.responses = decoding.admit(request.prompts, params, request.seeds)
        except Exception as error:
            request.future.set_exception(error)
            return False
        return True

    def _settle(self, decoding: Decoding, answering: list[Request]) -> list[Request]:
        """Hand out what is finished; returns the rest."""
        unfinished = {id(row.response) for row in decoding.rows}
        rest = []
        for request in answering:
            if not unfinished.isdisjoint(map(id, request.responses)):
                rest.append(request)
                continue
            try:
                result = self._result(request)
            except Exception as error:  # a tokenizer's, perhaps
                request.future.set_exception(error)
            else:
                request.future.set_result(result)
        return rest

    def _result(self, request: Request) -> dict[str, Any]:
        columns: dict[str, list[Any]] = {
            "tokens": [r.tokens for r in request.responses],
            "logprobs": [r.logprobs for r in request.responses],
            "prompt": [prompt.tolist() for prompt in request.prompts],
            "finish_reason": [r.finish_reason for r in request.responses],
        }
        if self.tokenizer is not None:
            decode = self.tokenizer.decode
            texts = [decode(tokens, skip_special_tokens=True) for tokens in columns["tokens"]]
            columns["text"] = texts
        if request.is_batch:
            return columns
        return {name: column[0] for name, column in columns.items()}

    def _prompts(self, prompt: Any) -> tuple[list[Tensor], bool]:
        """Token ids of each prompt, and whether there may be several."""
        if isinstance(prompt, str):
            return [self._encoded(prompt)], False
        if isinstance(prompt, Tensor):
            rows = list(prompt) if prompt.dim() == 2 else [prompt]
            return [row.to("cpu", torch.long, copy=True) for row in rows], prompt.dim() == 2
        if _holds_messages(prompt):
            raise ValueError(
                "a prompt is text or token ids, not messages: give the text that"
                " tokenizer.apply_chat_template(messages, tokenize=False,"
                " add_generation_prompt=True) makes of them"
            )
        is_batch = any(isinstance(row, str) or torch.as_tensor(row).dim() for row in prompt)
        rows: Sequence[Any] = prompt if is_batch else [prompt]
        return [self._encoded(row) for row in rows], is_batch

    def _encoded(self, prompt: Any) -> Tensor:
        """Token ids, [T], that nobody else writes over."""
        if not isinstance(prompt, str):
            return torch.as_tensor(prompt).reshape(-1).to("cpu", torch.long, copy=True)
        if self.tokenizer is None:
            raise ValueError("a prompt that is text takes a tokenizer: give the pipeline one")
        return torch.tensor(opened(self.tokenizer, prompt), dtype=torch.long)


def _holds_messages(prompt: Any) -> bool:
    """Whether it is a message, or holds some, at any depth of lists."""
    if isinstance(prompt, list | tuple):
        return any(map(_holds_messages, prompt))
    return isinstance(prompt, Mapping)
