"""The health check: what in a run's metrics says that it goes wrong, since when, and what to do.

for finding in check(Course.of_report(report, settings)):
    print(finding)
"""

from collections.abc import Callable
from dataclasses import dataclass

from rlmodules.metrics import symptoms
from rlmodules.metrics.course import Course
from rlmodules.metrics.symptoms import Seen


@dataclass(frozen=True)
class Symptom:
    """A way in which runs fail.

    Attributes:
        name: ``high_kl``.
        seen: says whether a run has it.
        rule: when it is said to, in words.
        meaning, remedy: what it means, and what to do.
        source: where the rule comes from.
    """

    name: str
    seen: Callable[[Course], Seen | None]
    rule: str
    meaning: str
    remedy: str
    source: str = ""


@dataclass(frozen=True)
class Finding:
    """A symptom that a run has.

    Attributes:
        name: of the symptom.
        said: what was seen, with numbers.
        evidence: metric -> its value at first and at last.
        began: the iteration or optimizer step since which it is so.
        unit: which of the two.
        meaning, remedy: of the symptom.
    """

    name: str
    said: str
    evidence: dict[str, tuple[float, float]]
    began: int
    unit: str
    meaning: str
    remedy: str

    def __str__(self) -> str:
        said = self.said[0].upper() + self.said[1:]
        return f"{said} (since {self.unit} {self.began}). {self.meaning} {self.remedy}"


def check(course: Course) -> list[Finding]:
    """All symptoms that a run has, the gravest first; none of a healthy or a very short one."""
    found = ((symptom, symptom.seen(course)) for symptom in SYMPTOMS)
    return [
        Finding(s.name, seen.said, seen.values, seen.began, course.unit, s.meaning, s.remedy)
        for s, seen in found
        if seen is not None
    ]


SYMPTOMS = (
    Symptom(
        "lost_loss",
        symptoms.lost_loss,
        "The loss of an iteration or a step is missing or not finite, and others are there.",
        "Numbers overflow, or every episode of an iteration failed.",
        "Lower algo.learning_rate, set trainer.precision=32-true, or mend the environment"
        " (rollout/failed).",
    ),
    Symptom(
        "high_kl",
        symptoms.high_kl,
        "The median of the last rollout/kl is above three times algo.kl_target; without a target,"
        " above 1 nat a token.",
        "The policy has left the language that it had, and the reference no longer holds it.",
        "Raise algo.kl_penalty_coef (GRPO: algo.beta), or lower algo.learning_rate.",
        "The controller's error is full from 1.2 times the target on (Ziegler et al. 2019,"
        " arXiv:1909.08593); 1 nat makes a token e times likelier, on average.",
    ),
    Symptom(
        "negative_kl",
        symptoms.negative_kl,
        "The median of the last rollout/kl is below -0.05 nats a token.",
        "The tokens were not sampled from the policy that is evaluated: a KL is never negative.",
        "Set algo.top_p=1.0 algo.top_k=0; look whether dropout or another engine samples.",
        "TRL's guide to PPO says the same of objective/kl.",
    ),
    Symptom(
        "rewarded_length",
        symptoms.rewarded_length,
        "Reward and response length both rise (Kendall's tau, p < 0.01), and responses are half as"
        " long again.",
        "The reward may pay length itself, which is the commonest way to exploit one.",
        "Read the samples; take length out of the reward (data of equal length,"
        " reward=weighted with a price on length), or cap algo.max_new_tokens. Reasoning may grow"
        " rightly.",
        "Singhal et al. 2023, A Long Way to Go (arXiv:2310.03716).",
    ),
    Symptom(
        "rewarded_repetition",
        symptoms.rewarded_repetition,
        "Held out, distinct bigrams fell by a quarter while the reward rose; not where answers are"
        " checked (val/pass@1).",
        "The policy repeats what the reward pays: it is exploited, not satisfied.",
        "Raise algo.kl_penalty_coef (GRPO: algo.beta), stop earlier (checkpoints/best.ckpt), or"
        " mend the reward.",
        "Gao et al. 2022 (arXiv:2210.10760) on over-optimisation; a plain PPO of this project wrote"
        " 'wonderful wonderful' at a reward of 0.99. Healthy default runs lose 1 to 8%.",
    ),
    Symptom(
        "collapsed_entropy",
        symptoms.collapsed_entropy,
        "The entropy is below a tenth of what it was, and below 0.1 nats a token.",
        "All responses are alike: nothing new is tried, and nothing more is learned.",
        "Raise algo.temperature, algo.entropy_coef (PPO) or algo.epsilon_high (GRPO), or lower"
        " algo.learning_rate.",
        "Cui et al. 2025 (arXiv:2505.22617): reward stands still where entropy is used up; Yu et"
        " al. 2025 (DAPO, arXiv:2503.14476).",
    ),
    Symptom(
        "blind_critic",
        symptoms.blind_critic,
        "The median of the last third of rollout/explained_variance is below -0.2 after 8"
        " iterations or more, or 0 or less after 30, and it does not rise.",
        "Advantages are as noisy as without a critic, or noisier.",
        "Raise algo.value_learning_rate or algo.value_warmup_iterations.",
        "At 0 a constant does as well; a return that nothing foretells leaves it there, too.",
    ),
    Symptom(
        "equal_groups",
        symptoms.equal_groups,
        "The median of the last rollout/equal_groups is 0.8 or more.",
        "Most of what is sampled teaches nothing: problems are all too easy, or all too hard.",
        "Take other problems, set algo.max_resamples, or raise algo.num_generations.",
        "Yu et al. 2025 (DAPO, arXiv:2503.14476), section 3.2.",
    ),
    Symptom(
        "equal_rewards",
        symptoms.equal_rewards,
        "Without groups: the median of the last rollout/reward_std is 0.",
        "The reward tells no response from another, so there is nothing to learn.",
        "Look at the reward by python train.py task=inspect, and at the samples.",
    ),
    Symptom(
        "large_steps",
        symptoms.large_steps,
        "The median of the last train/clip_fraction is above 0.3 (not under GSPO), or that of"
        " train/approx_kl above 0.1 nats a token.",
        "An iteration moves the policy further than its episodes can tell.",
        "Lower algo.learning_rate or the passes over an iteration (algo.ppo_epochs,"
        " algo.num_epochs), or set algo.early_stop_kl.",
        "Clip fractions of 0.1 to 0.2 are usual (Huang et al. 2022, The 37 Implementation Details"
        " of PPO); early stops are set at 0.01 to 0.05 nats.",
    ),
    Symptom(
        "gradient_spikes",
        symptoms.gradient_spikes,
        "A gradient norm is ten times the median of the ten before it.",
        "A batch was unlike those before it; one clipped step does little harm, many do.",
        "Lower algo.learning_rate or algo.max_grad_norm, raise algo.batch_size, or look at the"
        " rewards of that iteration.",
        "Norms of healthy steps differ by a factor of 2 to 3 (log-normal, sigma about 0.4): ten"
        " times the median is beyond 5 sigma.",
    ),
    Symptom(
        "lost_chosen",
        symptoms.lost_chosen,
        "Chosen responses are less likely than at the start by more than 1 nat each.",
        "DPO pushes both sides down, and the policy writes neither.",
        "Add an sft loss (algo.loss_type=[sigmoid,sft] algo.loss_weights=[1.0,1.0]; or a larger"
        " weight of it), or lower algo.learning_rate.",
        "Razin et al. 2024, likelihood displacement (arXiv:2410.08847); Pal et al. 2024"
        " (arXiv:2402.13228).",
    ),
    Symptom(
        "cut_off",
        symptoms.cut_off,
        "At most 5% of the responses end by themselves, and at first 30% or more did.",
        "The policy no longer says when it is done, and is judged by half answers.",
        "Raise algo.max_new_tokens, or charge it: algo.missing_eos_penalty (PPO),"
        " algo.mask_truncated_completions (GRPO).",
    ),
    Symptom(
        "engines_apart",
        symptoms.engines_apart,
        "The median of the last rollout/sampler_kl is beyond 0.02 nats a token.",
        "Sampling and training compute other probabilities for the same tokens: ratios are wrong.",
        "Use one precision and one engine for both; set algo.top_p=1.0 algo.top_k=0.",
        "Healthy values are 0.0002 for dense models and 0.001 to 0.002 for mixtures of experts;"
        " a fault found that way stood at 0.09 (tinker-cookbook).",
    ),
)
"""Ways in which runs fail, the gravest first."""
CERTAIN = ("lost_loss", "high_kl", "rewarded_repetition", "collapsed_entropy")
"""Symptoms that no healthy run has, and that training on makes worse."""
READ = (
    "rollout/on_policy",
    "train/loss", "train/policy_loss", "train/value_loss", "train/grad_norm", "train/entropy",
    "train/clip_fraction", "train/approx_kl", "train/chosen_drift", "rollout/kl",
    "rollout/entropy", "rollout/reward", "rollout/reward_std", "rollout/response_length",
    "rollout/eos_fraction", "rollout/explained_variance", "rollout/equal_groups",
    "rollout/sampler_kl", "val/reward", "val/distinct_bigrams", "val/pass@1", "val/chosen_drift",
)  # fmt: skip
"""Metrics that the rules ask for; more than these nobody has to keep."""
