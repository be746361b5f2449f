// The CPU operators: checks, allocation, and tensors turned into the params
// structs of the kernels.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <torch/library.h>

#include "cpu/dispatch.h"
#include "cpu/memory.h"
#include "cpu/params.h"
#include "cpu/team.h"

namespace fastrnn::cpu {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

DType dtype_of(const char* op, const Tensor& t) {
  switch (t.scalar_type()) {
    case at::kFloat:
      return DType::kFloat;
    case at::kDouble:
      return DType::kDouble;
    case at::kBFloat16:
      return DType::kBFloat16;
    case at::kHalf:
      return DType::kHalf;
    default:
      TORCH_CHECK(false, op,
                  ": expected input of dtype float64, float32, bfloat16 or float16, got ",
                  t.scalar_type());
  }
}

const void* data(const Tensor& t) { return t.const_data_ptr(); }
const void* data(const OptionalTensor& t) { return t ? t->const_data_ptr() : nullptr; }

// One call: the tensors it was given, made contiguous and checked, and the shape.
struct Layer {
  const char* op;
  at::TensorOptions options;
  LayerShape shape{};
  bool has_biases;
  std::vector<Tensor> params;    // contiguous
  std::vector<int64_t> offsets;  // of the rows of each step of packed data
  Tensor batch_sizes;

  int64_t gates() const {
    return shape.cell == CellKind::kLstm ? 4 : shape.cell == CellKind::kGru ? 3 : 1;
  }
  int64_t rows() const { return shape.steps.rows; }
  int64_t batch() const { return shape.steps.batch; }
  int64_t directions() const { return shape.directions; }

  // What the user receives.
  Tensor empty(at::IntArrayRef size) const {
    Tensor t = at::empty(size, options);
    if (t.numel() > 0) advise_huge_pages(t.mutable_data_ptr(), t.nbytes());
    return t;
  }
  // What no user sees: saved tensors and gradients of gates, from the cache.
  Tensor internal(at::IntArrayRef size) const {
    const int64_t numel = c10::multiply_integers(size);
    if (numel == 0) return at::empty(size, options);
    const size_t bytes = static_cast<size_t>(numel) * options.dtype().itemsize();
    void* memory = acquire_memory(bytes);
    Tensor t = at::from_blob(memory, size, release_memory, options);
    if (at::globalContext().deterministicAlgorithms() &&
        at::globalContext().deterministicFillUninitializedMemory()) {
      t.fill_(NAN);  // as at::empty does
    }
    return t;
  }

  void check(const Tensor& t, const char* name, at::IntArrayRef size) const {
    TORCH_CHECK(t.device().is_cpu() && t.scalar_type() == options.dtype().toScalarType(), op,
                ": expected ", name, " on cpu with dtype ", options.dtype().toScalarType(),
                ", got ", t.device(), " with dtype ", t.scalar_type());
    TORCH_CHECK(t.sizes() == size, op, ": expected ", name, " of shape ", size, ", got ",
                t.sizes());
  }
  OptionalTensor contiguous(const OptionalTensor& t, const char* name, at::IntArrayRef size) const {
    if (!t) return std::nullopt;
    check(*t, name, size);
    return t->contiguous();
  }

  // input_size is -1 when unknown (the backward pass has no input).
  void set_params(at::TensorList list, int64_t input_size) {
    const size_t each = 2 + (has_biases ? 2 : 0);
    const size_t count = static_cast<size_t>(shape.directions);
    TORCH_CHECK(list.size() == count * each || list.size() == count * (each + 1), op, ": expected ",
                each, " (or ", each + 1, " with projection) params for each of ", count,
                " directions, got ", list.size());
    shape.projected = list.size() == count * (each + 1);
    TORCH_CHECK(!shape.projected || shape.cell == CellKind::kLstm, op,
                ": expected no projection weight");
    const Tensor& w_ih = list[0];
    const Tensor& w_hh = list[1];
    TORCH_CHECK(w_ih.dim() == 2 && w_hh.dim() == 2 && w_hh.size(0) % gates() == 0, op,
                ": expected w_ih and w_hh of shape (", gates(), "*hidden_size, input_size) and (",
                gates(), "*hidden_size, h_size), got ", w_ih.sizes(), " and ", w_hh.sizes());
    shape.input_size = input_size >= 0 ? input_size : w_ih.size(1);
    shape.hidden_size = w_hh.size(0) / gates();
    shape.proj_size = w_hh.size(1);
    const int64_t H = shape.hidden_size, P = shape.proj_size, GH = gates() * H;
    TORCH_CHECK(H > 0 && P > 0 && shape.input_size > 0 && (shape.projected || P == H), op,
                ": expected w_hh of shape (", gates(), "*hidden_size, hidden_size), got ",
                w_hh.sizes());
    params.reserve(list.size());
    for (size_t i = 0; i < list.size(); ++i) {
      const size_t k = i % (list.size() / count);
      const Tensor& w = list[i];
      if (k == 0) {
        check(w, "w_ih", {GH, shape.input_size});
      } else if (k == 1) {
        check(w, "w_hh", {GH, P});
      } else if (k < each) {
        check(w, k == 2 ? "b_ih" : "b_hh", {GH});
      } else {
        check(w, "w_hr", {P, H});
      }
      params.push_back(w.contiguous());
    }
  }

  void fill(Weights (&weights)[2]) const {
    const size_t each = params.size() / static_cast<size_t>(shape.directions);
    for (int d = 0; d < shape.directions; ++d) {
      const Tensor* w = params.data() + d * each;
      weights[d] = {data(w[0]), data(w[1]), has_biases ? data(w[2]) : nullptr,
                    has_biases ? data(w[3]) : nullptr,
                    shape.projected ? data(w[each - 1]) : nullptr};
    }
  }

  // rows: N of packed data.
  void set_packed(const Tensor& sizes, int64_t rows) {
    TORCH_CHECK(sizes.device().is_cpu() && sizes.scalar_type() == at::kLong && sizes.dim() == 1 &&
                    sizes.numel() > 0,
                op, ": expected batch_sizes as a non-empty 1-D int64 tensor on cpu, got ",
                sizes.sizes(), " ", sizes.scalar_type(), " on ", sizes.device());
    batch_sizes = sizes.contiguous();
    const int64_t* counts = batch_sizes.const_data_ptr<int64_t>();
    const int64_t T = batch_sizes.numel();
    offsets.resize(static_cast<size_t>(T));
    int64_t sum = 0;
    for (int64_t t = 0; t < T; ++t) {
      TORCH_CHECK(counts[t] <= rows - sum, op,
                  ": expected as many rows as batch_sizes sum up to, got ", rows);
      TORCH_CHECK(counts[t] > 0 && (t == 0 || counts[t] <= counts[t - 1]), op,
                  ": expected batch_sizes positive and non-increasing, got ", counts[t],
                  " at step ", t);
      offsets[static_cast<size_t>(t)] = sum;
      sum += counts[t];
    }
    TORCH_CHECK(sum == rows, op, ": expected as many rows as batch_sizes sum up to (", sum,
                "), got ", rows);
    shape.steps = {T, counts[0], rows, counts, offsets.data()};
  }
};

// The number of threads worth starting. A thread must have about 5 us of work in
// all, and where threads meet at every step (small batches), the step must be
// long against a barrier (0.2 us).
int worthwhile_threads(const Layer& layer, int64_t input_size, bool meets_every_step) {
  const LayerShape& s = layer.shape;
  const double unit = 2.0 * static_cast<double>(layer.gates() * s.hidden_size);
  const double all = unit * static_cast<double>(s.steps.rows * s.directions) *
                     static_cast<double>(input_size + s.proj_size);
  constexpr double kFlopsPerThread = 5e5;
  constexpr double kFlopsPerStep = 1e5;
  const int available = at::in_parallel_region() ? 1 : at::get_num_threads();
  const double worth = all / kFlopsPerThread;
  int threads = worth < available ? static_cast<int>(worth) : available;
  const double step = unit * static_cast<double>(s.steps.batch * s.proj_size);
  if (meets_every_step && s.steps.batch < 2 * threads && step < kFlopsPerStep) {
    threads = threads < s.directions ? threads : s.directions;
  }
  return threads < 1 ? 1 : threads;
}

// Runs a kernel on a team with a workspace that serves a team of any size.
template <class Params>
void run(const Layer& layer, Params& params, int64_t input_size,
         size_t (*workspace_bytes)(const Params&, int),
         void (*kernel)(const Params&, const Worker&)) {
  constexpr bool kMeetsEveryStep = !std::is_same_v<Params, ProductParams>;
  const int threads = worthwhile_threads(layer, input_size, kMeetsEveryStep);
  size_t bytes = 0;
  for (int n = 1; n <= threads; ++n) bytes = std::max(bytes, workspace_bytes(params, n));
  const std::unique_ptr<void, void (*)(void*)> workspace(acquire_memory(bytes), release_memory);
  params.workspace = workspace.get();
  run_team(threads, [&](const Worker& worker) { kernel(params, worker); });
}

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
