"""Shared fixtures: everything runs on the random tiny model, on the CPU, without a network."""

import os

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the suite compares bit by bit; benchmarks use the GPU
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")

import pytest
import torch

from rlmodules.models.embedded import tiny_model

torch.set_num_threads(1)  # the tensors are tiny: threads would only wait for each other


@pytest.fixture(scope="session")
def tokenizer():
    return tiny_model()[1]


@pytest.fixture
def model():
    return tiny_model()[0]
