"""What steps the weights: the optimizer of every algorithm, and the course of its learning rate."""
