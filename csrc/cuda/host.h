// The engine that host/operators.h makes operators of.
#pragma once
#include "cuda/products.h"
#include "host/operators.h"

namespace fastrnn::cuda {

host::ForwardResult forward(const char* op, CellKind cell, const at::Tensor& input,
                            const host::OptionalTensor& batch_sizes, const host::OptionalTensor& h0,
                            const host::OptionalTensor& c0, at::TensorList params, bool has_biases,
                            bool bidirectional, bool save, const host::Resets& resets);

host::BackwardResult backward(const char* op, CellKind cell, const host::OptionalTensor& d_output,
                              const host::OptionalTensor& d_h_n, const host::OptionalTensor& d_c_n,
                              const host::OptionalTensor& d_cells,
                              const host::OptionalTensor& batch_sizes,
                              const host::OptionalTensor& h0, const host::OptionalTensor& c0,
                              const host::OptionalTensor& gates, const at::Tensor& saved,
                              at::TensorList params, bool has_biases, bool bidirectional,
                              const host::Resets& resets);

struct Engine {
  static constexpr auto forward = cuda::forward;
  static constexpr auto backward = cuda::backward;
  static constexpr auto products = cuda::products;
};

}  // namespace fastrnn::cuda
