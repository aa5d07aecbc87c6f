"""Environments written for OpenEnv, and a server of them on loopback."""

import random
import threading
import time
from contextlib import contextmanager

import uvicorn
from openenv.core.env_server import create_fastapi_app
from openenv.core.env_server.interfaces import Environment
from openenv.core.env_server.types import Action, Observation, State


class Said(Action):
    message: str


class Number(Action):
    guess: int


class Cut(Action):
    x: int
    y: int


class Seen(Observation):
    text: str = ""
    tries: int = 0


class Two(Observation):
    text: str = ""
    image: str = ""


class Guessing(Environment):
    """A number of one digit, found in three turns at most: 0.1 a turn, 1 at the end."""

    SUPPORTS_CONCURRENT_SESSIONS = True
    live = 0
    """Sessions that were begun and not closed."""

    def __init__(self):
        super().__init__()
        self.number, self.tries = 0, 0
        type(self).live += 1

    def reset(self, seed=None, episode_id=None, base=0, **kwargs):
        self.number = base + random.Random(seed).randrange(10)
        self.tries = 0
        return Seen(text=f"Guess my number, it is {self.number}.")

    def step(self, action, timeout_s=None, **kwargs):
        self.tries += 1
        guess = action.message if isinstance(action, Said) else str(action.guess)
        if guess == "crash":
            raise ValueError("the environment broke")
        if guess == "sleep":
            time.sleep(5)
        right = guess == str(self.number)
        return Seen(
            text="Right." if right else "No.",
            tries=self.tries,
            done=right or self.tries == 3,
            reward=1.0 if right else 0.1,
        )

    @property
    def state(self):
        return State(step_count=self.tries)

    def close(self):
        type(self).live -= 1


class Unrewarded(Guessing):
    def step(self, action, timeout_s=None, **kwargs):
        return super().step(action).model_copy(update={"reward": None})


class Forgetful(Guessing):
    """Draws without the seed."""

    drawn = 0

    def reset(self, seed=None, episode_id=None, **kwargs):
        type(self).drawn += 1
        return Seen(text=f"{self.drawn}")


class Over(Guessing):
    def reset(self, seed=None, episode_id=None, **kwargs):
        return Seen(text="It is over.", done=True)


@contextmanager
def serving(kind=Guessing, action=Said, observation=Seen, sessions=16):
    """The server's address."""
    app = create_fastapi_app(kind, action, observation, max_concurrent_envs=sessions)
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="critical")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = server.force_exit = True
        thread.join(10)
