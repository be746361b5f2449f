"""Recurrent layers whose weights are kept in int8 or bfloat16, for inference.

The kernels are the CPU's; on other devices the same comes from torch's own operations, slowly.

`quantize` replaces the recurrent modules of a model; what it puts there are `QuantizedLayer` and
`QuantizedCell`. docs/quantization.md has the equations, what they cost and when to use which.

Weights are packed once, when a module is quantized, in the order in which a step reads them. The
order (`fastrnn._layer.panels`) is the same on every machine, so that files can be moved.
"""

import copy
import logging
import warnings
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.fx import Proxy

from fastrnn._layer import ops, panels
from fastrnn._layer.cells import CELLS, cell_of
from fastrnn._layer.transforms import in_forward_mode
from fastrnn._stack import autocast, checks, packing, stack
from fastrnn._stack.tracing import recorded
from fastrnn.conversion import TO_OURS, TO_TORCH, excluded, is_parametrized

__all__ = ["QuantizedCell", "QuantizedLayer", "quantize"]

# An int32 holds this many products of int8.
_MOST_TERMS = 2**17


def quantize(
    model: nn.Module,
    dtype: torch.dtype = torch.int8,
    *,
    inplace: bool | None = None,
    exclude: str | Iterable[str] = (),
) -> nn.Module:
    """A model for inference whose recurrent layers and cells have int8 or bf16 weights.

    ::

        small = fastrnn.quantize(model, inplace=False)         # or dtype=torch.bfloat16
        with torch.inference_mode():
            output, (h, c) = small(x)

    Every LSTM, GRU, RNN, LSTMCell, GRUCell and RNNCell of torch.nn or fastrnn becomes a
    `QuantizedLayer` or `QuantizedCell`, called with the same arguments; everything else in the
    model stays as it is. What is returned is in eval mode.

    * int8: a weight is rounded to integers from -127 to 127 times one scale a row, and so is, at
      every step, each row of the input and of h: sums of products are exact, everything else is
      float32 (Jacob et al., "Quantization and Training of Neural Networks for Efficient
      Integer-Arithmetic-Only Inference", arXiv:1712.05877, without zero points).
    * bfloat16: weights are rounded to bfloat16; inputs, states and sums are float32.

    What was done to each is logged, at level INFO of the logger "fastrnn". Left alone, with a
    warning: modules of classes derived from torch.nn's or fastrnn's, and modules whose `forward`
    was replaced on the instance. Weights are taken as they stand: parametrizations are applied for
    good; what the older weight_norm or spectral_norm recompute before each call is what it was at
    the last one. Forward hooks stay, but for those of torch.nn.utils. A module that is in several
    places stays one module.

    Args:
        model: any module. A recurrent layer itself is one too: then the new layer is
            returned, also where `inplace`.
        dtype: torch.int8 (or torch.qint8, which means the same here) or torch.bfloat16.
        inplace: whether to change `model` itself, as `convert` and `restore` do, or a copy. Said by
            nobody, it is a copy, with a FutureWarning: True will be the default, so that all three
            are called alike.
        exclude: names of modules, as `model.named_modules()` has them, that are left alone with all
            that is in them.

    Returns:
        The quantized model. Its modules take and return float32, whatever the model's
        dtype was and whatever `.to()` or autocast say (the rest of a float64 model stays float64:
        convert it first); they have no parameters, can be copied, pickled, saved as a state_dict
        and loaded into another model quantized to the same dtype, and have no backward.

    Raises:
        TypeError: model is not a module. ValueError: another dtype; a weight that is on the
        meta device or has a NaN or an infinity in it; more than 131,072 features; a name in
        exclude that there is not.
    """
    exclude = (exclude,) if isinstance(exclude, str) else tuple(exclude)
    excluded("quantize", model, exclude)  # raises before anything is copied
    if dtype is torch.qint8:
        dtype = torch.int8
    if not isinstance(dtype, torch.dtype) or dtype not in panels.GROUP:
        raise ValueError(f"quantize: expected dtype torch.int8 or torch.bfloat16, got {dtype}")
    if inplace is None:
        warnings.warn(
            "quantize: expected inplace to be given: today it copies the model, later it will "
            "change it, as convert and restore do; inplace=False keeps what it does today",
            FutureWarning,
            stacklevel=2,
        )
    if not inplace:
        model = copy.deepcopy(model)
    model.eval()
    left = excluded("quantize", model, exclude)
    new = {}  # by id, of a module that is kept alive by `old`
    old = []
    found = False
    for name, module in list(model.named_modules()):
        reason, label = _reason_to_leave(module), name or "the model"
        found = found or reason is not _NOT_RECURRENT
        if reason is _NOT_RECURRENT:
            continue
        if id(module) in left:
            _LOGGER.info("quantize: %s left alone: it was excluded", label)
            continue
        if reason:
            warnings.warn(f"quantize: {label} left alone: {reason}", stacklevel=2)
            continue
        make = QuantizedCell if isinstance(module, nn.RNNCellBase) else QuantizedLayer
        try:
            new[id(module)] = make(module, dtype)
        except ValueError as error:
            raise ValueError(f"quantize: {label}: {error}") from None
        old.append(module)
        _LOGGER.info("quantize: %s: %s, weights in %s", label, type(module).__name__, dtype)
    if not found:
        warnings.warn("quantize: the model has no recurrent layer or cell", stacklevel=2)
    if id(model) in new:
        return new[id(model)]
    for module in list(model.modules()):
        for name, child in module._modules.items():
            if id(child) in new:
                module._modules[name] = new[id(child)]
    return model


_LOGGER = logging.getLogger("fastrnn")
_NOT_RECURRENT = "no recurrent module"


def _reason_to_leave(module):
    """Why a module is not quantized, None where it is."""
    cls = type(module)
    base = cls.__bases__[0] if is_parametrized(cls) else cls
    if base in TO_OURS or base in TO_TORCH:
        return "its forward was replaced on the instance" if "forward" in vars(module) else None
    if isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
        return f"{cls.__qualname__} is a subclass of torch.nn's or fastrnn's"
    return _NOT_RECURRENT


class _Refuse(torch.autograd.Function):
    """A call whose arguments require gradients: it computes, but nothing goes back through it."""

    generate_vmap_rule = True

    @staticmethod
    def forward(cell, input, batch_sizes, params, hidden_size, proj_size, bidirectional, save, *hx):
        return tuple(
            ops.quantized_forward(
                cell, input, batch_sizes, hx, params, hidden_size, proj_size, bidirectional, save
            )
        )

    @staticmethod
    def setup_context(ctx, inputs, output):
        """Nothing is saved."""

    @staticmethod
    def backward(ctx, *_):
        raise RuntimeError(
            "quantize: a quantized layer has no backward: train the model before it is quantized, "
            "and compute under torch.no_grad() or torch.inference_mode()"
        )


def _has_tangent(*tensors):
    return in_forward_mode() and any(
        t is not None and forward_ad.unpack_dual(t).tangent is not None for t in tensors
    )


class _Quantized(nn.Module):
    """What layers and cells share: packed weights as buffers, and the call of the operator."""

    def __init__(self, module, cell, dtype):
        super().__init__()
        self.cell, self.dtype = cell, dtype
        self.input_size, self.hidden_size = module.input_size, module.hidden_size
        self.bias = module.bias
        self.proj_size = getattr(module, "proj_size", 0)
        for hooks in ("_forward_pre_hooks", "_forward_hooks"):
            for hook in getattr(module, hooks).values():
                if not type(hook).__module__.startswith("torch.nn.utils"):
                    pre = hooks == "_forward_pre_hooks"
                    (self.register_forward_pre_hook if pre else self.register_forward_hook)(hook)
        self.eval()

    def _take(self, module, suffix, prefixes):
        """Packs what one direction of one layer has."""
        gates = CELLS[self.cell].products
        tensors = []
        for prefix in prefixes:
            name = prefix + suffix
            weight = getattr(module, name).detach()
            if weight.is_meta:
                raise ValueError(f"expected {name} with values, got {weight.device}")
            if weight.is_complex() or weight.numel() == 0:
                raise ValueError(
                    f"expected {name} to be real and not empty, "
                    f"got {weight.dtype} of shape {tuple(weight.shape)}"
                )
            weight = weight.to(torch.float32)
            if not weight.isfinite().all():
                raise ValueError(f"expected {name} to be finite, got a NaN or an infinity in it")
            tensors.append(weight)
            if weight.dim() == 1:
                continue
            if weight.shape[1] > _MOST_TERMS:
                raise ValueError(
                    f"expected at most {_MOST_TERMS:,} columns in {name}, got {weight.shape[1]:,}"
                )
            parts = panels.pack(weight, 1 if prefix == "weight_hr" else gates, self.dtype)
            for kind, part in zip(("", "_scales", "_sums"), parts):
                self.register_buffer(name + kind, part)
        if self.bias:
            b_ih, b_hh = tensors[2:4]
        else:
            b_ih = b_hh = tensors[0].new_zeros(gates * self.hidden_size)
        both, h = b_ih + b_hh, self.hidden_size
        if CELLS[self.cell].apart:  # the reset gate scales b_hn, so that stays apart
            both = torch.cat([both[: 2 * h], b_ih[2 * h :], b_hh[2 * h :]])
        self.register_buffer("biases" + suffix, panels.arrange(both, CELLS[self.cell].columns))

    def _names(self, suffix):
        """Buffers of one direction, in the order in which the operator takes them."""
        kinds = ("", "_scales", "_sums") if self.dtype is torch.int8 else ("",)
        names = [p + suffix + k for p in ("weight_ih", "weight_hh") for k in kinds]
        names.append("biases" + suffix)
        if self.proj_size:
            names += ["weight_hr" + suffix + kind for kind in kinds]
        return names

    def _layer(self, input, batch_sizes, states, params, bidirectional, keep=False):
        """One layer, as `fastrnn._stack.stack` describes a run; params: names of buffers."""
        if _has_tangent(input, *states):
            raise RuntimeError(f"{self._get_name()}: a quantized layer has no forward mode")
        params = [self._buffers[name] for name in params]
        sizes = params, self.hidden_size, self.proj_size, bidirectional, keep
        if torch.is_grad_enabled() and any(
            t is not None and t.requires_grad for t in (input, *states)
        ):
            results = _Refuse.apply(self.cell, input, batch_sizes, *sizes, *states)
        else:
            results = ops.quantized_forward(self.cell, input, batch_sizes, states, *sizes)
        if not keep:
            return results
        cell = CELLS[self.cell]
        finals, saved = results[: 1 + cell.states], results[1 + cell.states :]
        cells = saved[-1] if cell.has_c else None
        return *finals, cells, saved[0] if cell.saves_gates else None

    def _check_call(self, input):
        """The input in float32, or what is wrong with the call."""
        if self.training:
            raise RuntimeError(
                f"{self._get_name()}: quantized layers are for inference: call eval() first"
            )
        if input.dtype is not torch.float32:
            on = torch.is_autocast_enabled(autocast.device_of(input))
            if on and input.dtype in (torch.bfloat16, torch.float16):
                return input.float()  # of a product under autocast
            raise ValueError(
                f"{self._get_name()}: expected input of dtype torch.float32, got {input.dtype}"
            )
        device = next(iter(self._buffers.values())).device
        if input.device != device and not input.is_meta:
            raise RuntimeError(
                f"{self._get_name()}: expected input on {device}, where the layer is, "
                f"got {input.device}"
            )
        return input

    def _check_states(self, states):
        for state in states:
            if state is not None and state.dtype is not torch.float32:
                raise RuntimeError(
                    f"{self._get_name()}: expected hx of dtype torch.float32, got {state.dtype}"
                )

    def _sizes(self):
        return self.input_size, self.hidden_size, self.proj_size

    def get_extra_state(self):
        """The sizes, which panels hide: they are filled up to whole vectors."""
        return torch.tensor(self._sizes())

    def set_extra_state(self, state):
        """Raises where a state_dict is of another layer."""
        if tuple(state.tolist()) != self._sizes():
            raise RuntimeError(
                f"{self._get_name()}: expected a state_dict of input_size, hidden_size, proj_size "
                f"= {self._sizes()}, got one of {tuple(state.tolist())}"
            )

    def _states(self, hx, dim, indexed):
        """`(h,)` or `(h, c)`, None where zeros."""
        if CELLS[self.cell].has_c:
            return checks.lstm_states(hx, dim, indexed)
        if hx is not None and not isinstance(hx, Tensor):
            raise AttributeError(
                f"{self._get_name()}: expected hx to be a Tensor, got {checks.what(hx)}"
            )
        return (hx,)

    def _apply(self, fn, recurse=True):
        # .to(), .half() and the like move the buffers, but packed weights stay what they are.
        def move(tensor):
            moved = fn(tensor)
            return moved if moved.dtype is tensor.dtype else tensor.to(moved.device)

        return super()._apply(move, recurse)

    def _get_name(self):
        return self._name

    def extra_repr(self):
        options = [f"{self.input_size}, {self.hidden_size}"]
        for name, default in self._options:
            if getattr(self, name, default) != default:
                options.append(f"{name}={getattr(self, name)}")
        return ", ".join([*options, f"dtype={self.dtype}"])


class QuantizedLayer(_Quantized):
    """An LSTM, GRU or RNN whose weights are int8 or bfloat16; made by `quantize`.

    Call: as the layer it was made of (see `fastrnn.LSTM`), with float32 input and states.

    Attributes: `input_size`, `hidden_size`, `num_layers`, `bias`, `batch_first`, `dropout` (which
        inference ignores), `bidirectional`, `proj_size` and `mode` as that layer's; `dtype` of the
        weights, which are buffers.

    Raises what that layer raises; besides RuntimeError in training mode, for input on another
    device than the layer's, and in backward; ValueError for input that is not float32.
    """

    _options = (
        ("num_layers", 1),
        ("bias", True),
        ("batch_first", False),
        ("dropout", 0.0),
        ("bidirectional", False),
        ("proj_size", 0),
    )

    def __init__(self, layer: nn.RNNBase, dtype: torch.dtype) -> None:
        super().__init__(layer, layer.mode.lower(), dtype)
        self.mode, self._name = layer.mode, f"Quantized{layer.mode.partition('_')[0]}"
        self.num_layers, self.bidirectional = layer.num_layers, layer.bidirectional
        self.batch_first, self.dropout = layer.batch_first, layer.dropout
        self._layers = []  # names of the buffers of each layer
        stems = ["weight_ih", "weight_hh"] + ["bias_ih", "bias_hh"] * self.bias
        stems += ["weight_hr"] * bool(self.proj_size)
        for index in range(self.num_layers):
            names = []
            for suffix in (f"_l{index}", f"_l{index}_reverse")[: 1 + self.bidirectional]:
                self._take(layer, suffix, stems)
                names += self._names(suffix)
            self._layers.append(names)

    def flatten_parameters(self) -> None:
        """Nothing: weights are packed. Models call it before their layers."""

    def permute_hidden(self, hx, permutation: Tensor | None):
        """States with their batch rearranged, as of the layer it was made of."""
        if permutation is None:
            return hx
        if CELLS[self.cell].has_c:
            return hx[0].index_select(1, permutation), hx[1].index_select(1, permutation)
        return hx.index_select(1, permutation)

    forward = packing.forward

    def _run(self, input, hx, batch_first, batch_sizes, options):
        name = self._get_name()
        if not isinstance(input, Tensor):
            raise AttributeError(
                f"{name}: expected input to be a Tensor or a PackedSequence, "
                f"got {checks.what(input)}"
            )
        input = self._check_call(input)
        states = self._states(hx, 3, batch_sizes is not None)
        call = stack.Call(
            self.num_layers,
            self.bias,
            self.bidirectional,
            None,
            batch_first,
            batch_sizes,
            None,
            options,
        )
        checks.check_input(name, input, states, torch.float32, self.input_size, call)
        if hx is not None:
            sizes = self.proj_size or self.hidden_size, self.hidden_size
            checks.check_states(name, input, states, sizes, call)
            self._check_states(states)
        results = stack.apply(stack.layers, self._layers, self._layer, input, states, call, False)
        return stack.results(*results)


class QuantizedCell(_Quantized):
    """An LSTMCell, GRUCell or RNNCell whose weights are int8 or bfloat16; made by `quantize`.

    Call: as the cell it was made of (see `fastrnn.LSTMCell`), with float32 input and states.

    Attributes: `input_size`, `hidden_size`, `bias` as that cell's; `dtype` of the weights, which
        are buffers.

    Raises what that cell raises, and what `QuantizedLayer` raises besides.
    """

    _options = (("bias", True),)

    def __init__(self, cell: nn.RNNCellBase, dtype: torch.dtype) -> None:
        if cell.hidden_size == 0:
            raise ValueError("expected weight_hh to be real and not empty, got hidden_size = 0")
        try:
            kind = cell_of(cell)
        except KeyError:
            raise ValueError(
                f"expected nonlinearity 'tanh' or 'relu', got {cell.nonlinearity!r}"
            ) from None
        super().__init__(cell, kind.name, dtype)
        self._name = f"Quantized{kind.function.upper()}Cell"
        self._take(cell, "", ["weight_ih", "weight_hh"] + ["bias_ih", "bias_hh"] * self.bias)
        self._all = self._names("")

    def forward(self, input: Tensor, hx=None):
        """Runs the step; see the class."""
        if isinstance(input, Proxy):
            return recorded(self, input, hx)
        if not isinstance(input, Tensor):
            raise AttributeError(
                f"{self._get_name()}: expected input to be a Tensor, got {checks.what(input)}"
            )
        dim = input.dim()
        if dim != 1 and dim != 2:
            raise ValueError(f"{self._get_name()}: expected input of 1 or 2 dimensions, got {dim}")
        input = self._check_call(input)
        states = self._states(hx, 2, dim == 1)
        batched = dim == 2
        if input.shape[-1] != self.input_size:
            raise RuntimeError(
                f"{self._get_name()}: expected input.size(-1) to be input_size = "
                f"{self.input_size}, got shape {tuple(input.shape)}"
            )
        self._check_states(states)
        if states[0] is not None:
            expected = *input.shape[:-1], self.hidden_size
            for what, state in zip(("h", "c"), states):
                if state.shape != expected:
                    raise RuntimeError(
                        f"{self._get_name()}: expected {what} of hx of shape {expected}, "
                        f"got {tuple(state.shape)}"
                    )
            states = tuple(s.unsqueeze(0) if batched else s[None, None] for s in states)
        rows = input.unsqueeze(0) if batched else input[None, None]
        _, *finals = self._layer(rows, None, states, self._all, False)
        finals = tuple(s.squeeze(0) if batched else s[0, 0] for s in finals)
        return finals if CELLS[self.cell].has_c else finals[0]
