// The CPU operators of first order: checks, allocation, and tensors turned into the
// params structs of the kernels.
#include <torch/library.h>

#include "cpu/layer.h"

namespace fastrnn::cpu {
namespace {

struct ForwardResult {
  Tensor output, h_n, c_n, gates, hidden, cells;
};

ForwardResult forward(const char* op, CellKind cell, const Tensor& input,
                      const OptionalTensor& batch_sizes, const OptionalTensor& h0,
                      const OptionalTensor& c0, at::TensorList param_list, bool has_biases,
                      bool bidirectional, bool save) {
  Layer layer{op, input.options().requires_grad(false), {}, has_biases, {}, {}, {}};
  LayerShape& shape = layer.shape;
  shape.cell = cell;
  shape.dtype = dtype_of(op, input);
  shape.directions = bidirectional ? 2 : 1;
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
  const bool lstm = cell == CellKind::kLstm, gated = lstm || cell == CellKind::kGru;
  const OptionalTensor h_start = layer.contiguous(h0, "h0", {D, B, P});
  const OptionalTensor c_start = layer.contiguous(c0, "c0", {D, B, H});

  ForwardResult r;
  r.output = batch_sizes ? layer.empty({N, D * P}) : layer.empty({input.size(0), B, D * P});
  r.h_n = layer.empty({D, B, P});
  if (lstm) r.c_n = layer.empty({D, B, H});
  if (gated) r.gates = save ? layer.internal({D, N, 4 * H}) : layer.empty({0});
  r.hidden = save ? layer.internal({D, N, P}) : layer.empty({0});
  if (lstm) r.cells = save ? layer.internal({D, N, H}) : layer.empty({0});
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
  if (lstm) p.c_n = r.c_n.mutable_data_ptr();
  if (save) {
    if (gated) p.gates = r.gates.mutable_data_ptr();
    p.hidden = r.hidden.mutable_data_ptr();
    if (lstm) p.cells = r.cells.mutable_data_ptr();
  }
  const Kernels& k = kernels(shape.dtype);
  run(layer, p, shape.input_size, k.forward_workspace, k.forward);
  return r;
}

struct BackwardResult {
  Tensor d_gates, d_h0, d_c0, d_hidden;
};

// saved: hidden, or for the LSTM cells, of shape [D, N, ·].
BackwardResult backward(const char* op, CellKind cell, const OptionalTensor& d_output,
                        const OptionalTensor& d_h_n, const OptionalTensor& d_c_n,
                        const OptionalTensor& batch_sizes, const OptionalTensor& h0,
                        const OptionalTensor& c0, const OptionalTensor& gates, const Tensor& saved,
                        at::TensorList param_list, bool has_biases, bool bidirectional) {
  Layer layer{op, saved.options().requires_grad(false), {}, has_biases, {}, {}, {}};
  LayerShape& shape = layer.shape;
  shape.cell = cell;
  shape.dtype = dtype_of(op, saved);
  shape.directions = bidirectional ? 2 : 1;
  layer.set_params(param_list, -1);
  const int64_t D = layer.directions(), H = shape.hidden_size, P = shape.proj_size;
  TORCH_CHECK(saved.dim() == 3, op, ": expected saved tensors of 3 dimensions, got ",
              saved.sizes());
  const int64_t N = saved.size(1);
  if (batch_sizes) {
    layer.set_packed(*batch_sizes, N);
  } else {
    // Any gradient tells the batch; all absent is no call at all.
    TORCH_CHECK(d_output || d_h_n || d_c_n, op, ": expected d_output, d_h_n or d_c_n, got none");
    for (const OptionalTensor& t : {d_output, d_h_n, d_c_n}) {
      TORCH_CHECK(!t || t->dim() == 3, op, ": expected gradients of 3 dimensions, got ",
                  t->sizes());
    }
    const int64_t B = d_output ? d_output->size(1) : (d_h_n ? *d_h_n : *d_c_n).size(1);
    TORCH_CHECK(B == 0 ? N == 0 : N % B == 0, op, ": expected a gradient whose batch divides ", N,
                " rows, got batch ", B);
    shape.steps = {B == 0 ? 0 : N / B, B, N, nullptr, nullptr};
  }
  const int64_t B = layer.batch();
  const bool lstm = cell == CellKind::kLstm, gru = cell == CellKind::kGru;
  layer.check(saved, lstm ? "cells" : "hidden", {D, N, H});
  const OptionalTensor gates_c =
      gates ? layer.contiguous(gates, "gates", {D, N, 4 * H}) : std::nullopt;
  const Tensor saved_c = saved.contiguous();
  OptionalTensor d_out;
  if (d_output) {
    TORCH_CHECK(d_output->numel() == N * D * P, op, ": expected d_output of ", N, " rows by ",
                D * P, ", got ", d_output->sizes());
    layer.check(*d_output, "d_output", d_output->sizes());
    d_out = d_output->contiguous();
  }
  const OptionalTensor d_h = layer.contiguous(d_h_n, "d_h_n", {D, B, P});
  const OptionalTensor d_c = layer.contiguous(d_c_n, "d_c_n", {D, B, H});
  const OptionalTensor h_start = layer.contiguous(h0, "h0", {D, B, P});
  const OptionalTensor c_start = layer.contiguous(c0, "c0", {D, B, H});

  BackwardResult r;
  r.d_gates = layer.internal({D, N, lstm || gru ? 4 * H : H});
  r.d_h0 = layer.empty({D, B, P});
  if (lstm) r.d_c0 = layer.empty({D, B, H});
  if (lstm) r.d_hidden = shape.projected ? layer.internal({D, N, P}) : layer.empty({0});
  if (N == 0) {  // no step: the gradients of the final states are those of the initial ones
    d_h ? r.d_h0.copy_(*d_h) : r.d_h0.zero_();
    if (lstm) d_c ? r.d_c0.copy_(*d_c) : r.d_c0.zero_();
    return r;
  }

  BackwardParams p{};
  p.shape = shape;
  layer.fill(p.weights);
  p.d_output = data(d_out);
  p.d_h_n = data(d_h);
  p.d_c_n = data(d_c);
  p.h0 = data(h_start);
  p.c0 = data(c_start);
  p.gates = data(gates_c);
  (lstm ? p.cells : p.hidden) = data(saved_c);
  p.d_gates = r.d_gates.mutable_data_ptr();
  p.d_h0 = r.d_h0.mutable_data_ptr();
  if (lstm) p.d_c0 = r.d_c0.mutable_data_ptr();
  if (shape.projected) p.d_hidden = r.d_hidden.mutable_data_ptr();
  const Kernels& k = kernels(shape.dtype);
  run(layer, p, 0, k.backward_workspace, k.backward);
  return r;
}

// d_input when w_ih is given; for each direction the gradients of w_ih, w_hh,
// b_ih and b_hh that `wanted` (4 flags a direction) asks for. What is not wanted
// has size 0.
std::tuple<Tensor, std::vector<Tensor>> layer_gradients(
    c10::string_view cell, const Tensor& d_gates, const OptionalTensor& batch_sizes,
    c10::SymInt batch, const OptionalTensor& input, const OptionalTensor& hidden,
    const OptionalTensor& h0, at::TensorList w_ih, const c10::List<bool>& wanted) {
  const char* op = "layer_gradients";
  Layer layer{op, d_gates.options().requires_grad(false), {}, false, {}, {}, {}};
  LayerShape& shape = layer.shape;
  TORCH_CHECK(cell == "lstm" || cell == "gru" || cell == "rnn", op,
              ": expected cell lstm, gru or rnn, got ", cell);
  shape.cell = cell == "lstm"  ? CellKind::kLstm
               : cell == "gru" ? CellKind::kGru
                               : CellKind::kRnnTanh;
  shape.dtype = dtype_of(op, d_gates);
  TORCH_CHECK(d_gates.dim() == 3 && (d_gates.size(0) == 1 || d_gates.size(0) == 2), op,
              ": expected d_gates of shape (directions, rows, gates), got ", d_gates.sizes());
  layer.check(d_gates, "d_gates", d_gates.sizes());
  const int64_t D = d_gates.size(0), N = d_gates.size(1), columns = d_gates.size(2);
  shape.directions = static_cast<int>(D);
  TORCH_CHECK(columns > 0 && (shape.cell == CellKind::kRnnTanh || columns % 4 == 0), op,
              ": expected d_gates with 4*hidden_size columns, got ", columns);
  const int64_t H = shape.cell == CellKind::kRnnTanh ? columns : columns / 4;
  const int64_t GH = layer.gates() * H;
  const bool with_input = !w_ih.empty();
  TORCH_CHECK(wanted.size() == static_cast<size_t>(4 * D), op, ": expected ", 4 * D, " flags, got ",
              wanted.size());
  TORCH_CHECK(!with_input || w_ih.size() == static_cast<size_t>(D), op, ": expected ", D,
              " w_ih, got ", w_ih.size());
  for (int64_t d = 0; d < D; ++d) {
    TORCH_CHECK(input || !wanted.get(static_cast<size_t>(4 * d)), op,
                ": expected input for d_w_ih, got None");
    TORCH_CHECK(hidden || !wanted.get(static_cast<size_t>(4 * d + 1)), op,
                ": expected hidden for d_w_hh, got None");
  }
  const int64_t B = batch.expect_int();
  if (batch_sizes) {
    layer.set_packed(*batch_sizes, N);
    TORCH_CHECK(layer.batch() == B, op, ": expected batch ", layer.batch(), ", got ", B);
  } else {
    TORCH_CHECK(B > 0 ? N % B == 0 : N == 0, op, ": expected a batch that divides ", N,
                " rows, got ", B);
    shape.steps = {B > 0 ? N / B : 0, B, N, nullptr, nullptr};
  }
  const int64_t I = input ? input->size(-1) : with_input ? w_ih[0].size(1) : 1;
  const int64_t P = hidden ? hidden->size(-1) : H;
  shape.hidden_size = H;
  shape.proj_size = P;
  shape.input_size = I;

  ProductParams p{};
  std::vector<Tensor> keep;
  const auto pointer = [&](const Tensor& t, const char* name, at::IntArrayRef size) {
    layer.check(t, name, size);
    keep.push_back(t.contiguous());
    return data(keep.back());
  };
  p.d_gates = pointer(d_gates, "d_gates", {D, N, columns});
  if (input) p.input = pointer(*input, "input", {N, I});
  if (hidden) p.hidden = pointer(*hidden, "hidden", {D, N, P});
  if (h0) p.h0 = pointer(*h0, "h0", {D, B, P});
  std::tuple<Tensor, std::vector<Tensor>> result;
  auto& [d_input, d_params] = result;
  d_input = layer.empty(with_input ? at::DimVector{N, I} : at::DimVector{0});
  if (with_input && N > 0) p.d_input = d_input.mutable_data_ptr();
  for (int64_t d = 0; d < D; ++d) {
    if (with_input) p.weights[d].w_ih = pointer(w_ih[d], "w_ih", {GH, I});
    void** targets[] = {&p.gradients[d].d_w_ih, &p.gradients[d].d_w_hh, &p.gradients[d].d_b_ih,
                        &p.gradients[d].d_b_hh};
    const at::DimVector sizes[] = {{GH, I}, {GH, P}, {GH}, {GH}};
    for (int k = 0; k < 4; ++k) {
      const bool want = wanted.get(static_cast<size_t>(4 * d + k));
      d_params.push_back(layer.empty(want ? sizes[k] : at::DimVector{0}));
      if (!want) continue;
      if (N == 0) {
        d_params.back().zero_();
      } else {
        *targets[k] = d_params.back().mutable_data_ptr();
      }
    }
  }
  if (N == 0) return result;
  p.shape = shape;
  const Kernels& k = kernels(shape.dtype);
  run(layer, p, I, k.products_workspace, k.products);
  return result;
}

CellKind rnn_kind(const char* op, std::string_view nonlinearity) {
  TORCH_CHECK(nonlinearity == "tanh" || nonlinearity == "relu", op,
              ": expected nonlinearity \"tanh\" or \"relu\", got \"", nonlinearity, "\"");
  return nonlinearity == "tanh" ? CellKind::kRnnTanh : CellKind::kRnnRelu;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> lstm_forward(
    const Tensor& input, const OptionalTensor& batch_sizes, const OptionalTensor& h0,
    const OptionalTensor& c0, at::TensorList params, bool has_biases, bool bidirectional,
    bool save) {
  auto r = forward("lstm_forward", CellKind::kLstm, input, batch_sizes, h0, c0, params, has_biases,
                   bidirectional, save);
  return {r.output, r.h_n, r.c_n, r.gates, r.hidden, r.cells};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> lstm_backward(
    const OptionalTensor& d_output, const OptionalTensor& d_h_n, const OptionalTensor& d_c_n,
    const OptionalTensor& batch_sizes, const OptionalTensor& c0, const Tensor& gates,
    const Tensor& cells, at::TensorList params, bool has_biases, bool bidirectional) {
  auto r = backward("lstm_backward", CellKind::kLstm, d_output, d_h_n, d_c_n, batch_sizes,
                    std::nullopt, c0, gates, cells, params, has_biases, bidirectional);
  return {r.d_gates, r.d_h0, r.d_c0, r.d_hidden};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> gru_forward(const Tensor& input,
                                                       const OptionalTensor& batch_sizes,
                                                       const OptionalTensor& h0,
                                                       at::TensorList params, bool has_biases,
                                                       bool bidirectional, bool save) {
  auto r = forward("gru_forward", CellKind::kGru, input, batch_sizes, h0, std::nullopt, params,
                   has_biases, bidirectional, save);
  return {r.output, r.h_n, r.gates, r.hidden};
}

std::tuple<Tensor, Tensor> gru_backward(const OptionalTensor& d_output, const OptionalTensor& d_h_n,
                                        const OptionalTensor& batch_sizes, const OptionalTensor& h0,
                                        const Tensor& gates, const Tensor& hidden,
                                        at::TensorList params, bool has_biases,
                                        bool bidirectional) {
  auto r = backward("gru_backward", CellKind::kGru, d_output, d_h_n, std::nullopt, batch_sizes, h0,
                    std::nullopt, gates, hidden, params, has_biases, bidirectional);
  return {r.d_gates, r.d_h0};
}

std::tuple<Tensor, Tensor, Tensor> rnn_forward(const Tensor& input,
                                               const OptionalTensor& batch_sizes,
                                               const OptionalTensor& h0, at::TensorList params,
                                               bool has_biases, bool bidirectional,
                                               c10::string_view nonlinearity, bool save) {
  const CellKind kind = rnn_kind("rnn_forward", {nonlinearity.data(), nonlinearity.size()});
  auto r = forward("rnn_forward", kind, input, batch_sizes, h0, std::nullopt, params, has_biases,
                   bidirectional, save);
  return {r.output, r.h_n, r.hidden};
}

std::tuple<Tensor, Tensor> rnn_backward(const OptionalTensor& d_output, const OptionalTensor& d_h_n,
                                        const OptionalTensor& batch_sizes, const Tensor& hidden,
                                        at::TensorList params, bool has_biases, bool bidirectional,
                                        c10::string_view nonlinearity) {
  const CellKind kind = rnn_kind("rnn_backward", {nonlinearity.data(), nonlinearity.size()});
  auto r = backward("rnn_backward", kind, d_output, d_h_n, std::nullopt, batch_sizes, std::nullopt,
                    std::nullopt, std::nullopt, hidden, params, has_biases, bidirectional);
  return {r.d_gates, r.d_h0};
}

}  // namespace

TORCH_LIBRARY_IMPL(fastrnn, CPU, m) {
  m.impl("lstm_forward", lstm_forward);
  m.impl("lstm_backward", lstm_backward);
  m.impl("gru_forward", gru_forward);
  m.impl("gru_backward", gru_backward);
  m.impl("rnn_forward", rnn_forward);
  m.impl("rnn_backward", rnn_backward);
  m.impl("layer_gradients", layer_gradients);
}

}  // namespace fastrnn::cpu
