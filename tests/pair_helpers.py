"""Small preference runs on the tiny model, for the tests."""

import lightning as L

from datamodules import PreferenceDataModule, PreferenceDataset
from rlmodules.callbacks import AtomicCheckpointIO, PreferenceReport, SaveLast
from rlmodules.models.embedded import tiny_tokenizer

WORDS = ["red", "green", "blue", "a longer colour", "x", "black and white", "grey", "pink"]
PROMPTS = [f"Name colour {i}" for i in range(8)]
CHOSEN = [f" It is {word}, yes." for word in WORDS]
REJECTED = [f" No idea at all {word}" for word in reversed(WORDS)]


def dataset(count=8, **options):
    tokenizer = tiny_tokenizer()
    return PreferenceDataset(
        PROMPTS[:count], CHOSEN[:count], REJECTED[:count], tokenizer, **options
    )


def data(config, train=None, held_out=None, **options):
    return PreferenceDataModule(
        train_dataset=train or dataset(),
        eval_dataset=held_out,
        batch_size=config.batch_size,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        seed=config.seed,
        **options,
    )


def trainer(config, folder="unused", callbacks=(), report=None, **options):
    """As ``train.py`` builds one."""
    settings = {
        "max_epochs": config.num_epochs,
        "accelerator": "cpu",
        "gradient_clip_val": config.max_grad_norm,
        "accumulate_grad_batches": config.gradient_accumulation_steps,
        "check_val_every_n_epoch": None,
        "val_check_interval": config.eval_every * config.gradient_accumulation_steps,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,
        "inference_mode": False,
        "plugins": [AtomicCheckpointIO()],
        "callbacks": [report or PreferenceReport(folder), *callbacks],
    }
    return L.Trainer(**settings | options)


def fit(module, datamodule=None, folder="unused", ckpt_path=None, save=False, **options):
    """Train; returns the metrics of each optimizer step and of each evaluation."""
    report = options.pop("report", None) or PreferenceReport(folder)
    report.on_train_end = lambda *_: None
    callbacks = list(options.pop("callbacks", ()))
    if save:
        callbacks.append(SaveLast(f"{folder}/checkpoints"))
    else:
        options["enable_checkpointing"] = True
    run = trainer(module.config, folder, callbacks, report, **options)
    run.fit(module, datamodule or data(module.config), ckpt_path=ckpt_path, weights_only=True)
    return report.history, report.evaluations
