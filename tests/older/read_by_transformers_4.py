"""What transformers 4 makes of exported folders: run by the Python of ``.venv-older``.

Writes ``said.json`` in the folder of folders: of each its logits for ``ids.json`` in it, or why it
was refused; and what its tokenizer says of ``texts.json`` and of its chat template.
"""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def logits(folder: Path, ids: torch.Tensor) -> list:
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    return model(input_ids=ids).logits.tolist()


def said(folder: Path, ids: torch.Tensor) -> dict:
    try:
        return {"logits": logits(folder, ids)}
    except Exception as error:  # whatever its reason: it was not read
        return {"refused": f"{type(error).__name__}: {error}"[:200]}


@torch.no_grad()
def main(root: Path) -> None:
    torch.set_num_threads(1)
    ids, texts = torch.tensor(json.loads((root / "ids.json").read_text())), []
    found = {f.name: said(f, ids) for f in sorted(root.iterdir()) if (f / "config.json").exists()}
    for text in json.loads((root / "texts.json").read_text()):
        tokenizer = AutoTokenizer.from_pretrained(root / "tokenizer")
        messages = [{"role": "user", "content": text}]
        template = tokenizer.apply_chat_template(messages, tokenize=False)
        texts.append([tokenizer(text)["input_ids"], template, tokenizer.eos_token_id])
    (root / "said.json").write_text(json.dumps({"models": found, "texts": texts}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
