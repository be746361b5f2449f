"""What the layers of `fastrnn.variants` have in common: their options, and how a call runs."""

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from fastrnn import _checks, _extended, functional, modules


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


def batch_mask(like, shape, rate):
    """1 / (1 - rate) with probability 1 - rate, else 0."""
    return torch.empty(shape, dtype=like.dtype, device=like.device).bernoulli_(1 - rate) / (
        1 - rate
    )


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
        dtype, name = self.weight_ih_l0.dtype, type(self).__name__
        packed = isinstance(input, PackedSequence)
        _checks.check_tensors(name, input.data if packed else input, (), ())
        if hx is not None and pair:
            hx = _checks.lstm_states(hx, 3, packed)
        elif hx is not None:
            _checks.check_tensors(name, self.weight_hh_l0, (hx,), ())
        if packed:
            data, batch_sizes, order, back = input
            data, hx = without_autocast(data, hx, dtype)
            if hx is not None:
                hx = self.permute_hidden(hx, order)
            output, states = self._run(data, hx, batch_sizes)
            output = PackedSequence(output, batch_sizes, order, back)
            return output, self.permute_hidden(states if pair else states[0], back)
        input, hx = without_autocast(input, hx, dtype)
        if input.dim() == 2:
            if hx is not None:
                hx = modules.unsqueeze_states(self, hx, pair)
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
            states = hx if pair else (hx,)
            # RNNBase's checks read the batch where batch_first says: input is time first by now.
            batch = int(batch_sizes[0]) if batch_sizes is not None else input.shape[1]
            sizes = (self.proj_size or self.hidden_size, self.hidden_size)
            for argument, state, size in zip(("h_0", "c_0"), states, sizes):
                expected = self.num_layers * directions, batch, size
                if state.shape != expected:
                    raise RuntimeError(
                        f"{type(self).__name__}: expected {argument} of shape "
                        f"(num_layers*directions, batch, hidden_size) = {expected}, "
                        f"got {tuple(state.shape)}"
                    )
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
        seed = draw_seed() if self._draws() else None
        initial = [None] * self.num_layers
        if hx is not None:
            initial = list(zip(*(state.split(directions) for state in states), strict=True))
        finals = []
        with torch.autocast(autocast_device(input), enabled=False):
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
        """Whether masks of zoneout, recurrent dropout or weight drop are needed."""
        return self.training and (
            any(self.zoneout) or self.recurrent_dropout > 0 or self.weight_drop > 0
        )

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
            return input * batch_mask(input, (input.shape[1], features), rate)
        batch = int(batch_sizes[0])
        mask = batch_mask(input, (batch, features), rate)
        return input * _extended.rows_of(mask, input.shape[0], batch, batch_sizes)

    def _w_hh(self, index, seed):
        """W_hh of each direction of a layer, elements dropped or not."""
        weights = [getattr(self, f"weight_hh_{suffix}") for suffix in self._layer_suffixes(index)]
        if not (self.training and self.weight_drop):
            return weights
        return [
            _extended.dropped(w_hh, seed, 4 * index + 2 * d, self.weight_drop)
            for d, w_hh in enumerate(weights)
        ]

    def _run_plain(self, index, input, states, batch_sizes, seed):
        """A layer of fastrnn.functional, W_hh dropped or not."""
        params = []
        for suffix, w_hh in zip(self._layer_suffixes(index), self._w_hh(index, seed), strict=True):
            weights = [getattr(self, f"weight_ih_{suffix}"), w_hh]
            if self.bias:
                weights += [getattr(self, f"bias_{stem}_{suffix}") for stem in ("ih", "hh")]
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
        """A layer through the extended recurrence."""
        suffixes = self._layer_suffixes(index)

        def stacked(stem):
            return joined([getattr(self, f"{stem}_{suffix}") for suffix in suffixes])

        def joined(tensors):
            return tensors[0].unsqueeze(0) if len(tensors) == 1 else torch.stack(tensors)

        rows = input if batch_sizes is not None else input.flatten(0, 1)
        batch = int(batch_sizes[0]) if batch_sizes is not None else input.shape[1]
        w_ih, w_hh = stacked("weight_ih"), joined(self._w_hh(index, seed))
        gain_x = bias_x = bias = gain = cell_gain = cell_bias = None
        if self.bias:
            bias_x, bias = stacked("bias_ih"), stacked("bias_hh")
            if self.mode != "GRU":  # only there the recurrent bias is no mere sum
                bias_x, bias = bias_x + bias, None
        if self._norm == "recurrent":
            gain_x, gain = stacked("norm_ih"), stacked("norm_hh")
            if self.mode == "LSTM":
                cell_gain = stacked("norm_c")
                cell_bias = stacked("norm_c_bias") if self.bias else torch.zeros_like(cell_gain)
        elif self._norm == "joint":
            gain, bias = dreamer_affine(stacked("norm"), stacked("norm_bias"), self.update_bias)
        rate, h_scale = self.variational_dropout[1], None
        if self.training and rate:
            h_scale = batch_mask(input, (len(suffixes), batch, self.hidden_size), rate)
        rates = (*self.zoneout, self.recurrent_dropout)
        h0, c0 = (*(states or (None, None)), None)[:2]
        output, h_n, c_n = _extended.layer(
            self.mode.lower(), self._norm or "none", rows, batch_sizes, batch, h0, c0, w_ih, w_hh,
            gain_x, bias_x, bias, gain, cell_gain, cell_bias, h_scale, seed, index, rates, self.eps,
        )  # fmt: skip
        if batch_sizes is None:
            output = output.unflatten(0, input.shape[:2])
        return output, (h_n, c_n) if self.mode == "LSTM" else (h_n,)


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


def autocast_device(tensor):
    return "cpu" if tensor.is_meta else tensor.device.type  # meta has no autocast of its own


def without_autocast(input, hx, dtype):
    """Input and states in dtype where autocast is on, else as they are."""
    device = autocast_device(input)
    if not torch.is_autocast_enabled(device) or not input.is_floating_point():
        return input, hx
    if input.dtype is torch.float64:  # which autocast leaves alone
        return input, hx
    if isinstance(hx, tuple | list):
        hx = tuple(state.to(dtype) for state in hx)
    elif hx is not None:
        hx = hx.to(dtype)
    return input.to(dtype), hx


def dreamer_affine(gain, bias, update_bias):
    """Gain and bias with which the kernel's z, what stays of h, is 1 - sigmoid(z + update_bias)."""
    r, z, n = gain.chunk(3, -1)
    b_r, b_z, b_n = bias.chunk(3, -1)
    return torch.cat([r, -z, n], -1), torch.cat([b_r, -b_z - update_bias, b_n], -1)
