"""How much memory a run takes, said before anything is loaded."""
