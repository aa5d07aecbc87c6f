"""The parts of ``gpu.py``: what is measured on a card, each in a file of its own."""
