"""Small batches, waiting operations and comparisons, for the tests of the pipeline."""

import multiprocessing
import random
import threading

import numpy as np
import torch

from rlmodules.forward_backward import AsyncTrainingClient, ForwardBackwardPipeline
from rlmodules.models import ModelConfig, PPOModel, load_model

LONG = 60
"""Seconds that a test waits for a result: far more than it takes, so that nothing hangs."""
PARTS = ("model_path", "optimizer_path", "state_path")
"""What ``save_state`` says it wrote."""


def tiny():
    return load_model(ModelConfig(name="random:tiny"))


def critic():
    torch.manual_seed(3)
    return PPOModel(tiny())


def pipeline_of(model=None, **options):
    return ForwardBackwardPipeline(tiny() if model is None else model, "cpu", **options)


def client_of(model=None, reference=None, **options):
    return AsyncTrainingClient(tiny() if model is None else model, reference, "cpu", **options)


def batch(*lengths, seed=0, side="right", extra=0):
    """Random texts of these lengths, the same whatever the padding."""
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randint(3, 250, (length,), generator=generator) for length in lengths]
    width = max(lengths) + extra
    ids, mask = torch.zeros(2, len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        at = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
        ids[i, at], mask[i, at] = row, 1
    return {"input_ids": ids, "attention_mask": mask}


BATCHES = [batch(9, 4, seed=1), batch(3, seed=2), batch(12, 2, 7, seed=3), batch(5, 5, seed=4)]


def predicted(texts):
    """[B, T], True at the tokens of a batch that something predicts."""
    mask = texts["attention_mask"].bool().clone()
    for row in mask:
        row[row.nonzero()[0]] = False
    return mask


def mean_nll(model, inputs, outputs, **_):
    """A custom loss: cross entropy of a right-padded batch."""
    logprobs = outputs.logits[:, :-1].log_softmax(-1)
    chosen = logprobs.gather(-1, inputs["input_ids"][:, 1:, None]).squeeze(-1)
    mask = inputs["attention_mask"][:, 1:]
    return -(chosen * mask).sum() / mask.sum()


def sgd(model, lr=0.1, **options):
    return torch.optim.SGD(model.parameters(), lr=lr, **options)


def adamw(model, lr=1e-2):
    return torch.optim.AdamW(model.parameters(), lr=lr)


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def gradients(model):
    return {n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}


def everything(model, optimizer=None):
    """Copies of weights, gradients and optimizer state."""
    state = {} if optimizer is None else optimizer.state_dict()["state"]
    state = {f"{i}.{k}": torch.as_tensor(v).clone() for i, s in state.items() for k, v in s.items()}
    return weights(model), gradients(model), state


def same(left, right):
    """Whether two results of ``everything``, ``weights`` or ``gradients`` agree to the last bit."""
    if isinstance(left, tuple):
        return all(same(a, b) for a, b in zip(left, right, strict=True))
    if left.keys() != right.keys():
        return False
    pairs = [(left[name], right[name]) for name in left]
    return all(a is b if a is None or b is None else torch.equal(a, b) for a, b in pairs)


def distance(left, right):
    """Largest difference between two results of ``weights``."""
    assert left.keys() == right.keys()
    return max((left[name] - right[name]).abs().max().item() for name in left)


def error_of(call):
    """What ``call``, or the future that it returns, raises; None if nothing."""
    try:
        call().result(timeout=LONG)
    except Exception as error:
        return error
    return None


class Gate:
    """A custom loss that keeps the model's thread busy until ``open`` is called."""

    def __init__(self, pipeline):
        self.entered, self.released = threading.Event(), threading.Event()
        texts = batch(4)
        if isinstance(pipeline, AsyncTrainingClient):
            pipeline = pipeline.pipeline
        self.future = pipeline.forward_backward_custom(**texts, custom_loss_fn=self.loss)
        assert self.entered.wait(LONG)

    def loss(self, model, inputs, outputs):
        self.entered.set()
        assert self.released.wait(LONG)
        return mean_nll(model, inputs, outputs)

    def open(self):
        self.released.set()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.open()


def in_child(fn, *args, seconds=40):
    """Call ``fn`` in a forked process, so that what hangs there fails a test and not the suite."""
    process = multiprocessing.get_context("fork").Process(target=fn, args=args, daemon=True)
    process.start()
    process.join(seconds)
    hangs = process.is_alive()
    if hangs:
        process.kill()
        process.join()
    assert not hangs, "it hangs"
    assert process.exitcode == 0


def halving(optimizer):
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)


def noisy(model, inputs, outputs):
    """A loss that draws random numbers of every kind."""
    noise = torch.randn(()) + random.random() + np.random.rand()
    return mean_nll(model, inputs, outputs) * (1 + 0.1 * noise)


def run(pipeline, optimizer, scheduler, passes):
    """Passes of the run by number; every second one is followed by a step."""
    said = []
    for number in passes:
        texts = batch(4 + number, 3, seed=number)
        if number % 3 == 1:
            future = pipeline.forward_backward_custom(**texts, custom_loss_fn=noisy)
        else:
            future = pipeline.forward_backward(**texts)
        said.append(future.result(timeout=LONG).loss)
        if number % 2 == 1:
            step = pipeline.optim_step(optimizer, scheduler).result(timeout=LONG)
            said += [step.step, step.grad_norm, step.learning_rate, step.num_tokens]
        said.append(pipeline.sample([5, 6], max_tokens=4)["tokens"])
    return said


def start(checkpoint_dir, make=adamw, steps=2):
    """A fresh model with what trains it."""
    for seed in (torch.manual_seed, random.seed, np.random.seed):
        seed(0)
    model = tiny()
    optimizer = make(model)
    options = {"checkpoint_dir": checkpoint_dir, "gradient_accumulation_steps": steps}
    return pipeline_of(model, **options), model, optimizer, halving(optimizer)
