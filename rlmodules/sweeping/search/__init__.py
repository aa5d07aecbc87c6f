"""Search: Optuna proposes settings, jobs try them, rules stop or pause those that lose.

Optuna is asked for one when a job could start. A trial is a setting; its seeds are instances, a job
each, and its value is their mean. Only this folder imports Optuna, and it is imported when a search
begins: the extra is ``rlmodules[sweep]``.

    space.py    what is searched, in Hydra's syntax, as Optuna's distributions
    study.py    the study on disk: opened, compared with what is asked for now, told
    trials.py   a trial and its jobs
    loop.py     starts jobs, reads what they report, tells the study
    rules.py    which trials are stopped, or paused, and when
    ending.py   the best setting, or the front, and the files that say so
    board.py    what is seen of it while it runs
    begin.py    what will be done, from a composed config; and doing it
    sweep.py    all of it from a command line
"""
