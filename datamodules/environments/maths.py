"""Mathematics problems, generated or read from a GSM8K file; answers are checked by ``verify``."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase
from typing_extensions import Unpack

from datamodules.checks import require_seed, require_whole
from datamodules.environments.base import Options
from datamodules.environments.math_problems import generate
from datamodules.environments.multi_objective import MultiObjectiveRewardEnv
from datamodules.rewards.answers import as_number, is_correct, require_readable
from datamodules.text.columns import ADDED, says_nothing
from datamodules.text.held_out import how_many, source_of
from datamodules.text.prompts import Prompt
from datamodules.text.tables import read_rows, require_dataset

REWARD_WEIGHTS = {"correctness": 1.0, "formatting": 0.1}
HELD_OUT = 200
"""Problems to hold out, where no number was asked for."""
MARK = "####"
"""What stands before the final answer in GSM8K (Cobbe et al. 2021, arXiv:2110.14168)."""
NUMBER_ONLY = "Answer with the number only."
STEP_BY_STEP = f"Think step by step. End with a line that says {MARK} and the final answer."

QuestionAnswer = tuple[str, str]
"""A problem's text, and its final answer alone."""


class MathEnv(MultiObjectiveRewardEnv):
    """One problem, one answer: ``1.0 x correctness + 0.1 x formatting``.

    ``correctness`` is 1 where the final answer of the response is right (see ``rewards.answers``),
    and ``correct`` in the metrics is the same. ``formatting`` is 1 where the response has the asked
    form with nothing after it: a number alone, or with ``reasoning`` a last line ``#### answer``.

    Args:
        tokenizer: of the policy.
        difficulty: level of generated problems, 1 to 6 (see ``math_problems``); default 1.
        num_problems: to train on; None takes all that there are.
        num_held_out: for evaluation (``held_out``); no problem is both there and in training. None
            takes 200, but of a file's problems a tenth at most.
        seed: of the problems, and of which rows of a file are held out.
        path: read problems from this file instead: rows of ``question`` and ``answer``, the final
            answer after ``####``.
        eval_path: the held-out problems' file; None takes the test split of ``path`` where that is
            a data set with one, or holds out rows of ``path``.
        split, eval_split, name: of folders and Hugging Face datasets, see ``read_rows``.
        reasoning: ask for steps and a last line ``#### answer``; else for the number alone.
        chat: prompts are conversations; None: where the tokenizer has a chat template. The small
            embedded model is three times as often right without.
        reward_weights: see ``MultiObjectiveRewardEnv``.
        options: see ``Environment``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: an impossible option, or a row that is no problem; names the option, or file
            and row.
    """

    stop_sequences = None
    """Default: the end of the line, or with ``reasoning`` the next question, for plain prompts;
    none in a conversation, which ends by its end token."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        difficulty: int | None = None,
        num_problems: int | None = None,
        num_held_out: int | None = None,
        seed: int = 0,
        path: str | None = None,
        eval_path: str | None = None,
        reasoning: bool = False,
        chat: bool | None = False,
        *,
        split: str | None = None,
        eval_split: str | None = None,
        name: str | None = None,
        reward_weights: Mapping[str, float] | None = None,
        **options: Unpack[Options],
    ) -> None:
        parts = {"split": split, "eval_split": eval_split, "name": name}
        train, held_out = choose(
            difficulty, num_problems, num_held_out, seed, path, eval_path, **parts
        )
        chat = tokenizer.chat_template is not None if chat is None else chat
        self.reasoning = reasoning
        super().__init__(
            tokenizer,
            [
                Prompt(ask(question, reasoning, chat), {"question": question, "answer": answer})
                for question, answer in (*train, *held_out)
            ],
            {"correctness": self._correctness, "formatting": self._formatting},
            REWARD_WEIGHTS if reward_weights is None else reward_weights,
            **options,
        )
        if self.stop_sequences is None:
            self.stop_sequences = () if chat else ("\nQuestion:",) if reasoning else ("\n",)
        self.held_out = range(len(train), len(train) + len(held_out))

    def score(self, episodes: Sequence["MathEnv"]) -> list[tuple[float, dict[str, float]]]:
        """Rewards, with ``correct`` among the metrics."""
        scored = super().score(episodes)
        return [(reward, m | {"correct": m["reward_correctness"]}) for reward, m in scored]

    def _correctness(
        self, prompt: str, generated: str, full_text: str, metadata: Mapping[str, Any]
    ) -> float:
        return float(is_correct(generated, metadata["answer"]))

    def _formatting(
        self, prompt: str, generated: str, full_text: str, metadata: Mapping[str, Any]
    ) -> float:
        text = generated.strip()
        if self.reasoning:
            before, mark, text = text.rpartition(MARK)
            if not mark or MARK in before or before[-1:].strip() or "\n" in text.strip():
                return 0.0
        numeric = as_number(metadata["answer"]) is not None
        return float(as_number(text) is not None if numeric else bool(text.strip()))


def create_math_problem_env(tokenizer: PreTrainedTokenizerBase, **options: Any) -> MathEnv:
    """Mathematics problems with correctness and formatting rewards; ``options`` of ``MathEnv``."""
    return MathEnv(tokenizer, **options)


def choose(
    difficulty: int | None,
    num_problems: int | None,
    num_held_out: int | None,
    seed: int,
    path: str | None,
    eval_path: str | None,
    **parts: str | None,
) -> tuple[list[QuestionAnswer], list[QuestionAnswer]]:
    """Problems to train on and held-out ones, generated or read; see ``MathEnv``."""
    if num_problems is not None:  # null takes all
        require_whole("env", 1, num_problems=num_problems)
    if num_held_out is not None:
        require_whole("env", 0, num_held_out=num_held_out)
    require_seed("env.seed", seed)
    for part, value in parts.items():
        paths = (path,) if part == "split" else (path, eval_path)
        require_dataset(f"env.{part}", value, *paths)
    if path is None:
        if eval_path is not None:
            raise ValueError(f"env.eval_path={eval_path!r} without env.path: give both, or neither")
        level = 1 if difficulty is None else difficulty
        count = HELD_OUT if num_held_out is None else num_held_out
        splits = generate(level, num_problems, count, seed)
        train, held_out = ([(p.question, str(p.answer)) for p in split] for split in splits)
        return train, held_out
    if difficulty is not None:
        raise ValueError(
            f"env.difficulty={difficulty} is of generated problems, and env.path={path!r} reads"
            " them from a file: set one to null"
        )
    return read_problems(path, eval_path, num_problems, num_held_out, seed, **parts)


def ask(question: str, reasoning: bool, chat: bool) -> str | list[dict[str, str]]:
    """The prompt for a question, in words or an arithmetic expression."""
    how = STEP_BY_STEP if reasoning else NUMBER_ONLY
    expression = not any(character.isalpha() for character in question)
    if expression and not (chat or reasoning):
        # The form that the embedded model answers best, of a dozen tried; and the shortest.
        return f"Calculate:\n{question} ="
    task = f"Calculate {question}." if expression else question
    if chat:
        return [{"role": "user", "content": f"{task}\n{how}"}]
    return f"Question: {task}\n{how}\nAnswer:"


def read_problems(
    path: str,
    eval_path: str | None,
    num_problems: int | None,
    num_held_out: int | None,
    seed: int,
    *,
    split: str | None = None,
    eval_split: str | None = None,
    name: str | None = None,
) -> tuple[list[QuestionAnswer], list[QuestionAnswer]]:
    """Problems to train on and held-out ones, each drawn in an order of ``seed``.

    Raises:
        FileNotFoundError, ValueError: see ``MathEnv``.
    """
    rng = random.Random(seed)
    train = _rows(path, split, name, "env.path", rng)
    source = (
        source_of(path, split, eval_path, eval_split, name, "env") if num_held_out != 0 else None
    )
    if source is None:
        count = how_many(len(train), num_held_out, HELD_OUT, "env.num_held_out")
        held_out, train = train[:count], train[count:]
    else:
        held_out = _rows(source.path, source.split, name, source.option, rng)
        count = min(HELD_OUT, len(held_out)) if num_held_out is None else num_held_out
        held_out = held_out[:count]
        asked = {question for question, _ in held_out}
        train = [problem for problem in train if problem[0] not in asked]
    if len(held_out) < count:
        raise ValueError(
            f"env.num_held_out={num_held_out}: {source.path if source else path!r} holds"
            f" {len(held_out)} problems: lower it"
        )
    if len(train) < (num_problems or 1):
        raise ValueError(
            f"env.num_problems={num_problems}: {path!r} has {len(train)} problems beside the"
            f" {count} held-out ones: lower one of the two (num_problems=null takes all)"
        )
    return train[:num_problems], held_out


def _rows(
    path: str, split: str | None, name: str | None, option: str, rng: random.Random
) -> list[QuestionAnswer]:
    """The distinct problems of a file, shuffled."""
    rows = read_rows(path, split, option=option, name=name, text=("question", "answer"))
    read = [(where, _problem(where, row)) for where, row in rows]
    require_readable((where, answer) for where, (_, answer) in read)
    problems = dict(problem for _, problem in read)
    if not problems:
        raise ValueError(f"{option}={path!r} holds no problems")
    shuffled = list(problems.items())
    rng.shuffle(shuffled)
    return shuffled


def _problem(where: str, row: Any) -> QuestionAnswer:
    for column in ("question", "answer"):
        if not isinstance(row, Mapping) or not isinstance(row.get(column), str):
            raise ValueError(
                f"{where}: a problem needs the text column {column!r}, this is {row!r}"
            )
    question, answer = row["question"].strip(), row["answer"].rpartition(MARK)
    if lost := [name for name in row if name in ADDED and not says_nothing(row[name])]:
        raise ValueError(
            f"{where}: what the column {lost[0]!r} says would not be read: put it into 'question',"
            " or remove it"
        )
    if not question:
        raise ValueError(f"{where}: the column 'question' is empty")
    if not answer[1] or not answer[2].strip():
        raise ValueError(
            f"{where}: the column 'answer' must end in {MARK!r} and the final answer, as in"
            f" '... {MARK} 18'; it ends in {row['answer'][-40:]!r}"
        )
    return question, answer[2].strip()
