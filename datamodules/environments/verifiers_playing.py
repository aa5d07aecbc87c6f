"""One episode of verifiers: its ``Env.run`` is awaited in the background, and its agent is us.

The coroutine runs until it wants a response, which the policy gives turn by turn; it goes on to the
rewards once they are asked for. The trace that rewards are computed from is the package's own.
"""

import asyncio
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any

from datamodules.environments import background
from datamodules.environments.tools import Scene
from datamodules.environments.verifiers_agent import Agent
from datamodules.environments.verifiers_loading import agent_of, package, recorded
from datamodules.guard import Failure
from datamodules.text.chat import Message


class TaskScene(Scene):
    """A task of an environment.

    Args:
        env: that plays it.
        task: of its taskset, which all its episodes share.
    """

    def __init__(self, env: Any, task: Any) -> None:
        self.env, self.task = env, task
        self.messages: list[Message] = []
        self._game: Game | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> "TaskScene":
        return TaskScene(self.env, self.task)

    def begin(self) -> None:
        self._game = Game(self.env, self.task)
        running = background.start(self._game.play())
        self._game.running = running
        weakref.finalize(self, running.cancel).atexit = False
        self.messages = self._game.next()
        if not self.messages:
            raise RuntimeError("the episode was over before it asked the model anything")

    def tools(self) -> Sequence[Callable[..., Any]]:
        return self._game.tools if self._game else []

    def hear(
        self, response: str, calls: Sequence[str], answers: Sequence[Message]
    ) -> list[Message]:
        if self._game is None:
            raise RuntimeError("an episode of env=verifiers cannot be copied as it runs: reset it")
        return self._game.answer(response, calls, answers)

    def judge(self, answer: str) -> tuple[float, dict[str, float]]:
        return self.judged(self.end().result())

    def end(self) -> "Future[Any]":
        """Have the rewards computed; where the episode was cut, it ends there."""
        return self._game.end()

    def judged(self, trace: Any) -> tuple[float, dict[str, float]]:
        """Reward and metrics."""
        parts = {f"reward_{name}": r.score for name, r in trace.rewards.items() if r is not None}
        said = {f"logged_{name}": v for name, v in trace.metrics.items() if v is not None}
        return trace.reward, parts | said


class Game:
    """The running episode: the messages that it wants answered, and the answers.

    ``play`` and what it calls run in the background; the other methods are the policy's side.
    """

    def __init__(self, env: Any, task: Any) -> None:
        self.env, self.task = env, task
        self.tools: list[Callable[..., Any]] = []
        self.running: Future[Any]
        self._asked: SimpleQueue = SimpleQueue()
        self._answered: asyncio.Future[Any] | None = None
        self._scoring = asyncio.Event()

    # the policy's side

    def next(self) -> list[Message]:
        """What is said to the model next; nothing where the episode is over.

        Raises:
            Exception: the one that the episode was ended by.
        """
        asked = self._asked.get()
        if isinstance(asked, Failure):
            raise asked.error
        return asked

    def answer(
        self, response: str, calls: Sequence[str], answers: Sequence[Message]
    ) -> list[Message]:
        """Hand a response and the tools' answers over; see ``next``."""
        self._give((response, calls, answers))
        return self.next()

    def end(self) -> "Future[Any]":
        """The finished trace, as a future."""
        self._give(None)
        background.event_loop().call_soon_threadsafe(self._scoring.set)
        return self.running

    def _give(self, answer: Any) -> None:
        def give() -> None:
            if self._answered is not None and not self._answered.done():
                self._answered.set_result(answer)

        background.event_loop().call_soon_threadsafe(give)

    # the background's

    async def play(self) -> Any:
        """The trace of a whole episode, scored."""
        vf = package()
        (name, config), task = agent_of(self.env), self.task
        info = vf.EnvInfo(id=self.env.config.env_id)
        episode = vf.Episode(env=info, task=recorded(task))
        agent = Agent(self, name, config, episode)
        agents = vf.Agents(self.env.config, lambda *_: agent)
        try:
            await self.env.setup(agents)
            await self.env.run(task, agents)
            if not episode.traces:
                raise RuntimeError(f"{type(self.env).__name__}.run ran no agent")
            episode.ok = True
            await self.scored()  # no part of it may be before the policy's evaluation begins
            await self.env.finalize(task, episode)
        except BaseException as error:
            self._asked.put(Failure(error))
            raise
        return episode.traces[0]

    async def ask(self, messages: Sequence[Message]) -> Any:
        """The policy's response with its calls and their answers; None where there is none."""
        self._answered = asyncio.get_running_loop().create_future()
        self._asked.put(list(messages))
        try:
            return await self._answered
        finally:
            self._answered = None

    async def scored(self) -> None:
        """Wait until rewards are asked for."""
        if not self._scoring.is_set():
            self._asked.put([])
            await self._scoring.wait()
