"""At the end: the trained model in Hugging Face format."""

import copy
from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import Callback
from safetensors.torch import save_file


class ExportModel(Callback):
    """Writes ``AutoModelForCausalLM.from_pretrained(dirpath)``, its tokenizer and the value head.

    Args:
        dirpath: where to.
        merge: under LoRA, write the merged model instead of the adapter.
    """

    def __init__(self, dirpath: str, merge: bool = False) -> None:
        self.dirpath, self.merge = Path(dirpath), merge

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            export(pl_module, self.dirpath, merge=self.merge)


def export(module: L.LightningModule, dirpath: Path, *, merge: bool = False) -> None:
    """Write the policy of ``module``, its tokenizer and its value head to ``dirpath``."""
    model = module.policy.base_model
    if merge and hasattr(model, "merge_and_unload"):
        # Merging changes the base weights in place, in their own (perhaps low) precision: do it to
        # a float32 copy, so that the model in training stays what it is and nothing is rounded.
        model = copy.deepcopy(model).float().merge_and_unload()
    model.save_pretrained(dirpath)
    module.tokenizer.save_pretrained(dirpath)
    head = module.policy.value_head.state_dict()
    save_file({k: v.cpu().float() for k, v in head.items()}, dirpath / "value_head.safetensors")
