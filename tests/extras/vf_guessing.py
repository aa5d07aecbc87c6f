"""A conversation: higher or lower, until the number is found, with an ``Env`` of its own."""

from collections.abc import Iterable

import verifiers.v1 as vf

__all__ = ["GuessingEnv", "GuessingTaskset"]


class NumberData(vf.TaskData):
    number: int


class NumberTask(vf.Task[NumberData]):
    @vf.reward
    async def found(self, trace) -> float:
        return float(trace.last_reply == str(self.data.number))

    @vf.stop
    async def gave_up(self, trace: vf.Trace) -> bool:
        return trace.last_reply == "I give up"


class GuessingTaskset(vf.Taskset[NumberTask, vf.TasksetConfig]):
    def load(self) -> Iterable[NumberTask]:
        for number in (3, 7):
            yield NumberTask(NumberData(prompt="Guess.", number=number), self.config.task)


class GuessingConfig(vf.EnvConfig):
    player: vf.AgentConfig = vf.AgentConfig(max_turns=5)
    hint: str = "No:"


class GuessingEnv(vf.Env[GuessingConfig]):
    async def run(self, task, agents):
        async with agents.player.interaction(task) as interaction:
            segment = await interaction.turn()
            while not segment.terminated and segment.last_reply != str(task.data.number):
                lower = segment.last_reply.isdigit() and int(segment.last_reply) > task.data.number
                said = f"{self.config.hint} {'lower' if lower else 'higher'}."
                segment = await interaction.turn(said)

    async def finalize(self, task, episode):
        (trace,) = episode.traces
        trace.record_metric("guesses", trace.num_turns)
