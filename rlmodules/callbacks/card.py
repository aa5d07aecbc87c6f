"""The README.md of an exported model: what it is, how it was made, how good it is, its use."""

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml
from transformers.utils import cached_file

from datamodules.atomic import write_text
from rlmodules.checks import defaults_of
from rlmodules.reports.benchmarks import lines
from rlmodules.reports.environment import read_start
from rlmodules.resuming.changes import flatten

LIBRARIES = ("rlmodules", "torch", "lightning", "transformers", "peft")
ALWAYS = ("learning_rate", "batch_size", "num_iterations", "num_epochs", "seed")
"""Settings of the algorithm that are shown whatever their default."""
LICENSES = {"wheel:smollm2": "apache-2.0"}
BENCHMARKS = "## Benchmarks"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def write_card(module: Any, dirpath: Path, report: Any = None, datamodule: Any = None) -> None:
    """Write ``dirpath/README.md`` of what ``module.export`` wrote there.

    Args:
        report: the run's, with held-out figures before and after; None: there was no run.
        datamodule: the run's, which says on what it was trained.
    """
    base = base_of(module, dirpath)
    head = {"library_name": "transformers", "tags": ["rlmodules", type(module).__name__.lower()]}
    if (dirpath / "adapter_config.json").is_file():
        head |= {"library_name": "peft"}
    if HUB_ID.fullmatch(base) and not Path(base).exists():
        head["base_model"] = base
    if (licence := license_of(base)) is not None:
        head["license"] = licence
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n",
        *what(module, dirpath, base),
        *training(module, datamodule),
        *command(report),
        *figures(report),
        *usage(dirpath, base),
        "## Versions\n",
        ", ".join(f"{name} {found}" for name, found in _versions()) + "\n",
    ]
    (dirpath / "README.md").write_text("\n".join(parts), encoding="utf-8")


def base_of(module: Any, dirpath: Path) -> str:
    """The model that training started from, as others know it; '' of one made in memory."""
    adapter = dirpath / "adapter_config.json"
    if adapter.is_file():
        return json.loads(adapter.read_text())["base_model_name_or_path"] or ""
    model = module.base_model
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return str(getattr(inner, "name_or_path", ""))


def license_of(base: str) -> str | None:
    """What the model card of ``base`` says, if there is one on this machine."""
    if base in LICENSES or not (HUB_ID.fullmatch(base) or Path(base).is_dir()):
        return LICENSES.get(base)
    try:
        card = cached_file(base, "README.md", local_files_only=True)
        head = re.match(r"---\n(.*?)\n---", Path(card).read_text(encoding="utf-8"), re.DOTALL)
        found = yaml.safe_load(head[1]).get("license") if head else None
    except (OSError, TypeError, AttributeError, UnicodeDecodeError, yaml.YAMLError):
        return None  # no card, or none that can be read
    return found if isinstance(found, str) else None


def what(module: Any, dirpath: Path, base: str) -> Iterator[str]:
    """What kind of weights lie here."""
    name, on = type(module).__name__, f"`{base}`" if base else "a model made in memory"
    yield f"# {name} of {on}\n"
    adapter = dirpath / "adapter_config.json"
    if adapter.is_file():
        lora = json.loads(adapter.read_text())
        kind = f"A LoRA adapter (rank {lora['r']}, alpha {lora['lora_alpha']}) on {on}"
    elif hasattr(module.base_model, "merge_and_unload"):
        kind = f"LoRA adapters of {on}, merged into its weights"
    else:
        kind = f"{on[0].upper()}{on[1:]}, of which all weights were trained"
    yield f"{kind}, trained with {name} by rlmodules.\n"
    if licence := license_of(base):
        yield f"The licence of its base is {licence}.\n"
    else:
        yield "The licence of its base is not known here, and holds for this model too.\n"


def training(module: Any, datamodule: Any) -> Iterator[str]:
    """Settings that are no defaults, and on what."""
    usual = dict(flatten(defaults_of(module.config)))
    shown = {name: value for name, value in flatten(asdict(module.config))
             if name in ALWAYS or name not in usual or value != usual[name]}  # fmt: skip
    hidden = ("model_name", "device")
    rows = [f"| `{name}` | {value} |" for name, value in shown.items() if name not in hidden]
    yield "## Training\n"
    if datamodule is not None:
        env = getattr(datamodule, "env", None)
        source = getattr(datamodule, "path", None)
        told = [f"environment `{type(env).__name__}`"] if env is not None else []
        told += (
            [f"data `{Path(source).name if Path(source).exists() else source}`"] if source else []
        )
        yield f"On {', '.join(told) or 'data given in Python'}.\n"
    yield "\n".join(["| setting | value |", "|---|---|", *rows]) + "\n"


def command(report: Any) -> Iterator[str]:
    """What the run was started with, as far as its folder says so."""
    overrides = read_start(report.dirpath).get("overrides") if report is not None else None
    if overrides is not None:
        words = shlex.join(["python", "train.py", *overrides])
        yield f"Started by:\n\n```sh\n{words}\n```\n"


def add_benchmarks(dirpath: Path, found: Mapping[str, Any]) -> None:
    """Have the card of ``dirpath``, if there is one, show what ``task=benchmark`` measured."""
    path = dirpath / "README.md"
    if not path.is_file():
        return
    text = re.sub(rf"\n{BENCHMARKS}\n.*?(?=\n## |\Z)", "", path.read_text(encoding="utf-8"),
                  flags=re.DOTALL)  # fmt: skip
    rows = [f"| {' | '.join(row)} |" for row in lines(found)]
    head = ["| | examples | before | after | difference |", "|---|---:|---:|---:|---:|"]
    said = f"By lm-evaluation-harness {found['lm_eval']}, with standard errors.\n"
    write_text(path, "\n".join([text.rstrip() + "\n", f"{BENCHMARKS}\n", said, *head, *rows, ""]))


def figures(report: Any) -> Iterator[str]:
    """Held-out figures of the run."""
    if report is None or not report.after:
        yield "Nothing was held out to measure it on.\n"
        return
    yield f"## {report.title}\n"
    columns = ["before", "after", *(["as exported"] if report.exported else [])]
    rows = [f"| | {' | '.join(columns)} |", f"|---|{'---:|' * len(columns)}"]
    for label, values in report.table():
        rows.append(f"| {label} | {' | '.join(f'{value:.3f}' for value in values)} |")
    yield "\n".join(rows) + "\n"
    if report.measured:
        yield f"{report.measured}\n"


def usage(dirpath: Path, base: str) -> Iterator[str]:
    """How to load it."""
    yield "## Use\n"
    names = {path.name for path in dirpath.iterdir()}
    if "reward_model.json" in names:
        yield "As a reward: `python train.py reward=model reward.path=DIR`, or in Python:\n"
        yield _code("from rlmodules.reward_models.serving import model",
                    'reward = model("DIR")', "reward(prompts, responses)")  # fmt: skip
    elif "adapter_config.json" in names and (":" in base or base.endswith(".gguf")):
        yield (
            f"Its base, `{base}`, is a name of rlmodules': other libraries need the whole model,"
            " which `export.merge=true` writes. `python train.py model=hf model.name=DIR` goes on"
            " training it; in Python:\n"
        )
        yield _code("from rlmodules import ModelConfig", "from rlmodules.models import load_model",
                    'model = load_model(ModelConfig(name="DIR"))')  # fmt: skip
    else:
        yield _code("from transformers import AutoModelForCausalLM, AutoTokenizer",
                    'model = AutoModelForCausalLM.from_pretrained("DIR")',
                    'tokenizer = AutoTokenizer.from_pretrained("DIR")')  # fmt: skip
    if "value_head" in names:
        yield "`value_head` holds PPO's critic, which serving needs not.\n"


def _code(*lines: str) -> str:
    return "\n".join(["```python", *lines, "```\n"])


def _versions() -> Iterator[tuple[str, str]]:
    for name in LIBRARIES:
        try:
            yield name, version(name)
        except PackageNotFoundError:  # run from a checkout
            continue
