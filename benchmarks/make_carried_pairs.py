"""Makes the pairs that the project carries: ``preferences_{train,heldout}.jsonl`` of its assets.

The embedded model continues each of the project's neutral openings several times; the continuation
that the VADER lexicon finds most positive is chosen, the most negative one is rejected. Left out
are continuations that end in the middle of their first sentence, repeat themselves or leave plain
prose, and openings whose best and worst continuation are close.

    python benchmarks/make_carried_pairs.py
"""

import argparse
import json
import re
from collections import Counter
from pathlib import Path

import torch

from datamodules import rewards
from datamodules.text.prompt_files import load_prompts
from datamodules.text.prompts import Prompt, encode_prompt
from rlmodules import ModelConfig, SamplingParams, sample
from rlmodules.models import load_model, load_tokenizer

ASSETS = Path(__file__).resolve().parent.parent / "datamodules" / "assets"
PARAMS = SamplingParams(max_new_tokens=44, temperature=0.8, top_p=0.95)
PLAIN = re.compile(r"[A-Za-z0-9 ,.;:!?'\"()$%-]+")
SENTENCE = re.compile(r".*?[.!?](?=\s|$)")


def prose(text: str) -> str | None:
    """The whole sentences that ``text`` holds; None if they are no sensible prose."""
    sentences = SENTENCE.findall(re.sub(r"\s+", " ", text.replace("’", "'")))
    said = "".join(sentences[:3]).rstrip()
    words = said.lower().split()
    triples = Counter(zip(words, words[1:], words[2:], strict=False))
    if not 6 <= len(words) <= 40 or not PLAIN.fullmatch(said) or said.count('"') % 2:
        return None
    return None if triples and max(triples.values()) > 1 else said


def pairs(openings: list[Prompt], samples: int, least: float, seed: int) -> list[dict]:
    config = ModelConfig(dtype="bfloat16", attn_implementation="sdpa")
    model, tokenizer = load_model(config), load_tokenizer(config)
    judge = rewards.sentiment()
    rows = []
    for start in range(0, len(openings), 8):
        batch = [opening for opening in openings[start : start + 8] for _ in range(samples)]
        ids = [encode_prompt(tokenizer, opening) for opening in batch]
        seeds = [seed * 10**6 + start * samples + i for i in range(len(batch))]
        responses = sample(model, tokenizer, ids, PARAMS, seeds)
        texts = [tokenizer.decode(r.tokens, skip_special_tokens=True) for r in responses]
        for i in range(0, len(batch), samples):
            said = {t for t in map(prose, texts[i : i + samples]) if t and t.startswith(" ")}
            ranked = sorted(said, key=lambda t: judge([""], [t])[0])
            if len(ranked) < 2:
                continue
            low, high = judge([""] * 2, [ranked[0], ranked[-1]])
            if high - low >= least:
                row = {"prompt": batch[i].content, "chosen": ranked[-1], "rejected": ranked[0]}
                rows.append(row | {"chosen_score": high, "rejected_score": low})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=10, help="continuations of each opening")
    parser.add_argument("--least", type=float, default=0.4, help="difference of a pair's scores")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for name in ("train", "heldout"):
        openings = load_prompts(f"package:openings_{name}.txt")
        with torch.no_grad():
            rows = pairs(openings, args.samples, args.least, args.seed)
        path = ASSETS / f"preferences_{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        print(f"{path}: {len(rows)} pairs from {len(openings)} openings", flush=True)


if __name__ == "__main__":
    main()
