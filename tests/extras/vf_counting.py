"""Tools with a state that the rewards read."""

from collections.abc import Iterable

import verifiers.v1 as vf

__all__ = ["CountingTaskset"]


class Count(vf.State):
    total: int = 0


class Counter(vf.Toolset[vf.ToolsetConfig, Count]):
    TOOL_PREFIX = "counter"

    @vf.tool
    async def add(self, number: int, times: int = 1) -> int:
        """Add a number."""
        self.state.total += number * times
        return self.state.total

    @vf.tool
    def fail(self) -> str:
        """Raise."""
        raise RuntimeError("it broke")


class CountTask(vf.Task[vf.TaskData, Count]):
    @classmethod
    def toolsets(cls, config):
        return [Counter(vf.ToolsetConfig())]

    @vf.reward
    async def counted(self, trace) -> float:
        return float(trace.state.total == 4)

    @vf.metric
    async def tools_used(self, trace) -> float:
        return float(sum(len(m.tool_calls or []) for m in trace.assistant_messages))


class CountingTaskset(vf.Taskset[CountTask, vf.TasksetConfig]):
    def load(self) -> Iterable[CountTask]:
        for asked in ("Count to four.", "Count to 4."):
            yield CountTask(vf.TaskData(prompt=asked), self.config.task)
