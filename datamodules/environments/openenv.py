"""Environments that are served by OpenEnv (https://github.com/meta-pytorch/OpenEnv, BSD-3-Clause),
played through its client: one session an episode."""

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase
from typing_extensions import Unpack

from datamodules.checks import require_seed, require_whole
from datamodules.environments import background
from datamodules.environments.base import Options
from datamodules.environments.openenv_server import CONNECT_S, Server
from datamodules.environments.tools import Scene, ToolEnv
from datamodules.seeding import derive_seed
from datamodules.text.chat import Message

HELD_OUT = 2**30
"""Between the seeds of both splits."""


class OpenEnvEnv(ToolEnv):
    """``env=openenv``: an observation's text is what the user says, the response is the action.

    The reward of an episode is the sum of its steps' rewards; where no step has one, none applies.
    Metrics: ``turns``, ``truncated``, and ``logged_invalid_actions``: responses that are no action
    by the server's schema, which the model is told and no step is made for.

    Args:
        tokenizer: of the policy.
        url: of the server, such as ``http://127.0.0.1:8000``.
        action: the action's field that the response is written into; default: its only one. A
            field that is no text is read from the response as JSON.
        observation: the observation's field that is shown to the model; default: its only text.
        instruction: a system message before the first observation.
        reset: what ``reset`` is told besides the seed.
        num_problems: to train on, one a seed.
        num_held_out: for evaluation, of other seeds.
        seed: of the seeds.
        max_turns: responses that an episode may have.
        options: see ``Environment``.

    Raises:
        ImportError: openenv is not installed.
        ValueError: an option is out of range, the server does not answer, it wants actions that
            cannot be made of a text, or the same seed does not begin alike twice.
    """

    stop_sequences = ()

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        url: str,
        *,
        action: str | None = None,
        observation: str | None = None,
        instruction: str | None = None,
        reset: Mapping[str, Any] | None = None,
        num_problems: int = 1000,
        num_held_out: int = 200,
        seed: int = 0,
        max_turns: int = 10,
        **options: Unpack[Options],
    ) -> None:
        self.set_options(**options)
        require_whole("env", 1, num_problems=num_problems)
        require_whole("env", 0, num_held_out=num_held_out)
        require_seed("env.seed", seed)
        if "seed" in (reset or {}):
            raise ValueError("env.reset.seed: each problem has a seed of its own; use env.seed")
        self.server = Server.found(
            url, action, observation, instruction, dict(reset or {}), self.timeout_s
        )
        base = derive_seed(seed) % HELD_OUT
        seeds = [base + i for i in range(num_problems)]
        seeds += [base + HELD_OUT + i for i in range(num_held_out)]
        super().__init__(
            tokenizer,
            [Session(self.server, seed) for seed in seeds],
            held_out=range(num_problems, len(seeds)),
            max_turns=max_turns,
            **options,
        )
        self._require_repeatable(seeds[0])

    def _require_repeatable(self, seed: int) -> None:
        """Groups of episodes, and runs that go on, need starting states that come again."""
        begun = [Session(self.server, seed) for _ in range(2)]
        for session in begun:
            session.begin()
            session.close()
        if begun[0].messages != begun[1].messages:
            raise ValueError(
                f"env.url={self.server.url}: reset(seed={seed}) does not begin alike twice; its"
                " reset must draw all that it draws from the seed"
            )

    def respond(self, tokens: Any) -> Any:
        """Take one whole response [A]; a session that ends or fails is closed."""
        try:
            result = super().respond(tokens)
        except BaseException:
            self.scene.close()
            raise
        if result.done:
            self.scene.close()
        return result


class Session(Scene):
    """One episode, which is one session of the client.

    Args:
        server: that plays it.
        seed: of its starting state.
    """

    def __init__(self, server: Server, seed: int) -> None:
        self.server, self.seed = server, seed
        self.messages: list[Message] = []
        self._client: Any = None
        self._rewards: list[float] = []
        self._gained = 0.0
        self._invalid = 0

    def __deepcopy__(self, memo: dict[int, Any]) -> "Session":
        return Session(self.server, self.seed)

    def begin(self) -> None:
        """Open the session.

        Raises:
            ValueError: the server is full, or the episode is over before it began.
        """
        server = self.server
        limits = {"connect_timeout_s": server.connect_s, "message_timeout_s": server.answer_s}
        self._client = server.client(base_url=server.url, **limits)
        self._closing = weakref.finalize(self, _close, self._client)
        self._closing.atexit = False  # the process takes its sockets with it
        try:
            result = server.await_(_call(self._client, "reset", seed=self.seed, **server.reset))
        except RuntimeError as error:
            self.close()
            if "CAPACITY_REACHED" not in str(error):
                raise
            raise ValueError(
                f"env.url={server.url} has no session left ({error}): start the server with a"
                " larger max_concurrent_envs, at least algo.batch_size, and an environment that"
                " has SUPPORTS_CONCURRENT_SESSIONS"
            ) from error
        except BaseException:
            self.close()
            raise
        if result.done:
            self.close()
            raise ValueError(
                f"env.url={server.url}: reset(seed={self.seed}) gave an episode that is done"
            )
        asked = {"role": "user", "content": server.text_of(result.observation)}
        system = [{"role": "system", "content": server.instruction}] if server.instruction else []
        self.messages = [*system, asked]

    def tools(self) -> Sequence[Callable[..., Any]]:
        return []

    def hear(
        self, response: str, calls: Sequence[str], answers: Sequence[Message]
    ) -> list[Message]:
        """Step; the next observation is what the user says."""
        if self._client is None:
            raise RuntimeError("an episode of env=openenv cannot be copied while it runs: reset it")
        self._gained = 0.0
        action, wrong = self.server.action_of(response)
        if action is None:
            self._invalid += 1
            return [{"role": "user", "content": f"Error: {wrong}"}]
        result = self.server.await_(_call(self._client, "step", action))
        if result.reward is not None:
            self._gained = float(result.reward)
            self._rewards.append(self._gained)
        if result.done:
            return []
        return [{"role": "user", "content": self.server.text_of(result.observation)}]

    def turn_reward(self) -> float:
        return self._gained

    def judge(self, answer: str) -> tuple[float | None, dict[str, float]]:
        """The steps have given their rewards already."""
        self.close()  # where no room was left for another turn, nobody else has
        metrics = {"logged_invalid_actions": float(self._invalid)}
        return (0.0 if self._rewards else None), metrics

    def close(self) -> None:
        """End the session, and wait until the server knows."""
        closing = self._closing()
        if closing is not None:
            closing.result(CONNECT_S + 5)


async def _call(client: Any, method: str, *args: Any, **keywords: Any) -> Any:
    """A method of the client, which looks at the loop that it is called in."""
    return await getattr(client, method)(*args, **keywords)


def _close(client: Any) -> Any:
    return background.start(_call(client, "close"))
