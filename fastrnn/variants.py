"""Recurrent layers with layer normalisation, zoneout, other dropouts and weight drop.

`LSTM`, `GRU` and `RNN` here are those of `fastrnn` (and so of torch.nn) with keyword-only options
more, `CoupledLSTM` and `PeepholeLSTM` other LSTMs with the same options, `DreamerGRU` and
`DreamerGRUCell` the layer-normalised GRU of world models. docs/variants.md has a section and an
example for each.

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
    attributes: what was given, zoneout and variational_dropout as pairs. Rates may be set between
        calls, in that form and unchecked; layer_norm and proj_size may not, their parameters are
        made at construction.
    call, shapes, packed input, dtypes: as of `fastrnn.LSTM`, `fastrnn.GRU`, `fastrnn.RNN`, with
        resets, lengths and return_states. What lies between two resets is a sequence of its own,
        with masks of its own. States' cells and h are those after zoneout, its gates those before
        recurrent dropout. Under autocast a layer computes in its parameters' dtype.
    random numbers: torch.manual_seed reproduces them. Masks of zoneout, recurrent dropout and
        weight drop come from Philox 4x32-10 (Salmon et al. 2011) with a key that each call draws
        from torch's generator, and counters of layer, direction, step, row and unit: they are the
        same for any number of threads, and the backward pass computes them again instead of storing
        them. 16 bits decide, so that a rate is met to within 2^-17.
    derivatives: those of `fastrnn.LSTM`, by kernels on the CPU: first and second ones, forward
        mode, torch.func. vmap calls a layer with options inside the recurrence once for each
        sample, whose masks are the same. Other devices run the equations of
        `fastrnn.variants_reference`, step by step: right, but slow. Without options that reach into
        the recurrence (all but weight_drop and an input's variational dropout), and in eval with
        dropout alone, a layer runs as `fastrnn.LSTM`, `GRU` or `RNN` does.
    raises: ValueError for a rate outside of [0, 1), recurrent_dropout of an RNN, a pair where there
        is one rate, eps <= 0 and proj_size > 0 with an option that reaches into the recurrence;
        TypeError for an option of the wrong type; in the call what torch.nn raises.
"""

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from fastrnn import modules
from fastrnn._stack import autocast, checks, inside
from fastrnn._stack.inside import Layers, check_eps, check_update_bias, dreamer_affine
from fastrnn._stack.tracing import recorded

__all__ = ["GRU", "LSTM", "RNN", "CoupledLSTM", "DreamerGRU", "DreamerGRUCell", "PeepholeLSTM"]


class LSTM(Layers, modules.LSTM):
    """`fastrnn.LSTM` with options inside the recurrence.

    Args:
        those of `fastrnn.LSTM`, and by keyword only layer_norm, eps, zoneout, recurrent_dropout,
        variational_dropout, weight_drop: see the module, `fastrnn.variants`.

    Attributes: those of `fastrnn.LSTM`; with layer_norm `norm_ih_l[k]`, `norm_hh_l[k]`
    `(4*hidden_size)`, `norm_c_l[k]` and, with bias, `norm_c_bias_l[k]` `(hidden_size)`, with
    `_reverse` appended for the second direction.
    """


class CoupledLSTM(Layers, modules.LSTM):
    """An LSTM whose input gate is what its forget gate leaves over (CIFG): a quarter less work.

    ::

        f, g, o = W_ih x_t + b_ih + W_hh h_(t-1) + b_hh      (three blocks of rows, in this order)
        c_t = sigmoid(f) * c_(t-1) + (1 - sigmoid(f)) * tanh(g)
        h_t = sigmoid(o) * tanh(c_t)

    Greff et al., "LSTM: A Search Space Odyssey", arXiv:1503.04069, variant CIFG, without peepholes:
    no worse than the LSTM on the tasks there. It is the LSTM whose input gate has the forget gate's
    weights and biases with the sign changed.

    Args, call, shapes, errors: those of `fastrnn.variants.LSTM`, options and proj_size included.
    States' gates are f, g, o.

    Attributes: those of `fastrnn.variants.LSTM`, with three blocks of rows where it has four.
    """

    _mode = "LSTM_COUPLED"


class PeepholeLSTM(Layers, modules.LSTM):
    """An LSTM whose gates see the cell: for precise timing and counting.

    ::

        i, f, g, o = W_ih x_t + b_ih + W_hh h_(t-1) + b_hh
        i, f = sigmoid(i + p_i * c_(t-1)), sigmoid(f + p_f * c_(t-1))
        c_t = f * c_(t-1) + i * tanh(g)
        o = sigmoid(o + p_o * c_t)
        h_t = o * tanh(c_t)

    Gers and Schmidhuber, "Recurrent Nets that Time and Count", IJCNN 2000; the P input of ONNX's
    LSTM, whose peepholes are in the order i, o, f. With layer_norm o sees the normalised cell, as
    h does.

    Args, call, shapes, errors: those of `fastrnn.variants.LSTM`, but proj_size must be 0.

    Attributes: those of `fastrnn.variants.LSTM`, and `weight_ch_l[k]` `(3*hidden_size)`: p_i, p_f,
    p_o, with `_reverse` appended for the second direction; drawn as torch.nn draws weights, left
    as they are by `fastrnn.init_`.
    """

    _mode = "LSTM_PEEPHOLE"


class GRU(Layers, modules.GRU):
    """`fastrnn.GRU` with options inside the recurrence.

    Args:
        those of `fastrnn.GRU`, and by keyword only layer_norm, eps, zoneout (one number),
        recurrent_dropout, variational_dropout, weight_drop: see the module, `fastrnn.variants`.

    Attributes: those of `fastrnn.GRU`; with layer_norm `norm_ih_l[k]` and `norm_hh_l[k]`
    `(3*hidden_size)`, with `_reverse` appended for the second direction.
    """


class RNN(Layers, modules.RNN):
    """`fastrnn.RNN` with options inside the recurrence.

    Args:
        those of `fastrnn.RNN`, and by keyword only layer_norm, eps, zoneout (one number),
        variational_dropout, weight_drop: see the module, `fastrnn.variants`. recurrent_dropout is
        there to be refused.

    Attributes: those of `fastrnn.RNN`; with layer_norm `norm_ih_l[k]` and `norm_hh_l[k]`
    `(hidden_size)`, with `_reverse` appended for the second direction.
    """


class DreamerGRU(Layers, modules.GRU):
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
        input_size, hidden_size, num_layers, batch_first, dropout, bidirectional, checkpoint_every,
            device, dtype: as of `fastrnn.GRU`.
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
        checkpoint_every: int | None = None,
        device=None,
        dtype=None,
    ):
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            bias=False,
            batch_first=batch_first,
            dropout=dropout,
            bidirectional=bidirectional,
            eps=eps,
            checkpoint_every=checkpoint_every,
            device=device,
            dtype=dtype,
        )
        self._norm = "joint"
        check_update_bias("DreamerGRU", update_bias)
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
        check_eps("DreamerGRUCell", eps)
        check_update_bias("DreamerGRUCell", update_bias)
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
        if isinstance(input, Proxy):
            return recorded(self, input, hx)
        checks.check_tensors("DreamerGRUCell", input, (hx,), ())
        input, (hx,) = autocast.in_dtype(self.weight_ih.dtype, input, (hx,))
        for argument, value in (("input", input), ("hx", hx)):
            if value is not None and value.dim() not in (1, 2):
                raise ValueError(
                    f"DreamerGRUCell: expected {argument} of 1 or 2 dimensions, "
                    f"got shape {tuple(value.shape)}"
                )
        if hx is not None and hx.dim() != input.dim():
            raise RuntimeError(
                f"DreamerGRUCell: expected hx with as many dimensions as input, "
                f"got shapes {tuple(hx.shape)} and {tuple(input.shape)}"
            )
        rows = input if input.dim() == 2 else input.unsqueeze(0)
        h0 = hx if hx is None or hx.dim() == 2 else hx.unsqueeze(0)
        weights = self.weight_ih, self.weight_hh
        checks.check_step("DreamerGRUCell", 3, rows, (h0,), *weights, input.dim() == 2)
        within = inside.Within("gru", "joint", self.eps, (0.0, 0.0, 0.0), 0.0, None)
        states = [None if h0 is None else h0.unsqueeze(0)]
        with torch.autocast(autocast.device_of(rows), enabled=False):
            affine = dreamer_affine(self.norm, self.norm_bias, self.update_bias)
            params = [self.weight_ih, self.weight_hh, *affine]
            if h0 is not None and h0.dtype is not rows.dtype is params[0].dtype:
                rows, states, params, _ = autocast.with_float_states(rows, states, params)
            _, h = inside.run(within, rows.unsqueeze(0), None, states, (0, params), False)
        return h[0] if input.dim() == 2 else h[0, 0]
