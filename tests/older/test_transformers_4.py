"""What is exported says the same to transformers 4, which engines and tools of today still have.

Each causal architecture that both know, tiny, with positions of an unusual base.
"""

import json
import subprocess

import architectures
import pytest
import torch
from reading_helpers import ROOT

from rlmodules.models.embedded import tiny_tokenizer
from rlmodules.models.older_names import write_older_names

PYTHON = ROOT / ".venv-older" / "bin" / "python"
BASE = 123.0
"""Of rotary positions; no architecture has it by default."""
KNOWN = (
    "import json; from transformers.models.auto import modeling_auto as m;"
    "print(json.dumps(list(m.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)))"
)
TEXTS = ["héllo", "a  b\n", "<|im_end|>", ""]
REFUSED = {
    "cpmant": "size mismatch",
    "dbrx": "unknown kwargs",
    "doge:moe": "dropout",
    "emu3": "does not recognize",
    "fuyu": "size mismatch",
    "granitemoehybrid": "layer_types",
    "jamba": "Mamba kernels",
    "mamba2": "clamp",
    "mllama": "does not recognize",
    "phi3:longrope": "rope_scaling",
    "xlstm": "not callable",
    "zamba": "StopIteration",
    "zamba2": "StopIteration",
}
"""What transformers 4.57 takes from nobody, or not from transformers 5."""
OTHERWISE = ("apertus", "bigbird_pegasus", "got_ocr2", "moshi", "qwen2_moe:window",
             "recurrent_gemma", "reformer")  # fmt: skip
"""What it computes otherwise from the same names and weights."""
UNBUILT = ("blt", "granitemoehybrid:recurrent")
"""What the forward pass of this test does not take."""

pytestmark = pytest.mark.skipif(not PYTHON.exists(), reason="make test-older builds .venv-older")


def set_base(value):
    for name, inner in value.items():
        if isinstance(inner, dict):
            set_base(inner)
        elif name == "rope_theta":
            value[name] = BASE


def with_base(config):
    for part in (config, config.get_text_config()):
        set_base(getattr(part, "rope_parameters", None) or {})
    return config


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """{name: logits that transformers 5 computed}, and what transformers 4 said."""
    root, wanted = tmp_path_factory.mktemp("models"), {}
    known = json.loads(subprocess.check_output([PYTHON, "-c", KNOWN], text=True))
    ids = torch.randint(3, architectures.vocabulary(), (2, 24))
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        made = architectures.config_of
        patch.setattr(architectures, "config_of", lambda name: with_base(made(name)))
        for name in (*architectures.CAUSAL, *architectures.VARIANTS):
            if name.split(":")[0] in known and name not in UNBUILT:
                model = architectures.build(name).eval()
                wanted[name] = model(input_ids=ids).logits
                model.save_pretrained(root / name)
                write_older_names(root / name)
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(root / "tokenizer")
    write_older_names(root / "tokenizer")
    (root / "ids.json").write_text(json.dumps(ids.tolist()))
    (root / "texts.json").write_text(json.dumps(TEXTS))
    script = ROOT / "tests" / "older" / "read_by_transformers_4.py"
    subprocess.run([PYTHON, script, root], check=True, capture_output=True)
    return wanted, json.loads((root / "said.json").read_text())


def test_every_architecture_is_read_as_it_was_or_refused(both):
    wanted, said = both
    assert len(wanted) > 150
    other, refused = [], {}
    for name, logits in wanted.items():
        answer = said["models"][name]
        if "refused" in answer:
            refused[name] = answer["refused"]
        elif (torch.tensor(answer["logits"]) - logits).abs().max() > 1e-4 * logits.abs().max():
            other.append(name)
    assert sorted(other) == sorted(OTHERWISE)
    assert sorted(refused) == sorted(REFUSED)
    assert all(reason in refused[name] for name, reason in REFUSED.items()), refused


def test_texts_have_the_same_tokens_and_chats_the_same_text(both):
    tokenizer = tiny_tokenizer()
    for text, (ids, chat, end) in zip(TEXTS, both[1]["texts"], strict=True):
        assert tokenizer(text)["input_ids"] == ids and tokenizer.eos_token_id == end
        messages = [{"role": "user", "content": text}]
        assert tokenizer.apply_chat_template(messages, tokenize=False) == chat
