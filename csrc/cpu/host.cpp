// The CPU operators of first order: tensors turned into the params structs of the
// kernels.
#include "host/operators.h"

#include "cpu/layer.h"

namespace fastrnn::cpu {
namespace {

using host::BackwardResult;
using host::ForwardResult;

// Here they are segments of packed data: the work that a reset saves is then saved.
void refuse(const char* op, const host::Resets& resets) {
  TORCH_CHECK(!resets.mask, op, ": expected no resets on cpu, where segments of packed data do it");
}

ForwardResult forward(const char* op, CellKind cell, const Tensor& input,
                      const OptionalTensor& batch_sizes, const OptionalTensor& h0,
                      const OptionalTensor& c0, at::TensorList param_list, bool has_biases,
                      bool bidirectional, bool save, const host::Resets& resets) {
  refuse(op, resets);
  Layer layer(op, input, cell, bidirectional ? 2 : 1, has_biases);
  LayerShape& shape = layer.shape;
  const int64_t dim = batch_sizes ? 2 : 3;
  TORCH_CHECK(input.device().is_cpu() && input.dim() == dim, op, ": expected input with ", dim,
              " dimensions on cpu, got ", input.sizes(), " on ", input.device());
  layer.set_params(param_list, input.size(-1));
  const Tensor x = input.stride(-1) == 1 && input.stride(-2) >= 0 ? input : input.contiguous();
  if (batch_sizes) {
    layer.set_packed(*batch_sizes, input.size(0));
  } else {
    TORCH_CHECK(input.size(0) > 0, op, ": expected input with at least one step, got shape ",
                input.sizes());
    shape.steps = {input.size(0), input.size(1), input.size(0) * input.size(1), nullptr, nullptr};
  }
  const int64_t N = layer.rows(), B = layer.batch(), D = layer.directions();
  const int64_t H = shape.hidden_size, P = shape.proj_size;
  const bool has_c = layer.has_c(), gated = layer.saves_gates();
  const int64_t SH = layer.columns() * H;
  const OptionalTensor h_start = layer.contiguous(h0, "h0", {D, B, P});
  const OptionalTensor c_start = layer.contiguous(c0, "c0", {D, B, H});

  ForwardResult r;
  r.output = batch_sizes ? layer.empty({N, D * P}) : layer.empty({input.size(0), B, D * P});
  r.h_n = layer.empty({D, B, P});
  if (has_c) r.c_n = layer.empty({D, B, H});
  if (gated) r.gates = save ? layer.empty({D, N, SH}) : layer.empty({0});
  r.hidden = save ? layer.empty({D, N, P}) : layer.empty({0});
  if (has_c) r.cells = save ? layer.empty({D, N, H}) : layer.empty({0});
  if (N == 0) return r;

  ForwardParams p{};
  p.shape = shape;
  layer.fill(p.weights);
  p.input = data(x);
  p.input_step_stride = batch_sizes ? 0 : x.stride(0);
  p.input_row_stride = x.stride(-2);
  p.h0 = data(h_start);
  p.c0 = data(c_start);
  p.output = r.output.mutable_data_ptr();
  p.h_n = r.h_n.mutable_data_ptr();
  if (has_c) p.c_n = r.c_n.mutable_data_ptr();
  if (save) {
    if (gated) p.gates = r.gates.mutable_data_ptr();
    p.hidden = r.hidden.mutable_data_ptr();
    if (has_c) p.cells = r.cells.mutable_data_ptr();
  }
  const Kernels& k = kernels(shape.dtype);
  run(layer, p, shape.input_size, k.forward_workspace, k.forward);
  return r;
}

// saved: hidden, or for the LSTM cells, of shape [D, N, ·].
BackwardResult backward(const char* op, CellKind cell, const OptionalTensor& d_output,
                        const OptionalTensor& d_h_n, const OptionalTensor& d_c_n,
                        const OptionalTensor& d_cells, const OptionalTensor& batch_sizes,
                        const OptionalTensor& h0, const OptionalTensor& c0,
                        const OptionalTensor& gates, const Tensor& saved, at::TensorList param_list,
                        bool has_biases, bool bidirectional, const host::Resets& resets) {
  refuse(op, resets);
  Layer layer(op, saved, cell, bidirectional ? 2 : 1, has_biases);
  LayerShape& shape = layer.shape;
  layer.set_params(param_list, -1);
  layer.set_backward_steps(saved, batch_sizes, d_output, d_h_n, d_c_n);
  const int64_t D = layer.directions(), H = shape.hidden_size, P = shape.proj_size;
  const int64_t N = layer.rows(), B = layer.batch();
  const bool has_c = layer.has_c();
  const int64_t SH = layer.columns() * H;
  layer.check(saved, has_c ? "cells" : "hidden", {D, N, H});
  const OptionalTensor gates_c =
      gates ? layer.contiguous(gates, "gates", {D, N, SH}) : std::nullopt;
  const Tensor saved_c = saved.contiguous();
  const OptionalTensor d_out = layer.contiguous_d_output(d_output);
  const OptionalTensor d_h = layer.contiguous(d_h_n, "d_h_n", {D, B, P});
  const OptionalTensor d_c = layer.contiguous(d_c_n, "d_c_n", {D, B, H});
  const OptionalTensor d_each_c = layer.contiguous(d_cells, "d_cells", {D, N, H});
  const OptionalTensor h_start = layer.contiguous(h0, "h0", {D, B, P});
  const OptionalTensor c_start = layer.contiguous(c0, "c0", {D, B, H});

  BackwardResult r;
  r.d_gates = layer.empty({D, N, SH});
  r.d_h0 = layer.empty({D, B, P});
  if (has_c) r.d_c0 = layer.empty({D, B, H});
  if (has_c) r.d_hidden = shape.projected ? layer.empty({D, N, P}) : layer.empty({0});
  if (N == 0) {  // no step: the gradients of the final states are those of the initial ones
    d_h ? r.d_h0.copy_(*d_h) : r.d_h0.zero_();
    if (has_c) d_c ? r.d_c0.copy_(*d_c) : r.d_c0.zero_();
    return r;
  }

  BackwardParams p{};
  p.shape = shape;
  layer.fill(p.weights);
  p.d_output = data(d_out);
  p.d_h_n = data(d_h);
  p.d_c_n = data(d_c);
  p.d_cells = data(d_each_c);
  p.h0 = data(h_start);
  p.c0 = data(c_start);
  p.gates = data(gates_c);
  (has_c ? p.cells : p.hidden) = data(saved_c);
  p.d_gates = r.d_gates.mutable_data_ptr();
  p.d_h0 = r.d_h0.mutable_data_ptr();
  if (has_c) p.d_c0 = r.d_c0.mutable_data_ptr();
  if (shape.projected) p.d_hidden = r.d_hidden.mutable_data_ptr();
  const Kernels& k = kernels(shape.dtype);
  run(layer, p, 0, k.backward_workspace, k.backward);
  return r;
}

std::tuple<Tensor, std::vector<Tensor>> products(const Tensor& d_gates, c10::SymInt apart,
                                                 const OptionalTensor& batch_sizes,
                                                 c10::SymInt batch, const OptionalTensor& input,
                                                 const OptionalTensor& hidden,
                                                 const OptionalTensor& h0, at::TensorList w_ih,
                                                 const c10::List<bool>& wanted,
                                                 const OptionalTensor& resets, bool reset_to_hx) {
  refuse("products", {resets, reset_to_hx});
  Layer layer(host::layer_of_products("products", d_gates, apart.expect_int(), batch_sizes,
                                      batch.expect_int(), input, hidden, w_ih, wanted));
  const LayerShape& shape = layer.shape;
  const int64_t D = layer.directions(), N = layer.rows(), B = layer.batch(), I = shape.input_size,
                P = shape.proj_size, GH = shape.hidden_size;
  const bool with_input = !w_ih.empty();

  ProductParams p{};
  std::vector<Tensor> keep;
  const auto pointer = [&](const Tensor& t, const char* name, at::IntArrayRef size) {
    layer.check(t, name, size);
    keep.push_back(t.contiguous());
    return data(keep.back());
  };
  p.d_gates = pointer(d_gates, "d_gates", d_gates.sizes());
  if (input) p.input = pointer(*input, "input", {N, I});
  if (hidden) p.hidden = pointer(*hidden, "hidden", {D, N, P});
  if (h0) p.h0 = pointer(*h0, "h0", {D, B, P});
  std::tuple<Tensor, std::vector<Tensor>> result;
  auto& [d_input, d_params] = result;
  d_input = layer.empty(with_input ? at::DimVector{N, I} : at::DimVector{0});
  if (with_input && N > 0) p.d_input = d_input.mutable_data_ptr();
  for (int64_t d = 0; d < D; ++d) {
    if (with_input) p.weights[d].w_ih = pointer(w_ih[d], "w_ih", {GH, I});
  }
  d_params = empty_gradients(layer, wanted, p.gradients);
  if (N == 0) return result;
  p.shape = shape;
  p.apart = apart.expect_int();
  const Kernels& k = kernels(shape.dtype);
  run(layer, p, I, k.products_workspace, k.products);
  return result;
}

struct Engine {
  static constexpr auto forward = cpu::forward;
  static constexpr auto backward = cpu::backward;
  static constexpr auto products = cpu::products;
};

}  // namespace

TORCH_LIBRARY_IMPL(fastrnn, CPU, m) { host::implement<Engine>(m); }

}  // namespace fastrnn::cpu
