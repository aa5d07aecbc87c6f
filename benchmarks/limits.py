"""The least time that this machine needs for a comparison's work: bare matrix products and traffic.

No framework, attention, normalisation or sampling is counted, only what no implementation avoids:

- every linear layer of the network on the tokens of a forward pass, and two products more
  (gradients of input and weight) where it trains; the vocabulary only at response positions;
- decoding, twice: as the weights' bytes over the measured memory bandwidth, and as the bare
  products of a batch of one-token rows;
- AdamW's traffic: weight, gradient and two moments read, weight and both moments written.

The products run through distinct weights of the model's true number of layers, so that caches help
no more than they help a real model. Each product is timed by itself and the fastest of its shape
counts, so that a neighbour's work on the same cores does not loosen the limit.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

Shape = tuple[int, int]  # inputs, outputs of one linear layer


@dataclass(frozen=True)
class Work:
    """One PPO iteration. Tokens are per episode."""

    prompt: int = 8
    """Prompt tokens, padding included."""
    response: int = 48
    """Response tokens."""
    episodes: int = 16
    """Responses sampled an iteration."""
    epochs: int = 4
    """Passes over the rollout."""
    minibatch: int = 4
    """Episodes an optimizer step."""
    critic_networks: int = 0
    """Networks of the critic's own: 0 for a head on the policy, 1 for a separate value model."""

    def __post_init__(self) -> None:
        if self.episodes % self.minibatch:
            raise ValueError(f"minibatch {self.minibatch} must divide episodes {self.episodes}")

    @property
    def optimizer_steps(self) -> int:
        return self.epochs * self.episodes // self.minibatch


def layer_shapes(config: dict[str, Any]) -> list[Shape]:
    """The linear layers of a Llama-like model, without the vocabulary projection."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    heads = config["num_attention_heads"]
    head = config.get("head_dim") or hidden // heads
    keys = head * (config.get("num_key_value_heads") or heads)
    block = [(hidden, head * heads), (hidden, keys), (hidden, keys), (head * heads, hidden)]
    block += [(hidden, inner), (hidden, inner), (inner, hidden)]
    return block * config["num_hidden_layers"]


def seconds_of(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def bandwidth(chunks: int = 16, mebibytes: int = 64, repeats: int = 4) -> float:
    """Bytes a second of the fastest parallel read, over chunks that together exceed the caches."""
    blocks = [torch.ones(mebibytes * 2**18, dtype=torch.float32) for _ in range(chunks)]
    return mebibytes * 2**20 / min(seconds_of(block.sum) for block in blocks * repeats)


class Products:
    """The bare products of one list of linear layers."""

    def __init__(self, shapes: list[Shape], dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.weights = [torch.randn(outputs, inputs).to(dtype) for inputs, outputs in shapes]

    @property
    def bytes(self) -> int:
        return sum(weight.numel() * weight.element_size() for weight in self.weights)

    def seconds(self, rows: int, *, backward: bool = False) -> float:
        """One pass over all layers with `rows` tokens; `backward` adds both gradients' products."""
        passes = max(4, 12 // len(self.weights))
        sizes = {size for weight in self.weights for size in weight.shape}
        tokens = {size: torch.randn(rows, size).to(self.dtype) for size in sizes}
        products = [torch.nn.functional.linear]
        if backward:
            products += [
                lambda x, weight: torch.mm(tokens[weight.shape[0]], weight),
                lambda x, weight: torch.mm(tokens[weight.shape[0]].T, x),
            ]
        best: dict[tuple[torch.Size, int], float] = {}
        with torch.no_grad():
            for weight in self.weights * passes:
                x = tokens[weight.shape[1]]
                for kind, product in enumerate(products):
                    taken = seconds_of(partial(product, x, weight))
                    key = (weight.shape, kind)
                    best[key] = min(taken, best.get(key, taken))
        kinds = range(len(products))
        return sum(best[weight.shape, kind] for weight in self.weights for kind in kinds)


def limits(
    config: dict[str, Any],
    work: Work | None = None,
    *,
    dtype: torch.dtype = torch.bfloat16,
    memory_bandwidth: float | None = None,
) -> dict[str, float]:
    """Seconds of the parts of one PPO iteration, measured now, and their two totals.

    Counted: a prefill and `response - 1` decoding steps; a reference forward with the vocabulary
    and a reward forward without; `optimizer_steps` updates. Log-probabilities and values at
    sampling time are taken to come out of decoding itself, so they add nothing; a critic with its
    own network adds a scoring forward and its updates.

    Args:
        config: a model's `config.json`.
        work: sizes of the iteration; the default `Work()` when absent.
        dtype: of weights and activations.
        memory_bandwidth: bytes a second; measured when absent.

    Returns:
        Seconds by part. `total_products` decodes by bare products, `total_bandwidth` by bytes over
        bandwidth. `decode_step_*` are single steps; `bandwidth_gb_s` and `tflops` say how fast the
        machine was.
    """
    work = work or Work()
    speed = memory_bandwidth or bandwidth()
    trunk = Products(layer_shapes(config), dtype)
    vocabulary = Products([(config["hidden_size"], config["vocab_size"])], dtype)
    length = work.prompt + work.response
    updates, trained = work.optimizer_steps, 1 + work.critic_networks
    step_products = trunk.seconds(work.episodes) + vocabulary.seconds(work.episodes)
    step_bandwidth = (trunk.bytes + vocabulary.bytes) / speed
    forward = trunk.seconds(work.episodes * length)
    update_trunk = trunk.seconds(work.minibatch * length, backward=True)
    update_vocabulary = vocabulary.seconds(work.minibatch * work.response, backward=True)
    parameters_bytes = trained * trunk.bytes + vocabulary.bytes
    parts = {
        "prefill": trunk.seconds(work.episodes * work.prompt) + vocabulary.seconds(work.episodes),
        "scoring": (2 + work.critic_networks) * forward
        + vocabulary.seconds(work.episodes * work.response),
        "update": updates * (trained * update_trunk + update_vocabulary),
        "optimizer": updates * 7 * parameters_bytes / speed,
    }
    steps = work.response - 1
    multiplied = trunk.bytes // trunk.weights[0].element_size() * work.minibatch * length
    return parts | {
        "decode_products": steps * step_products,
        "decode_bandwidth": steps * step_bandwidth,
        "total_products": sum(parts.values()) + steps * step_products,
        "total_bandwidth": sum(parts.values()) + steps * step_bandwidth,
        "decode_step_products": step_products,
        "decode_step_bandwidth": step_bandwidth,
        "forward": trunk.seconds(work.minibatch * length),
        "forward_backward": update_trunk,
        "vocabulary_forward_backward": update_vocabulary,
        "bandwidth_gb_s": speed / 1e9,
        "tflops": 6 * multiplied / update_trunk / 1e12,
    }


LABELS = {
    "forward": "layers, forward, one minibatch",
    "forward_backward": "layers, forward + backward, one minibatch",
    "vocabulary_forward_backward": "vocabulary, forward + backward, one minibatch's responses",
    "decode_step_products": "one decoding step, bare products",
    "decode_step_bandwidth": "one decoding step, bytes / bandwidth",
    "prefill": "iteration: prefill",
    "decode_products": "iteration: decoding, bare products",
    "decode_bandwidth": "iteration: decoding, bytes / bandwidth",
    "scoring": "iteration: scoring forwards",
    "update": "iteration: updates, forward + backward",
    "optimizer": "iteration: AdamW traffic / bandwidth",
    "total_products": "**iteration, decoding by products**",
    "total_bandwidth": "**iteration, decoding by bandwidth**",
}


def table(measured: dict[str, float]) -> str:
    """A markdown table of `limits`' result."""
    lines = ["| limit | seconds |", "|---|---:|"]
    lines += [f"| {label} | {measured[key]:.4f} |" for key, label in LABELS.items()]
    speeds = "{tflops:.2f} TFLOP/s in updates, {bandwidth_gb_s:.1f} GB/s".format(**measured)
    return "\n".join([*lines, "", f"Machine: {speeds}, {torch.get_num_threads()} threads."])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="folder with a config.json")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt-length", type=int, default=Work.prompt)
    parser.add_argument("--response-length", type=int, default=Work.response)
    parser.add_argument("--episodes", type=int, default=Work.episodes)
    parser.add_argument("--epochs", type=int, default=Work.epochs)
    parser.add_argument("--minibatch", type=int, default=Work.minibatch)
    parser.add_argument("--critic-networks", type=int, default=0, help="1: separate value model")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    config = json.loads((args.model / "config.json").read_text(encoding="utf-8"))
    work = Work(
        prompt=args.prompt_length,
        response=args.response_length,
        episodes=args.episodes,
        epochs=args.epochs,
        minibatch=args.minibatch,
        critic_networks=args.critic_networks,
    )
    measured = limits(config, work, dtype=getattr(torch, args.dtype))
    print(json.dumps(measured) if args.json else table(measured))


if __name__ == "__main__":
    main()
