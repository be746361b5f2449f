// The CPU operator of weights with elements dropped.
#include <torch/library.h>

#include "cpu/layer.h"

namespace fastrnn::cpu {
namespace {

// Elements dropped at random, what stays divided by 1 - rate; of a gradient the same ones.
Tensor drop_weights(const Tensor& weights, const Tensor& seed, int64_t stream, double rate) {
  TORCH_CHECK(weights.device().is_cpu() && weights.dim() == 2,
              "drop_weights: expected weights of 2 dimensions on cpu, got ", weights.sizes());
  TORCH_CHECK(rate >= 0 && rate < 1, "drop_weights: expected rate in [0, 1), got ", rate);
  TORCH_CHECK(stream >= 0, "drop_weights: expected stream >= 0, got ", stream);
  const Tensor from = weights.contiguous();
  Tensor to = empty(from.sizes(), from.options());
  if (to.numel() == 0) return to;
  DropParams p{};
  p.dtype = host::dtype_of("drop_weights", weights);
  p.rows = from.size(0);
  p.columns = from.size(1);
  p.from = data(from);
  p.to = to.mutable_data_ptr();
  p.seed = host::seed_of("drop_weights", seed);
  p.stream = static_cast<uint32_t>(stream);
  p.rate = rate;
  // A thread is worth its start where it has tens of microseconds of work.
  constexpr int64_t kElementsPerThread = int64_t{1} << 16;
  const int64_t worth = at::in_parallel_region() ? 1 : to.numel() / kElementsPerThread;
  const int threads =
      static_cast<int>(std::clamp<int64_t>(worth, 1, static_cast<int64_t>(at::get_num_threads())));
  const Kernels& k = kernels(p.dtype);
  const std::unique_ptr<void, void (*)(void*)> workspace(
      acquire_memory(k.drop_workspace(p, threads)), release_memory);
  p.workspace = workspace.get();
  run_team(threads, [&](const Worker& worker) { k.drop(p, worker); });
  return to;
}

}  // namespace

TORCH_LIBRARY_IMPL(fastrnn, CPU, m) { m.impl("drop_weights", drop_weights); }

}  // namespace fastrnn::cpu
