"""Which text of a response is the program."""

import time

import pytest

from datamodules.environments.code_answers import (
    extract_code,
    parse,
    spoken,
)
from datamodules.environments.code_problems import OPENING, CodeProblem

F = "def f(x):\n    return x + 1\n"
DOCUMENTED = (
    'def f(x):\n    """One more.\n\n    ```python\n    f(1)\n    ```\n    or\n    ```\n    f(2)\n'
    '    ```\n    """\n    return x + 1\n'
)
USE = "print(f(1))\n"
PROGRAMS = {
    "text": F,
    "a block": f"So:\n```python\n{F}```\nDone.",
    "no language": f"```\n{F}```",
    "another name of the language": f"```py\n{F}```",
    "its version": f"```Python3\n{F}```",
    "with attributes": f"```python title=a.py\n{F}```",
    "in braces": f"```{{.python}}\n{F}```",
    "tildes": f"~~~python\n{F}~~~",
    "four ticks": f"````python\n{F}````",
    "four ticks around three": f"````markdown\n```python\n{F}```\n````",
    "then how to use it": f"```python\n{F}```\nUse it so:\n```python\n{USE}```",
    "then what it prints": f"```\n{F}```\nOutput:\n```\n2\n```",
    "then a shell": f"```python\n{F}```\n```bash\npython f.py\n```",
    "then unclosed output": f"```python\n{F}```\n```\n2",
    "a first try before it": f"```python\ndef f(x):\n    return x\n```\nBetter:\n```python\n{F}```",
    "a broken try after it": f"```python\n{F}```\n```python\ndef f(x:\n```",
    "never closed": f"```python\n{F}",
    "closed only": f"{F}```\nThat is all.",
    "closed only, then output": f"{F}```\nOutput:\n```\n2\n```",
    "opened twice": f"```python\n```python\n{F}```",
    "opened twice, no language": f"```python\n```\n{F}```",
    "opened twice, with words": f"```python\nHere it is:\n```python\n{F}```\nDone.",
    "in a list": "1. So:\n\n   ```python\n   def f(x):\n       return x + 1\n   ```\n2. Done",
    "a list's item": "- ```python\n  def f(x):\n      return x + 1\n  ```",
    "indented all over": "```python\n    def f(x):\n        return x + 1\n```",
    "words before it": f"Here is the function:\n\n{F}",
    "words around it": f"Here is the function:\n{F}\nIt doesn't change x.",
    "words with imports": f"Sure! Here's it:\n\nimport math\n\n{F}\nThis works because math.",
    "in tags": f"<answer>\n```python\n{F}```\n</answer>",
    "close to its tags": f"<answer>```python\n{F}```</answer>",
    "tags without a block": f"It is <answer>\n{F}</answer>",
    "after thoughts": f"<think>```python\ndef f(x):\n    return 0\n```</think>\n```python\n{F}```",
    "fences in a docstring": f"```python\n{DOCUMENTED}```",
    "fences in a docstring, then use": f"```python\n{DOCUMENTED}```\n```python\n{USE}```",
    "helpers first": (
        "```python\ndef g(x):\n    return x\n```\n```python\ndef f(x):\n    return g(x) + 1\n```"
    ),
    "imports first": (
        "```python\nimport math\n```\n```python\ndef f(x):\n    return math.floor(x) + 1\n```"
    ),
    "a helper's helper": (
        "```python\nK = 1\n```\n```python\ndef g():\n    return K\n```\n"
        "```python\ndef f(x):\n    return x + g()\n```\n```python\nprint(f(2))\n```"
    ),
    "carriage returns": f"```python\n{F}```".replace("\n", "\r\n"),
    "a class": "```python\nclass f:\n    def __new__(cls, x):\n        return x + 1\n```",
    "a lambda": "```python\nf = lambda x: x + 1\n```",
    "imported": "```python\nfrom operator import index as g\nf = lambda x: g(x) + 1\n```",
}  # fmt: skip


@pytest.mark.parametrize("case", PROGRAMS)
def test_the_program_is_what_defines_what_the_tests_call(case):
    text = PROGRAMS[case]
    for said in (text, OPENING + text):  # where the prompt has opened a block already, too
        scope: dict = {}
        exec(extract_code(spoken(said), {"f"}), scope)
        assert scope["f"](1) == 2


NO_PROGRAM = {
    "nothing": "",
    "another name": "```python\ndef g(x):\n    return x + 1\n```",
    "use alone": f"```python\n{USE}```",
    "unfinished thoughts": f"<think>\n```python\n{F}```",
    "thoughts and words": f"<think>```python\n{F}```</think> I do not know.",
    "cut off": "```python\ndef f(x):\n    return (x",
    "words": "The function f(x) = x + 1 is what you need.",
}


@pytest.mark.parametrize("case", NO_PROGRAM)
def test_what_defines_nothing_is_no_program(case):
    code = extract_code(spoken(NO_PROGRAM[case]), {"f"})
    scope: dict = {}
    if parse(code) is not None:
        exec(code.replace("print", "repr").replace("f(1)", "1"), scope)
    assert "f" not in scope


HEAD = 'import math\n\n\ndef f(x):\n    """One more."""\n'
BODY = "    return x + 1\n"
COMPLETIONS = {
    "body": BODY,
    "body in a block": f"```python\n{BODY}```",
    "body, a fence, words": f"{BODY}```\nThis adds one.",
    "body, then output": f"{BODY}```\nOutput:\n```\n2\n```",
    "body without its indentation": "```python\nreturn x + 1\n```",
    "whole": F,
    "whole in a block, then use": f"```python\n{F}```\n```python\n{USE}```",
    "whole with the head": f"```python\n{HEAD}{BODY}```",
    "uses the head": "    return math.floor(x) + 1\n",
    "whole, uses the head": "```python\ndef f(x):\n    return math.floor(x) + 1\n```",
    "after thoughts": f"<think>    return 0\n</think>{BODY}",
}


@pytest.mark.parametrize("case", COMPLETIONS)
@pytest.mark.parametrize("chat", [True, False])
def test_a_head_is_completed(case, chat):
    problem = CodeProblem("p", "", ("assert f(1) == 2",), header=HEAD, completes="f",
                          calls={"f": "f"})  # fmt: skip
    program, given = problem.program(COMPLETIONS[case], chat=chat)
    scope: dict = {}
    exec(program, scope)
    assert scope["f"](1) == 2
    assert program.split("\n")[:given] == HEAD.split("\n")[:given]


RESPONSES = {
    "text": ("x = 1", "x = 1"),
    "block": ("Here:\n```python\nx = 1\n```\nBye", "x = 1\n"),
    "last python block": ("```python\nx = 1\n```\n```python\nx = 2\n```", "x = 2\n"),
    "python before others": ("```python\nx = 1\n```\n```\nx = 2\n```", "x = 1\n"),
    "plain block": ("It is\n```\nx = 1\n```\n", "x = 1\n"),
    "never closed": ("```python\nx = 1\ny", "x = 1\ny"),
    "indented": ("- so:\n  ```python\n  x = 1\n  ```", "x = 1\n"),
    "inline": ("use ```x``` here", "use ```x``` here"),
    "empty": ("", ""),
}


@pytest.mark.parametrize("case", RESPONSES)
def test_without_a_name_to_define_it_is_the_last_block(case):
    response, code = RESPONSES[case]
    assert extract_code(response) == code == extract_code(response, {"missing"})


def test_what_is_no_python_has_no_tree():
    assert parse("x = 1") is not None
    for text in ("def", "'\0'", "x = '\ud800'", "(" * 300, "9" * 5000):
        assert parse(text) is None, text[:20]


@pytest.mark.parametrize(
    "piece",
    ["```\n", "```python\nf\n", "~~~\n```\n", "def f(\n", "f = (\n", "import f\n'\n", "<answer>f",
     "```f\n    f = 1\n", "def f(x):\n    return 1\n", "```\n" + F],
)  # fmt: skip
def test_a_long_response_is_read_in_little_time(piece):
    began = time.process_time()
    extract_code(piece * (100_000 // len(piece)), {"f", "g"})
    assert time.process_time() - began < 3
