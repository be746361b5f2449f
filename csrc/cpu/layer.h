// What the CPU operators have in common: the allocation of a layer's tensors and the
// launch of a kernel. Checks are those of every device.
#pragma once
#include <ATen/Parallel.h>

#include "cpu/dispatch.h"
#include "cpu/params.h"
#include "cpu/team.h"
#include "cpu/tensors.h"
#include "host/layer.h"

namespace fastrnn::cpu {
namespace {

using at::Tensor;
using host::data;
using host::OptionalTensor;

struct Layer : host::Layer {
  using host::Layer::Layer;
  explicit Layer(host::Layer&& layer) : host::Layer(std::move(layer)) {}

  Tensor empty(at::IntArrayRef size) const { return cpu::empty(size, options); }

  void fill(Weights (&weights)[2]) const {
    for (int d = 0; d < shape.directions; ++d) {
      const Tensor* w = params_of(d);
      weights[d] = {data(w[0]), data(w[1]), has_biases ? data(w[2]) : nullptr,
                    has_biases ? data(w[3]) : nullptr,
                    shape.projected ? data(w[has_biases ? 4 : 2]) : nullptr};
    }
  }
};

// The gradients of weights and biases that are wanted, four flags a direction, and where kernels
// put them. Those that nobody wants have size 0; without rows all are zeros, and no kernel runs.
inline std::vector<Tensor> empty_gradients(const Layer& layer, const c10::List<bool>& wanted,
                                           Gradients (&targets)[2]) {
  const LayerShape& shape = layer.shape;
  const int64_t rows = layer.products() * shape.hidden_size;
  const at::DimVector sizes[] = {{rows, shape.input_size}, {rows, shape.proj_size}, {rows}, {rows}};
  std::vector<Tensor> gradients;
  for (size_t d = 0; d < static_cast<size_t>(shape.directions); ++d) {
    void** to[] = {&targets[d].d_w_ih, &targets[d].d_w_hh, &targets[d].d_b_ih, &targets[d].d_b_hh};
    for (size_t k = 0; k < 4; ++k) {
      const bool want = wanted.get(4 * d + k);
      gradients.push_back(layer.empty(want ? sizes[k] : at::DimVector{0}));
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
