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
#include "host/operators.h"

namespace fastrnn::cpu {
namespace {

using at::Tensor;
using host::BackwardResult;
using host::data;
using host::ForwardResult;
using host::OptionalTensor;

struct Layer : host::Layer {
  using host::Layer::Layer;
  explicit Layer(host::Layer&& layer) : host::Layer(std::move(layer)) {}

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

  void fill(Weights (&weights)[2]) const {
    for (int d = 0; d < shape.directions; ++d) {
      const Tensor* w = params_of(d);
      weights[d] = {data(w[0]), data(w[1]), has_biases ? data(w[2]) : nullptr,
                    has_biases ? data(w[3]) : nullptr,
                    shape.projected ? data(w[has_biases ? 4 : 2]) : nullptr};
    }
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

ForwardResult forward(const char* op, CellKind cell, const Tensor& input,
                      const OptionalTensor& batch_sizes, const OptionalTensor& h0,
                      const OptionalTensor& c0, at::TensorList param_list, bool has_biases,
                      bool bidirectional, bool save) {
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

// saved: hidden, or for the LSTM cells, of shape [D, N, ·].
BackwardResult backward(const char* op, CellKind cell, const OptionalTensor& d_output,
                        const OptionalTensor& d_h_n, const OptionalTensor& d_c_n,
                        const OptionalTensor& batch_sizes, const OptionalTensor& h0,
                        const OptionalTensor& c0, const OptionalTensor& gates, const Tensor& saved,
                        at::TensorList param_list, bool has_biases, bool bidirectional) {
  Layer layer(op, saved, cell, bidirectional ? 2 : 1, has_biases);
  LayerShape& shape = layer.shape;
  layer.set_params(param_list, -1);
  layer.set_backward_steps(saved, batch_sizes, d_output, d_h_n, d_c_n);
  const int64_t D = layer.directions(), H = shape.hidden_size, P = shape.proj_size;
  const int64_t N = layer.rows(), B = layer.batch();
  const bool lstm = cell == CellKind::kLstm, gru = cell == CellKind::kGru;
  layer.check(saved, lstm ? "cells" : "hidden", {D, N, H});
  const OptionalTensor gates_c =
      gates ? layer.contiguous(gates, "gates", {D, N, 4 * H}) : std::nullopt;
  const Tensor saved_c = saved.contiguous();
  const OptionalTensor d_out = layer.contiguous_d_output(d_output);
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

std::tuple<Tensor, std::vector<Tensor>> layer_gradients(
    c10::string_view cell, const Tensor& d_gates, const OptionalTensor& batch_sizes,
    c10::SymInt batch, const OptionalTensor& input, const OptionalTensor& hidden,
    const OptionalTensor& h0, at::TensorList w_ih, const c10::List<bool>& wanted) {
  Layer layer(host::gradients_layer(cell, d_gates, batch_sizes, batch.expect_int(), input, hidden,
                                    w_ih, wanted));
  const LayerShape& shape = layer.shape;
  const int64_t D = layer.directions(), N = layer.rows(), B = layer.batch(), I = shape.input_size,
                P = shape.proj_size, GH = layer.gates() * shape.hidden_size;
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

struct Engine {
  static constexpr auto forward = cpu::forward;
  static constexpr auto backward = cpu::backward;
  static constexpr auto layer_gradients = cpu::layer_gradients;
};

}  // namespace

TORCH_LIBRARY_IMPL(fastrnn, CPU, m) { host::implement<Engine>(m); }

}  // namespace fastrnn::cpu
