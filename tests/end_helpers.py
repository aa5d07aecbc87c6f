"""Tokenizers that end turns as public instruction-tuned models do, one token a byte."""

from dataclasses import dataclass

import torch
from sampling_helpers import reciter
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from rlmodules.models.embedded import tiny_tokenizer


@dataclass(frozen=True)
class Family:
    """How models of one family end what they say.

    Args:
        special: added tokens, from id 259 on.
        eos: the tokenizer's end token.
        named: ``generation_config.eos_token_id``, as tokens; None: there is no such file.
        closing: what training pairs are closed with, plain text and an assistant's turn.
    """

    special: tuple[str, ...]
    eos: str | None
    named: tuple[str, ...] | None
    template: str | None
    ends: set[str]
    closing: tuple[str | None, str | None]

    def tokenizer(self) -> PreTrainedTokenizerFast:
        tokenizer = tiny_tokenizer()
        tokenizer.add_tokens(list(self.special), special_tokens=True)
        tokenizer.eos_token, tokenizer.chat_template = self.eos, self.template
        return tokenizer

    def model(self, said: str = "") -> GPT2LMHeadModel:
        """A model that, greedily, says just that behind a prompt of one byte."""
        tokenizer = self.tokenizer()
        model = reciter(tokenizer(said)["input_ids"], vocab_size=len(tokenizer))
        settings = model.generation_config
        settings.eos_token_id = settings.bos_token_id = None
        if self.named is not None:
            ids = tokenizer.convert_tokens_to_ids(list(self.named))
            settings.eos_token_id = ids if len(ids) > 1 else ids[0]
            settings._from_model_config = False
        return model


def turns(before: str, after: str, start: str = "") -> str:
    """A chat template that writes ``before`` and ``after`` around each message."""
    header = before.replace("ROLE", "{{ m['role'] }}")
    opened = before.replace("ROLE", "assistant")
    return (
        f"{start}{{% for m in messages %}}{header}{{{{ m['content'] }}}}{after}{{% endfor %}}"
        f"{{% if add_generation_prompt %}}{opened}{{% endif %}}"
    )


GLM = "[gMASK]{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}{% endfor %}"
GLM += "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
LLAMA_2 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}<bos>[INST] {{ m['content'] }} [/INST]"
)
LLAMA_2 += "{% else %} {{ m['content'] }} <eos>{% endif %}{% endfor %}"
HARMONY = "{% for m in messages %}<|start|>{{ m['role'] }}<|message|>{{ m['content'] }}"
HARMONY += "{{ '<|return|>' if loop.last and m['role'] == 'assistant' else '<|end|>' }}{% endfor %}"
HARMONY += "{% if add_generation_prompt %}<|start|>assistant<|message|>{% endif %}"

FAMILIES = {
    "gemma": Family(
        special=("<start_of_turn>", "<end_of_turn>"),
        eos="<eos>",
        named=("<eos>", "<end_of_turn>"),
        template=turns("<start_of_turn>ROLE\n", "<end_of_turn>\n", "{{ bos_token }}"),
        ends={"<eos>", "<end_of_turn>"},
        closing=("<eos>", "<end_of_turn>"),
    ),
    "phi": Family(
        special=("<|endoftext|>", "<|assistant|>", "<|user|>", "<|end|>"),
        eos="<|endoftext|>",
        named=("<|end|>", "<|assistant|>", "<|endoftext|>"),
        template=turns("<|ROLE|>\n", "<|end|>\n"),
        ends={"<|end|>", "<|assistant|>", "<|endoftext|>"},
        closing=("<|endoftext|>", "<|end|>"),
    ),
    "glm": Family(
        special=("<|endoftext|>", "[gMASK]", "<|user|>", "<|assistant|>", "<|observation|>"),
        eos="<|endoftext|>",
        named=("<|endoftext|>", "<|user|>", "<|observation|>"),
        template=GLM,
        ends={"<|endoftext|>", "<|user|>", "<|observation|>"},
        closing=("<|endoftext|>", "<|user|>"),
    ),
    "llama 3": Family(
        special=("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>", "<|header|>"),
        eos="<|eot_id|>",
        named=("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"),
        template=turns("<|header|>ROLE\n\n", "<|eot_id|>", "{{ bos_token }}"),
        ends={"<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"},
        closing=("<|eot_id|>", "<|eot_id|>"),
    ),
    "a chat template over a base model's settings": Family(
        special=("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        eos="<|endoftext|>",
        named=("<|endoftext|>",),
        template=turns("<|im_start|>ROLE\n", "<|im_end|>\n"),
        ends={"<|endoftext|>", "<|im_end|>"},
        closing=("<|endoftext|>", "<|im_end|>"),
    ),
    "no generation_config": Family(
        special=("<|im_start|>", "<|im_end|>"),
        eos="<eos>",
        named=None,
        template=turns("<|im_start|>ROLE\n", "<|im_end|>\n"),
        ends={"<eos>", "<|im_end|>"},
        closing=("<eos>", "<|im_end|>"),
    ),
    "harmony": Family(
        special=("<|start|>", "<|message|>", "<|end|>", "<|return|>", "<|call|>"),
        eos="<|return|>",
        named=("<|return|>", "<|call|>"),
        template=HARMONY,
        ends={"<|return|>", "<|call|>"},
        closing=("<|return|>", "<|return|>"),
    ),
    "llama 2, with a space before the end": Family(
        special=(),
        eos="<eos>",
        named=("<eos>",),
        template=LLAMA_2,
        ends={"<eos>"},
        closing=("<eos>", "<eos>"),
    ),
    "turns that end in words": Family(
        special=(),
        eos="<eos>",
        named=None,
        template=turns("### ROLE\n", "\n\n"),
        ends={"<eos>"},
        closing=("<eos>", "<eos>"),
    ),
    "no template": Family(
        (), "<eos>", ("<eos>", "<bos>"), None, {"<eos>", "<bos>"}, ("<eos>",) * 2
    ),
    "no eos, but a generation_config": Family(
        (), None, ("<pad>",), None, {"<pad>"}, ("<pad>", "<pad>")
    ),
    "none": Family((), None, None, None, set(), (None, None)),
}


def ids(tokenizer: PreTrainedTokenizerFast, text: str) -> torch.Tensor:
    return torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])
