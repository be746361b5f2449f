"""What transforms are active, and how a Function is called among them.

Private names of torch.func stand here and in `fastrnn._layer.batching` alone.
"""

import functools
import inspect

import torch
from torch._functorch import eager_transforms
from torch._functorch.utils import unwrap_dead_wrappers
from torch.autograd import Function, forward_ad

transforms_active = torch._C._are_functorch_transforms_active  # torch.func's, not the compiler's


def batched_levels():
    """How many levels of torch.autograd's own vmap (is_grads_batched, vectorize) are around."""
    if torch.compiler.is_compiling():
        return 0
    level = torch._C._vmapmode_increment_nesting() - 1
    torch._C._vmapmode_decrement_nesting()
    return level


def signed(function):
    """Keeps the signature at hand: Function.apply asks for it at every call, 30 us if computed."""
    function.__signature__ = inspect.signature(function)
    return function


def apply(function, *arguments):
    """`function.apply`. Where nothing transforms it, without what Function adds there: binding all
    arguments to a signature takes longer than everything else about a call."""
    if torch.compiler.is_compiling() or transforms_active():
        return function.apply(*arguments)
    return super(Function, function).apply(*unwrap_dead_wrappers(arguments))


def store(ctx, *tensors, forward=True):
    """Keeps tensors, some of them None, for backward and, if forward, for jvp: see `stored`.

    None stays outside: tools that draw graphs take all that a node saved for tensors.
    """
    ctx.are_there = tuple([tensor is not None for tensor in tensors])
    present = [tensor for tensor in tensors if tensor is not None]
    ctx.save_for_backward(*present)
    if forward:
        ctx.save_for_forward(*present)


def stored(ctx):
    """What `store` kept. One access of a call: under activation checkpointing a second raises."""
    present = iter(ctx.saved_tensors)
    return tuple([next(present) if there else None for there in ctx.are_there])


def requires_grad(*tensors):
    """Whether somebody, at any level of torch.func, wants gradients through these."""
    if not torch.is_grad_enabled():
        return False
    for tensor in tensors:
        if tensor is not None and tensor.requires_grad:
            return True
    return transforms_active() and any(map(_requires_grad, tensors))


def _requires_grad(tensor):
    """A tensor that vmap maps does not tell of the levels around it."""
    while isinstance(tensor, torch.Tensor):
        if tensor.requires_grad:
            return True
        if not torch._C._functorch.is_functorch_wrapped_tensor(tensor):
            return False
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return False


def in_forward_mode():
    return getattr(forward_ad, "_current_level", -1) >= 0


def in_nested_forward_mode():
    """Whether torch.func.jvp or jacfwd is inside another one.

    torch gives zeros there for the derivative of what the jvp of a Function returns
    (findings/torch-nested-jvp-of-function-is-zero.sh): no Function may be called.
    """
    return eager_transforms.JVP_NESTING > 1


def no_autocast(function):
    """Operations on what a layer saved stay in its dtype."""

    @signed
    @functools.wraps(function)
    def wrapper(*arguments):
        with torch.autocast("cpu", enabled=False):
            return function(*arguments)

    return wrapper
