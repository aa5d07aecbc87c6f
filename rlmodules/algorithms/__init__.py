"""One file an algorithm, read from top to bottom; what several share lies beside them."""
