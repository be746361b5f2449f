"""ONNX Runtime and OpenVINO as further contestants, when they are installed.

Both get the same ONNX model, built here by hand from the weights of a torch.nn
layer, with fixed shapes, float32, and as many threads as torch has. They run as
their users run them: a numpy array in, a numpy array out.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import torch
from torch import nn

from .cases import Case

#: ONNX orders the gates of an LSTM i, o, f, c and those of a GRU z, r, h, where
#: torch.nn has i, f, g, o and r, z, n: the torch gate that comes at each place.
ONNX_GATES = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2), "RNN": (0,)}

OPSET = 14
IR_VERSION = 8

NAMES = ("onnxruntime", "openvino")


def missing(name: str) -> str | None:
    """Why a peer cannot take part, or None when it can."""
    for package in dict.fromkeys(("onnx", name)):
        if importlib.util.find_spec(package) is None:
            return f"{name} left out: the package {package} is not installed"
    return None


def onnx_model(layer: str, module: nn.Module, case: Case) -> bytes:
    """The layer as an ONNX model: input x ``[T, B, I]``, output y ``[T, B, D*H]``.

    Source: the operators LSTM, GRU and RNN of the ONNX specification, opset 14;
    linear_before_reset = 1 is the GRU of torch.nn, whose reset gate multiplies
    W_hn h + b_hn after the product.
    """
    from onnx import TensorProto, checker, helper, numpy_helper

    def reorder(tensor: torch.Tensor) -> torch.Tensor:
        gates = tensor.detach().reshape(len(ONNX_GATES[layer]), case.hidden_size, -1)
        return gates[list(ONNX_GATES[layer])].reshape(tensor.shape)

    nodes, constants = [], []

    def constant(name: str, value: torch.Tensor) -> str:
        constants.append(numpy_helper.from_array(value.contiguous().numpy(), name))
        return name

    width = case.directions * case.hidden_size
    shape = constant("shape", torch.tensor([case.seq_len, case.batch, width]))
    tensor = "x"
    for index in range(case.num_layers):
        suffixes = [f"l{index}", f"l{index}_reverse"][: case.directions]

        def stack(stem: str, suffixes: list[str] = suffixes) -> torch.Tensor:
            return torch.stack([reorder(getattr(module, f"{stem}_{s}")) for s in suffixes])

        inputs = [
            tensor,
            constant(f"w{index}", stack("weight_ih")),
            constant(f"r{index}", stack("weight_hh")),
            constant(f"b{index}", torch.cat([stack("bias_ih"), stack("bias_hh")], dim=1)),
        ]
        attributes = {"hidden_size": case.hidden_size}
        attributes["direction"] = "bidirectional" if case.directions == 2 else "forward"
        if layer == "GRU":
            attributes["linear_before_reset"] = 1
        nodes.append(helper.make_node(layer, inputs, [f"y{index}"], **attributes))
        # [T, D, B, H] to [T, B, D*H]
        nodes.append(helper.make_node("Transpose", [f"y{index}"], [f"p{index}"], perm=[0, 2, 1, 3]))
        tensor = "y" if index == case.num_layers - 1 else f"x{index + 1}"
        nodes.append(helper.make_node("Reshape", [f"p{index}", shape], [tensor]))

    def declare(name: str, features: int):
        sizes = [case.seq_len, case.batch, features]
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes)

    graph = helper.make_graph(
        nodes, layer, [declare("x", case.input_size)], [declare("y", width)], constants
    )
    opset = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION)
    checker.check_model(model)
    return model.SerializeToString()


def build_peer(
    name: str, layer: str, module: nn.Module, case: Case, x: torch.Tensor, threads: int
) -> Callable[[], torch.Tensor]:
    """A call without arguments that runs the peer on `x` and returns its output."""
    model = onnx_model(layer, module, case)
    array = x.detach().contiguous().numpy()
    if name == "onnxruntime":
        return _onnxruntime_call(model, array, threads)
    return _openvino_call(model, array, threads)


def _onnxruntime_call(model: bytes, array, threads: int) -> Callable[[], torch.Tensor]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda: torch.from_numpy(session.run(["y"], {"x": array})[0])


def _openvino_call(model: bytes, array, threads: int) -> Callable[[], torch.Tensor]:
    import openvino

    core = openvino.Core()
    # Without the precision hint OpenVINO computes in bfloat16 where it can.
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = core.compile_model(core.read_model(model), "CPU", settings).create_infer_request()

    def call() -> torch.Tensor:
        return torch.from_numpy(request.infer([array], share_inputs=True, share_outputs=True)[0])

    return call


def versions() -> dict[str, str]:
    found = {}
    for name in ("onnx", *NAMES):
        if importlib.util.find_spec(name) is not None:
            found[name] = importlib.import_module(name).__version__
    return found
