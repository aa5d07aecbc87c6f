"""Chat templates in the shapes of published ones, in short, and a tokenizer that has them."""

from rlmodules.models.embedded import tiny_tokenizer

_SPLIT = (
    "{% set c = m.content or '' %}{% if m.role == 'assistant' and '</think>' in c %}"
    "{% set c = c.split('</think>')[-1] %}{% endif %}"
)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
HERMES = (
    "{% if tools %}<tools>{% for t in tools %}{{ t | tojson }}{% endfor %}</tools>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN3 = (
    "{% set ns = namespace(last=-1) %}{% for m in messages %}{% if m.role == 'user' %}"
    "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% if tools %}<tools>{% for t in tools %}{{ t | tojson }}{% endfor %}</tools>\n{% endif %}"
    "{% for m in messages %}{% set c = m.content or '' %}{% set r = m.reasoning_content or '' %}"
    "{% if not r and '</think>' in c %}"
    "{% set r = c.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set c = c.split('</think>')[-1].lstrip('\n') %}{% endif %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.index0 > ns.last and (loop.last or r) %}"
    "<think>\n{{ r }}\n</think>\n\n{% endif %}{{ c }}"
    '{% for t in m.tool_calls or [] %}<tool_call>\n{"name": "{{ t.function.name }}", '
    '"arguments": {{ t.function.arguments if t.function.arguments is string else '
    "t.function.arguments | tojson }}}\n</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}"
    "<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
R1 = (
    "{{ bos_token }}{% for m in messages %}" + _SPLIT
    + "{% if m.role == 'system' %}{{ c }}{% elif m.role == 'user' %}<|User|>{{ c }}"
    "{% elif m.role == 'assistant' %}<|Assistant|>{{ c + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|Assistant|><think>\n{% endif %}"
)  # fmt: skip
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}{% for m in messages %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('alternate') }}"
    "{% endif %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
LLAMA2 = (
    "{% if messages[0].role == 'system' %}{% set rest = messages[1:] %}"
    "{% set s = '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' %}"
    "{% else %}{% set rest = messages %}{% set s = '' %}{% endif %}{% for m in rest %}"
    "{% if m.role == 'user' %}{{ bos_token }}[INST] {{ s if loop.first else '' }}{{ m.content }}"
    " [/INST]{% else %} {{ m.content }} {{ eos_token }}{% endif %}{% endfor %}"
)
LLAMA31 = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set rest = messages[1:] %}"
    "{% set s = messages[0].content %}{% else %}{% set rest = messages %}{% set s = '' %}"
    "{% endif %}"
    "<|system|>{{ s }}<|eot|>{% for m in rest %}{% if 'tool_calls' in m %}<|assistant|>"
    '{"name": "{{ m.tool_calls[0].function.name }}", '
    '"parameters": {{ m.tool_calls[0].function.arguments | tojson }}}<|eot|>'
    "{% elif m.role == 'tool' %}<|ipython|>{{ m.content | tojson }}<|eot|>"
    "{% else %}<|{{ m.role }}|>"
    '{% if loop.first and tools %}Respond in the format {"name": function name, "parameters": '
    "dictionary}.\n{% for t in tools %}{{ t | tojson }}{% endfor %}\n{% endif %}"
    "{{ m.content | trim }}<|eot|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set rest = messages[1:] %}"
    "{% set s = messages[0].content %}{% else %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}{% if m.role == 'user' %}[INST] "
    "{% if loop.last and s is defined %}{{ s }}\n\n{% endif %}{{ m.content }}[/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content }}{{ eos_token }}"
    "{% else %}{{ raise_exception('only user and assistant') }}{% endif %}{% endfor %}"
)
PHI3 = (
    "{% for m in messages %}{% if m.role in ['system', 'user', 'assistant'] %}<|{{ m.role }}|>\n"
    "{{ m.content }}<|end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)
ZEPHYR = (
    "{% for m in messages %}{% if m['role'] == 'user' %}<|user|>\n{{ m['content'] + eos_token }}\n"
    "{% elif m['role'] == 'system' %}<|system|>\n{{ m['content'] + eos_token }}\n"
    "{% elif m['role'] == 'assistant' %}<|assistant|>\n{{ m['content'] + eos_token }}\n{% endif %}"
    "{% if loop.last and add_generation_prompt %}<|assistant|>\n{% endif %}{% endfor %}"
)
DEEPSEEK = (
    "{{ bos_token }}{% for t in tools or [] %}{{ t.function.name }}{% endfor %}"
    "{% for m in messages %}{% if m.role == 'assistant' and m.tool_calls %}"
    "<|assistant|>{% for t in m.tool_calls %}"
    "{{ '<call>' + t.function.name + '\n' + t.function.arguments + '</call>' }}{% endfor %}"
    "{{ eos_token }}{% else %}<|{{ m.role }}|>{{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
VISION = (
    "{% for m in messages %}{{ m['role'] | capitalize }}: {% for part in m['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}<eou>\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
TEMPLATES = {
    "chatml": CHATML, "hermes": HERMES, "qwen3": QWEN3, "r1": R1, "gemma": GEMMA,
    "llama2": LLAMA2, "llama3.1": LLAMA31, "mistral": MISTRAL, "phi3": PHI3, "zephyr": ZEPHYR,
    "deepseek": DEEPSEEK, "vision": VISION,
}  # fmt: skip


def tokenizer_of(name):
    """Letters with the template of that name, whose turn tokens are special tokens."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATES.get(name, name)
    turns = [t for t in ("<|im_start|>", "<|im_end|>", "<end_of_turn>", "<|eot|>", "<|end|>")
             if t in tokenizer.chat_template]  # fmt: skip
    tokenizer.add_special_tokens({"additional_special_tokens": turns})
    return tokenizer


def user(text):
    return {"role": "user", "content": text}


def says(text, **more):
    return {"role": "assistant", "content": text, **more}


SYSTEM = {"role": "system", "content": "Be terse."}
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Look.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


def calling(arguments):
    call = {"id": "a1", "type": "function", "function": {"name": "weather", "arguments": arguments}}
    return {"role": "assistant", "tool_calls": [call]}
