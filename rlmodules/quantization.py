"""What quantized weights are called and what they take, without torch, which is slow to import."""

QUANTIZATIONS = ("none", "8bit", "4bit")
"""4bit: NF4 in blocks of 64, whose scales are quantized again (QLoRA, Dettmers et al. 2023,
arXiv:2305.14314). 8bit: int8, a scale a row."""
BLOCK, SUPERBLOCK = 64, 256
"""Weights that share a scale of 4bit, and scales that share a scale of theirs."""
TABLES = 4 * (16 + 256 + 1)
"""Bytes of the numbers that codes stand for, and of an offset, which each layer of 4bit holds."""


def bytes_of_linear(out_features: int, in_features: int, quantization: str, wide: float) -> float:
    """Bytes that the weight of a linear layer takes; biases, embeddings, the vocabulary projection
    and the fused experts of a layer are never quantized.

    Args:
        quantization: ``model.quantization``.
        wide: bytes of a number of ``model.dtype``.
    """
    weights = out_features * in_features
    if quantization == "4bit":
        blocks = -(-weights // BLOCK)
        return -(-weights // 2) + blocks + 4 * -(-blocks // SUPERBLOCK) + TABLES
    if quantization == "8bit":
        return weights + 4 * out_features
    return weights * wide
