// The operator `products` on CUDA.
#pragma once
#include "host/layer.h"

namespace fastrnn::cuda {

std::tuple<at::Tensor, std::vector<at::Tensor>> products(
    const at::Tensor& d_gates, c10::SymInt apart, const host::OptionalTensor& batch_sizes,
    c10::SymInt batch, const host::OptionalTensor& input, const host::OptionalTensor& hidden,
    const host::OptionalTensor& h0, at::TensorList w_ih, const c10::List<bool>& wanted,
    const host::OptionalTensor& resets, bool reset_to_hx);

}  // namespace fastrnn::cuda
