"""GRPO's losses and their gradients, for tests."""

from torch import tensor

from rlmodules.functional import grpo_loss


def batch_of(logprobs, old, advantages, mask):
    """Keyword arguments of a loss; advantages are one number an episode, as GRPO's are."""
    logprobs = tensor(logprobs)
    return {
        "logprobs_BA": logprobs,
        "old_logprobs_BA": tensor(old),
        "advantages_BA": tensor(advantages)[:, None].expand_as(logprobs),
        "mask_BA": tensor(mask).bool(),
    }


def loss_and_gradient(batch, loss_type="dapo", *, num_actions=1.0, max_new_tokens=6, **options):
    """(loss, its gradient by log-probabilities, metrics); cispo's largest ratio is 5 by default."""
    if loss_type == "cispo":
        options.setdefault("epsilon_high", 5.0)
    level = options.pop("level", "token")
    leaf = batch["logprobs_BA"].clone().requires_grad_()
    loss, metrics = grpo_loss(
        **{**batch, "logprobs_BA": leaf},
        loss_type=loss_type,
        importance_sampling_level=level,
        num_actions=num_actions,
        max_new_tokens=max_new_tokens,
        **options,
    )
    loss.backward()
    return loss.detach(), leaf.grad, metrics
