"""Recurrent layers with layer normalisation, zoneout, other dropouts and weight drop.

`LSTM`, `GRU` and `RNN` here are those of `fastrnn` (and so of torch.nn) with keyword-only options
more, `DreamerGRU` and `DreamerGRUCell` the layer-normalised GRU of world models. docs/variants.md
has a section and an example for each option.

Common to all layers
    options (all off by default, and in any combination but for those that `raises` names):
        layer_norm: True normalises, over all gates of a row together, the input product and the
            recurrent product, each with a gain of its own, and an LSTM's cell before its tanh, with
            a gain and a bias. For an LSTM ::

                LN(v) = (v - mean(v)) / sqrt(var(v) + eps)
                i, f, g, o = LN(W_ih x_t) * norm_ih + b_ih + LN(W_hh h_(t-1)) * norm_hh + b_hh
                c_t = sigmoid(f) * c_(t-1) + sigmoid(i) * tanh(g)
                h_t = sigmoid(o) * tanh(LN(c_t) * norm_c + norm_c_bias)

            Ba, Kiros and Hinton, "Layer Normalization", arXiv:1607.06450, equations 20 to 22.
            A GRU's reset gate multiplies the normalised recurrent product with its bias. With
            bias=False there is no norm_c_bias either.
        eps: of every normalisation. Default: 1e-5
        zoneout: probability that a unit keeps its old value at a step; of an LSTM one number for
            both or a pair (c, h). In training masks are drawn for every step, row and unit; in eval
            states are mixed in that proportion ::

                c_t = z_c * c_(t-1) + (1 - z_c) * (sigmoid(f) * c_(t-1) + sigmoid(i) * tanh(g))
                h_t = z_h * h_(t-1) + (1 - z_h) * (the h that the cell computes)

            The h that an LSTM computes comes from its c before zoneout. Krueger et al., "Zoneout:
            Regularizing RNNs by Randomly Preserving Hidden Activations", arXiv:1606.01305.
        recurrent_dropout: probability of a zero, for every step, row and unit, in the candidate:
            tanh(g) of an LSTM, n of a GRU; what stays is divided by 1 - p. In training only.
            Semeniuta, Severyn and Barth, "Recurrent Dropout without Memory Loss", arXiv:1603.05118.
        variational_dropout: probability of a zero that stays for the whole sequence; one number, or
            a pair (in the input of every layer, in h before the recurrent product). What stays is
            divided by 1 - p. In training only. Gal and Ghahramani, "A Theoretically Grounded
            Application of Dropout in Recurrent Neural Networks", arXiv:1512.05287.
        weight_drop: probability of a zero in each element of W_hh, drawn once a call; what stays is
            divided by 1 - p. In training only. Merity, Keskar and Socher, "Regularizing and
            Optimizing LSTM Language Models", arXiv:1708.02182.
    call, shapes, packed input, dtypes: as of `fastrnn.LSTM`, `fastrnn.GRU`, `fastrnn.RNN`. Under
        autocast a layer computes in its parameters' dtype.
    random numbers: torch.manual_seed reproduces them. Masks of zoneout and recurrent dropout come
        from Philox 4x32-10 (Salmon et al. 2011) with a key that each call draws from torch's
        generator, and counters of layer, direction, step, row and unit: they are the same for any
        number of threads, and the backward pass computes them again instead of storing them. 16
        bits decide, so that a rate is met to within 2^-17.
    derivatives: the backward pass is kernels on the CPU. Second derivatives, forward mode,
        torch.func and other devices run the equations of `fastrnn.variants_reference`, step by
        step: right, but slow. Without options that reach into the recurrence (all but weight_drop
        and an input's variational dropout), and in eval with dropout alone, a layer runs as
        `fastrnn.LSTM`, `GRU` or `RNN` does.
    raises: ValueError for a rate outside of [0, 1), recurrent_dropout of an RNN, a pair where there
        is one rate, eps <= 0 and proj_size > 0 with an option that reaches into the recurrence;
        TypeError for an option of the wrong type; in the call what torch.nn raises.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm as normalise
from torch.nn.functional import linear
from torch.nn.utils.rnn import PackedSequence

from fastrnn import _checks, _extended, functional, modules

__all__ = ["GRU", "LSTM", "RNN", "DreamerGRU", "DreamerGRUCell"]


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


def _seed():
    return torch.randint(-(2**63), 2**63 - 1, (1,), dtype=torch.int64)


def _mask(like, shape, rate):
    """1 / (1 - rate) with probability 1 - rate, else 0."""
    return torch.empty(shape, dtype=like.dtype, device=like.device).bernoulli_(1 - rate) / (
        1 - rate
    )


class _Layers:
    """What the layers have in common, before one of fastrnn.modules in the order of classes.

    `_norm` is None, "recurrent" (layer_norm=True) or "joint" (DreamerGRU).
    """

    _norm = None

    def _set_options(
        self, layer_norm, eps, zoneout, recurrent_dropout, variational_dropout, weight_drop
    ):
        name = type(self).__name__
        if not isinstance(layer_norm, bool):
            raise TypeError(f"{name}: expected layer_norm to be a bool, got {layer_norm!r}")
        _check_eps(name, eps)
        if self.checkpoint_every is not None:
            raise ValueError(
                f"{name}: expected checkpoint_every = None with options inside the recurrence, "
                f"got {self.checkpoint_every}"
            )
        if self.mode != "LSTM" and isinstance(zoneout, tuple | list):
            raise ValueError(f"{name}: expected zoneout to be one number, got {zoneout!r}")
        self.layer_norm, self.eps = layer_norm, float(eps)
        self.zoneout = _pair(name, "zoneout", zoneout)
        if self.mode != "LSTM":
            self.zoneout = 0.0, self.zoneout[1]
        self.recurrent_dropout = _rate(name, "recurrent_dropout", recurrent_dropout)
        self.variational_dropout = _pair(name, "variational_dropout", variational_dropout)
        self.weight_drop = _rate(name, "weight_drop", weight_drop)
        if self.recurrent_dropout and self.mode.startswith("RNN"):
            raise ValueError(
                f"{name}: expected recurrent_dropout = 0 (an Elman cell has no candidate apart "
                f"from its state), got {recurrent_dropout}"
            )
        within = {"layer_norm": layer_norm, "zoneout": any(self.zoneout),
                  "recurrent_dropout": self.recurrent_dropout,
                  "variational_dropout of h": self.variational_dropout[1]}  # fmt: skip
        if self.proj_size and any(within.values()):
            raise ValueError(
                f"{name}: expected proj_size = 0 with {[k for k, v in within.items() if v][0]}, "
                f"got {self.proj_size}"
            )
        if layer_norm:
            self._norm = "recurrent"
            self._add_gains()

    def _add_gains(self):
        like = self.weight_hh_l0
        gates, size = like.shape

        def add(name, length, value):
            self.register_parameter(name, nn.Parameter(like.new_full((length,), value)))

        for suffix in self._suffixes():
            if self._norm == "joint":
                add(f"norm_{suffix}", gates, 1.0)
                add(f"norm_bias_{suffix}", gates, 0.0)
                continue
            add(f"norm_ih_{suffix}", gates, 1.0)
            add(f"norm_hh_{suffix}", gates, 1.0)
            if self.mode == "LSTM":
                add(f"norm_c_{suffix}", size, 1.0)
                if self.bias:
                    add(f"norm_c_bias_{suffix}", size, 0.0)

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
        for option in ("layer_norm", "zoneout", "recurrent_dropout", "variational_dropout",
                       "weight_drop"):  # fmt: skip
            value = getattr(self, option)
            on = any(value) if isinstance(value, tuple) else value
            text += f", {option}={value}" if on else ""
        return text

    # -- The call ------------------------------------------------------------------------------

    def forward(self, input, hx=None):
        """Runs the layers; see the class."""
        pair = self.mode == "LSTM"
        dtype = self.weight_ih_l0.dtype
        if isinstance(input, PackedSequence):
            data, batch_sizes, order, back = input
            data, hx = _without_autocast(data, hx, dtype)
            if hx is not None:
                hx = self.permute_hidden(hx, order)
            output, states = self._run(data, hx, batch_sizes)
            output = PackedSequence(output, batch_sizes, order, back)
            return output, self.permute_hidden(states if pair else states[0], back)
        input, hx = _without_autocast(input, hx, dtype)
        if input.dim() == 2:
            if hx is not None:
                hx = modules._unsqueeze_states(self, hx, pair)
            output, states = self._run(input.unsqueeze(1), hx, None)
            states = tuple(state.squeeze(1) for state in states)
            return output.squeeze(1), states if pair else states[0]
        if input.dim() == 3 and self.batch_first:
            input = input.transpose(0, 1)
        output, states = self._run(input, hx, None)
        output = output.transpose(0, 1) if self.batch_first else output
        return output, states if pair else states[0]

    def _run(self, input, hx, batch_sizes):
        """All layers on `[T, B, I]`, or on packed rows: `(output, states)`."""
        pair, directions = self.mode == "LSTM", 2 if self.bidirectional else 1
        if input.dim() != (2 if batch_sizes is not None else 3):
            raise ValueError(
                f"{type(self).__name__}: expected input of 2 or 3 dimensions, or packed, "
                f"got shape {tuple(input.shape)}"
            )
        if hx is not None:
            states = _checks.lstm_states(hx, 3, batch_sizes is not None) if pair else (hx,)
            # RNNBase's checks read the batch where batch_first says: input is time first by now.
            batch = int(batch_sizes[0]) if batch_sizes is not None else input.shape[1]
            sizes = (self.proj_size or self.hidden_size, self.hidden_size)
            for state, size in zip(states, sizes):
                expected = self.num_layers * directions, batch, size
                self.check_hidden_size(state, expected)
        if input.shape[-1] != self.input_size:
            raise RuntimeError(
                f"{type(self).__name__}: expected input.size(-1) to be input_size = "
                f"{self.input_size}, got shape {tuple(input.shape)}"
            )
        if input.dtype is not self.weight_ih_l0.dtype:
            raise ValueError(
                f"{type(self).__name__}: expected input of the weights' dtype "
                f"{self.weight_ih_l0.dtype}, got {input.dtype}"
            )
        if batch_sizes is None and input.shape[0] == 0:
            raise RuntimeError(
                f"{type(self).__name__}: expected seq_len > 0, got shape {tuple(input.shape)}"
            )
        extended = self._extended()
        seed = _seed() if self._draws() else None
        initial = [None] * self.num_layers
        if hx is not None:
            initial = list(zip(*(state.split(directions) for state in states), strict=True))
        finals = []
        with torch.autocast(_autocast_device(input), enabled=False):
            for index in range(self.num_layers):
                if self.training and self.variational_dropout[0]:
                    input = self._drop_input(input, batch_sizes)
                run = self._run_extended if extended else self._run_plain
                input, final = run(index, input, initial[index], batch_sizes, seed)
                finals.append(final)
                if self.training and self.dropout and index < self.num_layers - 1:
                    input = torch.dropout(input, self.dropout, True)
        return input, tuple(torch.cat(state) for state in zip(*finals, strict=True))

    def _draws(self):
        """Whether masks of zoneout or recurrent dropout are needed."""
        return self.training and (any(self.zoneout) or self.recurrent_dropout > 0)

    def _extended(self):
        """Whether any option reaches into the recurrence in this call."""
        return (
            self._norm is not None
            or any(self.zoneout)
            or (self.training and (self.recurrent_dropout or self.variational_dropout[1]))
        )

    def _drop_input(self, input, batch_sizes):
        rate, features = self.variational_dropout[0], input.shape[-1]
        if batch_sizes is None:
            return input * _mask(input, (input.shape[1], features), rate)
        batch = int(batch_sizes[0])
        mask = _mask(input, (batch, features), rate)
        return input * _extended.rows_of(mask, input.shape[0], batch, batch_sizes)

    def _w_hh(self, suffix):
        w_hh = getattr(self, f"weight_hh_{suffix}")
        return torch.dropout(w_hh, self.weight_drop, True) if self._drops_weights() else w_hh

    def _drops_weights(self):
        return self.training and self.weight_drop > 0

    def _run_plain(self, index, input, states, batch_sizes, _):
        """A layer of fastrnn.functional, W_hh dropped or not."""
        params, stems = [], ["ih", "hh", "hr"]
        for suffix in self._layer_suffixes(index):
            weights = [getattr(self, f"weight_ih_{suffix}"), self._w_hh(suffix)]
            if self.bias:
                weights += [getattr(self, f"bias_{stem}_{suffix}") for stem in stems[:2]]
            if self.proj_size:
                weights.append(getattr(self, f"weight_hr_{suffix}"))
            params += weights
        options = {"has_biases": self.bias, "bidirectional": self.bidirectional,
                   "batch_sizes": batch_sizes}  # fmt: skip
        if self.mode == "LSTM":
            return functional.lstm(input, states, params, **options)
        states = None if states is None else states[0]
        if self.mode == "GRU":
            output, h_n = functional.gru(input, states, params, **options)
        else:
            nonlinearity = self.mode[4:].lower()
            output, h_n = functional.rnn(
                input, states, params, nonlinearity=nonlinearity, **options
            )
        return output, (h_n,)

    def _layer_suffixes(self, index):
        directions = 2 if self.bidirectional else 1
        return self._suffixes()[index * directions : (index + 1) * directions]

    def _run_extended(self, index, input, states, batch_sizes, seed):
        """A layer through the extended recurrence, its input product made here."""
        suffixes = self._layer_suffixes(index)

        def stacked(stem):
            tensors = [getattr(self, f"{stem}_{suffix}") for suffix in suffixes]
            return tensors[0].unsqueeze(0) if len(tensors) == 1 else torch.stack(tensors)

        rows = input if batch_sizes is not None else input.flatten(0, 1)
        batch = int(batch_sizes[0]) if batch_sizes is not None else input.shape[1]
        dropped = [self._w_hh(suffix) for suffix in suffixes]
        w_hh = dropped[0].unsqueeze(0) if len(dropped) == 1 else torch.stack(dropped)
        w_ih = stacked("weight_ih")
        bias = recurrent_bias = None
        if self.bias:
            bias, recurrent_bias = stacked("bias_ih"), stacked("bias_hh")
            if self.mode != "GRU":  # only there the recurrent bias is no mere sum
                bias, recurrent_bias = bias + recurrent_bias, None
        gain = cell_gain = cell_bias = None
        if self._norm == "recurrent":
            gain = stacked("norm_hh")
            gates_x = _normalised(_product(rows, w_ih, None), stacked("norm_ih"), bias, self.eps)
            if self.mode == "LSTM":
                cell_gain = stacked("norm_c")
                cell_bias = stacked("norm_c_bias") if self.bias else torch.zeros_like(cell_gain)
        else:
            gates_x = _product(rows, w_ih, bias)
        if self._norm == "joint":
            gain, recurrent_bias = _dreamer_affine(
                stacked("norm"), stacked("norm_bias"), self.update_bias
            )
        rate, h_scale = self.variational_dropout[1], None
        if self.training and rate:
            h_scale = _mask(input, (len(suffixes), batch, self.hidden_size), rate)
        rates = (*self.zoneout, self.recurrent_dropout)
        h0, c0 = (*(states or (None, None)), None)[:2]
        output, h_n, c_n = _extended.layer(
            self.mode.lower(), self._norm or "none", gates_x, batch_sizes, batch, h0, c0, w_hh,
            recurrent_bias, gain, cell_gain, cell_bias, h_scale, seed, index, rates, self.eps,
        )  # fmt: skip
        if batch_sizes is None:
            output = output.unflatten(0, input.shape[:2])
        return output, (h_n, c_n) if self.mode == "LSTM" else (h_n,)


def _check_eps(name, eps):
    if isinstance(eps, bool) or not isinstance(eps, int | float):
        raise TypeError(f"{name}: expected eps to be a number, got {type(eps).__name__}")
    if not eps > 0:
        raise ValueError(f"{name}: expected eps > 0, got {eps}")


def _autocast_device(tensor):
    return "cpu" if tensor.is_meta else tensor.device.type  # meta has no autocast of its own


def _without_autocast(input, hx, dtype):
    """Input and states in dtype where autocast is on, else as they are."""
    if not isinstance(input, Tensor):
        raise AttributeError(f"expected input to be a Tensor, got {type(input).__name__}")
    if not torch.is_autocast_enabled(_autocast_device(input)) or not input.is_floating_point():
        return input, hx
    if isinstance(hx, tuple | list):
        hx = tuple(state.to(dtype) for state in hx)
    elif hx is not None:
        hx = hx.to(dtype)
    return input.to(dtype), hx


def _product(rows, w_ih, bias):
    """`[D, N, G*H]`: the input product of every direction."""
    if w_ih.shape[0] == 1:
        return linear(rows, w_ih[0], None if bias is None else bias[0]).unsqueeze(0)
    weights = w_ih.transpose(1, 2)
    rows = rows.expand(2, *rows.shape)
    if bias is None:
        return torch.bmm(rows, weights)
    return torch.baddbmm(bias.unsqueeze(1), rows, weights)


def _normalised(product, gain, bias, eps):
    """Rows of `[D, N, G*H]`, each with the gain and bias of its direction."""
    size = product.shape[-1:]
    if product.shape[0] == 1:
        return normalise(product, size, gain[0], None if bias is None else bias[0], eps)
    normed = normalise(product, size, eps=eps) * gain.unsqueeze(1)
    return normed if bias is None else normed + bias.unsqueeze(1)


def _dreamer_affine(gain, bias, update_bias):
    """Gain and bias with which the kernel's z, what stays of h, is 1 - sigmoid(z + update_bias)."""
    r, z, n = gain.chunk(3, -1)
    b_r, b_z, b_n = bias.chunk(3, -1)
    return torch.cat([r, -z, n], -1), torch.cat([b_r, -b_z - update_bias, b_n], -1)


class LSTM(_Layers, modules.LSTM):
    """`fastrnn.LSTM` with options inside the recurrence.

    Args:
        those of `fastrnn.LSTM`, and by keyword only layer_norm, eps, zoneout, recurrent_dropout,
        variational_dropout, weight_drop: see the module, `fastrnn.variants`.

    Attributes: those of `fastrnn.LSTM`; with layer_norm `norm_ih_l[k]`, `norm_hh_l[k]`
    `(4*hidden_size)`, `norm_c_l[k]` and, with bias, `norm_c_bias_l[k]` `(hidden_size)`, with
    `_reverse` appended for the second direction.
    """

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
        self._set_options(
            layer_norm, eps, zoneout, recurrent_dropout, variational_dropout, weight_drop
        )


class GRU(_Layers, modules.GRU):
    """`fastrnn.GRU` with options inside the recurrence.

    Args:
        those of `fastrnn.GRU`, and by keyword only layer_norm, eps, zoneout (one number),
        recurrent_dropout, variational_dropout, weight_drop: see the module, `fastrnn.variants`.

    Attributes: those of `fastrnn.GRU`; with layer_norm `norm_ih_l[k]` and `norm_hh_l[k]`
    `(3*hidden_size)`, with `_reverse` appended for the second direction.
    """

    def __init__(
        self,
        *args,
        layer_norm: bool = False,
        eps: float = 1e-5,
        zoneout: float = 0.0,
        recurrent_dropout: float = 0.0,
        variational_dropout: float | tuple[float, float] = 0.0,
        weight_drop: float = 0.0,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        self._set_options(
            layer_norm, eps, zoneout, recurrent_dropout, variational_dropout, weight_drop
        )


class RNN(_Layers, modules.RNN):
    """`fastrnn.RNN` with options inside the recurrence.

    Args:
        those of `fastrnn.RNN`, and by keyword only layer_norm, eps, zoneout (one number),
        variational_dropout, weight_drop: see the module, `fastrnn.variants`. recurrent_dropout is
        there to be refused.

    Attributes: those of `fastrnn.RNN`; with layer_norm `norm_ih_l[k]` and `norm_hh_l[k]`
    `(hidden_size)`, with `_reverse` appended for the second direction.
    """

    def __init__(
        self,
        *args,
        layer_norm: bool = False,
        eps: float = 1e-5,
        zoneout: float = 0.0,
        recurrent_dropout: float = 0.0,
        variational_dropout: float | tuple[float, float] = 0.0,
        weight_drop: float = 0.0,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        self._set_options(
            layer_norm, eps, zoneout, recurrent_dropout, variational_dropout, weight_drop
        )


class DreamerGRU(_Layers, modules.GRU):
    """The GRU of Dreamer-like world models: one linear map of input and state, normalised.

    ::

        a_r, a_z, a_n = LN(W_ih x_t + W_hh h_(t-1)) * norm + norm_bias
        r, z = sigmoid(a_r), sigmoid(a_z + update_bias)
        n = tanh(r * a_n)
        h_t = z * n + (1 - z) * h_(t-1)

    with one mean and variance over all 3*hidden_size values of a row.
    Hafner et al., "Mastering Atari with Discrete World Models", arXiv:2010.02193. z is the update
    gate: what comes in, not what stays. Rows are in the order r, z, n, where Dreamer's own code has
    reset, candidate, update; its one matrix is `cat([weight_ih, weight_hh], 1)`.

    Args:
        input_size, hidden_size, num_layers, batch_first, dropout, bidirectional, device, dtype: as
            of `fastrnn.GRU`.
        update_bias: added to the update gate's argument; below 0 the state changes slowly at first.
            Default: -1
        eps: of the normalisation. Default: 1e-3, Dreamer's

    Call, shapes, errors: as of `fastrnn.GRU`. Derivatives: see the module, `fastrnn.variants`.

    Attributes: `weight_ih_l[k]`, `weight_hh_l[k]`, `norm_l[k]`, `norm_bias_l[k]`, with `_reverse`
    appended for the second direction. There are no other biases.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        update_bias: float = -1.0,
        eps: float = 1e-3,
        device=None,
        dtype=None,
    ):
        super().__init__(
            input_size, hidden_size, num_layers, bias=False, batch_first=batch_first,
            dropout=dropout, bidirectional=bidirectional, device=device, dtype=dtype,
        )  # fmt: skip
        self._set_options(False, eps, 0.0, 0.0, 0.0, 0.0)
        self._norm = "joint"
        self.update_bias = float(update_bias)
        self._add_gains()


class DreamerGRUCell(nn.RNNCellBase):
    """One step of `DreamerGRU`, for when the next input depends on this state.

    Args:
        input_size, hidden_size, update_bias, eps, device, dtype: as of `DreamerGRU`.

    Call: `h = cell(input, h)`; without h, zeros.
        input: `(batch, input_size)`, or `(input_size)` without a batch.
        h: `(batch, hidden_size)`, or `(hidden_size)`.

    Raises what torch.nn.GRUCell raises. Derivatives: see the module, `fastrnn.variants`.

    Attributes: `weight_ih`, `weight_hh`, `norm`, `norm_bias`: a DreamerGRU's, without their `_l0`.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        update_bias: float = -1.0,
        eps: float = 1e-3,
        device=None,
        dtype=None,
    ):
        super().__init__(
            input_size, hidden_size, bias=False, num_chunks=3, device=device, dtype=dtype
        )
        _check_eps("DreamerGRUCell", eps)
        self.update_bias, self.eps = float(update_bias), float(eps)
        self.norm = nn.Parameter(self.weight_hh.new_ones(3 * hidden_size))
        self.norm_bias = nn.Parameter(self.weight_hh.new_zeros(3 * hidden_size))

    def reset_parameters(self):
        """Weights as torch.nn; gains to 1, their biases to 0."""
        super().reset_parameters()
        if hasattr(self, "norm"):
            nn.init.ones_(self.norm)
            nn.init.zeros_(self.norm_bias)

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """Runs the step; see the class."""
        input, hx = _without_autocast(input, hx, self.weight_ih.dtype)
        _checks.check_tensors("DreamerGRUCell", input, () if hx is None else (hx,), ())
        for argument, value in (("input", input), ("hx", hx)):
            if value is not None and value.dim() not in (1, 2):
                raise ValueError(
                    f"DreamerGRUCell: expected {argument} of 1 or 2 dimensions, "
                    f"got shape {tuple(value.shape)}"
                )
        rows = input if input.dim() == 2 else input.unsqueeze(0)
        h0 = hx if hx is None or hx.dim() == 2 else hx.unsqueeze(0)
        _checks.check_step("DreamerGRUCell", 3, rows, (h0,), self.weight_ih, self.weight_hh)
        gain, bias = _dreamer_affine(
            self.norm.unsqueeze(0), self.norm_bias.unsqueeze(0), self.update_bias
        )
        with torch.autocast(_autocast_device(rows), enabled=False):
            h, _, _ = _extended.layer(
                "gru", "joint", linear(rows, self.weight_ih).unsqueeze(0), None, rows.shape[0],
                None if h0 is None else h0.unsqueeze(0), None, self.weight_hh.unsqueeze(0), bias,
                gain, None, None, None, None, 0, (0.0, 0.0, 0.0), self.eps,
            )  # fmt: skip
        return h if input.dim() == 2 else h.squeeze(0)
