"""Our policy in the place of the agent that verifiers would run a program for."""

import json
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol

from datamodules.environments import background
from datamodules.environments.toolbox import ToolError, parsed
from datamodules.environments.verifiers_loading import package, recorded, state_of
from datamodules.text.chat import Message


class Conversation(Protocol):
    """What an agent asks the policy through; a ``Game`` is one."""

    env: Any
    tools: list[Callable[..., Any]]

    async def ask(self, messages: Sequence[Message]) -> Any:
        """The policy's response with its calls and their answers; None where there is none."""

    async def scored(self) -> None:
        """Wait until rewards are asked for."""


class Agent:
    """In the place of the package's ``Agent``: what an ``Env`` has of one in ``run``."""

    def __init__(self, game: "Conversation", name: str, config: Any, episode: Any) -> None:
        self.name, self.config, self.trainable = name, config, True
        self._game, self._episode, self._used = game, episode, False

    async def run(self, task: Any, **borrowed: Any) -> Any:
        """One rollout of ``task`` from its prompt on."""
        async with self.interaction(task, **borrowed) as interaction:
            await interaction.turn()
        return interaction.trace

    @asynccontextmanager
    async def interaction(self, task: Any, **borrowed: Any) -> AsyncIterator["Interaction"]:
        """A rollout whose user is the caller."""
        if given := sorted(name for name, value in borrowed.items() if value is not None):
            raise ValueError(f"an agent of env=verifiers takes no {given}: nothing is run in boxes")
        if self._used:
            raise ValueError(
                f"{type(self._game.env).__name__}.run has its agent play twice in an episode, and"
                " an episode is one conversation here"
            )
        self._used = True
        opened = Interaction(self._game, self, task)
        await opened.open()
        yield opened
        await opened.close()
        self._episode.traces.append(opened.trace)


class Interaction:
    """In the place of the package's ``Interaction``: turn by turn, over one conversation."""

    def __init__(self, game: "Conversation", agent: Agent, task: Any) -> None:
        vf = package()
        self._vf, self._game, self._agent, self._task = vf, game, agent, task
        self.trace = vf.Trace(
            task=recorded(task),
            state=state_of(task),
            agent=vf.AgentInfo(config=agent.config, name=agent.name),
        )
        self._over = self._started = self._closed = False

    async def open(self) -> None:
        """As a rollout is set up: the task, then its tools."""
        from verifiers.v1.utils.decorators import invoke

        if type(self._task).setup is not self._vf.Task.setup:
            await invoke(self._task.setup, {"trace": self.trace})
        for toolset in self._task.toolsets(self._task.config):
            await toolset.setup()
            await toolset.setup_task(self._task.data)
            self._game.tools += tools_of(toolset, self.trace.state)

    async def turn(self, message: Any = None) -> Any:
        """Say ``message``; what the agent says and does until it answers."""
        if self._closed or self._over:
            raise RuntimeError("the exchange is over (the run ended); read interaction.trace")
        prompted = not self._started and self._task.data.prompt is not None
        if prompted != (message is None):
            said = "a bare turn() takes the answer to the task's prompt, and later turns a message"
            raise ValueError(said)
        said = self._opening() if not self._started else []
        self._started = True
        said += _messages(self._vf, message)
        for one in said:
            self._commit(one)
        spoken = await self._segment([_plain(one) for one in said])
        if not spoken:
            self._over = True
        return self._vf.Segment(messages=spoken, terminated=not spoken)

    async def send(self, *args: Any, **keywords: Any) -> Any:
        """Refused: there is nothing to be interrupted."""
        raise NotImplementedError("env=verifiers plays turn after turn: use interaction.turn")

    steer = send

    async def close(self) -> Any:
        """End the exchange, and score it."""
        if self._closed:
            return self.trace
        self._closed = True
        from verifiers.v1.utils.decorators import invoke

        self.trace.stop("user_closed")
        await self._game.scored()
        if type(self._task).finalize is not self._vf.Task.finalize:
            await invoke(self._task.finalize, {"trace": self.trace})
        await self._task.score(self.trace, None)
        self.trace.is_completed = self.trace.ok = True
        return self.trace

    def _opening(self) -> list[Any]:
        data = self._task.data
        system = [self._vf.SystemMessage(content=data.system_prompt)] if data.system_prompt else []
        return [*system, *_messages(self._vf, data.prompt)]

    async def _segment(self, asked: list[Message]) -> list[Any]:
        """The agent's messages and its tools', up to an answer; nothing where it may not go on."""
        spoken: list[Any] = []
        while not await self._refused():
            given = await self._game.ask(asked)
            if given is None:
                self.trace.stop("max_total_tokens")
                break
            response, calls, answers = given
            named = [_tool_call(self._vf, call) for call in calls]
            message = self._vf.AssistantMessage(
                content=response, tool_calls=[c for c in named if c is not None] or None
            )
            self._commit(message, sampled=True)
            spoken.append(message)
            if not calls:
                return spoken
            asked = list(answers)
            for call, answer in zip(named, answers, strict=True):
                told = {"tool_call_id": call.id if call else "none", "content": answer["content"]}
                spoken.append(self._vf.ToolMessage(**told, name=call.name if call else None))
                self._commit(spoken[-1])
        return spoken

    async def _refused(self) -> bool:
        """Whether a limit or a ``@stop`` keeps the agent from another response."""
        from verifiers.v1.session import call_hook

        limit = self._agent.config.max_turns
        if limit is not None and self.trace.num_turns >= limit:
            self.trace.stop("max_turns")
            return True
        for stop in self._task.hooks("stop"):
            if await call_hook(stop, {self._vf.Trace: self.trace}):
                self.trace.stop(stop.__name__)
                return True
        return self.trace.stop_condition is not None

    def _commit(self, message: Any, sampled: bool = False) -> None:
        parent = len(self.trace.nodes) - 1 if self.trace.nodes else None
        node = self._vf.MessageNode(parent=parent, message=message, sampled=sampled)
        self.trace.nodes.append(node)


def tools_of(toolset: Any, state: Any) -> list[Callable[..., Any]]:
    """The ``@tool`` methods as a ``Toolbox`` takes them, their state the episode's.

    Raises:
        ValueError: their state is of another kind than the task's.
    """
    from mcp.server.mcpserver.tools import Tool
    from verifiers.v1.utils.decorators import discover_decorated

    name = type(toolset).__name__
    if not isinstance(state, toolset._state_cls):
        raise ValueError(
            f"the tools of {name} share a {toolset._state_cls.__name__} with a task whose state is"
            f" a {type(state).__name__}: give both the same class"
        )
    toolset._inert_state = state  # what its property gives outside of a server
    prefix = f"{toolset.server_name}_" if toolset.server_name else ""
    return [_as_tool(Tool, prefix, method) for method in discover_decorated(toolset, "tool")]


def _as_tool(kind: Any, prefix: str, method: Callable[..., Any]) -> Callable[..., Any]:
    """One method, with the schema that a server would give."""
    tool = kind.from_function(method, name=getattr(method, "tool_name", None))

    def call(**arguments: Any) -> Any:
        checked = tool.fn_metadata.validate_arguments(arguments)
        result = method(**checked)
        return background.start(_awaited(result)).result() if tool.is_async else result

    said = tool.description.strip()
    call.schema = {
        "type": "function",
        "function": {
            "name": prefix + tool.name,
            "description": said,
            "parameters": tool.parameters,
        },
    }
    return call


async def _awaited(awaitable: Any) -> Any:
    return await awaitable


def _messages(vf: Any, said: Any) -> list[Any]:
    """A turn of the user as typed messages."""
    if said is None:
        return []
    if isinstance(said, str):
        return [vf.UserMessage(content=said)]
    kinds = {"system": vf.SystemMessage, "user": vf.UserMessage, "assistant": vf.AssistantMessage}
    return [kinds[m["role"]].model_validate(m) if isinstance(m, dict) else m for m in said]


def _plain(message: Any) -> Message:
    if not isinstance(message.content, str):
        raise ValueError(f"a message holds more than text, and the policy reads text: {message!r}")
    return {"role": message.role, "content": message.content}


def _tool_call(vf: Any, call: str) -> Any:
    """A call as the package records it; None where the model wrote none that can be read."""
    try:
        name, arguments = parsed(call)
    except ToolError:
        return None
    return vf.ToolCall(id=uuid.uuid4().hex, name=name, arguments=json.dumps(arguments))
