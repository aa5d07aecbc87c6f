"""What a prompt has begun of its response is the response's for rewards: opened thoughts, and a
message that is continued."""

import torch
from template_helpers import TEMPLATES, TOOL, says, tokenizer_of, user

from datamodules import MultiObjectiveRewardEnv, Prompt, TextGenerationEnv
from datamodules.text.encoding import Limits, encode_responses

ASKED = user("Is it wet?")


def scored(tokenizer, prompt, words, kind=TextGenerationEnv, **options):
    """What a reward is given of an episode, and the episode."""
    seen = []

    def reward(prompts, responses, metadata=None):
        seen.append((prompts[0], responses[0], metadata[0]))
        return [1.0]

    env = kind(tokenizer, [prompt], reward_fn=reward, **options)
    env.reset(0)
    env.respond(torch.tensor([*tokenizer(words)["input_ids"], tokenizer.eos_token_id]))
    env.score([env])
    return seen[0], env


def test_a_format_reward_sees_the_think_that_the_template_opened():
    tokenizer = tokenizer_of("r1")
    (prompt, response, metadata), env = scored(tokenizer, [ASKED], "Rain.\n</think>\nYes.")
    assert prompt == "<bos><|User|>Is it wet?<|Assistant|>"
    assert response == "<think>\nRain.\n</think>\nYes."
    assert env.current_text == prompt + response and metadata == {"messages": [ASKED]}
    assert tokenizer.decode(env._observation().input_ids).endswith("Yes.<eos>")
    assert env.steps == len("Rain.\n</think>\nYes.") + 1  # what was sampled, and no more


def test_a_continued_message_is_one_message_to_rewards_and_their_models():
    tokenizer = tokenizer_of("chatml")
    prompt = Prompt([ASKED, says("It is")], {"answer": "wet"})
    (text, response, metadata), _ = scored(tokenizer, prompt, " wet.")
    assert text.endswith("assistant\n") and response == "It is wet."
    assert metadata == {"answer": "wet", "messages": [ASKED]}
    (ids,) = encode_responses(tokenizer, [text], [response], [metadata], Limits(900, 400))
    assert tokenizer.decode(ids).endswith("<|im_start|>assistant\nIt is wet.<|im_end|>\n")


def test_a_plain_text_has_begun_nothing():
    (text, response, _), _ = scored(tokenizer_of("r1"), "Hm: <think>\n", "Yes.")
    assert (text, response) == ("Hm: <think>\n", "Yes.")


def test_stop_sequences_are_those_of_what_was_sampled():
    tokenizer = tokenizer_of("chatml")
    prompt = [ASKED, says("a;b")]
    (_, response, _), _ = scored(tokenizer, prompt, "c;d", stop_sequences=[";"])
    assert response == "a;bc"


def test_reward_models_are_given_the_tools_of_the_conversation():
    (_, _, metadata), _ = scored(tokenizer_of("hermes"), Prompt([ASKED], {}, (TOOL,)), "Yes.")
    assert metadata["tools"] == [TOOL]
    tokenizer = tokenizer_of("hermes")
    (ids,) = encode_responses(tokenizer, [""], ["Yes."], [metadata], Limits(900, 400))
    assert "weather" in tokenizer.decode(ids)


def test_objectives_see_it_too():
    tokenizer, seen = tokenizer_of(TEMPLATES["r1"]), []
    parts = {"form": lambda prompt, generated, full: seen.append((prompt, generated, full)) or 1.0}
    env = MultiObjectiveRewardEnv(tokenizer, [[ASKED]], reward_components=parts)
    env.reset(0)
    env.respond(torch.tensor([*tokenizer("Yes.")["input_ids"], tokenizer.eos_token_id]))
    env.score([env])
    ((prompt, generated, full),) = seen
    assert generated == "<think>\nYes." and full == prompt + generated
