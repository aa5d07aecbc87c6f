"""How our side of a comparison trains: as TRL does there, or as the library does by itself."""

import argparse

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
