"""Two processes do together what one does alone."""

import pytest
import torch
from process_helpers import alone_and_together

SCRIPT = """
import sys
import lightning as L
import torch
from architectures import build
from helpers import PROMPTS, config, data, weights
from rlmodules import PPO
from rlmodules.callbacks import RunReport
from rlmodules.models.embedded import tiny_model, tiny_tokenizer

devices, folder, results = int(sys.argv[1]), sys.argv[2], {}
for name in ("ppo", "critic warm-up", "early stop", "hybrid"):
    stops = name == "early stop"
    warmup = int(name == "critic warm-up")
    model = build("qwen3_5_text") if name == "hybrid" else tiny_model()[0]
    c = config(batch_size=8, mini_batch_size=4, gradient_accumulation_steps=2,
               ppo_epochs=2 if stops else 1, num_iterations=2, max_grad_norm=1e9,
               value_warmup_iterations=warmup, early_stop_kl=1e-12 if stops else 1e9)
    module = PPO(c, model=model, tokenizer=tiny_tokenizer())
    module.policy.value_head.output.weight.data.fill_(0.01)
    module.configure_optimizers = lambda: torch.optim.SGD(
        [p for p in module.parameters() if p.requires_grad], lr=0.1)
    report = RunReport(folder)
    report.on_train_end = lambda *_: None
    trainer = L.Trainer(
        max_epochs=2, accelerator="cpu", devices=devices, accumulate_grad_batches=2,
        strategy="ddp_find_unused_parameters_true" if devices > 1 else "auto",
        gradient_clip_val=c.max_grad_norm, logger=False, callbacks=[report],
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        use_distributed_sampler=False, default_root_dir=folder,
    )
    trainer.fit(module, data(c, eval_prompts=PROMPTS[:3], eval_size=3))
    results[name] = {"weights": weights(module), "history": report.history}
    if trainer.is_global_zero:
        torch.save(results, f"{folder}/{devices}.pt")
"""


@pytest.fixture(scope="module")
def one_and_two(tmp_path_factory):
    """What one process and two come to in each case, and what two wrote to stderr."""
    return alone_and_together(tmp_path_factory.mktemp("processes"), SCRIPT)


@pytest.mark.parametrize("case", ["ppo", "critic warm-up", "early stop", "hybrid"])
def test_two_processes_take_the_steps_of_one(one_and_two, case):
    """Two optimizer steps over 8 episodes each: the same texts, weights and metrics."""
    assert case in one_and_two[1], one_and_two[2][-3000:]
    one, two = one_and_two[0][case], one_and_two[1][case]
    within = 1e-5 if case == "hybrid" else 2e-6  # its logits, and so its steps, are larger
    torch.testing.assert_close(two["weights"], one["weights"], rtol=0, atol=within)
    for alone, together in zip(one["history"], two["history"], strict=True):
        assert alone.keys() == together.keys()
        for name, value in alone.items():
            # Minibatches differ in make-up, so only what is a mean over all actions must agree.
            if name.startswith(("rollout/", "val/")) and value == value:
                assert together[name] == pytest.approx(value, abs=2e-5), name


def test_two_processes_are_told_nothing_that_they_do_already(one_and_two):
    """Metrics are means over both when they are logged, so Lightning's advice is noise."""
    assert "sync_dist" not in one_and_two[2] and "LeafSpec" not in one_and_two[2]
