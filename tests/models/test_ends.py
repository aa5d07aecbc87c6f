"""Whatever ends a response of a model ends it everywhere: one table of public families' tokens."""

import json
from types import SimpleNamespace

import pytest
import torch
from end_helpers import FAMILIES, ids, turns
from sampling_helpers import greedy
from tokenizers.processors import TemplateProcessing
from transformers import GenerationConfig

from datamodules import RolloutDataModule, TextGenerationEnv
from datamodules.ends import end_ids, turn_end
from datamodules.environments.tools import Scene, ToolEnv
from datamodules.preferences.dataset import PreferenceDataset
from datamodules.rollouts.collector import response_text
from datamodules.text.cache import tokenizer_digest
from datamodules.text.chat import reply
from datamodules.text.encoding import Limits, encode, render
from datamodules.text.prompts import Prompt
from rlmodules import DPO, GRPO, PPO, AsyncTrainingClient, DPOConfig, GRPOConfig, PPOConfig
from rlmodules.models import LoraConfig, add_lora
from rlmodules.models.saving import save_language_model
from rlmodules.models.vocabulary import match_ends
from rlmodules.sampling.decoding import sample

every_family = pytest.mark.parametrize("name", FAMILIES)
ending = [name for name in FAMILIES if FAMILIES[name].ends]
every_end = pytest.mark.parametrize(
    ("name", "end"), [(name, end) for name in ending for end in sorted(FAMILIES[name].ends)]
)
chatting = pytest.mark.parametrize("name", [n for n in ending if FAMILIES[n].template])
USER = [{"role": "user", "content": "Hi"}]


def matched(name, said=""):
    """Model and tokenizer of a family, as an algorithm holds them."""
    model, tokenizer = FAMILIES[name].model(said), FAMILIES[name].tokenizer()
    match_ends(model, tokenizer)
    return model, tokenizer


def as_tokens(tokenizer, found) -> set[str]:
    return set(tokenizer.convert_ids_to_tokens(list(found)))


# --------------------------------------------------------------------------- the set


@every_family
def test_the_ends_are_the_tokenizers_the_templates_and_those_of_generation_config(name):
    model, tokenizer = FAMILIES[name].model(), FAMILIES[name].tokenizer()
    assert as_tokens(tokenizer, match_ends(model, tokenizer)) == FAMILIES[name].ends
    assert end_ids(tokenizer) == match_ends(model, tokenizer)


def test_a_model_that_writes_nothing_leaves_the_ends_of_the_one_that_does():
    model, tokenizer = matched("glm")
    match_ends(model.transformer, tokenizer)
    assert as_tokens(tokenizer, end_ids(tokenizer)) == FAMILIES["glm"].ends


def test_an_end_of_configs_class_alone_counts_only_if_it_is_a_special_token():
    family = FAMILIES["no generation_config"]
    for id, counts in ((2, True), (98, False)):
        model, tokenizer = family.model(), family.tokenizer()
        tokenizer.eos_token = "<bos>"
        model.generation_config = GenerationConfig(eos_token_id=id, _from_model_config=True)
        assert (id in match_ends(model, tokenizer)) == counts
        model.generation_config = GenerationConfig(eos_token_id=id)
        assert id in match_ends(model, tokenizer)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("<a>ROLE", "<z>", "<z>"),
        ("<a>ROLE", " \n<z>\n", "<z>"),
        ("<a>ROLE", "<z><y>", "<z>"),
        ("<a>ROLE", "<zz>", "<zz>"),  # the longest
        ("<a>ROLE", "END<z>", None),
        ("<a>ROLE", "", "<a>"),  # the next turn's opening
        ("<bos>ROLE", "", None),  # which opens any text
        ("ROLE:", "\n", None),
        ("{{ raise_exception('no') }}ROLE", "<z>", None),
    ],
)
def test_a_turn_ends_with_the_token_that_the_template_writes_behind_the_answer(
    before, after, expected
):
    tokenizer = FAMILIES["none"].tokenizer()
    tokenizer.add_tokens(["<a>", "<y>", "<z>", "<zz>"], special_tokens=True)
    tokenizer.chat_template = turns(before, after)
    assert tokenizer.convert_ids_to_tokens([turn_end(tokenizer) or 0]) == [expected or "<pad>"]
    tokenizer.chat_template = turns("ROLE", "<y>")  # found anew
    assert tokenizer.convert_ids_to_tokens(turn_end(tokenizer)) == "<y>"


# -------------------------------------------------------------------------- sampling


@every_end
def test_sampling_stops_at_every_end(name, end):
    model, tokenizer = FAMILIES[name].model(f"Hi{end}more"), FAMILIES[name].tokenizer()
    (response,) = sample(model, tokenizer, [ids(tokenizer, "p")], greedy(8), [0])
    assert tokenizer.decode(response.tokens) == f"Hi{end}"
    assert response.finish_reason == "eos"


def test_without_any_end_a_response_is_cut():
    model, tokenizer = FAMILIES["none"].model("Hi<eos>more"), FAMILIES["none"].tokenizer()
    (response,) = sample(model, tokenizer, [ids(tokenizer, "p")], greedy(6), [0])
    assert (response.finish_reason, len(response.tokens)) == ("length", 6)


@pytest.mark.parametrize("with_tokenizer", [True, False])
def test_the_client_stops_where_the_model_does(with_tokenizer):
    model, tokenizer = matched("gemma", "Hi<end_of_turn>more")
    given = tokenizer if with_tokenizer else None
    with AsyncTrainingClient(model, device="cpu", tokenizer=given) as client:
        said = client.sample(ids(tokenizer, "p"), max_tokens=9, temperature=0).result()
    assert tokenizer.decode(said["tokens"]) == "Hi<end_of_turn>"
    assert said["finish_reason"] == "eos"


def test_a_prompt_of_the_client_is_not_closed_by_a_tokenizer_that_closes_every_text():
    model, tokenizer = matched("gemma", "Hi<end_of_turn>")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", 2)]
    )
    with AsyncTrainingClient(model, device="cpu", tokenizer=tokenizer) as client:
        said = client.sample("p", max_tokens=9, temperature=0).result()
    assert (tokenizer.decode(said["prompt"]), said["text"]) == ("p", "Hi")


# ---------------------------------------------------------------------- environments


@every_end
def test_environments_leave_the_end_and_what_follows_it_out(name, end):
    _, tokenizer = matched(name)
    env = TextGenerationEnv(tokenizer, ["p"], reward_fn=lambda p, r, metadata=None: [0.0] * len(r))
    env.reset()
    result = env.respond(ids(tokenizer, f"Hi{end}more"))
    assert env.response == "Hi" and result.done and result.info["truncated"] is False
    env.reset()
    taken = [env.step(token).done for token in ids(tokenizer, f"Hi{end}")]
    assert taken == [False, False, True]
    trajectory = SimpleNamespace(actions=[ids(tokenizer, f"Hi{end}more")])
    assert response_text(tokenizer, None, trajectory) == "Hi"


class Asked(Scene):
    messages = USER

    def tools(self):
        return []

    def judge(self, answer):
        return float(answer == "Hi"), {}


@every_end
def test_a_scene_is_judged_by_the_answer_before_the_end(name, end):
    _, tokenizer = matched(name)
    env = ToolEnv(tokenizer, [Asked()])
    env.reset()
    result = env.respond(ids(tokenizer, f"Hi{end}"))
    assert result.done and result.info["truncated"] is False
    assert env.score([env])[0][0] == 1.0


def test_an_environments_own_tokenizer_learns_the_ends_that_the_model_names():
    family = FAMILIES["glm"]
    env = TextGenerationEnv(family.tokenizer(), ["p"] * 4)
    config = PPOConfig(model_name="given", max_new_tokens=4)
    module = PPO(config, model=family.model(), tokenizer=family.tokenizer())
    data = RolloutDataModule(env, eval_size=0)
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    data.trainer = SimpleNamespace(lightning_module=module, strategy=strategy)
    data.setup()
    assert as_tokens(env.tokenizer, end_ids(env.tokenizer)) == family.ends


def test_an_environment_whose_tokens_are_others_to_the_policy_is_refused():
    family = FAMILIES["glm"]
    env = TextGenerationEnv(FAMILIES["phi"].tokenizer(), ["p"] * 4)
    module = PPO(PPOConfig(model_name="given"), model=family.model(), tokenizer=family.tokenizer())
    data = RolloutDataModule(env, eval_size=0)
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    data.trainer = SimpleNamespace(lightning_module=module, strategy=strategy)
    with pytest.raises(ValueError, match=r"tokenizer is not the policy's: '<\|.*' has the id \d+"):
        data.setup()


def test_another_engine_is_told_every_end():
    family, told = FAMILIES["glm"], []
    module = PPO(PPOConfig(model_name="given"), model=family.model(), tokenizer=family.tokenizer())
    module.sampler = lambda prompts, params, seeds: told.append(params)
    module.inference = torch.no_grad
    env = TextGenerationEnv(module.tokenizer, ["p"])
    module.act([env.reset()], seeds=[0], env=env)
    assert as_tokens(module.tokenizer, told[0].stop_token_ids) == family.ends


@chatting
def test_the_next_message_stands_behind_the_end_that_was_written_or_gives_it(name):
    """As the template renders the whole conversation."""
    family, tokenizer = FAMILIES[name], matched(name)[1]
    asked = [*USER, {"role": "assistant", "content": "Yo"}, {"role": "user", "content": "What?"}]
    whole = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    rest = whole[whole.index("Yo") + 2 :]
    end = next((end for end in family.ends if rest.lstrip().startswith(end)), "")
    for written in {"Yo", f"Yo{rest[: rest.index(end)]}{end}" if end else "Yo"}:
        response = ids(tokenizer, written).tolist()
        answer = reply(tokenizer, response, asked[2:])
        assert tokenizer.decode(response + answer) == f"Yo{rest}"


# ------------------------------------------------------------------------------ pairs


@every_family
def test_pairs_are_closed_once_with_the_end_of_text_or_of_a_turn(name):
    family, tokenizer = FAMILIES[name], matched(name)[1]
    texts = [render(tokenizer, Prompt("Hi"), "Yo")]
    if family.template is not None:
        texts.append(render(tokenizer, Prompt(USER), [{"role": "assistant", "content": "Yo"}]))
    for closing, (_, answer) in zip(
        family.closing, encode(tokenizer, texts, Limits()), strict=False
    ):
        said = tokenizer.decode(answer)
        assert said.split(closing)[0].strip() == "Yo" if closing else said == "Yo"
        assert said.endswith(closing or "Yo")
        assert sum(token in end_ids(tokenizer) for token in answer) == bool(closing)


def test_an_end_in_the_text_is_not_followed_by_another():
    _, tokenizer = matched("phi")
    for end in ("<|end|>", "<|endoftext|>", "<|end|>\n<|endoftext|>"):
        texts = [render(tokenizer, Prompt("Hi"), "Yo" + end)]
        ((_, answer),) = encode(tokenizer, texts, Limits())
        assert tokenizer.decode(answer) == "Yo" + end.split("\n")[0]


def test_a_response_that_is_cut_keeps_its_turns_end():
    _, tokenizer = matched("gemma")
    texts = [render(tokenizer, Prompt(USER), [{"role": "assistant", "content": "abcdefgh"}])]
    ((start, answer),) = encode(tokenizer, texts, Limits(24, 20))
    assert tokenizer.decode(answer) == "abcdefgh"[: 24 - len(start) - 1] + "<end_of_turn>"


def test_a_response_that_is_an_end_alone_is_empty():
    _, tokenizer = matched("glm")
    with pytest.raises(ValueError, match="the chosen response is empty"):
        PreferenceDataset(["Hi"], ["<|observation|>"], ["no"], tokenizer)


def test_what_is_kept_of_encoded_texts_depends_on_the_ends():
    family = FAMILIES["glm"]
    assert tokenizer_digest(matched("glm")[1]) != tokenizer_digest(family.tokenizer())


# ---------------------------------------------------------------------------- exports


@pytest.mark.parametrize("merge", [None, False, True])
@every_family
def test_an_export_stops_where_the_policy_did(tmp_path, name, merge):
    family, (model, tokenizer) = FAMILIES[name], matched(name)
    if merge is not None:
        model = add_lora(model, LoraConfig(r=2), "CAUSAL_LM")
    save_language_model(model, tokenizer, tmp_path, merge=bool(merge))
    named = json.loads((tmp_path / "generation_config.json").read_text()).get("eos_token_id", [])
    named = named if isinstance(named, list) else [named]
    assert as_tokens(tokenizer, named) == family.ends and len(named) == len(family.ends)


def test_sampling_flags_that_transformers_would_not_write_do_not_end_an_export(tmp_path):
    model, tokenizer = matched("gemma")
    model.generation_config.temperature = 0.6  # beside do_sample=False, as in many checkpoints
    save_language_model(model, tokenizer, tmp_path, merge=False)
    written = GenerationConfig.from_pretrained(tmp_path)
    assert (written.temperature, written.do_sample) == (0.6, True)


# -------------------------------------------------------------------------- none at all


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        (PPO, PPOConfig(model_name="given", missing_eos_penalty=1.0)),
        (GRPO, GRPOConfig(model_name="given", mask_truncated_completions=True)),
    ],
)
def test_where_nothing_can_end_a_response_none_is_judged_by_its_end(kind, config):
    def act(name, stop_sequences=()):
        family = FAMILIES[name]
        module = kind(config, model=family.model(), tokenizer=family.tokenizer())
        env = TextGenerationEnv(module.tokenizer, ["p"], stop_sequences=stop_sequences)
        module.sampling, module.inference = greedy(3), torch.no_grad
        return module.act([env.reset()], seeds=[0], env=env)

    with pytest.raises(ValueError, match=r"algo\.(missing_eos|mask_trunc).* eos_token.*stop_seq"):
        act("none")
    assert len(act("none", ["\n"])) == len(act("no eos, but a generation_config")) == 1


def test_pairs_without_any_end_are_said_to_teach_none():
    family = FAMILIES["none"]
    with pytest.warns(UserWarning, match="not taught where a response ends"):
        DPO(
            DPOConfig(model_name="given", max_length=64, max_prompt_length=32),
            model=family.model(),
            tokenizer=family.tokenizer(),
        )
