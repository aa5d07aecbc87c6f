"""Environments written for verifiers 0.4: one prompt, a conversation, tools with state."""

from collections.abc import Iterable

import verifiers.v1 as vf

__all__ = ["SpellingTaskset"]

WORDS = {"train": ["cat", "dog", "sun", "sky"], "test": ["owl", "fox"]}


class WordData(vf.TaskData):
    word: str


class WordTask(vf.Task[WordData]):
    async def setup(self, trace):
        trace.info["began"] = True

    @vf.reward(weight=2.0)
    async def spelled(self, trace) -> float:
        return float(trace.last_reply == self.data.word)

    @vf.reward(weight=-0.5)
    async def shouted(self, trace) -> float:
        return float(trace.last_reply.isupper())

    @vf.metric
    async def letters(self, trace) -> float:
        return float(len(trace.last_reply))


class SpellingConfig(vf.TasksetConfig):
    split: str = "train"


class SpellingTaskset(vf.Taskset[WordTask, SpellingConfig]):
    def load(self) -> Iterable[WordTask]:
        for word in WORDS[self.config.split]:
            data = WordData(prompt=f"Write {word}.", system_prompt="You spell.", word=word)
            yield WordTask(data, self.config.task)
