"""How fast, and how close to what the card can do: models of a real size with random weights.

Our side is as a user runs it: float32 weights under bf16-mixed, the settings of our `conf/`;
without checkpoints, reports and loggers. Limits are the card's own, measured first: its bf16 matrix
product and its copies. Of each phase `limit_s` counts what nothing avoids: the layers' products on
every token, the vocabulary's at every response token, twice again where gradients are needed; while
sampling, the bytes of bf16 weights and of the cache at every token; AdamW's bytes. `share` is limit
over measured.
"""

import tempfile
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import lightning as L
from ours_mode import bare_trainer
from ours_pairs import computed_tokens, predictions, tokens
from ours_ppo import no_end

from datamodules import (
    DemonstrationDataModule,
    DemonstrationDataset,
    PreferenceDataModule,
    PreferenceDataset,
    RolloutDataModule,
    TextGenerationEnv,
)
from on_gpu.bench import Bench, Clock
from on_gpu.parts import Parts, Result, arguments, quiet
from on_gpu.shapes import pairs, prompts
from on_gpu.traces import decoding, graphed, iteration
from rlmodules import (
    DPO,
    GRPO,
    PPO,
    SFT,
    DPOConfig,
    GRPOConfig,
    ModelConfig,
    PPOConfig,
    RewardModel,
    RewardModelConfig,
    SFTConfig,
)
from rlmodules.models import resolve_precision

ADAM_BYTES = 28
"""Of a float32 weight: weight and two moments read and written, gradient read."""


def trainer(bench: Bench, module: Any, epochs: int, *callbacks: L.Callback) -> L.Trainer:
    """As `conf/trainer/default.yaml` has it."""
    return bare_trainer(
        module,
        resolve_precision("auto"),
        callbacks,
        accelerator="gpu" if bench.device == "cuda" else "cpu",
        max_epochs=epochs,
        limit_val_batches=0,
    )


def letters(prompts: Any, responses: list[str], metadata: Any = None) -> list[float]:
    """A reward that no two responses share."""
    return [sum(map(str.isalpha, text)) / max(len(text), 1) for text in responses]


def online(
    bench: Bench, algorithm: str, size: str, *, iterations: int = 3, compiled: bool = False
) -> Result:
    """PPO or GRPO; the first iteration is not timed."""
    bench.fresh()
    s, folder = bench.size, str(bench.model(size))
    window = s["episodes"] // s["minibatch"] if algorithm == "grpo" else 1  # one step, as TRL's
    shared = {"model_name": folder, "batch_size": s["episodes"], "learning_rate": 1e-6,
              "mini_batch_size": s["minibatch"], "gradient_accumulation_steps": window,
              "max_new_tokens": s["response"], "num_iterations": iterations,
              "temperature": 1.0, "top_p": 1.0, "device": bench.device}  # fmt: skip
    model = ModelConfig(name=folder, compile=compiled)
    if algorithm == "ppo":
        module: Any = PPO(PPOConfig(**shared), model)
        epochs, extra = module.config.ppo_epochs, {}
    else:
        extra = {"num_generations": s["generations"]}
        module = GRPO(GRPOConfig(**shared, **extra, beta=0.04), model)
        epochs = module.config.num_epochs
    no_end(module)
    c, clock = module.config, Clock(bench)
    data = RolloutDataModule(
        partial(TextGenerationEnv, reward_fn=letters, max_length=4096),
        prompts=prompts(s["episodes"] // extra.get("num_generations", 1), s["prompt"]),
        eval_size=0, batch_size=c.batch_size, mini_batch_size=c.mini_batch_size,
        gradient_accumulation_steps=window, epochs=epochs, seed=c.seed, **extra,
    )  # fmt: skip
    fitting = trainer(bench, module, iterations, clock)
    fitting.fit(module, data)
    m = {name: float(value) for name, value in fitting.callback_metrics.items()}
    seconds = {"rollout": m["time/rollout_s"], "evaluate": m["time/evaluate_s"],
               "update": m["time/update_s"]}  # fmt: skip
    limit = online_limits(bench, size, c, s["prompt"], epochs, extra.get("num_generations", 1))
    sampled = c.batch_size * c.max_new_tokens
    return {
        "iteration_s": median(clock.epochs[1:] or clock.epochs),
        "first_iteration_s": clock.epochs[0],
        "seconds": seconds,
        "limit_s": limit,
        "share": {name: limit[name] / seconds[name] for name in seconds},
        "sampled_tokens_per_s": sampled / seconds["rollout"],
        "trained_tokens_per_s": epochs * (sampled + c.batch_size * s["prompt"]) / seconds["update"],
        "kl": m["rollout/kl"],
        "packed": module.policy.packs,
        "loss": m["train/loss"],
        **bench.memory(),
    }


def online_limits(bench: Bench, size: str, c: Any, prompt: int, epochs: int, group: int) -> dict:
    """Seconds of each phase of an iteration that the card cannot go below."""
    w = bench.counts(size)
    rows, response = c.batch_size, c.max_new_tokens
    said = rows * response
    every = said + rows * prompt // group  # prompts of a group are computed once
    trained = said + rows * prompt // min(group, c.mini_batch_size)
    product = lambda n, v: 2 * (w["layers"] * n + w["vocabulary"] * v) / bench.peak  # noqa: E731
    weights = 2 * (w["layers"] + w["vocabulary"])
    cache = w["cache_bytes"] * rows * (prompt + response / 2)
    steps = epochs * rows // (c.mini_batch_size * c.gradient_accumulation_steps)
    adam = steps * ADAM_BYTES * (w["layers"] + w["vocabulary"]) / bench.bandwidth
    return {
        "rollout": response * (weights + cache) / bench.bandwidth + product(rows * prompt, rows),
        "evaluate": 2 * product(every, said),
        "update": 3 * epochs * product(trained, said) + adam,
    }


def offline(
    bench: Bench,
    algorithm: str,
    size: str,
    *,
    steps: int = 8,
    warmup: int = 2,
    compiled: bool = False,
) -> Result:
    """DPO, a reward model or SFT (on the chosen sides): optimizer steps on random letters."""
    bench.fresh()
    s, folder = bench.size, str(bench.model(size))
    c: Any = {"model_name": folder, "batch_size": s["pairs"], "gradient_accumulation_steps": 1,
              "learning_rate": 1e-6, "lr_scheduler_type": "constant", "max_length": 1024,
              "device": bench.device}  # fmt: skip
    model = ModelConfig(name=folder, compile=compiled)
    rows = pairs(s["pairs"] * steps, s["pair_prompt"], s["shortest"], s["longest"])
    asked, chosen, rejected = (
        [row[name] for row in rows] for name in ("prompt", "chosen", "rejected")
    )
    options = {"eval_size": 0, "batch_size": s["pairs"], "max_length": 1024, "seed": 0}
    if algorithm == "sft":
        module: Any = SFT(SFTConfig(**c), model)
        shown = DemonstrationDataset(chosen, module.tokenizer, 1024, prompts=asked)
        data: Any = DemonstrationDataModule(train_dataset=shown, **options)
    else:
        c |= {"max_prompt_length": 512}
        if algorithm == "dpo":
            module = DPO(DPOConfig(**c), model)
        else:
            module = RewardModel(RewardModelConfig(**c, dropout_prob=0.0), model)
        every = PreferenceDataset(asked, chosen, rejected, module.tokenizer, 1024, 512,
                                  close=module.closes_texts)  # fmt: skip
        data = PreferenceDataModule(train_dataset=every, max_prompt_length=512, **options)
    clock = Clock(bench)
    fitting = trainer(bench, module, 1, clock)
    fitting.fit(module, data)
    seconds = [end - start for start, end in pairwise(clock.stamps)][warmup:]
    timed = [example for batch in clock.examples[warmup:] for example in batch]
    w = bench.counts(size)
    layers = sum(map(computed_tokens, timed)) * w["layers"]
    predicted = sum(map(predictions, timed)) if algorithm != "reward" else 0
    vocabulary = predicted * w["vocabulary"]
    passes = 4 if algorithm == "dpo" else 3  # forward, two of the backward; the reference
    limit = 2 * passes * (layers + vocabulary) / bench.peak / len(seconds)
    limit += ADAM_BYTES * (w["layers"] + w["vocabulary"]) / bench.bandwidth
    return {
        "step_s": median(seconds),
        "first_step_s": clock.stamps[1] - clock.stamps[0],
        "limit_s": limit,
        "share": limit / median(seconds),
        "tokens_per_s": sum(map(tokens, timed)) / sum(seconds),
        "pairs_per_s": len(timed) / sum(seconds),
        "loss": float(fitting.callback_metrics["train/loss"]),
        "packed": getattr(module, "policy", module).packs,
        **bench.memory(),
    }


def main() -> None:
    args = arguments(__doc__.splitlines()[0]).parse_args()
    parts = Parts(args.out, args.seconds, args.only)

    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(args, Path(folder))
        bench_limits = parts.run("limits", bench.limits)
        if bench_limits is None and not args.only:
            return
        for size, online_ones, offline_ones in (
            ("0.5B", ("grpo", "ppo"), ("dpo", "reward", "sft")),
            ("1.5B", ("ppo",), ("dpo",)),
        ):
            for name in offline_ones:
                parts.run(f"{name}-{size}", partial(offline, bench, name, size), seconds=45)
            for name in online_ones:
                parts.run(f"{name}-{size}", partial(online, bench, name, size), seconds=75)
            if size == "0.5B":
                for name, part in (("dpo", offline), ("grpo", online)):
                    part = partial(part, bench, name, size, compiled=True)
                    parts.run(f"compiled-{name}-{size}", part, seconds=75)
                parts.run("graph-decoding", partial(graphed, bench, size), seconds=45)
                for recorded in (True, False):
                    part = partial(decoding, bench, size, recorded=recorded)
                    name = "recorded" if recorded else "single"
                    parts.run(f"trace-decoding-{name}", part, seconds=45)
                parts.run("trace-ppo", partial(iteration, bench, "ppo", size), seconds=60)
                parts.run("trace-dpo", partial(iteration, bench, "dpo", size), seconds=60)


if __name__ == "__main__":
    with quiet():
        main()
