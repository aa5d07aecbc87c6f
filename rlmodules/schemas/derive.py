"""Derives Hydra's schemas from configs and signatures: ``python -m rlmodules.schemas.derive``.

Names, types, defaults and docstrings are those of what is configured, so they are written once. The
result, ``nodes.py``, imports none of it: composing a config needs no torch.
"""

import ast
import inspect
import re
import sys
import textwrap
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, Union, get_args, get_origin, get_type_hints

import yaml
from hydra.utils import get_object
from omegaconf import MISSING

from datamodules.environments.adapters import parameters
from datamodules.environments.base import Environment, Options

HOME = ("rlmodules", "datamodules")
PATH = Path(__file__).with_name("nodes.py")
CONF = Path(__file__).parents[2] / "conf"
HEADER = '''"""Schemas of all options, as ``python -m rlmodules.schemas.derive`` writes them."""
# ruff: noqa
# fmt: off

from copy import copy
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING


def option(default: Any, text: str) -> Any:
    """A field, and what ``--help`` may say of it."""
    return field(default_factory=lambda: copy(default), metadata={"help": text})
'''


class Source(NamedTuple):
    """What a schema is derived from: a config class, or what ``_target_`` names."""

    target: str
    from_conf: Sequence[str] = ()
    """Options that have to be given, whatever their default in Python: ``conf/`` gives them."""
    handed_on: str | None = None
    """What the target hands its ``**options`` on to."""
    unchecked: Sequence[str] = ()
    """Lists that an interpolation gives: OmegaConf cannot follow it while it merges."""


WINDOW = ("batch_size", "gradient_accumulation_steps", "seed")
SOURCES: dict[str, dict[str, Source]] = {
    "algo": {},
    "model": {"base": Source("rlmodules.models.ModelConfig")},
    "data": {
        "rollouts": Source(
            "datamodules.RolloutDataModule", (*WINDOW, "env", "mini_batch_size", "epochs")
        ),
        "preferences": Source(
            "datamodules.PreferenceDataModule",
            (*WINDOW, "path", "max_length", "max_prompt_length"),
            unchecked=("objectives",),
        ),
        "unpaired": Source(
            "datamodules.UnpairedPreferenceDataModule",
            (*WINDOW, "path", "max_length", "max_prompt_length"),
        ),
        "demonstrations": Source(
            "datamodules.DemonstrationDataModule", (*WINDOW, "path", "max_length")
        ),
    },
    "env": {
        "text": Source("datamodules.TextGenerationEnv", ("reward_fn",)),
        "math": Source("datamodules.MathEnv"),
        "code": Source("datamodules.CodeGenerationEnv"),
        "preference": Source("rlmodules.reward_models.serving.preference_env"),
        "calculator": Source("datamodules.environments.calculator.CalculatorEnv"),
        "booking": Source("datamodules.environments.booking.BookingEnv"),
        "reasoning_gym": Source("datamodules.environments.reasoning.ReasoningGymEnv"),
        "verifiers": Source("datamodules.environments.verifiers.VerifiersEnv"),
        "openenv": Source("datamodules.environments.openenv.OpenEnvEnv"),
    },
    "reward": {
        "function": Source("datamodules.rewards.function"),
        "judge": Source("datamodules.rewards.judge"),
        "length": Source("datamodules.rewards.length"),
        "sentiment": Source("datamodules.rewards.sentiment"),
        "model": Source("rlmodules.reward_models.serving.model"),
        "weighted": Source("rlmodules.reward_models.weighted.weighted", unchecked=("components",)),
    },
    "sampler": {"vllm": Source("rlmodules.engines.vllm.VLLM")},
    "task": {
        "benchmark": Source("rlmodules.tasks.benchmark.benchmark", ("tasks",)),
        "collect_preferences": Source(
            "rlmodules.tasks.collect_preferences.collect_preferences",
            ("batch_size",),
            handed_on="datamodules.rollouts.collector.PreferenceCollector",
        ),
        "compare": Source("rlmodules.tasks.compare.compare_runs"),
        "doctor": Source("rlmodules.tasks.doctor.doctor"),
        "estimate": Source("rlmodules.tasks.estimate.estimate"),
        "inspect": Source("rlmodules.tasks.inspect.inspect"),
        "push": Source("rlmodules.tasks.push.push", ("repo",)),
    },
}
DEFAULTS: dict[str, Mapping[str, Any]] = {"reward": {"timeout_s": 60.0}}
"""Defaults of a run for all targets of a group, where Python's are others."""
HYDRAS: dict[str, Mapping[str, Any]] = {
    "data": {"_convert_": "all"},
    "env": {"_partial_": True, "_convert_": "all"},
    "task": {"_partial_": True},
}
"""What Hydra itself is told of all targets of a group."""
SUPPLIED = {
    "data": {"train_dataset", "eval_dataset"},
    "env": {"tokenizer", "prompts", "scenes", "examples", "held_out"},
    "task": {"make_module", "data", "trainer", "settings", "seed"},
}
"""Parameters that code gives, never a config."""


def all_sources() -> dict[str, dict[str, Source]]:
    """``SOURCES``, and the algorithms and environments whose YAML asks for a schema of its name."""
    sources = {group: dict(known) for group, known in SOURCES.items()}
    for group, key in (("algo", "module"), ("env", "_target_")):
        for path in sorted((CONF / group).glob("*.yaml")):
            settings = yaml.safe_load(path.read_text()) or {}
            asks = any(str(d).endswith(f"schema/{path.stem}") for d in settings.get("defaults", ()))
            if asks and path.stem not in sources[group]:
                if key not in settings:
                    raise ValueError(f"{path} asks for a schema and has no {key}: name the class")
                sources[group][path.stem] = Source(settings[key])
    return sources


def derive() -> str:
    """The text of ``nodes.py``."""
    classes: dict[str, list[str]] = {}
    table = ["NODES: dict[str, dict[str, type]] = {"]
    for group, sources in all_sources().items():
        table.append(f'    "{group}": {{')
        for name, source in sources.items():
            target = get_object(source.target)
            target = getattr(target, "config_class", target)  # of an algorithm
            if is_dataclass(target):
                made = _add_config(target, classes)
            else:
                made = f"{group}_{name}".title().replace("_", "")
                options = {"_target_": ("str", source.target, "")} | _options(group, source, target)
                classes[made] = [_line(option, *rest) for option, rest in options.items()]
            table.append(f'        "{name}": {made},')
        table.append("    },")
    bodies = [
        "\n".join(["@dataclass", f"class {name}:", *(lines or ["    pass"])])
        for name, lines in classes.items()
    ]
    return "\n\n\n".join([HEADER.rstrip(), *bodies, "\n".join([*table, "}"])]) + "\n"


def config_type(annotation: Any) -> str:
    """An annotation as a structured config may have it; ``Any`` for what no config can check."""
    args = [arg for arg in get_args(annotation) if arg is not type(None)]
    plain = [arg.__name__ if arg in (str, int, float, bool) else "Any" for arg in args]
    match get_origin(annotation) or annotation:
        case kind if kind in (str, int, float, bool):
            return kind.__name__
        case origin if origin in (Union, types.UnionType):
            inner = config_type(args[0]) if len(args) == 1 else "Any"
            untold = inner == "Any" or inner.startswith("dict")  # None takes no dict of a type
            return "Any" if untold else f"{inner} | None"
        case origin if origin in (list, Sequence):
            return f"list[{plain[0]}]"
        case origin if origin in (dict, Mapping):
            return f"dict[str, {plain[1]}]"
    return "Any"


def _line(name: str, kind: str, default: Any, text: str) -> str:
    default = list(default) if isinstance(default, tuple) else default
    value = "MISSING" if default == MISSING else repr(default)
    return f"    {name}: {kind} = option({value}, {text!r})"


def _add_config(config: type, classes: dict[str, list[str]]) -> str:
    """Add the lines of a config class, its bases before it; how it is called there."""
    bases = [_add_config(base, classes) for base in config.__bases__ if is_dataclass(base)]
    hints, texts = get_type_hints(config), _texts(config)
    own = [f for f in fields(config) if f.name in vars(config).get("__annotations__", {})]
    lines = []
    for field in own:
        if is_dataclass(hints[field.name]):
            inner = _add_config(hints[field.name], classes)
            lines.append(f"    {field.name}: {inner} = field(default_factory={inner})")
        else:
            make = field.default_factory
            default = make() if callable(make) else field.default
            kind = config_type(hints[field.name])
            lines.append(_line(field.name, kind, default, texts.get(field.name, "")))
    classes[f"{config.__name__}({', '.join(bases)})".replace("()", "")] = lines
    return config.__name__


def _options(
    group: str, source: Source, target: Callable[..., Any]
) -> dict[str, tuple[str, Any, str]]:
    """Type, default and text of what a config may say to a target."""
    taken, texts = parameters(target), _texts(target)
    made = target if inspect.isclass(target) else inspect.signature(target).return_annotation
    if source.handed_on is not None:
        inner = get_object(source.handed_on)
        taken, texts = parameters(inner) | taken, _texts(inner) | texts
    known = {
        name: (p.annotation, MISSING if p.default is p.empty else p.default)
        for name, p in taken.items()
        if name not in SUPPLIED.get(group, ()) and name != "self"
        if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    }
    if inspect.isclass(made) and issubclass(made, Environment):
        known |= {k: (v, getattr(made, k)) for k, v in get_type_hints(Options).items()}
        texts = _texts(made) | texts
    known |= {k: (type(v), v) for k, v in HYDRAS.get(group, {}).items()}
    defaults = {**DEFAULTS.get(group, {}), **dict.fromkeys(source.from_conf, MISSING)}
    for name, default in defaults.items():
        known[name] = (known[name][0], default)
    options = {}
    for name, (annotation, default) in known.items():
        kind = "Any" if name in source.unchecked else config_type(annotation)
        kind = kind.removesuffix(" | None") if default == MISSING else kind
        options[name] = (kind, default, texts.get(name, ""))
    return options


def _texts(target: Any) -> dict[str, str]:
    """What docstrings say of a function's arguments, or of a class's and its attributes."""
    texts: dict[str, str] = {}
    for owner in reversed(inspect.getmro(target)) if inspect.isclass(target) else [target]:
        for name, text in (*_said_of_arguments(owner), *_said_of_attributes(owner)):
            if name not in texts or not text.startswith("see "):
                texts[name] = _followed(owner, name, " ".join(text.split()))
    return texts


def _followed(owner: Any, name: str, text: str) -> str:
    """``text``, or what it refers to: of ``see ``RewardFunction``.`` what that says of ``name``.

    Raises:
        LookupError: it refers to what the module of ``owner`` lacks.
    """
    reference = re.match(r"see ``(\w+)``", text)
    if reference is None:
        return text
    module = sys.modules[owner.__module__]
    if not hasattr(module, reference[1]):
        raise LookupError(f"{owner.__qualname__} of {name}: {text!r} is not in {module.__name__}")
    return _texts(getattr(module, reference[1])).get(name, text)


def _said_of_arguments(owner: Any) -> Iterator[tuple[str, str]]:
    section = inspect.cleandoc(owner.__doc__ or "").partition("Args:\n")[2].partition("\n\n")[0]
    for names, text in re.findall(r"^    (\w[\w, ]*): (.*(?:\n {8}.*)*)", section, re.MULTILINE):
        yield from ((name, text) for name in names.split(", "))


def _said_of_attributes(owner: Any) -> Iterator[tuple[str, str]]:
    if not inspect.isclass(owner) or owner.__module__.split(".")[0] not in HOME:
        return
    body = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0].body
    for statement, following in pairwise(body):
        match statement, following:
            case (
                ast.AnnAssign(target=ast.Name(id=name)) | ast.Assign(targets=[ast.Name(id=name)]),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                yield name, text


if __name__ == "__main__":
    PATH.write_text(derive())
    print(f"wrote {PATH}")
