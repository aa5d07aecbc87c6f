"""What some architectures compute otherwise while they write than while a whole text is scored.

Both must be one distribution: the ratio of a policy to itself is 1. And what one of them loses when
it is loaded: a trained model must come back.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rlmodules.models.modes import evaluating


def even_out(body: nn.Module) -> None:
    """Have ``body`` compute a token by itself as it does within a text; once is enough."""
    for module in body.modules():
        if not getattr(module, "evened_out", False):
            _limit_time_steps(module)
            _stay_unscaled(module)


def _limit_time_steps(module: Any) -> None:
    """Mamba-2 limits its time steps in whole texts, and forgets to for a token by itself.

    They are softplus of what ``in_proj`` gives last, plus a bias. softplus is monotone: limits of
    what it is applied to do the same, and the module's own are then always kept.
    """
    low, high = getattr(module, "time_step_limit", None) or (0.0, float("inf"))
    parts = [getattr(module, name, None) for name in ("in_proj", "dt_bias")]
    if None not in parts and (low > 0 or high < float("inf")):
        ends = torch.tensor([low, high], dtype=torch.float64).expm1().log().tolist()
        module.in_proj.register_forward_hook(partial(_limited, module, ends))
        module.evened_out = True


def _limited(mixer: Any, ends: list[float], linear: nn.Module, args: tuple, out: Tensor) -> Tensor:
    bias = mixer.dt_bias.to(out.dtype)
    rest, steps = out.split([out.shape[-1] - len(bias), len(bias)], dim=-1)
    steps = torch.minimum(torch.maximum(steps, ends[0] - bias), ends[1] - bias)
    return torch.cat([rest, steps], dim=-1)


def _stay_unscaled(module: Any) -> None:
    """RWKV divides its weights in evaluation mode: so they would be compared, and saved."""
    if hasattr(module, "layers_are_rescaled"):
        training, module.training = module.training, True
        module._rescale_layers()
        module.training, module._rescale_layers = training, _nothing
        module.evened_out = True


def _nothing() -> None:
    pass


def require_gradients(body: Any) -> None:
    """
    Raises:
        ValueError: no gradient passes through ``body`` in evaluation mode, in which policies are
            trained (Reformer).
    """
    kept: list[Tensor] = []

    def keep(module: nn.Module, args: tuple, embedded: Tensor) -> Tensor:
        kept.append(embedded.detach().requires_grad_())
        return kept[-1].clone()  # some write into it

    embeddings = body.get_input_embeddings()
    ids = torch.tensor([[3, 5, 7]], device=embeddings.weight.device)
    hook = embeddings.register_forward_hook(keep)
    try:
        with evaluating(body), torch.enable_grad():
            total = body(input_ids=ids, use_cache=False)[0].float().sum()
            torch.autograd.grad(total, kept[:1], allow_unused=True)
    except AssertionError as error:
        raise ValueError(
            f"no gradient passes through {type(body).__name__} in evaluation mode, in which it"
            f" would be trained: choose another model ({error})"
        ) from error
    finally:
        hook.remove()


def require_kept(model: Any) -> None:
    """
    Raises:
        ValueError: the embedding of the padding token is trained, being the row of the vocabulary
            projection too, and the class sets it to zero whenever it is loaded (Youtu).
    """
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    weight = embeddings.weight
    if weight is not head.weight or not weight.requires_grad or embeddings.padding_idx is None:
        return
    loaded: Any = nn.Embedding(2, 1, padding_idx=0)
    nn.init.ones_(loaded.weight)
    loaded.weight._is_hf_initialized = True  # how transformers marks what a file gave
    model._init_weights(loaded)
    if not bool(loaded.weight.all()):
        raise ValueError(
            f"{type(model).__name__} sets the embedding of its padding token to zero whenever it is"
            " loaded, so that what is exported would come back as another model: train adapters"
            " (model.lora.r=16)"
        )
