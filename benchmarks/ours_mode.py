"""How our side of a comparison trains: as TRL does there, or as the library does by itself."""

import argparse
from collections.abc import Sequence
from typing import Any

import lightning as L

from rlmodules import ModelConfig
from rlmodules.optimizers import building


def enter_mode(args: argparse.Namespace) -> str:
    """Train as ``add_mode``'s options say from now on; returns how, for a table's notes."""
    if not args.copies:
        building.HALF = ()
    weights = "float32 copies of them" if args.copies else "them in bfloat16"
    return f"AdamW steps {weights}, layers {'compiled' if args.compile else 'eager'}"


def model_config(args: argparse.Namespace) -> ModelConfig:
    """The checkpoint in bfloat16, as both sides hold it."""
    return ModelConfig(
        name=args.model,
        dtype="bfloat16",
        attn_implementation=args.attention,
        compile=args.compile,
    )


def bare_trainer(
    module: L.LightningModule, precision: str, callbacks: Sequence[L.Callback], **options: Any
) -> L.Trainer:
    """A Trainer as our `conf/trainer` has it, that leaves nothing behind: on TRL's side too there
    are no checkpoints, reports and loggers."""
    c = module.config
    return L.Trainer(
        **{"accelerator": "cpu"} | options,
        devices=1,
        precision=precision,
        gradient_clip_val=c.max_grad_norm,
        accumulate_grad_batches=c.gradient_accumulation_steps,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        use_distributed_sampler=False,
        inference_mode=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        logger=False,
        callbacks=list(callbacks),
    )
