"""Conversations of text through templates of every kind."""

import pytest

from datamodules.ends import turn_end
from datamodules.templates import ChatError, render_chat
from datamodules.text.chat import opening, reply
from datamodules.text.encoding import Limits, encode, render
from datamodules.text.prompts import Prompt, prompt_text
from rlmodules.models.embedded import tiny_tokenizer

SMOLVLM = (
    "{% for m in messages %}{{ m['role'] | capitalize }}"
    "{% if m['content'][0]['type'] == 'image' %}:{% else %}: {% endif %}"
    "{% for part in m['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<eos>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
LLAVA = (
    "{% for m in messages %}{{ m['role'] | upper }}: "
    "{% for part in m['content'] | selectattr('type', 'equalto', 'text') %}{{ part['text'] }}"
    "{% endfor %}<eos>{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
QWEN_VL = (
    "{% for m in messages %}{{ m['role'] }}:{% if m['content'] is string %}{{ m['content'] }}"
    "{% else %}{% for part in m['content'] %}{{ part['text'] }}{% endfor %}{% endif %}<eos>"
    "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)
STRICT = QWEN_VL.replace("{% if m['content'] is string %}", "{% if m['content'] is string %}"
                         "{{ raise_exception('parts, please') }}")  # fmt: skip
PLAIN = QWEN_VL.replace("is string", "")
CHAT = [{"role": "user", "content": " Hi you "}]
ANSWER = [{"role": "assistant", "content": "Yo"}]


def tokenizer_of(template):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize(
    ("template", "asked", "answered"),
    [
        (SMOLVLM, "User:  Hi you <eos>\nAssistant:", " Yo<eos>"),
        (LLAVA, "USER:  Hi you <eos>ASSISTANT:", " Yo<eos>"),
        (QWEN_VL, "user: Hi you <eos>assistant:", "Yo<eos>"),
        (STRICT, "user: Hi you <eos>assistant:", "Yo<eos>"),
        (PLAIN, "user: Hi you <eos>assistant:", "Yo<eos>"),
    ],
)
def test_no_word_of_a_conversation_is_lost(template, asked, answered):
    tokenizer = tokenizer_of(template)
    assert prompt_text(tokenizer, Prompt(CHAT)) == asked
    assert opening(tokenizer, CHAT)[0] == asked
    texts = [render(tokenizer, Prompt(CHAT), ANSWER)]
    ((_, said),) = encode(tokenizer, texts, Limits())
    assert tokenizer.decode(said) == answered
    assert turn_end(tokenizer) == tokenizer.eos_token_id
    again = reply(tokenizer, [*tokenizer("Yo")["input_ids"], tokenizer.eos_token_id], CHAT)
    assert "Hi you" in tokenizer.decode(again)


def test_a_template_that_refuses_a_conversation_is_heard():
    tokenizer = tokenizer_of("{{ raise_exception('no system role') }}")
    with pytest.raises(ChatError, match="no system role"):
        render_chat(tokenizer, CHAT)


def test_a_template_that_changes_letters_is_no_loss():
    tokenizer = tokenizer_of("{% for m in messages %}{{ m['content'] | upper }}{% endfor %}")
    assert render_chat(tokenizer, CHAT) == " HI YOU "
