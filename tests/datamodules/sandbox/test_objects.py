"""What crosses between an answer and its tests: values, functions, objects, exceptions."""

import re

import pytest

from datamodules.sandbox import Sandbox


@pytest.fixture(scope="module")
def sandbox():
    try:
        return Sandbox("auto", time_limit_s=10)
    except ValueError:
        return Sandbox("unsafe", time_limit_s=10)


def outcomes(sandbox, program, tests, setup="", calls="f"):
    names = {name: name for name in calls.split()}
    return sandbox.run(program, tests, setup=setup, calls=names).outcomes


NODE = (
    "class Node:\n    def __init__(self, v):\n        self.v, self.left, self.kids = v, None, []\n"
    "    def add(self, kid):\n        self.kids.append(kid)\n        return self\n"
)
STACK = """
class Stack:
    def __init__(self):
        self.a = []
    def push(self, x):
        self.a.append(x)
    def pop(self):
        return self.a.pop()
    top = property(lambda self: self.a[-1])
    __len__ = lambda self: len(self.a)
    __iter__ = lambda self: iter(self.a)
    __getitem__ = lambda self, i: self.a[i]
    __setitem__ = lambda self, i, x: self.a.__setitem__(i, x)
    __str__ = lambda self: 'S'
    __enter__ = lambda self: self
    __exit__ = lambda self, *a: False
"""
ERRORS = """
import json
class E(Exception):
    pass
class D(E):
    def __init__(self, a, b):
        super().__init__(a)
def f(k):
    raise k
def g():
    raise D('d', 4)
def h(x):
    return {}['k'] if x is None else json.loads(x)
"""
RIGHT = {
    "a tree built by the set-up": (
        NODE + "def f(n):\n    return 0 if n is None else n.v + f(n.left)",
        ["assert f(root) == 5", "assert root.left.v == 2", "assert root.left.left is None"],
        "root = Node(3)\nroot.left = Node(2)",
        "f Node",
    ),
    "lists of an object, changed by the tests": (
        NODE + "def f(n):\n    return 1 + sum(map(f, n.kids))",
        ["assert f(root) == 3", "root.kids.append(Node(3))\nassert f(root) == 4",
         "assert len(root.kids) == 3"],
        "root = Node(1)\nroot.kids.append(Node(2))\nroot.add(Node(3))",
        "f Node",
    ),
    "an object in use": (
        STACK,
        ["s = Stack()\ns.push(1)\ns.push([2])\nassert len(s) == 2 and s.pop() == [2]",
         "assert list(s) == [1] and s[0] == 1 and str(s) == 'S' and s.top == 1",
         "assert 1 in s and 5 not in s", "with s as t:\n    assert t.top == 1",
         "s[0] = 3\nassert s.top == 3", "assert s and not Stack() and isinstance(s, Stack)",
         "assert type(s).__name__ == Stack.__name__ == 'Stack' and not hasattr(s, 'nope')"],
        "",
        "Stack",
    ),
    "types and functions": (
        "def f(g, *xs):\n    return g(*xs)\ndef g(x, t):\n    return type(x) is t",
        ["assert g(3, int) and g(None, type(None)) and not g(True, int)",
         "assert f(lambda x: x + 1, 3) == 4", "assert f(len, 'ab') == 2",
         "assert f(str.upper, 'ab') == 'AB'", "import math\nassert f(math.sqrt, 4) == 2",
         "from collections import Counter\nassert f(Counter, 'aab').most_common(1) == [('a', 2)]",
         "assert f(g, 1, int)", "seen = []\nf(seen.append, 3)\nassert seen == [3]",
         "assert f(lambda x: f(lambda y: y * 2, x) + 1, 3) == 7",
         "try:\n    f(lambda: 1 / 0)\n    assert False\nexcept ZeroDivisionError:\n    pass",
         "assert f(lambda *a: a, [1], (2,)) == ([1], (2,))"],
        "",
        "f g",
    ),
    "functions that come back": (
        "import functools\ndef f(n):\n    return lambda x: x + n\n"
        "def g(a, b):\n    return lambda x: a(b(x))\n"
        "h = functools.partial(pow, 2)\nk = functools.lru_cache(None)(int)",
        ["assert f(2)(3) == 5", "assert g(lambda x: x + 1, lambda x: x * 2)(3) == 7",
         "assert h(3) == 8 and k('3') == 3"],
        "",
        "f g h k",
    ),
    "iterators of the tests": (
        "def f(xs):\n    return sum(xs)\ndef g(xs):\n    return next(xs)",
        ["assert f(i for i in range(4)) == f(range(4)) == f(map(int, '123')) == 6",
         "it = iter([1, 2])\nassert g(it) == 1 and next(it) == 2", "assert f({1: 2}.keys()) == 1"],
        "",
        "f g",
    ),
    "arguments changed in place": (
        "def f(xs):\n    xs.sort()\ndef g(d):\n    d['a'] = 1\ndef h(xs):\n    xs[0].append(1)\n"
        "def k(*, xs):\n    xs.add(1)",
        ["x = [3, 1]\nassert f(x) is None and x == [1, 3]", "d = {}\ng(d)\nassert d == {'a': 1}",
         "i = []\nh([i])\nassert i == [1]", "s = {2}\nk(xs=s)\nassert s == {1, 2}"],
        "",
        "f g h k",
    ),
    "names that are no functions": (
        "N = [1]\nK = 3\ndef f():\n    global K\n    K += 1\n    N.append(2)",
        ["assert N == [1] and K == 3\nf()", "assert N == [1, 2] and K == 4"],
        "",
        "f N K",
    ),
    "what a call prints": (
        "def f():\n    print('hi')",
        ["import io, contextlib\nwith contextlib.redirect_stdout(io.StringIO()) as out:\n    f()\n"
         "assert out.getvalue() == 'hi\\n'"],
        "",
        "f",
    ),
    "a named tuple": (
        "import collections\nP = collections.namedtuple('P', 'x y')\n"
        "def f():\n    return P(1, 2)\ndef g(p):\n    return p.x",
        ["assert f().x == 1 and f() == (1, 2)", "assert g(f()) == 1 and P(1, 2) == (1, 2)"],
        "",
        "f g P",
    ),
    "members of enumerations": (
        "import enum\nclass C(enum.Enum):\n    A = 1\nclass S(str, enum.Enum):\n    A = 'x'\n"
        "class I(enum.IntEnum):\n    A = 4\ndef f():\n    return C.A",
        ["assert f().value == 1 and f().name == 'A'", "assert S.A == 'x' and I.A == 4"],
        "",
        "f C S I",
    ),
    "exceptions": (
        ERRORS,
        ["try:\n    g()\n    assert False\nexcept E as e:\n    assert str(e) == 'd'",
         "try:\n    h(None)\nexcept KeyError as e:\n    assert str(e) == \"'k'\"",
         "try:\n    f(ValueError)\nexcept ValueError:\n    pass",
         "import json\ntry:\n    h('{')\n    assert 0\nexcept json.JSONDecodeError:\n    pass",
         "assert issubclass(D, E) and issubclass(E, Exception)"],
        "",
        "f g h E D",
    ),
    "deep recursion": (
        "import sys\nsys.setrecursionlimit(10**5)\ndef f(n):\n    return n and 1 + f(n - 1)",
        ["assert f(5000) == 5000"],
        "",
        "f",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", RIGHT)
def test_a_right_answer_passes_as_it_does_in_one_process(sandbox, case):
    program, tests, setup, calls = RIGHT[case]
    found = outcomes(sandbox, program, tests, setup, calls)
    assert [o.status for o in found] == ["passed"] * len(tests), found
    scope: dict = {}
    exec("\n".join([program, setup, *tests]), scope)  # the tests are true


VALUES = """
range(3) == range(3)
list(range(3)) == [0, 1, 2]
list(zip([1], [2])) == [(1, 2)]
{1: 2}.keys() == {1}
list({1: 2}.values()) == [2]
list({1: [2]}.items()) == [(1, [2])]
list((i for i in range(3))) == [0, 1, 2]
next(iter([5])) == 5
sorted(map(str, [2, 1])) == ['1', '2']
date(2020, 1, 1).year == 2020
str(date(2020, 1, 1)) == '2020-01-01'
date(2020, 1, 1) == date(2020, 1, 1)
datetime(2020, 1, 1, 2, 3, 4, 5) == datetime(2020, 1, 1, 2, 3, 4, 5)
datetime(2020, 1, 1, tzinfo=timezone.utc) == datetime(2020, 1, 1, tzinfo=timezone.utc)
time(1, 2) == time(1, 2)
timedelta(1) == timedelta(1)
UUID(int=5) == UUID(int=5)
deque([1, 2], 3) == deque([1, 2])
Decimal('3.0') == 3
Fraction(1, 2) == 0.5
OrderedDict(a=1) == OrderedDict(a=1)
defaultdict(int, a=1)['b'] == 0
Counter('aab').most_common(1) == [('a', 2)]
bytearray(b'x') == b'x'
array('i', [1]) == array('i', [1])
memoryview(b'ab')[0] == 97
int is int
type(None) is type(None)
... is ...
slice(1, 2) == slice(1, 2)
' '.join(iter('ab')) == 'a b'
re.match('a(b)', 'ab').group(1) == 'b'
re.match('a(b)', 'ab')[1] == 'b'
list(reversed([1, 2])) == [2, 1]
(lambda x: x + 1)(2) == 3
"""
LIBRARY = (
    "import re\nfrom array import array\nfrom collections import *\nfrom datetime import *\n"
    "from decimal import Decimal\nfrom fractions import Fraction\nfrom uuid import UUID\n"
)


def test_values_of_the_standard_library_cross_over(sandbox):
    """The left side of each is the answer's, made there; the right side is the test's."""
    tests, wrong = [], []
    for claim in VALUES.strip().splitlines():
        left, sign, right = re.split(r" (==|is) ", claim, maxsplit=1)
        made = re.fullmatch(r"(list|sorted|str|next|' '\.join)\((.*)\)", left)
        value = f"{made[1]}(f({made[2]!r}))" if made else f"f({left!r})"
        tests.append(f"assert {value} {sign} {right}")
        wrong.append(f"assert f('0') {sign} {right}")
    found = outcomes(sandbox, LIBRARY + "def f(x):\n    return eval(x)", tests, LIBRARY)
    assert {t: o for t, o in zip(tests, found, strict=True) if o.status != "passed"} == {}
    found = outcomes(sandbox, "def f(x):\n    return 'no'", wrong, LIBRARY)
    assert all(o.status == "failed" for o in found) and len(found) >= 35


OWN = (
    "class P:\n    def __init__(self, x):\n        self.x = x\n"
    "    __eq__ = __lt__ = __ge__ = __contains__ = lambda self, other: True\n"
    "    __ne__ = lambda self, other: True\n    __hash__ = lambda self: 1\n"
    "    __add__ = __sub__ = __rsub__ = lambda self, other: P(3)\n"
    "    __abs__ = __round__ = lambda self, *a: 0.0\n"
    "class Plain:\n    pass\ndef f():\n    return P(1)\ndef g():\n    return Plain()"
)


@pytest.mark.parametrize(
    "claim",
    ["f() == P(1)", "f() == 3", "f() != 3", "f() in [4]", "4 in f()", "f() < 4", "4 <= f()",
     "P(1) + P(2) == P(3)", "abs(f() - 3) < 1", "round(f()) == 0", "len({f(), f()}) == 1",
     "{f(): 1}[f()] == 1", "g() != g()", "not g() == g()"],
)  # fmt: skip
def test_what_the_answer_itself_would_decide_is_never_passed(sandbox, claim):
    [outcome] = outcomes(sandbox, OWN, [f"assert {claim}"], calls="f g P Plain")
    assert outcome.status == "unjudged" and "the answer's own class" in outcome.text


def test_an_object_without_operators_equals_no_data(sandbox):
    tests = ["assert g() == 3", "assert g() != 3", "x = g()\nassert x == x and x is x"]
    found = outcomes(sandbox, OWN, tests, calls="g")
    assert [o.status for o in found] == ["failed", "passed", "passed"]


BAD_SETUPS = {
    "raises by itself": ("1 / 0", "its set-up: ZeroDivisionError"),
    "hands over its own object": ("class Own:\n    pass\nf(Own())", "its set-up: f is given Own"),
}


@pytest.mark.parametrize("case", BAD_SETUPS)
def test_a_set_up_that_cannot_be_run_is_no_fault_of_the_answer(sandbox, case):
    setup, message = BAD_SETUPS[case]
    with pytest.raises(ValueError, match=message):
        outcomes(sandbox, "def f(*x):\n    return 2", ["assert f(1) == 2"], setup)


@pytest.mark.parametrize(
    "program", ["", "Node = 3", "class Node:\n    pass", "Node = lambda v: v", "def Node(v): 1 / 0"]
)
def test_a_set_up_that_the_answer_fails_is_the_answers_fault(sandbox, program):
    setup = "root = Node(1)\nroot.left = Node(2)"
    program += "\ndef f(n):\n    return 2"
    [outcome] = outcomes(sandbox, program, ["assert f(root) == 2"], setup, "f Node")
    assert outcome.status == "error"


def test_what_a_test_expects_is_never_sent_to_the_answer(sandbox):
    """Whatever the answer's class can do, its process sees the arguments of calls alone."""
    spy = (
        "import gc\nclass Spy:\n    heard = []\n    def __getattr__(self, name):\n"
        "        if name.startswith('__'):\n            raise AttributeError(name)\n"
        "        return self\n"
        + "".join(
            f"    def __{n}__(self, *a):\n        Spy.heard += a\n        return True\n"
            for n in ["eq", "ne", "lt", "gt", "le", "ge", "add", "sub", "rsub", "contains", "mod"]
        )
        + "def f(*a):\n    return Spy()\ndef heard():\n    return [repr(x) for x in Spy.heard] + ["
        "repr(x) for x in gc.get_objects()"
        " if type(x) in (list, dict) and 'expec' + 'ted' in str(x)]"
    )
    told = ["f() == 'expected'", "'expected' == f()", "f() < 'expected'", "'expected' in f()",
            "f() + 'expected'", "f().x.y == 'expected'", "f() % 'expected'"]  # fmt: skip
    tests = [f"try:\n    {what}\nexcept TypeError:\n    pass" for what in told]
    tests += ["assert heard() == []"]
    *_, last = outcomes(sandbox, spy, tests, calls="f heard")
    assert last.status == "passed", last
