"""What run a checkpoint is of, and what may be changed when it goes on."""
