"""torch.ao.quantization: `quantize_dynamic` makes our layers and cells those of `fastrnn.quantize`.

::

    import fastrnn.integrations.torch_ao                    # registers
    small = torch.ao.quantization.quantize_dynamic(model, {fastrnn.LSTM, torch.nn.Linear})

torch's function looks for exact classes: ours have to be named, as here; without this module it
leaves them in float32 without a word. Of its dtypes torch.qint8 is taken, anything else raises
ValueError.
"""

import torch
from torch.ao.quantization import quantization_mappings

from fastrnn import modules
from fastrnn.quantization import QuantizedCell, QuantizedLayer


class _Quantized:
    """What torch's mapping holds in place of a class: it is asked for from_float alone."""

    def __init__(self, make):
        self._make = make

    def from_float(self, module, use_precomputed_fake_quant=False):
        """The quantized module; torch moves hooks over by itself."""
        dtype = module.qconfig.weight().dtype
        if dtype is not torch.qint8:
            raise ValueError(
                f"quantize_dynamic: expected dtype torch.qint8 for fastrnn's layers, got {dtype}; "
                "fastrnn.quantize takes torch.bfloat16 too"
            )
        quantized = self._make(module, torch.int8)
        quantized._forward_pre_hooks.clear()
        quantized._forward_hooks.clear()
        return quantized


for _cls in (modules.LSTM, modules.GRU, modules.RNN):
    quantization_mappings.DEFAULT_DYNAMIC_QUANT_MODULE_MAPPINGS[_cls] = _Quantized(QuantizedLayer)
for _cls in (modules.LSTMCell, modules.GRUCell, modules.RNNCell):
    quantization_mappings.DEFAULT_DYNAMIC_QUANT_MODULE_MAPPINGS[_cls] = _Quantized(QuantizedCell)
