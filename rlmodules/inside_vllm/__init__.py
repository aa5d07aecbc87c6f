"""What runs in vLLM's own process, in its environment: nothing here imports anything of ours."""
