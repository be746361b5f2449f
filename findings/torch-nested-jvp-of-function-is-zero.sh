#!/usr/bin/env bash
# torch 2.13.0 (CPU): torch.func.jvp inside torch.func.jvp gives zero for the derivative of what an
# autograd.Function's jvp returns, without an error.
#
# The Function computes sin and its jvp is written in torch's operations, cos(x) times the tangent.
# One jvp is right, and so are jvp over grad and grad over jvp; two nested jvps give 0 instead of
# -sin. The same without a Function is right. (Reported as pytorch/pytorch#197867, open.)
#
# Seen, at x = 0.3: jvp 0.9553, jvp over grad -0.2955, grad over jvp -0.2955, jvp over jvp 0.0000,
# jvp over jvp of torch.sin itself -0.2955.
# What it means for fastrnn: where one torch.func.jvp or jacfwd is inside another, a layer is its
# equations in torch's operations, no Function (fastrnn/_layer/transforms.py, in_nested_forward_mode);
# tests/derivatives/test_second_order.py, test_third_and_higher_derivatives.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy
"$folder/venv/bin/python" - << 'PYTHON'
import torch

assert torch.__version__.startswith("2.13.0"), torch.__version__


class Sine(torch.autograd.Function):
    @staticmethod
    def forward(angle):
        return torch.sin(angle)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0])
        ctx.save_for_forward(inputs[0])

    @staticmethod
    def backward(ctx, gradient):
        return gradient * torch.cos(ctx.saved_tensors[0])

    @staticmethod
    def jvp(ctx, tangent):
        return tangent * torch.cos(ctx.saved_tensors[0])


def forward(function):
    return lambda x: torch.func.jvp(function, (x,), (torch.ones_like(x),))[1]


x, sine = torch.tensor(0.3, dtype=torch.float64), Sine.apply
first, second = torch.cos(x), -torch.sin(x)
found = {
    "jvp": forward(sine)(x),
    "jvp over grad": forward(torch.func.grad(sine))(x),
    "grad over jvp": torch.func.grad(forward(sine))(x),
    "jvp over jvp": forward(forward(sine))(x),
    "jvp over jvp of torch.sin": forward(forward(torch.sin))(x),
}
for name, value in found.items():
    print(f"{name}: {value:.4f}")
expected = first, second, second, torch.zeros(()), second
same = [torch.allclose(a, b.double()) for a, b in zip(found.values(), expected)]
assert all(same), "the behaviour has changed"
PYTHON
