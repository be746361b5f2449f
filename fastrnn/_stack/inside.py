"""What the layers of `fastrnn.variants` have in common: their options, and how a call runs."""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastrnn._layer import autograd, dropout, ops
from fastrnn._layer.cells import cell_of
from fastrnn._layer.inside import Inside
from fastrnn._stack import autocast, checkpoint, checks, plain, stack
from fastrnn._stack.plain import PLAIN
from fastrnn._stack.weights import weights


def _rate(name, option, value):
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}: expected {option} to be a number, got {type(value).__name__}")
    if not 0 <= value < 1:
        raise ValueError(f"{name}: expected {option} in [0, 1), got {value}")
    return float(value)


def _pair(name, option, value):
    """Two rates of one number or of two."""
    if isinstance(value, tuple | list):
        if len(value) != 2:
            raise ValueError(
                f"{name}: expected {option} to be a number or a pair, got {len(value)} values"
            )
        return tuple(_rate(name, f"{option}[{i}]", rate) for i, rate in enumerate(value))
    return (_rate(name, option, value),) * 2


def draw_seed():
    return torch.randint(-(2**63), 2**63 - 1, (1,), dtype=torch.int64)


class Within(NamedTuple):
    """What is inside the recurrence of all layers of a stack."""

    cell: str
    norm: str
    """"none", "recurrent" (layer_norm=True) or "joint" (DreamerGRU)"""
    eps: float
    rates: tuple[float, float, float]
    """of zoneout of c and of h, and of recurrent dropout"""
    h_rate: float
    """of variational dropout of h"""
    seed: Tensor | None
    """without one: what eval does"""
    checkpoint_every: int | None = None


def run(within, input, batch_sizes, states, params, bidirectional, keep=False):
    """One layer, as `fastrnn._stack.stack` describes a run.

    params: `(the layer's index, tensors)`, the tensors those of the operators.
    """
    index, tensors = params
    h_scale = None
    if within.h_rate:
        batch = input.shape[1] if batch_sizes is None else dropout.first_batch(batch_sizes)
        size = 2 if bidirectional else 1, batch, tensors[1].shape[1]
        h_scale = dropout.batch_mask(input, size, within.h_rate)
    inside = Inside(within.norm, within.eps, within.rates, (4 * index, 0, 1), within.seed, h_scale)
    layer = partial(autograd.layer, within.cell)
    if within.checkpoint_every is not None and ops.has_inside(input):
        layer = partial(checkpoint.layer, layer, within.cell, within.checkpoint_every)
    results = layer(input, batch_sizes, states, tensors, bidirectional, keep, (), inside)
    if not keep or within.norm != "joint":
        return results
    *results, gates = results
    r, z, *rest = gates.split(tensors[1].shape[1], -1)
    return *results, torch.cat([r, 1 - z, *rest], -1)  # z as Dreamer has it


_OPTIONS = ("layer_norm", "zoneout", "recurrent_dropout", "variational_dropout", "weight_drop")


class Layers:
    """Options, parameters and the call; before one of fastrnn.modules in the order of classes.

    `_norm` is None, "recurrent" (layer_norm=True) or "joint" (DreamerGRU).
    """

    _norm = None

    def __init__(
        self,
        *args,
        layer_norm: bool = False,
        eps: float = 1e-5,
        zoneout: float | tuple[float, float] = 0.0,
        recurrent_dropout: float = 0.0,
        variational_dropout: float | tuple[float, float] = 0.0,
        weight_drop: float = 0.0,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        name = type(self).__name__
        if not isinstance(layer_norm, bool):
            raise TypeError(f"{name}: expected layer_norm to be a bool, got {layer_norm!r}")
        check_eps(name, eps)
        has_c = cell_of(self).has_c
        if not has_c and isinstance(zoneout, tuple | list):
            raise ValueError(f"{name}: expected zoneout to be one number, got {zoneout!r}")
        self.layer_norm, self.eps = layer_norm, float(eps)
        self.zoneout = _pair(name, "zoneout", zoneout)
        if not has_c:
            self.zoneout = 0.0, self.zoneout[1]
        self.recurrent_dropout = _rate(name, "recurrent_dropout", recurrent_dropout)
        self.variational_dropout = _pair(name, "variational_dropout", variational_dropout)
        self.weight_drop = _rate(name, "weight_drop", weight_drop)
        if self.recurrent_dropout and self.mode.startswith("RNN"):
            raise ValueError(
                f"{name}: expected recurrent_dropout = 0 (an Elman cell has no candidate apart "
                f"from its state), got {recurrent_dropout}"
            )
        within = {
            "layer_norm": layer_norm,
            "zoneout": any(self.zoneout),
            "recurrent_dropout": self.recurrent_dropout,
            "variational_dropout of h": self.variational_dropout[1],
            "peepholes": cell_of(self).vectors,
        }
        if self.proj_size and any(within.values()):
            raise ValueError(
                f"{name}: expected proj_size = 0 with {[k for k, v in within.items() if v][0]}, "
                f"got {self.proj_size}"
            )
        if layer_norm:
            self._norm = "recurrent"
            self._add_gains()
        for suffix in self._suffixes() if cell_of(self).vectors else ():
            vectors = self.weight_hh_l0.new_empty(cell_of(self).vectors * self.hidden_size)
            self.register_parameter(f"weight_ch_{suffix}", nn.Parameter(vectors))
            nn.init.uniform_(vectors, -(self.hidden_size**-0.5), self.hidden_size**-0.5)

    def _add_gains(self):
        like = self.weight_hh_l0
        for suffix in self._suffixes():
            for stem in self._norm_stems():
                size = like.shape[1 if "_c" in stem else 0]
                value = like.new_full((size,), 0.0 if "bias" in stem else 1.0)
                self.register_parameter(f"{stem}_{suffix}", nn.Parameter(value))

    def _norm_stems(self):
        """Names of the normalisation's parameters of one direction, in the order that they have."""
        if self._norm is None:
            return []
        if self._norm == "joint":
            return ["norm", "norm_bias"]
        of_c = ["norm_c", *["norm_c_bias"] * self.bias] if cell_of(self).has_c else []
        return ["norm_ih", "norm_hh", *of_c]

    def _suffixes(self):
        endings = ("", "_reverse") if self.bidirectional else ("",)
        return [f"l{index}{ending}" for index in range(self.num_layers) for ending in endings]

    def reset_parameters(self):
        """Weights and biases as torch.nn; gains to 1, their biases to 0."""
        super().reset_parameters()
        with torch.no_grad():
            for name, parameter in self.named_parameters(recurse=False):
                if name.startswith("norm_"):
                    parameter.fill_(
                        0.0 if name.startswith("norm_bias") or "_bias_" in name else 1.0
                    )

    def extra_repr(self):
        """That of torch.nn, with the options that are on."""
        text = super().extra_repr()
        for option in _OPTIONS:
            value = getattr(self, option)
            on = any(value) if isinstance(value, tuple) else value
            text += f", {option}={value}" if on else ""
        return text

    # -- The call ------------------------------------------------------------------------------

    def _run(self, input, hx, batch_first, batch_sizes, options):
        """What modules.LSTM's `_run` does, with what is inside the recurrence."""
        name, cell = self._get_name(), PLAIN[self.mode.lower()]
        states = checks.lstm_states(hx, 3, batch_sizes is not None) if cell.has_c else (hx,)
        checks.check_tensors(name, input, states, ())
        dtype = self.weight_ih_l0.dtype
        input, states = autocast.in_dtype(dtype, input, states)
        made = self.num_layers, self.bias, self.bidirectional, self._before
        call = stack.Call(*made, batch_first, batch_sizes, self.checkpoint_every, options)
        seed = draw_seed() if self._draws() else None
        with torch.autocast(autocast.device_of(input), enabled=False):
            params = [self._params(index, seed) for index in range(self.num_layers)]
            of_output = None
            if states[0] is not None and states[0].dtype is not input.dtype is dtype:
                every, each = [p for of_layer in params for p in of_layer], len(params[0])
                input, states, every, of_output = autocast.with_float_states(input, states, every)
                params = [every[i : i + each] for i in range(0, len(every), each)]
                dtype = input.dtype
            if not self._reaches_inside():
                params = [tensor for of_layer in params for tensor in of_layer]
                results = plain.run(cell, input, states, params, call)
            else:
                if self.checkpoint_every is not None:
                    checks.check_checkpoint_every(name, self.checkpoint_every)
                checks.check_input(name, input, states, dtype, self.input_size, call)
                if hx is not None:  # no projection reaches into the recurrence
                    checks.check_states(name, input, states, (self.hidden_size,) * 2, call)
                each = partial(run, self._within(seed))
                results = stack.apply(
                    stack.layers, list(enumerate(params)), each, input, states, call, False
                )
        if of_output is not None:
            results = results[0].to(of_output), *results[1:]
        return stack.results(*results)

    def _draws(self):
        """Whether masks of zoneout, recurrent dropout or weight drop are needed."""
        return self.training and (
            any(self.zoneout) or self.recurrent_dropout > 0 or self.weight_drop > 0
        )

    def _reaches_inside(self):
        """Whether any option reaches into the recurrence in this call."""
        return (
            self._norm is not None
            or any(self.zoneout)
            or (self.training and (self.recurrent_dropout or self.variational_dropout[1]))
        )

    def _within(self, seed):
        return Within(
            self.mode.lower(),
            self._norm or "none",
            self.eps,
            (*self.zoneout, self.recurrent_dropout),
            self.variational_dropout[1] if self.training else 0.0,
            seed,
            self.checkpoint_every,
        )

    def _before(self, index, input, batch_sizes):
        """Dropout between layers, and an input's variational dropout."""
        if not self.training:
            return input
        if self.dropout and index:
            input = torch.dropout(input, self.dropout, True)
        rate, features = self.variational_dropout[0], input.shape[-1]
        if not rate:
            return input
        if batch_sizes is None:
            return input * dropout.batch_mask(input, (input.shape[1], features), rate)
        batch = dropout.first_batch(batch_sizes)
        mask = dropout.batch_mask(input, (batch, features), rate)
        return input * dropout.rows_of(mask, input.shape[0], batch, batch_sizes)

    def _params(self, index, seed):
        """The parameters of one layer, one direction after the other, elements of W_hh dropped or
        not; in the order of the operators, which is that of fastrnn.functional too."""
        stems = ["weight_ih_l", "weight_hh_l", *["bias_ih_l", "bias_hh_l"] * self.bias]
        stems += ["weight_hr_l"] if self.proj_size else [f"{s}_l" for s in self._norm_stems()]
        stems += ["weight_ch_l"] * (cell_of(self).vectors > 0)
        params = []
        for d, ending in enumerate(("", "_reverse")[: 2 if self.bidirectional else 1]):
            names = [f"{stem}{index}{ending}" for stem in stems]
            w_ih, w_hh, *rest = weights(self, names)
            if self.training and self.weight_drop:
                w_hh = dropout.dropped(w_hh, seed, 4 * index + 2 * d, self.weight_drop)
            if self._norm == "joint":
                rest = dreamer_affine(*rest, self.update_bias)
            params += [w_ih, w_hh, *rest]
        return params


def check_eps(name, eps):
    if isinstance(eps, bool) or not isinstance(eps, int | float):
        raise TypeError(f"{name}: expected eps to be a number, got {type(eps).__name__}")
    if not 0 < eps < 1e300:
        raise ValueError(f"{name}: expected eps > 0 and finite, got {eps}")


def check_update_bias(name, update_bias):
    if isinstance(update_bias, bool) or not isinstance(update_bias, int | float):
        raise TypeError(
            f"{name}: expected update_bias to be a number, got {type(update_bias).__name__}"
        )
    if not -1e300 < update_bias < 1e300:
        raise ValueError(f"{name}: expected update_bias to be finite, got {update_bias}")


def dreamer_affine(gain, bias, update_bias):
    """b_hh and gain_hh for a kernel whose z, what stays of h, is 1 - sigmoid(z + update_bias)."""
    r, z, n = gain.chunk(3, -1)
    b_r, b_z, b_n = bias.chunk(3, -1)
    return torch.cat([b_r, -b_z - update_bias, b_n], -1), torch.cat([r, -z, n], -1)
