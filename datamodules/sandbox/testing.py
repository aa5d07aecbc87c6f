"""The tests' process: it runs the test statements, and asks the answer's process for the rest.

This runs inside the sandbox, with the standard library only.
"""

from datamodules.sandbox.line import Ended
from datamodules.sandbox.proxies import Proxy


def test(job, line, report):
    """Run the job's tests one after the other; ``report(status, text)`` after each."""
    scope, loaded = {"__name__": "tests"}, False
    try:
        line.ask("its program", "load", job["program"])
        _name(job, line, scope)
        loaded = True
        exec(compile(job["setup"], "setup", "exec"), scope)
    except (Exception, Ended) as error:
        own = loaded and not _mentions(job["setup"], job["calls"])
        lacking = line.unsendable or (own and _said(error))
        status, text = ("broken", f"its set-up: {lacking}") if lacking else ("error", _said(error))
        for _ in job["tests"]:
            report(status, text)
        return
    for source in job["tests"]:
        report(*_verdict(source, job, line, scope))


def _name(job, line, scope):
    """Give the tests the answer's names: its functions once, its values as they are now."""
    for name, called in job["calls"].items():
        if not isinstance(line.known.get(called), Proxy):
            line.known[called] = line.named(called)
        scope[name] = line.known[called]


def _verdict(source, job, line, scope):
    line.unjudged = None
    try:
        _name(job, line, scope)
        exec(compile(source, "test", "exec"), scope)
    except AssertionError as error:
        verdict = "failed", str(error)[:300]
    except (Exception, Ended) as error:
        verdict = "error", _said(error)
    else:
        verdict = "passed", ""
    if line.ended:  # a bare ``except`` of the test may have taken that for an exception it wants
        return "error", f"Ended: {line.ended}"
    if line.unsendable:
        return "broken", line.unsendable
    return ("unjudged", line.unjudged) if line.unjudged else verdict


def _mentions(source, names):
    import ast  # takes its time, and is needed where something went wrong alone

    used = {node.id for node in ast.walk(ast.parse(source)) if type(node) is ast.Name}
    return not used.isdisjoint(names)


def _said(error):
    return f"{type(error).__name__}: {error}"[:300]
