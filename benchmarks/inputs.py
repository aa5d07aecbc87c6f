"""What both sides of a comparison share: checkpoint, random reward model and prompts, made once.

Run as a program it prints the `Inputs` as one JSON line. The driver calls it that way, so that the
driver itself stays small: a child's peak resident memory starts at its parent's.
"""

import argparse
import hashlib
import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CACHE = Path(__file__).resolve().parent / ".cache"
OPENINGS_FILE = ROOT / "datamodules" / "assets" / "openings_train.txt"
OPENINGS = (
    "The film that we saw last night",
    "When the train arrived at the station,",
    "My neighbour has a small garden where",
    "In the middle of the afternoon the phone",
    "The new library in our town",
    "She opened the letter and",
    "After the rain had stopped, the children",
    "The restaurant at the corner of the street",
)


@dataclass(frozen=True)
class Inputs:
    """Paths that both sides receive, and the mean and longest prompt in tokens."""

    model: str
    reward_model: str
    prompts: str
    prompt_tokens_mean: float
    prompt_tokens_max: int


def model_folder(model: str | None) -> Path:
    """The given checkpoint folder, or the one that the library embeds."""
    if model is None:
        from rlmodules.models import embedded_model_dir

        return Path(embedded_model_dir()).resolve()
    path = Path(model).resolve()
    if not (path / "config.json").is_file():
        raise ValueError(f"--model {model}: no config.json there; give a Hugging Face checkpoint")
    return path


def reward_model(policy: Path, cache: Path, seed: int = 0) -> Path:
    """A sequence classifier with the policy's shape and random bf16 weights, with the tokenizer."""
    import torch
    from transformers import AutoConfig, AutoTokenizer, LlamaForSequenceClassification

    config = AutoConfig.from_pretrained(policy, num_labels=1)
    digest = hashlib.sha256((policy / "config.json").read_bytes()).hexdigest()[:8]
    folder = cache / f"reward-{digest}-seed{seed}"
    if (folder / "done").is_file():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    tokenizer = AutoTokenizer.from_pretrained(policy)
    if config.pad_token_id is None:
        config.pad_token_id = tokenizer.eos_token_id
    torch.manual_seed(seed)
    LlamaForSequenceClassification(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "done").touch()
    return folder


def prompts_file(count: int, cache: Path) -> Path:
    """`count` short neutral openings, one a line, repeated in order when there are fewer."""
    lines: list[str] = list(OPENINGS)
    if OPENINGS_FILE.is_file():
        text = OPENINGS_FILE.read_text(encoding="utf-8")
        lines = [line for line in map(str.strip, text.splitlines()) if line]
    path = cache / f"prompts-{count}.txt"
    chosen = [lines[index % len(lines)] for index in range(count)]
    path.write_text("\n".join(chosen) + "\n", encoding="utf-8")
    return path


def make_inputs(model: str | None, count: int, cache: Path = CACHE) -> Inputs:
    """Everything that the two sides read; made where missing, reused where present."""
    from transformers import AutoTokenizer

    cache.mkdir(parents=True, exist_ok=True)
    policy = model_folder(model)
    prompts = prompts_file(count, cache)
    tokenizer = AutoTokenizer.from_pretrained(policy)
    encoded = tokenizer(prompts.read_text(encoding="utf-8").splitlines())["input_ids"]
    lengths = [len(ids) for ids in encoded]
    return Inputs(
        model=str(policy),
        reward_model=str(reward_model(policy, cache)),
        prompts=str(prompts),
        prompt_tokens_mean=sum(lengths) / len(lengths),
        prompt_tokens_max=max(lengths),
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model")
    parser.add_argument("--count", type=int, required=True, help="number of prompts")
    options = parser.parse_args()
    print(json.dumps(asdict(make_inputs(options.model, options.count))))
