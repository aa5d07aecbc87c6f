"""Small runs of KTO on the tiny model, for the tests."""

import pair_helpers

from datamodules import UnpairedPreferenceDataModule, UnpairedPreferenceDataset
from rlmodules import KTO, KTOConfig
from rlmodules.models.embedded import tiny_tokenizer

SMALL = {
    "model_name": "random:tiny",
    "batch_size": 4,
    "gradient_accumulation_steps": 1,
    "learning_rate": 1e-3,
    "num_epochs": 2,
    "max_length": 64,
    "max_prompt_length": 32,
    "device": "cpu",
}


def kto(model_config=None, **changes):
    return KTO(KTOConfig(**SMALL | changes), model_config)


def dataset(count=8, labels=(True, False, False, True), **options):
    said = (pair_helpers.CHOSEN, pair_helpers.REJECTED)
    labels = [labels[i % len(labels)] for i in range(count)]
    completions = [said[0 if label else 1][i] for i, label in enumerate(labels)]
    prompts = pair_helpers.PROMPTS[:count]
    return UnpairedPreferenceDataset(
        prompts, completions, labels, tiny_tokenizer(), 64, 32, **options
    )


def data(config, train=None, held_out=None, **options):
    return UnpairedPreferenceDataModule(
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
    return pair_helpers.fit(module, datamodule or data(module.config), folder, **options)
