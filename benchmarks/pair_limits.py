"""The least time that this machine needs for a step on preference pairs: its bare products.

Counted are the linear layers on every token that a side computes, and for DPO the vocabulary at
every position whose next token is predicted: one forward of the reference, and three products
(forward, gradients of input and weight) where the policy trains. Not counted: attention,
normalisation, softmax, the optimizer. Products are timed as in `limits.py`.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from limits import Products, layer_shapes


def pair_limits(
    config: dict[str, Any],
    tokens: int,
    predictions: int,
    *,
    references: int,
    dtype: torch.dtype = torch.bfloat16,
) -> dict[str, float]:
    """Seconds of one optimizer step, measured now.

    Args:
        config: a model's `config.json`.
        tokens: through the layers.
        predictions: through the vocabulary; 0 for a reward model.
        references: forwards without gradients besides the one that trains.

    Returns:
        Seconds by part and their `total`; `tflops`, the rate of the layers' products.
    """
    layers = Products(layer_shapes(config), dtype)
    training = layers.seconds(tokens, backward=True)
    multiplied = layers.bytes // layers.weights[0].element_size() * tokens
    parts = {"layers": training + (references * layers.seconds(tokens) if references else 0.0)}
    if predictions:
        vocabulary = Products([(config["hidden_size"], config["vocab_size"])], dtype)
        parts["vocabulary"] = vocabulary.seconds(predictions, backward=True)
        parts["vocabulary"] += references * vocabulary.seconds(predictions)
    return parts | {"total": sum(parts.values()), "tflops": 6 * multiplied / training / 1e12}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="folder with a config.json")
    parser.add_argument("--tokens", type=int, required=True)
    parser.add_argument("--predictions", type=int, default=0)
    parser.add_argument("--references", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    measured = pair_limits(
        json.loads((options.model / "config.json").read_text(encoding="utf-8")),
        options.tokens,
        options.predictions,
        references=options.references,
    )
    print(json.dumps(measured))
