"""Other packages, where they are installed: Haste (fp32 LSTM, GRU) and FlashRNN (16-bit LSTM).

FlashRNN has the recurrence alone: its times lack the input product.
"""

import torch


def calls(who, cell, x):
    """`(forward, forward and backward)` of a peer on x `[T, B, I]`."""
    if who == "haste":
        import haste_pytorch

        module = getattr(haste_pytorch, cell.cell)(cell.hidden, cell.hidden).cuda()
        x = x.clone().requires_grad_()
        return _pair(lambda: module(x)[0], [x, *module.parameters()])
    from flashrnn import flashrnn

    # Pre-activations [B, T, gates, heads, H], one head.
    steps, batch, hidden = x.shape
    new = {"dtype": x.dtype, "device": "cuda"}
    gates = torch.randn(batch, steps, 4, 1, hidden, **new).requires_grad_()
    weight = (torch.randn(4, 1, hidden, hidden, **new) / hidden**0.5).requires_grad_()
    bias = torch.zeros(4, 1, hidden, requires_grad=True, **new)

    def output():
        return flashrnn(gates, weight, bias, function="lstm", backend="cuda_fused")[0][0]

    return _pair(output, [gates, weight, bias])


def _pair(output, inputs):
    def forward():
        with torch.no_grad():
            return output()

    def both():
        return torch.autograd.grad(output().sum(), inputs)

    return forward, both
