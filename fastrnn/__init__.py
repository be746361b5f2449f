"""fastrnn: drop-in replacements of torch.nn's recurrent layers, with kernels of their own.

    import fastrnn
    lstm = fastrnn.LSTM(64, 128, num_layers=2, bidirectional=True)   # arguments of torch.nn.LSTM
    output, (h_n, c_n) = lstm(input)

``fastrnn.functional`` is the same without modules, ``fastrnn.reference`` the equations in plain
PyTorch. ``python -m fastrnn`` prints versions, compiler and CPU target.
"""

from fastrnn import functional, onnx, quantization, variants
from fastrnn._layer import flops as _flops  # noqa: F401  (registers what it holds)
from fastrnn._version import __version__
from fastrnn.conversion import Conversion, convert, patch_torch_nn, restore
from fastrnn.initialization import init_
from fastrnn.modules import GRU, LSTM, RNN, GRUCell, LSTMCell, RNNCell
from fastrnn.quantization import quantize

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "Conversion",
    "GRUCell",
    "LSTMCell",
    "RNNCell",
    "__version__",
    "convert",
    "functional",
    "init_",
    "onnx",
    "patch_torch_nn",
    "quantization",
    "quantize",
    "restore",
    "variants",
]
