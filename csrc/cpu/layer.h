// What the CPU operators have in common: the allocation of a layer's tensors and the
// launch of a kernel. Checks are those of every device.
#pragma once
#include <ATen/Parallel.h>

#include "cpu/dispatch.h"
#include "cpu/params.h"
#include "cpu/team.h"
#include "cpu/tensors.h"
#include "host/saved.h"

namespace fastrnn::cpu {

inline at::Tensor empty(const host::Layer& layer, at::IntArrayRef size) {
  return empty(size, layer.options);
}

namespace {

using at::Tensor;
using host::data;
using host::Layer;
using host::OptionalTensor;

inline void fill(Weights (&weights)[2], const Layer& layer) {
  for (int d = 0; d < layer.shape.directions; ++d) {
    const Tensor* params = layer.params_of(d);
    const void* each[host::kParamKinds] = {};
    for (size_t k = 0; k < layer.kinds.count; ++k) {
      each[static_cast<int>(layer.kinds.each[k])] = data(params[k]);
    }
    weights[d] = {each[0], each[1], each[2], each[3], each[4],
                  each[5], each[6], each[7], each[8], each[9]};
  }
}

// Rows of contiguous values, with strides between them that kernels take.
inline Tensor with_contiguous_rows(const Tensor& input) {
  return input.stride(-1) == 1 && input.stride(-2) >= 0 ? input : input.contiguous();
}

inline void* target(const Tensor& t) { return t.defined() ? t.mutable_data_ptr() : nullptr; }

// All that a backward pass reads, and where it puts what it leaves.
inline void fill(BackwardParams& p, const host::BackwardCall& call) {
  const Layer& layer = call.layer;
  const host::GateGradients& r = call.result;
  p.shape = layer.shape;
  fill(p.weights, layer);
  p.d_output = data(call.d_output);
  p.d_h_n = data(call.d_h_n);
  p.d_c_n = data(call.d_c_n);
  p.d_cells = data(call.d_cells);
  p.h0 = data(layer.h0);
  p.c0 = data(layer.c0);
  p.gates = data(layer.gates);
  if (!layer.has_c()) p.hidden = data(layer.hidden);
  p.cells = data(layer.cells);
  p.inside = layer.inside;
  p.normed = data(layer.normed);
  p.rstd = data(layer.rstd);
  for (int d = 0; d < layer.shape.directions; ++d) {
    const auto of = [&](host::Param kind) {
      return target(r.of_inside[d][static_cast<int>(kind)]);
    };
    using host::Param;
    p.inside_gradients[d] = {of(Param::kBIh),    of(Param::kBHh),      of(Param::kGainIh),
                             of(Param::kGainHh), of(Param::kCellGain), of(Param::kCellBias),
                             of(Param::kWCh)};
  }
  p.d_gates = target(r.d_gates);
  p.d_h0 = target(r.d_h0);
  p.d_c0 = target(r.d_c0);
  p.d_hidden = target(r.d_hidden);
  p.d_cell_h = target(r.d_cell_h);
  p.d_cell_c = target(r.d_cell_c);
}

// The gradients of weights of so many rows and of biases that are wanted, four flags a direction,
// and where kernels put them. Those that nobody wants have size 0; without rows all are zeros, and
// no kernel runs.
inline std::vector<Tensor> empty_gradients(const Layer& layer, int64_t rows,
                                           const c10::List<bool>& wanted, Gradients (&targets)[2]) {
  const LayerShape& shape = layer.shape;
  const at::DimVector sizes[] = {{rows, shape.input_size}, {rows, shape.proj_size}, {rows}, {rows}};
  std::vector<Tensor> gradients;
  for (size_t d = 0; d < static_cast<size_t>(shape.directions); ++d) {
    void** to[] = {&targets[d].d_w_ih, &targets[d].d_w_hh, &targets[d].d_b_ih, &targets[d].d_b_hh};
    for (size_t k = 0; k < 4; ++k) {
      const bool want = wanted.get(4 * d + k);
      gradients.push_back(empty(layer, want ? sizes[k] : at::DimVector{0}));
      if (!want) continue;
      if (layer.rows() == 0) {
        gradients.back().zero_();
      } else {
        *to[k] = gradients.back().mutable_data_ptr();
      }
    }
  }
  return gradients;
}

// The number of threads worth starting. A thread must have about 5 us of work in
// all, and where threads meet at every step (small batches), the step must be
// long against a barrier (0.2 us).
inline int worthwhile_threads(const Layer& layer, int64_t input_size, bool meets_every_step) {
  const LayerShape& s = layer.shape;
  const double unit = 2.0 * static_cast<double>(layer.products() * s.hidden_size);
  const double all = unit * static_cast<double>(s.steps.rows * s.directions) *
                     static_cast<double>(input_size + s.proj_size);
  constexpr double kFlopsPerThread = 5e5;
  constexpr double kFlopsPerStep = 6e4;
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
  constexpr bool kMeetsEveryStep =
      !std::is_same_v<Params, ProductParams> && !std::is_same_v<Params, VjpParams>;
  const int threads = worthwhile_threads(layer, input_size, kMeetsEveryStep);
  size_t bytes = 0;
  for (int n = 1; n <= threads; ++n) bytes = std::max(bytes, workspace_bytes(params, n));
  const std::unique_ptr<void, void (*)(void*)> workspace(acquire_memory(bytes), release_memory);
  params.workspace = workspace.get();
  run_team(threads, [&](const Worker& worker) { kernel(params, worker); });
}

}  // namespace
}  // namespace fastrnn::cpu
