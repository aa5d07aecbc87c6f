"""Small runs of SFT on the tiny model, for the tests."""

import pair_helpers

from datamodules import DemonstrationDataModule, DemonstrationDataset
from rlmodules import SFT, SFTConfig
from rlmodules.callbacks import DemonstrationReport
from rlmodules.models.embedded import tiny_tokenizer

SMALL = {
    "model_name": "random:tiny",
    "batch_size": 4,
    "gradient_accumulation_steps": 1,
    "learning_rate": 1e-2,
    "num_epochs": 2,
    "max_length": 64,
    "device": "cpu",
}


def sft(model_config=None, **changes):
    return SFT(SFTConfig(**SMALL | changes), model_config)


def dataset(count=8, **options):
    said = pair_helpers.CHOSEN[:count]
    return DemonstrationDataset(
        said, tiny_tokenizer(), 64, prompts=pair_helpers.PROMPTS[:count], **options
    )


def data(config, train=None, held_out=None, **options):
    return DemonstrationDataModule(
        train_dataset=train or dataset(),
        eval_dataset=held_out,
        batch_size=config.batch_size,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        seed=config.seed,
        **options,
    )


def batch_of(rows, chosen=None):
    chosen = list(range(len(rows))) if chosen is None else chosen
    return rows.batch(chosen, rows.totals(chosen), "train")


def fit(module, datamodule=None, folder="unused", **options):
    """Train; returns the metrics of each optimizer step and of each evaluation."""
    report = DemonstrationReport(folder)
    datamodule = datamodule or data(module.config)
    return pair_helpers.fit(module, datamodule, folder, report=report, **options)
