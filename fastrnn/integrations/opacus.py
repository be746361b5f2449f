"""Opacus: gradients of our layers and cells for each sample, so that they train under DP-SGD.

::

    import fastrnn.integrations.opacus                      # registers
    model = opacus.validators.ModuleValidator.fix(model)    # or what PrivacyEngine does with it

`ModuleValidator.validate` then names every layer and cell of `fastrnn` in a model, and `fix` makes
it one of the classes here: the same object with the same parameters (of the copy that `fix` makes),
whose backward pass leaves what each sample contributes, computed by the operators. Opacus by itself
would take a layer for one that has a single output and no states.

Layers take padded input with a batch, or a PackedSequence, whose order of sequences is that of
the samples; cells a batch. `resets`, `lengths`, `cu_seqlens` and `return_states` are refused in
training (ValueError). Outside training they are the layers that they were.

Tried with Opacus 1.6.0: GradSampleModule with hooks, both orders of dimensions and both reductions,
and PrivacyEngine.
"""

from functools import partial

import torch
from opacus.grad_sample import register_grad_sampler
from opacus.validators import register_module_fixer, register_module_validator
from opacus.validators.errors import UnsupportedModuleError
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from fastrnn import modules
from fastrnn._layer.cells import cell_of
from fastrnn._stack import plain
from fastrnn._stack.plain import PLAIN

__all__ = ["GRU", "LSTM", "RNN", "GRUCell", "LSTMCell", "RNNCell"]


class _Call:
    """One call of a module, as a sink of `fastrnn._layer.per_sample`: its first layer, the last in
    backward, depends on the marker."""

    def __init__(self, module, names, order, marker):
        self.module, self.left, self.order, self.marker = module, list(names), order, marker
        self.found = {}

    def __call__(self, count):
        own, self.left = self.left[:count], self.left[count:]
        marker, self.marker = self.marker, None
        return partial(self._receive, own, marker is not None), marker

    def _receive(self, names, is_first, gradients):
        for name, gradient in zip(names, gradients, strict=True):
            if gradient is not None:
                parameter = getattr(self.module, name)
                gradient = gradient.to(parameter.dtype)
                if self.order is not None:
                    gradient = gradient.index_select(0, self.order)
                if parameter in self.found:  # tied ones
                    gradient = gradient + self.found[parameter]
                self.found[parameter] = gradient
        if is_first:
            self.module.__dict__.setdefault("_of_samples", []).append(self.found)
            self.found = {}


class _Join(torch.autograd.Function):
    """Results as they are. A token beside them always gets ones for its gradient, which is what
    Opacus sees of a call, whatever of its results was used."""

    @staticmethod
    def forward(ctx, token, *results):
        ctx.set_materialize_grads(False)
        ctx.like = token.detach()
        return tuple(result.view_as(result) for result in results)

    @staticmethod
    def backward(ctx, *d_results):
        return torch.ones_like(ctx.like), *d_results


class _Token(torch.autograd.Function):
    """A token `[B, 1]` that comes out beside results."""

    @staticmethod
    def forward(ctx, batch, *results):
        ctx.set_materialize_grads(False)
        return results[0].new_zeros(batch, 1), *(result.view_as(result) for result in results)

    @staticmethod
    def backward(ctx, d_token, *d_results):
        return None, *d_results


class _OfSamples:
    """Before one of our modules in the order of classes. Opacus' hooks are told of one tensor in, a
    marker whose sides are the batch's, and of a token out: their gradients come when those of all
    layers are there, scaled as the loss is reduced."""

    def __call__(self, input, hx=None, **options):
        if not (self.training and torch.is_grad_enabled()):
            return super().__call__(None, input=input, hx=hx, **options)
        if options:
            raise ValueError(
                f"{self._get_name()}: expected none of {', '.join(options)} in training with "
                "Opacus, which has gradients of samples of padded or packed input"
            )
        batch = self._batch(input)
        marker = torch.zeros((), device=next(self.parameters()).device, requires_grad=True)
        results = super().__call__(marker.expand(batch, batch), input=input, hx=hx)
        return self._joined(input, _Join.apply(*results))

    def forward(self, marker, *, input, hx=None, **options):
        """The results, or in training `(token, *results)`; called by way of `__call__`."""
        if marker is None:
            return super().forward(input, hx, **options)
        order = input.unsorted_indices if isinstance(input, PackedSequence) else None
        self._call = _Call(self, self._names(), order, marker)
        try:
            results = super().forward(input, hx)
        finally:
            del self._call
        return _Token.apply(marker.shape[0], *self._tensors(results))


class _Layer(_OfSamples):
    def _names(self):
        return self._flat_weights_names

    def _batch(self, input):
        if isinstance(input, PackedSequence):
            return int(input.batch_sizes[0])
        if not isinstance(input, Tensor) or input.dim() != 3:
            raise ValueError(
                f"{self._get_name()}: expected input with a batch, padded or packed, in training "
                f"with Opacus, got {type(input).__name__}"
            )
        return input.shape[0 if self.batch_first else 1]

    def _tensors(self, results):
        output, hx = results
        output = output.data if isinstance(output, PackedSequence) else output
        return output, *(hx if isinstance(hx, tuple) else (hx,))

    def _joined(self, input, results):
        output, *hx = results
        if isinstance(input, PackedSequence):
            output = PackedSequence(output, *input[1:])
        return output, tuple(hx) if len(hx) > 1 else hx[0]

    def _run_cell(self, cell, *arguments):
        if hasattr(self, "_call"):
            cell = plain.with_sink(cell, self._call)
        return super()._run_cell(cell, *arguments)


class _Cell(_OfSamples):
    def _names(self):
        return [name for name, _ in self.named_parameters()]

    def _batch(self, input):
        if not isinstance(input, Tensor) or input.dim() != 2:
            raise ValueError(
                f"{self._get_name()}: expected input (batch, input_size) in training with Opacus, "
                f"got {type(input).__name__}"
            )
        return len(input)

    def _tensors(self, results):
        return results if isinstance(results, tuple) else (results,)

    def _joined(self, input, results):
        return results if len(results) > 1 else results[0]

    def forward(self, marker, *, input, hx=None):
        """See `_OfSamples`."""
        if marker is None:
            return super(_OfSamples, self).forward(input, hx)
        call = _Call(self, self._names(), None, marker)
        cell = cell_of(self)
        states = hx if isinstance(hx, tuple) else (hx,) * cell.states
        params = (self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)
        results = plain.step(plain.with_sink(PLAIN[cell.name], call), input, states, *params)
        return _Token.apply(marker.shape[0], *results)


class LSTM(_Layer, modules.LSTM):
    """`fastrnn.LSTM` under Opacus; made by its ModuleValidator."""


class GRU(_Layer, modules.GRU):
    """`fastrnn.GRU` under Opacus; made by its ModuleValidator."""


class RNN(_Layer, modules.RNN):
    """`fastrnn.RNN` under Opacus; made by its ModuleValidator."""


class LSTMCell(_Cell, modules.LSTMCell):
    """`fastrnn.LSTMCell` under Opacus; made by its ModuleValidator."""


class GRUCell(_Cell, modules.GRUCell):
    """`fastrnn.GRUCell` under Opacus; made by its ModuleValidator."""


class RNNCell(_Cell, modules.RNNCell):
    """`fastrnn.RNNCell` under Opacus; made by its ModuleValidator."""


_CLASSES = {
    getattr(modules, cls.__name__): cls for cls in (LSTM, GRU, RNN, LSTMCell, GRUCell, RNNCell)
}


@register_module_validator(list(_CLASSES))
def _validate(module):
    name = type(module).__name__
    return [
        UnsupportedModuleError(
            f"fastrnn.{name} is called with states and has several results, of which Opacus sees "
            f"one: ModuleValidator.fix makes it fastrnn.integrations.opacus.{name}"
        )
    ]


@register_module_fixer(list(_CLASSES))
def _fix(module, **_):
    module.__class__ = _CLASSES[type(module)]
    return module


@register_grad_sampler(list(_CLASSES.values()))
def _grad_samples(module, activations, backprops):
    """What the call left, times what the loss makes of one: the token's gradient."""
    found = module._of_samples.pop()
    if backprops.numel() == 0:  # a batch without a sample, as Poisson sampling may draw
        return found
    scale = backprops.flatten()[0]
    return {parameter: gradient * scale for parameter, gradient in found.items()}
