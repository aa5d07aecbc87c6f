"""What earlier readers look for in an exported folder, beside what transformers 5 writes.

transformers 5 moved the base of rotary positions into ``rope_parameters``. transformers 4, engines
on it, Ollama and older converters look for ``rope_theta``; without it they compute with 10000,
which is another model, and say nothing (``tests/older`` tries transformers 4).
"""

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig

Names = dict[str, Any]
FAST = "PreTrainedTokenizerFast"
"""What transformers 4 calls ``TokenizersBackend``, and 5 reads as that."""
LEAKED = ("is_local", "local_files_only")
"""Of the machine that wrote a tokenizer, not of the tokenizer."""
RENAMED = {"torch_dtype": "dtype", "num_experts": "num_local_experts"}
OTHERS = {
    "gpt_neox": {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"},
    "gpt_neox_japanese": {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"},
    "modernbert": {"rope_theta": "global_rope_theta", "rope_local_base_freq": "local_rope_theta"},
}
OTHERS["modernbert-decoder"] = OTHERS["modernbert"]
"""Of types that called them otherwise."""
LAYERS = ("full_attention", "sliding_attention")


def write_older_names(dirpath: Path) -> None:
    """Add them to ``config.json`` and ``tokenizer_config.json``, as far as the folder has them."""
    config, tokenizer = dirpath / "config.json", dirpath / "tokenizer_config.json"
    if config.is_file():
        _write(config, with_older_names(_read(config)))
    if tokenizer.is_file():
        template = dirpath / "chat_template.jinja"
        text = template.read_text(encoding="utf-8") if template.is_file() else None
        _write(tokenizer, tokenizer_with_older_names(_read(tokenizer), text))


def with_older_names(config: Names) -> Names:
    """A ``config.json`` that has both; as it was where transformers would read another then."""
    both = json.loads(json.dumps(config))
    for part in _parts(both):
        part |= _positions(part)
        part |= {old: part[new] for old, new in RENAMED.items() if new in part}
    if config.get("model_type") not in CONFIG_MAPPING:  # code of its own reads it
        return config
    try:
        wanted, read = _as_read(config), _as_read(both)
    except Exception:  # of any kind: an export is not lost for them
        return config
    return both if all(_same(read.get(n), value) for n, value in wanted.items()) else config


def _same(a: Any, b: Any) -> bool:
    """Whether they are equal; NaN is, too."""
    return a == b or json.dumps(a, default=repr) == json.dumps(b, default=repr)


def tokenizer_with_older_names(config: Names, template: str | None) -> Names:
    """A ``tokenizer_config.json``, with the chat template that lies in a file of its own."""
    config = {name: value for name, value in config.items() if name not in LEAKED}
    if config.get("tokenizer_class") == "TokenizersBackend":
        config["tokenizer_class"] = FAST
    if isinstance(config.get("extra_special_tokens"), list):
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    if template is not None:
        config.setdefault("chat_template", template)
    return config


def _parts(config: Names) -> Iterator[Names]:
    """A config and the configs in it."""
    yield config
    for name, value in list(config.items()):
        if isinstance(value, dict) and name.endswith("_config"):
            yield from _parts(value)


def _positions(config: Names) -> Names:
    """``rope_parameters`` by older names; none where there are none for it."""
    rope = config.get("rope_parameters") or {}
    if set(rope) == set(LAYERS):
        full, local = (_flat(rope[name] or {}) for name in LAYERS)
        names = full | {"rope_local_base_freq": local.get("rope_theta")}
    else:
        names = _flat(rope) if "rope_theta" in rope else {}
    other = OTHERS.get(config.get("model_type", ""), {})
    return {other.get(name, name): value for name, value in names.items()}


def _flat(rope: Names) -> Names:
    names = {n: rope[n] for n in ("rope_theta", "partial_rotary_factor") if n in rope}
    scaling = {name: value for name, value in rope.items() if name not in names}
    return names | {"rope_scaling": None if scaling == {"rope_type": "default"} else scaling}


def _as_read(config: Names) -> Names:
    """What transformers' own class reads, every value of it."""
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a name is an older one
        _write(Path(folder) / "config.json", config)
        return AutoConfig.from_pretrained(folder).to_dict() | {"_name_or_path": ""}


def _read(path: Path) -> Names:
    return json.loads(path.read_text(encoding="utf-8"))


def _write(path: Path, content: Names) -> None:
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
