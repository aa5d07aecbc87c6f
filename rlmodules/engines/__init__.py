"""Samplers that are not ours: engines that run in processes of their own (``sampler=vllm``)."""
