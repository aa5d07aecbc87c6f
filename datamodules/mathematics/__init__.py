"""What a text claims as its answer, and what numbers and formulas it denotes.

Read in this order: ``typography`` (one spelling for all), ``values`` (exact numbers), ``residue``
(what stands around a value and changes it), ``claims`` (which words of a response are its answer),
``labels`` (letters of multiple choice, times, words), ``formulas`` and ``worker`` (the rest, by
computer algebra in processes that can be killed).
"""
