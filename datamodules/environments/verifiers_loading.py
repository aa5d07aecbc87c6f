"""What is read of a module that is written for verifiers, and what is refused of it."""

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

AGENT = {"harness", "max_turns"}
"""What an agent may be told: the rest says where and by what model a program is run."""


def package() -> Any:
    """``verifiers.v1``.

    Raises:
        ImportError: it is not installed, or another version is.
    """
    try:
        import verifiers.v1 as vf
    except ImportError as error:
        raise ImportError(
            f"env=verifiers needs a package that is missing ({error}):"
            ' pip install "rlmodules[verifiers]"'
        ) from error
    return vf


def merged(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``settings`` with ``changes``, mappings within mappings likewise."""
    result = dict(settings)
    for name, value in changes.items():
        old = result.get(name)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        result[name] = merged(old, value) if both else value
    return result


def environment(id: str, args: Mapping[str, Any], option: str) -> Any:
    """The ``Env`` of module ``id``, which our policy can play.

    Args:
        option: that ``args`` come from.

    Raises:
        ValueError: there is none, or ``problems`` finds something.
    """
    vf = package()
    settings = merged(args, {"taskset": {"id": id}})
    try:
        env = vf.load_environment(vf.resolve_env_config(settings))
    except ModuleNotFoundError as error:
        raise ValueError(f"env.id={id!r}: {error}") from error
    except (ValueError, TypeError, AttributeError) as error:
        classic = callable(getattr(_module(vf, id), "load_environment", None))
        hint = (
            " It has load_environment, as environments before verifiers 0.4 have, which 0.4 has no"
            " classes for: export a Taskset instead, with @vf.reward methods on its Task."
        )
        said = f"env.id={id!r}, {option}={dict(args)}: {error}"
        raise ValueError(said + (hint if classic else "")) from error
    if found := list(_of_environment(vf, env, id)):
        raise ValueError(f"env.id={id!r} cannot be played: {found[0]}")
    return env


def tasks(env: Any, limit: int | None, option: str) -> list[Any]:
    """The tasks of ``env``, the first ``limit`` of them.

    Raises:
        ValueError: there are none, or no end of them; or one needs what is not here.
    """
    taskset, name = env.taskset, f"env.id={env.config.taskset.id!r}"
    if limit is not None:
        taskset = taskset.take(limit)
    if not taskset.bounded:
        raise ValueError(f"{name} has no end of tasks: give {option}")
    found = list(taskset)
    if not found:
        raise ValueError(f"{name} has no tasks: another split or other settings may have some")
    for number, task in enumerate(found):
        for problem in _of_task(env, task):
            raise ValueError(f"{name}, task {number}, cannot be played: {problem}")
    return found


def agent_of(env: Any) -> tuple[str, Any]:
    """Name and settings of its one agent."""
    return next(iter(_agents(env.config).items()))


def recorded(task: Any) -> Any:
    """A task as traces and episodes name it."""
    known = {"type": type(task).__name__, "data": task.data, "key": task.key, "hash": task.hash}
    return package().TraceTask(**known)


def state_of(task: Any) -> Any:
    """A new state of the kind that a task's functions and tools share."""
    package()
    from verifiers.v1.state import state_cls

    return state_cls(type(task))()


def _agents(config: Any) -> dict[str, Any]:
    from verifiers.v1.configs.agent import agent_config_fields

    return agent_config_fields(config)


def _module(vf: Any, id: str) -> Any:
    try:
        return vf.import_taskset(id)
    except Exception:  # why it cannot be imported is said already
        return None


def _of_environment(vf: Any, env: Any, id: str) -> Iterator[str]:
    """What is not here that an environment needs."""
    agents = _agents(env.config)
    if len(agents) != 1:
        yield f"it has the agents {sorted(agents)}, and one policy plays one agent"
    for name, agent in agents.items():
        if told := sorted(agent.model_fields_set - AGENT):
            yield (
                f"its agent {name!r} is told {told}: the policy in training is the model, and no"
                " program is run for it (env.timeout_s and algo.max_new_tokens are limits)"
            )
        plain = {"null"} if agent.harness else {"null", "bash"}  # bash: the package's own default
        harness = agent.harness.id if agent.harness else vf.default_harness_id(id)
        if harness not in plain:
            yield f"its agent {name!r} plays through the harness {harness!r}, a program of its own"
    known = set(vf.SharedEnvConfig.model_fields) - {"taskset"}
    if told := sorted(env.config.model_fields_set & known):
        yield f"its settings {told} are of the package's own runner; env.timeout_s is a limit"
    for method in ("start", "stop"):
        if getattr(type(env), method) is not getattr(vf.Env, method):
            yield f"{type(env).__name__}.{method} brings up resources that all its episodes share"
    if env.taskset.toolsets(env.config.taskset):
        yield (
            f"{type(env.taskset).__name__}.toolsets are servers that all episodes share: return"
            " them from the Task's toolsets"
        )


def _of_task(env: Any, task: Any) -> Iterator[str]:
    """What is not here that a task needs."""
    vf, name, data = package(), type(task).__name__, task.data
    if task.NEEDS_CONTAINER or data.image or data.agent_user:
        yield "it needs a container, and none is run"
    for field in ("skills", "artifacts", "network_block"):
        if getattr(data, field):
            yield f"its {field} are for a program in a box, and none is run"
    if data.timeout != vf.TaskTimeout():
        yield "its timeout is of stages that are not here: leave it out, and give env.timeout_s"
    if data.prompt is None and type(env).run is vf.SingleAgentEnv.run:
        yield "it has no prompt, and no Env of its module says one"
    prompt = data.prompt if isinstance(data.prompt, list) else []
    if any(not isinstance(message.content, str | None) for message in prompt):
        yield "its prompt holds more than text, and the policy reads text"
    if any(getattr(message, "tool_calls", None) for message in prompt):
        yield "its prompt holds tool calls, which only the policy may write"
    if task.config.judges:
        yield "its judges ask a model of their own: use @vf.reward functions"
    for hook in ("setup", "finalize"):
        own = getattr(type(task), hook) is not getattr(vf.Task, hook)
        if own and _takes(getattr(task, hook), "runtime"):
            yield f"{name}.{hook} takes a runtime, and there is none: let it take the trace alone"
    from verifiers.v1.session import hook_boundary
    from verifiers.v1.utils.decorators import discover_decorated

    for function in [*task.hooks("reward"), *task.hooks("metric")]:
        if _takes(function, "runtime"):
            yield f"{name}.{function.__name__} takes a runtime, and there is none: judge the trace"
    if handlers := discover_decorated(task, "intercept"):
        yield f"{name}.{handlers[0].__name__} rewrites messages between model and program"
    for function in task.hooks("stop"):
        if hook_boundary(function, allow_trace=True) is not vf.Trace:
            yield f"{name}.{function.__name__} stops at a request or response: take the vf.Trace"
    for toolset in task.toolsets(task.config):
        yield from _of_toolset(vf, toolset)


def _of_toolset(vf: Any, toolset: Any) -> Iterator[str]:
    name, config = type(toolset).__name__, toolset.config
    if getattr(config, "colocated", False) or getattr(config, "url", None):
        yield f"the tools of {name} are elsewhere (colocated, url); only tools in Python are called"
    if type(toolset).register is not vf.Toolset.register:
        yield f"{name}.register offers more than @vf.tool methods"


def _takes(function: Any, name: str) -> bool:
    """Whether it cannot be called without."""
    parameter = inspect.signature(function).parameters.get(name)
    return parameter is not None and parameter.default is inspect.Parameter.empty
