// layer_forward of a plain layer on padded data, without its operator.
#pragma once
#include <ATen/core/Tensor.h>

#include <vector>

#include "host/cells.h"

namespace fastrnn::cpu {

// The output and the final states; states: none for zeros.
std::vector<at::Tensor> infer(CellKind cell, const at::Tensor& input,
                              const std::vector<at::Tensor>& states, at::TensorList params,
                              bool bidirectional);

}  // namespace fastrnn::cpu
