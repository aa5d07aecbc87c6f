"""The least time that this machine needs for a step of GRPO: its bare matrix products.

Counted are the linear layers on every token that a side computes (prompts and decoding without
gradients, the reference, and three products where the policy trains), and the vocabulary at every
token of a response: once where it is drawn, once for the reference, three times in training. Not
counted: attention, normalisation, softmax, the optimizer. Products are timed as in `limits.py`.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from limits import Products, layer_shapes


def grpo_limits(
    config: dict[str, Any],
    *,
    prefill: int,
    reference: int,
    training: int,
    episodes: int,
    response: int,
    dtype: torch.dtype = torch.bfloat16,
) -> dict[str, float]:
    """Seconds of one optimizer step, measured now.

    Args:
        config: a model's `config.json`.
        prefill: tokens of the prompts, as they are computed before decoding.
        reference: tokens that the reference computes.
        training: tokens that the policy computes with gradients.
        episodes: rows of a decoding step.
        response: tokens of each; the first comes out of the prefill.

    Returns:
        Seconds by part and their `total`; `tflops`, the rate of the layers' training products.
    """
    layers = Products(layer_shapes(config), dtype)
    vocabulary = Products([(config["hidden_size"], config["vocab_size"])], dtype)
    predictions, drawn = episodes * response, vocabulary.seconds(episodes)
    trained = layers.seconds(training, backward=True)
    multiplied = layers.bytes // layers.weights[0].element_size() * training
    parts = {
        "prefill": layers.seconds(prefill) + drawn,
        "decoding": (response - 1) * (layers.seconds(episodes) + drawn),
        "reference": layers.seconds(reference) + vocabulary.seconds(predictions),
        "training": trained + vocabulary.seconds(predictions, backward=True),
    }
    return parts | {"total": sum(parts.values()), "tflops": 6 * multiplied / trained / 1e12}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="folder with a config.json")
    sizes = ("prefill", "reference", "training", "episodes", "response")
    for name in sizes:
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    measured = grpo_limits(
        json.loads((options.model / "config.json").read_text(encoding="utf-8")),
        **{name: getattr(options, name) for name in sizes},
    )
    print(json.dumps(measured))
