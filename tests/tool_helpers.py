"""Scripted players of environments with tools."""

import torch

from datamodules.environments.tools import Scene, ToolEnv
from rlmodules.models.embedded import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
EOS = TOKENIZER.eos_token_id
SMALL = {"num_problems": 20, "num_held_out": 5, "max_length": 6000}


class Counter(Scene):
    """Counts up; the goal is to reach two."""

    messages = ({"role": "user", "content": "Count to two."},)

    def __init__(self):
        self.count, self.before = 0, 0

    def tools(self):
        return [self.add, self.describe, self.fail]

    def add(self, number: int) -> int:
        """Add.

        Args:
            number: what to add.
        """
        self.count += number
        return self.count

    def describe(self, length: int = 3) -> dict:
        """Describe.

        Args:
            length: characters.
        """
        return {"text": "x" * length}

    def fail(self) -> str:
        """Raise."""
        raise RuntimeError("it broke")

    def judge(self, answer):
        return float(self.count == 2), {"correct": float(self.count == 2), "said": float(answer)}

    def turn_reward(self):
        gained, self.before = self.count - self.before, self.count
        return gained / 10


def ids(text: str, end: bool = True) -> torch.Tensor:
    return torch.tensor(TOKENIZER(text)["input_ids"] + [EOS] * end)


def answer_to(env, result) -> str:
    """What the environment wrote last."""
    text = TOKENIZER.decode(result.next_observation.input_ids)
    return text[text.rindex("<tool_response>") : text.rindex("</tool_response>")].split("\n")[1]


def play(env: ToolEnv, index: int, *said: str):
    """(total reward, metrics) of one episode."""
    episode = env.fork()
    episode.reset(index)
    for text in said:
        result = episode.respond(ids(text))
        if result.done:
            break
    assert result.done, "the script ended before the episode"
    reward, metrics = env.score([episode])[0]
    return reward, result.metrics | metrics
