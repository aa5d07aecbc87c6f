"""A row of the model matrix: one architecture through everything that is done with models.

Each column compares with transformers' own forward pass over one text at a time (``Plain``), which
shares no code with ours: log-probabilities, losses, gradients, and what a folder gives when it is
loaded again. ``check_row`` returns ``right``, ``refused: sentence`` (ours, before the first step)
or ``WRONG: what`` for each column.

Shapes: T tokens of a text, V vocabulary, N positions.
"""

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from architectures import CAUSAL, ENCODERS, ORIGINAL, VARIANTS, build, build_encoder
from lightning.pytorch.callbacks import Callback
from peft import PeftModel
from torch import Tensor, nn
from torch.nn.functional import logsigmoid
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

from datamodules import PreferenceDataModule, PreferenceDataset, RolloutDataModule
from datamodules.environments.text import TextGenerationEnv
from datamodules.experience import Minibatch, TokenBatch
from datamodules.preferences.dataset import PreferenceBatch
from datamodules.types import SamplingParams
from rlmodules import (
    DPO,
    GRPO,
    PPO,
    DPOConfig,
    GRPOConfig,
    LoraConfig,
    ModelConfig,
    PPOConfig,
    RewardModel,
    RewardModelConfig,
)
from rlmodules.models.embedded import tiny_tokenizer
from rlmodules.models.modes import evaluating
from rlmodules.models.scoring import PolicyModel
from rlmodules.sampling.decoding import sample

COLUMNS = ("sample", "score", "pack", "ppo", "grpo", "dpo", "reload", "lora", "reward")
"""Of an encoder, ``reward`` alone."""
CLOSE = 1e-4
"""Nats, or logits: what the order of sums in float32 explains."""
PROMPTS = ["One", "Two words", "A third prompt", "And four"]
CHOSEN = [" It is red, yes.", "Blue", " A long way to say so.", "x"]
REJECTED = ["No", " No idea at all.", "Who?", " black and white"]
OWN = ("/rlmodules/", "/datamodules/")


class Wrong(AssertionError):
    """A number is not transformers' own."""


def check_row(name: str, folder: Path) -> dict[str, str]:
    """Column -> what came of it; ``folder`` is for the model and what is written of it.

    Args:
        name: of ``architectures.CAUSAL`` or ``VARIANTS``; or ``type (encoder)``.
    """
    kind = name.removesuffix(" (encoder)")
    if kind != name:
        save(build_encoder(kind), folder / "model")
        return {"reward": cell(lambda: reward_model(folder / "model"), check_reward, folder)}
    save(build(name), folder / "model")
    _kept.clear()
    makers = (ppo, ppo, grpo, ppo, grpo, dpo, dpo, lora, reward_model)
    checks = (check_sample, check_score, check_pack, check_ppo, check_grpo, check_dpo,
              check_reload, check_lora, check_reward)  # fmt: skip
    return {
        column: cell(lambda make=make: make(folder / "model"), check, folder)
        for column, make, check in zip(COLUMNS, makers, checks, strict=True)
    }


_kept: dict[Any, Any] = {}


def once(make: Callable[[Path], Any]) -> Callable[[Path], Any]:
    """What ``make`` gives is made once a row: it is slow, and what it refuses it refuses again."""

    def kept(folder: Path) -> Any:
        if (make, folder) not in _kept:
            try:
                _kept[make, folder] = make(folder)
            except Exception as error:
                _kept[make, folder] = error
        if isinstance(_kept[make, folder], Exception):
            raise _kept[make, folder]
        return _kept[make, folder]

    return kept


def names() -> list[str]:
    """All rows."""
    return [*CAUSAL, *VARIANTS, *(f"{kind} (encoder)" for kind in ENCODERS)]


def save(model: nn.Module, folder: Path) -> None:
    for part in (model, tiny_tokenizer()):
        part.save_pretrained(folder)


def cell(make: Callable[[], Any], run: Callable[[Any, Path], str | None], folder: Path) -> str:
    """What making something and running it came to."""
    try:
        made = make()
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        if isinstance(error, ValueError) and any(part in frame.filename for part in OWN):
            return f"refused: {error}"
        return f"WRONG: {type(error).__name__} while it was made: {_where(error)}"
    try:
        return run(made, folder) or "right"
    except Wrong as error:
        return f"WRONG: {error}"
    except Exception as error:
        return f"WRONG: {type(error).__name__}: {_where(error)}"


def _where(error: Exception) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{' '.join(str(error).split())[:200]} ({Path(frame.filename).name}:{frame.lineno})"


# ---------------------------------------------------------------- transformers


class Plain:
    """transformers' model in ``folder``, asked for one text at a time, without a cache."""

    def __init__(self, folder: Path) -> None:
        options = {"dtype": torch.float32, "attn_implementation": "eager"}
        self.model = AutoModelForCausalLM.from_pretrained(folder, **options).eval()

    def logprobs(self, ids: Tensor) -> Tensor:
        """[T, V], of what follows each token."""
        return plain_logits(self.model, ids).log_softmax(-1)

    def of(self, ids: Tensor, positions: Tensor) -> Tensor:
        """[N], of the tokens at ``positions``."""
        return self.logprobs(ids)[positions - 1].gather(1, ids[positions, None])[:, 0]

    def of_batch(self, tokens: TokenBatch) -> Tensor:
        pairs = zip(tokens.sequences, tokens.positions, strict=True)
        return torch.cat([self.of(ids, at) for ids, at in pairs])

    def entropy(self, tokens: TokenBatch) -> Tensor:
        pairs = zip(tokens.sequences, tokens.positions, strict=True)
        all_logprobs = torch.cat([self.logprobs(ids)[at - 1] for ids, at in pairs])
        return -(all_logprobs.exp() * all_logprobs).sum(-1)


@once
def plain_in(folder: Path) -> Plain:
    return Plain(folder)


def plain_logits(model: nn.Module, ids: Tensor) -> Tensor:
    return model(input_ids=ids[None], use_cache=False).logits[0].float()


def require_close(found: Tensor, expected: Tensor, what: str, within: float = CLOSE) -> None:
    if found.shape != expected.shape:
        raise Wrong(f"{what}: {tuple(found.shape)} instead of {tuple(expected.shape)}")
    error = (found.detach().float() - expected.detach().float()).abs().max().item()
    if not error <= within * max(1.0, expected.detach().abs().max().item()):
        raise Wrong(f"{what} off by {error:.2g}")


def random_texts(lengths: tuple[int, ...], seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, 259, (length,), generator=generator) for length in lengths]


# ------------------------------------------------------- sample, score and pack


@torch.no_grad()
def check_sample(module: PPO, folder: Path) -> None:
    """Rows of several lengths, two of one prompt, of which some leave early; then the likeliest."""
    policy, plain = module.policy.eval(), plain_in(folder / "model")
    first, second, third = random_texts((9, 5, 13), seed=1)
    prompts = [first, second, first, third, first, second]
    params = SamplingParams(max_new_tokens=12, stop_token_ids=tuple(range(3, 60)))
    responses = sample(policy, tiny_tokenizer(), prompts, params, range(6))
    if len({len(response.tokens) for response in responses}) < 3:
        raise Wrong("all rows left together: the check checks little")
    for prompt, response in zip(prompts, responses, strict=True):
        ids = torch.cat([prompt, torch.tensor(response.tokens)])
        expected = plain.of(ids, torch.arange(len(prompt), len(ids)))
        require_close(torch.tensor(response.logprobs), expected, "log-probabilities of a sample")
    greedy = SamplingParams(max_new_tokens=8, temperature=0)
    for prompt, response in zip(
        prompts, sample(policy, tiny_tokenizer(), prompts, greedy, range(6)), strict=True
    ):
        ids = torch.cat([prompt, torch.tensor(response.tokens)])
        logits = plain_logits(plain.model, ids)[len(prompt) - 1 : -1]
        short = logits.max(-1).values - logits.gather(1, ids[len(prompt) :, None])[:, 0]
        require_close(short, torch.zeros_like(short), "the likeliest token's logit")


@torch.no_grad()
def check_score(module: PPO, folder: Path) -> None:
    """Alone, and in the company of longer and shorter texts."""
    policy, plain = module.policy.eval(), plain_in(folder / "model")
    texts = random_texts((7, 21, 12), seed=2)
    batches = [[text] for text in texts] + [texts, texts[::-1]]
    for batch in batches:
        _require_scores(policy, plain, batch, [4] * len(batch))


@torch.no_grad()
def check_pack(module: GRPO, folder: Path) -> str:
    """Groups that share their prompts, packed if the model can."""
    policy, plain = module.policy.eval(), plain_in(folder / "model")
    first, second = random_texts((9, 4), seed=3)
    ends = random_texts((6, 11, 3, 12), seed=4)
    texts = [torch.cat(both) for both in zip([first, first, second, second], ends, strict=True)]
    _require_scores(policy, plain, texts, [9, 9, 4, 4])
    return "right: packed" if policy.packs else "right: padded"


def _require_scores(
    policy: PolicyModel, plain: Plain, texts: list[Tensor], starts: list[int]
) -> None:
    positions = [torch.arange(start, len(ids)) for ids, start in zip(texts, starts, strict=True)]
    tokens = TokenBatch.collate(texts, positions)
    scores = policy.score(tokens, with_entropy=True)
    lengths = [len(text) for text in texts]
    require_close(scores.logprobs, plain.of_batch(tokens), f"log-probabilities of {lengths} tokens")
    require_close(scores.entropy, plain.entropy(tokens), f"entropies of {lengths} tokens")


# -------------------------------------------------------------------- training


def any_letter(prompts, responses, metadata=None):
    """A reward that tells the texts of an untrained model apart."""
    return [sum(map(ord, response)) % 97 / 97 for response in responses]


class FirstStep(Callback):
    """Keeps the first batch, its loss and its gradients."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 0:
            self.batch = batch
            self.before = {n: p.detach().clone() for n, p in trained(pl_module).items()}

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        if trainer.global_step == 0:
            grads = {n: p.grad for n, p in trained(pl_module).items()}
            self.gradients = {n: None if g is None else g.clone() for n, g in grads.items()}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == 1:
            self.loss = outputs["loss"].detach()


def trained(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: weight for name, weight in module.named_parameters() if weight.requires_grad}


def train(module: L.LightningModule, data: L.LightningDataModule) -> FirstStep:
    """An epoch of two optimizer steps; returns what the first was like."""
    step, off = FirstStep(), ("logger", "use_distributed_sampler", "enable_checkpointing",
                              "enable_progress_bar", "enable_model_summary")  # fmt: skip
    clip = module.config.max_grad_norm
    trainer = L.Trainer(max_epochs=1, accelerator="cpu", gradient_clip_val=clip, callbacks=[step],
                        num_sanity_val_steps=0, **dict.fromkeys(off, False))  # fmt: skip
    trainer.fit(module, data)
    return step


def require_step(
    module: L.LightningModule, step: FirstStep, loss: Tensor, plain: nn.Module, prefix: str
) -> None:
    """Loss and gradients are those of ``loss`` of ``plain``, and what has a gradient has moved."""
    require_close(step.loss, loss, "the first loss")
    plain.zero_grad()
    loss.backward()
    expected = {prefix + name: weight.grad for name, weight in plain.named_parameters()}
    norm = max(float(g.norm()) for g in expected.values() if g is not None)
    for name, gradient in step.gradients.items():
        if name.startswith(prefix):  # a reward model takes the part that reads text
            whole = f"{prefix}language_model.{name.removeprefix(prefix)}"
            right = expected.get(name, expected.get(whole))
            nothing = torch.zeros_like(step.before[name])
            error = float(((nothing if gradient is None else gradient)
                           - (nothing if right is None else right)).norm())  # fmt: skip
            allowed = 1e-3 * max(0.0 if right is None else float(right.norm()), 1e-2 * norm)
            if not error <= allowed:
                raise Wrong(f"gradient of {name} off by {error:.2g} of {norm:.2g}")
        elif gradient is None:
            raise Wrong(f"{name} has no gradient")
    for name, weight in trained(module).items():
        gradient = step.gradients[name]
        if gradient is not None and gradient.norm() > 1e-6 and weight.equal(step.before[name]):
            raise Wrong(f"{name} has a gradient and did not move")


def _online(folder: Path) -> dict[str, Any]:
    return {
        "model_name": str(folder),
        "batch_size": 4,
        "mini_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "max_new_tokens": 6,
        "temperature": 1.0,
        "top_p": 1.0,
        "num_iterations": 1,
        "learning_rate": 1e-3,
        "device": "cpu",
    }


def _rollouts(**options: Any) -> RolloutDataModule:
    def env(tokenizer, prompts):
        return TextGenerationEnv(tokenizer, prompts, reward_fn=any_letter)

    settings = {"prompts": PROMPTS, "eval_size": 0, "batch_size": 4, "mini_batch_size": 4}
    return RolloutDataModule(env, **settings | options)


@once
def ppo(folder: Path) -> PPO:
    return PPO(PPOConfig(**_online(folder), ppo_epochs=2))


def check_ppo(module: PPO, folder: Path) -> None:
    c, plain = module.config, plain_in(folder / "model")
    batch: Minibatch = (step := train(module, _rollouts(epochs=2))).batch
    new, mask = plain.of_batch(batch.tokens), batch.tokens.mask
    require_close(batch.old_logprobs[mask], new, "the old log-probabilities")
    surrogate = -((new - batch.old_logprobs[mask]).exp() * batch.advantages[mask]).sum()
    entropy, errors = plain.entropy(batch.tokens).sum(), batch.returns[mask].square().sum()
    loss = surrogate - c.entropy_coef * entropy + c.value_coef * errors / 2  # its values are 0
    require_step(module, step, loss / mask.sum(), plain.model, "policy.base_model.")


@once
def grpo(folder: Path) -> GRPO:
    return GRPO(GRPOConfig(**_online(folder), num_generations=2, num_epochs=2, beta=0.1))


def check_grpo(module: GRPO, folder: Path) -> None:
    c, plain = module.config, plain_in(folder / "model")
    batch = (step := train(module, _rollouts(epochs=2, num_generations=2))).batch
    new, mask = plain.of_batch(batch.tokens), batch.tokens.mask
    require_close(batch.old_logprobs[mask], new, "the old log-probabilities")
    require_close(batch.ref_logprobs[mask], new, "the reference's log-probabilities")
    ahead = batch.ref_logprobs[mask] - new
    surrogate = -(new - batch.old_logprobs[mask]).exp() * batch.advantages[mask]
    loss = (surrogate + c.beta * (ahead.exp() - ahead - 1)).sum() / mask.sum()
    require_step(module, step, loss, plain.model, "policy.base_model.")


def _pairs(module: Any) -> PreferenceDataModule:
    data = PreferenceDataset(PROMPTS, CHOSEN, REJECTED, tiny_tokenizer())
    return PreferenceDataModule(train_dataset=data, batch_size=module.config.batch_size)


@once
def dpo(folder: Path) -> DPO:
    return _dpo(folder, rank=0)


@once
def lora(folder: Path) -> DPO:
    return _dpo(folder, rank=4)


def _dpo(folder: Path, rank: int) -> DPO:
    settings = {"batch_size": 2, "gradient_accumulation_steps": 1, "learning_rate": 1e-3}
    c = DPOConfig(str(folder), **settings, max_length=ORIGINAL, max_prompt_length=20, device="cpu")
    return DPO(c, ModelConfig(str(folder), dtype="float32", lora=LoraConfig(r=rank)))


def check_dpo(module: DPO, folder: Path) -> None:
    step, plain = train(module, _pairs(module)), plain_in(folder / "model")
    require_close(step.loss, torch.tensor(2.0).log(), "the first loss (ln 2)", 1e-6)
    sums = _response_sums(plain, step.batch)
    margins = (sums - sums.detach()) @ torch.tensor([1.0, -1.0])
    loss = -logsigmoid(module.config.beta * margins).mean()
    require_step(module, step, loss, plain.model, "policy.base_model.")


def _response_sums(plain: Plain, batch: PreferenceBatch) -> Tensor:
    """[B, 2]"""
    return torch.stack([
        torch.stack([plain.of(ids, torch.arange(start, len(ids))).sum() for ids in pair])
        for pair, start in zip(batch.sequences, batch.prompt_lengths, strict=True)
    ])  # fmt: skip


# ----------------------------------------------------------------------- files


def check_reload(module: DPO, folder: Path) -> None:
    """What ``check_dpo`` has trained, from its folder: the same logits, to the bit."""
    module.export(folder / "export")
    (text,) = random_texts((17,), seed=5)
    with evaluating(module.base_model):
        ours = plain_logits(module.base_model, text)
        reloaded = Plain(folder / "export")
        require_close(plain_logits(reloaded.model, text), ours, "logits of the export", 1e-6)
        before = plain_in(folder / "model").model
        moved = (plain_logits(before, text) - ours).abs().max()
    if not moved > 1e-4:
        raise Wrong("training changed nothing that the export could lose")


def check_lora(module: DPO, folder: Path) -> None:
    """Trains, is the reference with adapters off, and comes back with and without its base."""
    step, (text,) = train(module, _pairs(module)), random_texts((17,), seed=6)
    require_close(step.loss, torch.tensor(2.0).log(), "the first loss (ln 2)", 1e-6)
    stuck = [n for n, p in trained(module).items() if "lora_B" in n and not p.any()]
    reached = [n for n, g in step.gradients.items() if "lora_B" in n and g is not None and g.any()]
    if not reached or set(reached) & set(stuck):
        raise Wrong(f"adapters did not move: {stuck[:3]}")
    model, base = module.base_model, plain_in(folder / "model")
    with evaluating(model):
        adapted = plain_logits(model, text)
        with model.disable_adapter():
            require_close(plain_logits(model, text), plain_logits(base.model, text), "adapters off")
        if not (adapted - plain_logits(base.model, text)).abs().max() > 1e-4:
            raise Wrong("the adapters change nothing")
        _require_exports(module, folder, text, adapted)
    policy, prompt = module.policy.eval(), text[:9]
    responses = sample(policy, tiny_tokenizer(), [prompt, text], SamplingParams(6), [1, 2])
    for start, response in zip([prompt, text], responses, strict=True):
        ids = torch.cat([start, torch.tensor(response.tokens)])
        with evaluating(model):
            said = plain_logits(model, ids).log_softmax(-1)[len(start) - 1 : -1]
        expected = said.gather(1, ids[len(start) :, None])[:, 0]
        require_close(torch.tensor(response.logprobs), expected, "a sample's log-probabilities")


def _require_exports(module: DPO, folder: Path, text: Tensor, adapted: Tensor) -> None:
    module.export(folder / "adapter", merge=False)
    module.export(folder / "merged", merge=True)
    merged = Plain(folder / "merged").model
    require_close(plain_logits(merged, text), adapted, "logits of the merged export")
    again = PeftModel.from_pretrained(Plain(folder / "model").model, folder / "adapter").eval()
    require_close(plain_logits(again, text), adapted, "logits of the adapter's export", 1e-5)


# --------------------------------------------------------------- reward models


def reward_model(folder: Path) -> RewardModel:
    settings = {"batch_size": 2, "learning_rate": 1e-3, "dropout_prob": 0.0, "warmup_steps": 0}
    c = RewardModelConfig(str(folder), **settings, max_length=ORIGINAL, max_prompt_length=20)
    module = RewardModel(c, ModelConfig(str(folder), dtype="float32"))
    with torch.no_grad():  # from 0 no gradient would reach the backbone
        weight = module.head.linear.weight
        weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(7)))
    return module


def check_reward(module: RewardModel, folder: Path) -> None:
    head = module.head.linear.weight.detach().clone()[0]
    options = {"dtype": torch.float32, "attn_implementation": "eager"}
    plain = AutoModel.from_pretrained(folder / "model", **options).eval()

    def score(ids: Tensor) -> Tensor:
        uses = {} if module.is_causal is False else {"use_cache": False}
        return plain(input_ids=ids[None], **uses)[0][0, -1].float() @ head

    texts = random_texts((7, 21, 12), seed=8)
    with torch.no_grad():
        expected = torch.stack([score(text) for text in texts])
    require_close(torch.tensor(module.predict_ids(texts)), expected, "scores")
    step = train(module, _pairs(module))
    pairs = [torch.stack([score(ids) for ids in pair]) for pair in step.batch.sequences]
    loss = torch.stack([-logsigmoid(chosen - rejected) for chosen, rejected in pairs]).mean()
    require_step(module, step, loss, plain, "base_model.")
    module.export(folder / "reward")
    after = torch.tensor(module.predict_ids(texts))
    again = RewardModel.from_pretrained(folder / "reward")
    require_close(torch.tensor(again.predict_ids(texts)), after, "scores of the export")
    if "architectures" in vars(again.base_model.config) and _is_classifier(folder / "reward"):
        classifier = AutoModelForSequenceClassification.from_pretrained(
            folder / "reward", **options
        ).eval()
        with torch.no_grad():
            scores = [classifier(input_ids=text[None]).logits[0, 0] for text in texts]
        require_close(torch.stack(scores), after, "scores of the exported classifier")


def _is_classifier(folder: Path) -> bool:
    return "ForSequenceClassification" in (folder / "config.json").read_text()
