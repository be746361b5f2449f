"""Initial weights and biases of recurrent layers; docs/initialisation.md compares them."""

import math

import torch
from torch import nn

from fastrnn._layer.cells import cell_of
from fastrnn.reference import CELLS

__all__ = ["init_"]

_SCHEMES = {
    "orthogonal": nn.init.orthogonal_,
    "xavier_uniform": nn.init.xavier_uniform_,
    "xavier_normal": nn.init.xavier_normal_,
    "kaiming_uniform": nn.init.kaiming_uniform_,
    "kaiming_normal": nn.init.kaiming_normal_,
}


def init_(
    module: nn.Module,
    *,
    weight_ih: str | None = "xavier_uniform",
    weight_hh: str | None = "orthogonal",
    weight_hr: str | None = "xavier_uniform",
    bias: str | None = "zeros",
    forget_bias: float | None = None,
    chrono: int | None = None,
) -> nn.Module:
    """Gives recurrent layers and cells new weights and biases, in place.

    ::

        fastrnn.init_(model)                        # every recurrent layer and cell in it
        fastrnn.init_(lstm, chrono=1000)            # dependencies of up to 1,000 steps

    Of all layers and directions; of torch.nn's modules too. Each gate's block of a weight is drawn
    by itself, `[H, I]` or `[H, H]`, as if it were a layer of its own, with torch.nn.init and so
    with torch's generator: the same after the same `torch.manual_seed`.

    Args:
        module: a recurrent layer or cell, or a model with some in it; nothing else in it changes.
        weight_ih, weight_hh, weight_hr: how to draw the weights of the input, of h, and of an
            LSTM's projection; None leaves them. "orthogonal" (Saxe et al., arXiv:1312.6120),
            "xavier_uniform" or "xavier_normal" (Glorot and Bengio 2010), "kaiming_uniform" or
            "kaiming_normal" (He et al., arXiv:1502.01852; the gain is that of ReLU for an RNN with
            ReLU, else 1).
        bias: "zeros", or None to leave biases as they are, but for those of the gates below.
        forget_bias: bias of an LSTM's forget gate, and of a GRU's gate z, which keeps the state
            where it is large (Gers et al. 2000; Jozefowicz et al. 2015). torch.nn has two biases,
            whose sum counts: `bias_ih` is set to this and `bias_hh` to 0. An RNN has no such gate.
            Default: 1.0, or what chrono gives; modules without biases are left.
        chrono: the longest dependency T_max, in steps. The bias of the gate that keeps the state
            becomes log(u), u uniform in [1, T_max - 1], one a unit, so that units forget at
            different rates; an LSTM's input gate gets its negative. The "chrono initialisation" of
            Tallec and Ollivier, "Can recurrent neural networks warp time?", arXiv:1804.11188.

    Returns:
        The module.

    Raises:
        TypeError: module is not a torch.nn.Module, chrono or forget_bias is no number.
        ValueError: there is no recurrent module in it; an unknown scheme; chrono below 2, or
        together with forget_bias; chrono or forget_bias for a module without biases, chrono for an
        RNN; a weight that is no parameter (as under weight_norm or a parametrization, whose own
        tensors decide).
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"init_: expected a torch.nn.Module, got {type(module).__name__}")
    schemes = {"weight_ih": weight_ih, "weight_hh": weight_hh, "weight_hr": weight_hr}
    for name, scheme in schemes.items():
        if scheme is not None and not (isinstance(scheme, str) and scheme in _SCHEMES):
            known = ", ".join(map(repr, _SCHEMES))
            raise ValueError(f"init_: expected {name} to be None or of {known}, got {scheme!r}")
    if bias not in (None, "zeros"):
        raise ValueError(f"init_: expected bias to be 'zeros' or None, got {bias!r}")
    for name, number in (("forget_bias", forget_bias), ("chrono", chrono)):
        if number is None:
            continue
        if not isinstance(number, int | float):
            raise TypeError(
                f"init_: expected {name} to be None or a number, got {type(number).__name__}"
            )
        if not math.isfinite(number):
            raise ValueError(f"init_: expected {name} to be finite, got {number}")
    if chrono is not None and forget_bias is not None:
        raise ValueError("init_: expected forget_bias or chrono, got both")
    if chrono is not None and not chrono >= 2:
        raise ValueError(f"init_: expected chrono (T_max) of at least 2 steps, got {chrono}")
    found = [m for m in module.modules() if isinstance(m, nn.RNNBase | nn.RNNCellBase)]
    if not found:
        raise ValueError("init_: expected a module with recurrent layers or cells, got none")
    for one in found:  # all of them first: nothing is changed where something is wrong
        _check(one, forget_bias, chrono)
    with torch.no_grad():
        for one in found:
            for suffix in _suffixes(one):
                _set_weights(one, suffix, schemes)
                if one.bias:
                    _set_biases(one, suffix, bias, forget_bias, chrono)
    return module


def _suffixes(module):
    """What follows `weight_ih`, for each layer and direction."""
    if isinstance(module, nn.RNNCellBase):
        return [""]
    ends = ("", "_reverse") if module.bidirectional else ("",)
    return [f"_l{layer}{end}" for layer in range(module.num_layers) for end in ends]


def _check(module, forget_bias, chrono):
    name = type(module).__name__
    for option, value in (("forget_bias", forget_bias), ("chrono", chrono)):
        if value is not None and not module.bias:
            raise ValueError(
                f"init_: expected a module with biases for {option}, got a {name} without"
            )
    if chrono is not None and CELLS[cell_of(module).name].keeping is None:
        raise ValueError(f"init_: expected a module with gates for chrono, got a {name}")
    for suffix in _suffixes(module):
        for stem in ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr"):
            if stem[:4] == "bias" and not module.bias:
                continue
            if stem == "weight_hr" and not getattr(module, "proj_size", 0):
                continue
            if not isinstance(getattr(module, stem + suffix, None), nn.Parameter) or (
                stem + suffix not in module._parameters
            ):
                raise ValueError(f"init_: expected {stem}{suffix} of {name} to be a parameter")


def _set_weights(module, suffix, schemes):
    relu = getattr(module, "nonlinearity", "") == "relu"
    for stem, scheme in schemes.items():
        weight = module._parameters.get(stem + suffix)
        if weight is None or scheme is None:
            continue
        gain = {"nonlinearity": "relu" if relu else "linear"} if scheme[:2] == "ka" else {}
        gates = 1 if stem == "weight_hr" else cell_of(module).products
        for block in weight.chunk(gates):
            # Drawn in float32 at least: a QR decomposition knows no 16 bits.
            drawn = torch.empty_like(block, dtype=torch.promote_types(block.dtype, torch.float32))
            block.copy_(_SCHEMES[scheme](drawn, **gain))


def _set_biases(module, suffix, bias, forget_bias, chrono):
    kind, h = cell_of(module).name, module.hidden_size
    b_ih, b_hh = module._parameters["bias_ih" + suffix], module._parameters["bias_hh" + suffix]
    if bias == "zeros":
        b_ih.zero_()
        b_hh.zero_()
    keeping = CELLS[kind].keeping
    if keeping is None:
        return
    keep = slice(keeping * h, (keeping + 1) * h)
    b_hh[keep] = 0
    if chrono is None:
        b_ih[keep] = 1.0 if forget_bias is None else forget_bias
        return
    drawn = nn.init.uniform_(torch.empty(h, device=b_ih.device), 1.0, float(chrono - 1)).log()
    b_ih[keep] = drawn.to(b_ih.dtype)
    if kind == "lstm":
        b_ih[:h] = -drawn.to(b_ih.dtype)
        b_hh[:h] = 0
