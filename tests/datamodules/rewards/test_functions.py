"""Reward functions: what may go wrong in them, and what the built-in ones score."""

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BloomConfig,
    BloomForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
)

from datamodules import rewards
from datamodules.rewards.functions import RewardError, RewardFunction, as_reward, length_reward
from rlmodules.models.embedded import tiny_model, tiny_tokenizer

PROMPTS = ["prompt zero", "prompt one", "prompt two"]
RESPONSES = ["response zero", "response one", "response two"]


def error_of(fn, **options) -> str:
    with pytest.raises(RewardError) as caught:
        RewardFunction(fn, **options)(PROMPTS, RESPONSES)
    return str(caught.value)


def shows(message: str, row: int) -> bool:
    """Whether the error points at this row and at no other."""
    others = [i for i in range(3) if i != row]
    return (
        f"response {row + 1} of 3" in message
        and repr(PROMPTS[row]) in message
        and repr(RESPONSES[row]) in message
        and not any(repr(RESPONSES[i]) in message for i in others)
    )


# ------------------------------------------------------------------ what it returns


def test_prompts_responses_and_metadata_arrive_as_given_and_floats_return():
    seen = []

    def judge(prompts, responses, metadata=None):
        seen.append((prompts, responses, metadata))
        return torch.tensor([1, 2, 3])

    metadata = [{"id": i} for i in range(3)]
    result = RewardFunction(judge)(PROMPTS, RESPONSES, metadata)
    assert result == [1.0, 2.0, 3.0] and all(type(reward) is float for reward in result)
    RewardFunction(judge, timeout_s=30)(PROMPTS, RESPONSES)
    assert seen == [(PROMPTS, RESPONSES, metadata), (PROMPTS, RESPONSES, None)]


@pytest.mark.parametrize("timeout_s", [None, 30])
def test_what_it_raises_names_function_prompt_and_response(timeout_s):
    def my_judge(prompts, responses, metadata=None):
        for response in responses:
            if "one" in response:
                raise KeyError("no answer")
        return [0.0] * len(responses)

    message = error_of(my_judge, timeout_s=timeout_s)
    assert "my_judge" in message and "KeyError" in message and "no answer" in message
    assert shows(message, 1)


def test_the_culprit_is_looked_for_with_its_own_metadata():
    def judge(prompts, responses, metadata=None):
        return [1 / row["number"] for row in metadata]

    metadata = [{"number": 2}, {"number": 1}, {"number": 0}]
    with pytest.raises(RewardError) as caught:
        RewardFunction(judge)(PROMPTS, RESPONSES, metadata)
    assert shows(str(caught.value), 2) and "ZeroDivisionError" in str(caught.value)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


@pytest.mark.parametrize("count", [0, 2, 4])
def test_a_wrong_number_of_rewards_is_refused(count):
    def my_judge(prompts, responses, metadata=None):
        return [1.0] * count

    message = error_of(my_judge)
    assert "my_judge" in message and f"{count} rewards for 3 responses" in message


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
def test_a_reward_that_is_not_finite_names_its_own_row(wrong):
    message = error_of(lambda prompts, responses, metadata=None: [0.0, 1.0, wrong], name="judge_x")
    assert "judge_x" in message and str(wrong) in message and shows(message, 2)


NO_NUMBERS = ["good", "1.5", None, [1.0, 2.0], {"score": 1.0}, 10**400]


@pytest.mark.parametrize("wrong", NO_NUMBERS, ids=lambda wrong: str(wrong)[:12])
def test_a_reward_that_is_no_number_names_its_own_row(wrong):
    message = error_of(lambda prompts, responses, metadata=None: [0.0, wrong, 1.0], name="judge_x")
    assert "judge_x" in message and shows(message, 1)


@pytest.mark.parametrize(
    "wrong", [None, 1.0, "123", {0: 1.0, 1: 1.0, 2: 1.0}, torch.zeros(3, 2)], ids=str
)
def test_a_result_that_is_no_list_of_numbers_is_refused(wrong):
    message = error_of(lambda prompts, responses, metadata=None: wrong, name="judge_x")
    assert "judge_x" in message


def test_an_error_while_rewards_are_produced_one_by_one_is_caught_too():
    def my_judge(prompts, responses, metadata=None):
        for response in responses:
            if "one" in response:
                raise KeyError("no answer")
            yield 1.0

    message = error_of(my_judge)
    assert "my_judge" in message and "KeyError" in message and shows(message, 1)


def test_what_is_not_callable_or_no_time_at_all_is_refused():
    with pytest.raises(TypeError, match="float"):
        RewardFunction(0.5)
    for seconds in (0, -1):
        with pytest.raises(ValueError, match=rf"timeout_s={seconds}"):
            RewardFunction(length_reward, timeout_s=seconds)


def test_a_reward_function_is_wrapped_once():
    wrapped = as_reward(length_reward)
    assert isinstance(wrapped, RewardFunction) and as_reward(wrapped) is wrapped
    assert wrapped.name == "length_reward"


# --------------------------------------------------------------------------- hangs


def test_a_call_that_hangs_ends_in_an_error_that_names_the_response_that_hangs():
    released = threading.Event()

    def my_judge(prompts, responses, metadata=None):
        if any("one" in response for response in responses):
            released.wait(30)
        return [0.0] * len(responses)

    began = time.perf_counter()
    try:
        message = error_of(my_judge, timeout_s=0.1)
    finally:
        released.set()
    assert time.perf_counter() - began < 10
    assert "my_judge" in message and "timeout_s=0.1" in message
    assert shows(message, 1)


def test_a_timeout_of_the_functions_own_is_not_taken_for_ours():
    def my_judge(prompts, responses, metadata=None):
        raise TimeoutError("the server is slow")

    message = error_of(my_judge, timeout_s=30)
    assert "my_judge raised TimeoutError: the server is slow" in message


def test_a_call_within_its_time_is_no_error():
    def judge(prompts, responses, metadata=None):
        time.sleep(0.05)
        return [1.0] * 3

    assert RewardFunction(judge, timeout_s=30)(PROMPTS, RESPONSES) == [1.0] * 3


def test_a_hanging_call_does_not_keep_the_process_alive():
    program = (
        "import time\n"
        "from datamodules.rewards.functions import RewardError, RewardFunction\n"
        "hang = lambda prompts, responses, metadata=None: time.sleep(600)\n"
        "try:\n"
        "    RewardFunction(hang, timeout_s=0.2)(['p'], ['r'])\n"
        "except RewardError:\n"
        "    print('caught')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "caught\n"


# ------------------------------------------------------------------ built-in rewards


def test_sentiment_has_the_sign_of_the_text():
    texts = ["What a wonderful, lovely day!", "This is horrible. I hate it.", "The table is brown."]
    good, bad, neutral = rewards.sentiment()(["I hate it"] * 3, texts)
    assert 0.5 < good <= 1 and -1 <= bad < -0.5 and neutral == 0


def test_length_is_a_hundredth_a_word_and_at_most_one():
    texts = ["", "one", "one  two\nthree", "word " * 150]
    assert rewards.length()([""] * 4, texts) == pytest.approx([0.0, 0.01, 0.03, 1.0])


@pytest.fixture
def my_rewards(tmp_path, monkeypatch):
    """A module of the user's, importable for the length of a test."""
    source = (
        "SCALE = 2.0\n"
        "def count(prompts, responses, metadata=None):\n"
        "    return [SCALE * len(response) for response in responses]\n"
        "def broken(prompts, responses, metadata=None):\n"
        "    raise RuntimeError('boom')\n"
    )
    (tmp_path / "my_pkg_for_rewards").mkdir()
    (tmp_path / "my_pkg_for_rewards" / "judges.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    yield "my_pkg_for_rewards.judges"
    for name in [name for name in sys.modules if name.startswith("my_pkg_for_rewards")]:
        del sys.modules[name]


def test_a_function_is_imported_from_its_path(my_rewards):
    assert rewards.function(f"{my_rewards}:count")(["p"] * 2, ["ab", ""]) == [4.0, 0.0]
    with pytest.raises(RewardError, match=rf"{my_rewards}:broken .*boom"):
        rewards.function(f"{my_rewards}:broken", timeout_s=30)(["p"], ["r"])


@pytest.mark.parametrize("path", ["", "judges", "judges:", ":count", "{}.count"])
def test_a_path_of_another_form_is_answered_with_the_form(my_rewards, path):
    with pytest.raises(ValueError, match=r"reward\.path=.*my_pkg\.my_module:my_fn"):
        rewards.function(path.format(my_rewards))


@pytest.mark.parametrize("path", ["no_such_module_anywhere:count", "{}:absent", "{}:SCALE"])
def test_a_path_where_nothing_callable_stands_is_refused_by_name(my_rewards, path):
    path = path.format(my_rewards)
    with pytest.raises(ValueError, match=rf"reward\.path='{path}'"):
        rewards.function(path)


# --------------------------------------------------------------------- reward models

TEXTS = [("a prompt: ", "short"), ("", "x"), ("question? ", "an answer that is longer"), ("p", "r")]
SIZES = {
    "vocab_size": 259,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def save_scorer(folder, tokenizer, num_labels=1, pad_token_id=0):
    """A random Llama with a scoring head, saved with its tokenizer."""
    torch.manual_seed(0)
    config = LlamaConfig(**SIZES, num_labels=num_labels, pad_token_id=pad_token_id)
    scorer = LlamaForSequenceClassification(config).eval()
    torch.nn.init.normal_(scorer.score.weight)
    scorer.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return scorer


def set_padding_side(folder, side: str) -> None:
    """As a checkpoint's tokenizer_config.json does; ``save_pretrained`` leaves it out."""
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"padding_side": side}))
    assert AutoTokenizer.from_pretrained(folder).padding_side == side


@torch.no_grad()
def plain(scorer, ids) -> torch.Tensor:
    """Scores of one text alone, without any padding."""
    return scorer(input_ids=torch.tensor([ids])).logits[0]


def split(texts):
    return [list(column) for column in zip(*texts, strict=True)]


@pytest.mark.parametrize("padding_side", ["right", "left"])
def test_a_reward_models_score_is_that_of_each_text_alone(tmp_path, padding_side):
    tokenizer = tiny_tokenizer()
    scorer = save_scorer(tmp_path, tokenizer)
    set_padding_side(tmp_path, padding_side)
    expected = [plain(scorer, tokenizer(p + r)["input_ids"]).item() for p, r in TEXTS]
    assert max(expected) - min(expected) > 0.5
    for size in (1, 3, 16):
        scored = rewards.model(str(tmp_path), batch_size=size, device="cpu")(*split(TEXTS))
        assert scored == pytest.approx(expected, abs=1e-5)
    backwards = rewards.model(str(tmp_path), device="cpu")(*split(TEXTS[::-1]))
    assert backwards[::-1] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("padding_side", ["right", "left"])
def test_padding_does_not_move_absolute_positions(tmp_path, padding_side):
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=259, n_embd=32, n_layer=2, n_head=4, n_positions=128)
    config.num_labels, config.pad_token_id = 1, 0
    scorer = GPT2ForSequenceClassification(config).eval()
    torch.nn.init.normal_(scorer.score.weight)
    torch.nn.init.normal_(scorer.transformer.wpe.weight)
    scorer.save_pretrained(tmp_path)
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    set_padding_side(tmp_path, padding_side)
    expected = [plain(scorer, tokenizer(p + r)["input_ids"]).item() for p, r in TEXTS]
    scored = rewards.model(str(tmp_path), device="cpu")(*split(TEXTS))
    assert scored == pytest.approx(expected, abs=1e-5)


def conversations(tokenizer, texts):
    """Metadata as a conversation's, and the token ids of the whole conversation."""
    metadata = [{"messages": [{"role": "user", "content": p}]} for p, _ in texts]
    ids = []
    for meta, (_, response) in zip(metadata, texts, strict=True):
        messages = [*meta["messages"], {"role": "assistant", "content": response}]
        ids.append(tokenizer.apply_chat_template(messages)["input_ids"])
    return metadata, ids


def test_a_conversation_is_scored_through_the_reward_models_own_template(tmp_path):
    tokenizer = tiny_tokenizer()
    scorer = save_scorer(tmp_path, tokenizer)
    metadata, ids = conversations(tokenizer, TEXTS)
    expected = [plain(scorer, row).item() for row in ids]
    scored = rewards.model(str(tmp_path), device="cpu")(*split(TEXTS), metadata)
    assert scored == pytest.approx(expected, abs=1e-5)


def test_plain_texts_and_conversations_may_share_a_batch(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", 1)]
    )
    scorer = save_scorer(tmp_path, tokenizer)
    metadata, ids = conversations(tokenizer, TEXTS)
    for row in (0, 2):
        metadata[row] = {"id": row}
        ids[row] = tokenizer("".join(TEXTS[row]))["input_ids"]
    assert all(row.count(1) == 1 for row in ids)  # one BOS each
    expected = [plain(scorer, row).item() for row in ids]
    score = rewards.model(str(tmp_path), device="cpu")
    assert score(*split(TEXTS), metadata) == pytest.approx(expected, abs=1e-5)
    assert score(*split(TEXTS[::-1]), metadata[::-1]) == pytest.approx(expected[::-1], abs=1e-5)


@pytest.mark.parametrize("pad_token", [None, "<eos>"])
def test_an_end_token_at_the_end_counts_where_it_is_also_the_padding(tmp_path, pad_token):
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = pad_token
    scorer = save_scorer(tmp_path, tokenizer, pad_token_id=tokenizer.pad_token_id)
    metadata, ids = conversations(tokenizer, TEXTS)
    assert all(row[-1] == tokenizer.eos_token_id for row in ids)
    scorer.config.pad_token_id = None  # alone and unpadded, the last token is the last token
    expected = [plain(scorer, row).item() for row in ids]
    for size in (1, 3):
        score = rewards.model(str(tmp_path), batch_size=size, device="cpu")
        assert score(*split(TEXTS), metadata) == pytest.approx(expected, abs=1e-5)


def test_an_encoders_score_does_not_see_the_padding(tmp_path):
    torch.manual_seed(0)
    shape = {key: SIZES[key] for key in ("vocab_size", "hidden_size", "intermediate_size")}
    shape |= {"num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 128}
    scorer = BertForSequenceClassification(BertConfig(**shape, num_labels=1)).eval()
    for parameter in scorer.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.3)
    scorer.save_pretrained(tmp_path)
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    expected = [plain(scorer, tokenizer(p + r)["input_ids"]).item() for p, r in TEXTS]
    scored = rewards.model(str(tmp_path), device="cpu")(*split(TEXTS))
    assert scored == pytest.approx(expected, abs=1e-5)


def test_long_texts_keep_their_end(tmp_path):
    tokenizer = tiny_tokenizer()
    scorer = save_scorer(tmp_path, tokenizer)
    expected = [plain(scorer, tokenizer(p + r)["input_ids"][-8:]).item() for p, r in TEXTS]
    scored = rewards.model(str(tmp_path), max_length=8, device="cpu")(*split(TEXTS))
    assert scored == pytest.approx(expected, abs=1e-5)


def test_the_default_max_length_is_what_the_tokenizer_allows(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.model_max_length = 8
    scorer = save_scorer(tmp_path, tokenizer)
    expected = [plain(scorer, tiny_tokenizer()(p + r)["input_ids"][-8:]).item() for p, r in TEXTS]
    scored = rewards.model(str(tmp_path), device="cpu")(*split(TEXTS))
    assert scored == pytest.approx(expected, abs=1e-5)


def test_texts_of_a_model_without_any_limit_are_kept_whole(tmp_path):
    torch.manual_seed(0)
    config = BloomConfig(vocab_size=259, hidden_size=32, n_layer=2, n_head=4, num_labels=1)
    scorer = BloomForSequenceClassification(config).eval()
    torch.nn.init.normal_(scorer.score.weight)
    scorer.save_pretrained(tmp_path)
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    texts = [("a prompt: ", "x" * 700), ("short", "")]
    expected = [plain(scorer, tokenizer(p + r)["input_ids"]).item() for p, r in texts]
    scored = rewards.model(str(tmp_path), device="cpu")(*split(texts))
    assert scored == pytest.approx(expected, abs=1e-5)


def test_texts_longer_than_the_models_positions_keep_their_end(tmp_path):
    tokenizer = tiny_tokenizer()  # allows any length; the model has 128 positions
    scorer = save_scorer(tmp_path, tokenizer)
    texts = [("y" * 100, "x" * 200), ("short", "")]
    expected = [plain(scorer, tokenizer(p + r)["input_ids"][-128:]).item() for p, r in texts]
    scored = rewards.model(str(tmp_path), device="cpu")(*split(texts))
    assert scored == pytest.approx(expected, abs=1e-5)


def test_of_several_outputs_the_labels_log_probability_is_the_reward(tmp_path):
    tokenizer = tiny_tokenizer()
    scorer = save_scorer(tmp_path, tokenizer, num_labels=3)
    rows = [plain(scorer, tokenizer(p + r)["input_ids"]).log_softmax(-1) for p, r in TEXTS]
    for label in range(3):
        scored = rewards.model(str(tmp_path), label=label, device="cpu")(*split(TEXTS))
        assert scored == pytest.approx([row[label].item() for row in rows], abs=1e-5)


def test_a_label_for_a_single_output_is_refused_not_ignored(tmp_path):
    save_scorer(tmp_path, tiny_tokenizer())
    with pytest.raises(ValueError, match=r"reward\.label=1"):
        rewards.model(str(tmp_path), label=1)


@pytest.mark.parametrize("label", [None, 3, -1])
def test_several_outputs_need_a_label_that_exists(tmp_path, label):
    save_scorer(tmp_path, tiny_tokenizer(), num_labels=3)
    with pytest.raises(ValueError, match=r"3 outputs.*reward\.label"):
        rewards.model(str(tmp_path), label=label)


def test_a_folder_without_a_checkpoint_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"reward\.path="):
        rewards.model(str(tmp_path / "nothing"))


def test_a_language_model_without_a_trained_scoring_head_is_refused(tmp_path):
    language_model, tokenizer = tiny_model()
    language_model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"reward\.path=.*no sequence-classification checkpoint"):
        rewards.model(str(tmp_path), label=0)
