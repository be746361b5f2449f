// The gradients of weights and biases for each of many samples, whose rows lie side by
// side: those of vmap. Each is a small product, so threads divide the samples, and every
// one of them passes its rows, gathered first, to the products kernel as a layer of its own.
#include <torch/library.h>

#include <cstring>

#include "cpu/layer.h"

namespace fastrnn::cpu {
namespace {

// A tensor [groups, rows, samples, C], and where a thread gathers one sample of it.
struct Rows {
  Tensor keep;
  int64_t groups, rows, samples;
  size_t row_bytes, offset;

  size_t bytes() const { return static_cast<size_t>(groups * rows) * row_bytes; }
  const void* gather(int64_t sample, char* scratch) const {
    const char* from = static_cast<const char*>(keep.const_data_ptr());
    char* to = scratch + offset;
    for (int64_t r = 0; r < groups * rows; ++r) {
      std::memcpy(to + static_cast<size_t>(r) * row_bytes,
                  from + static_cast<size_t>(r * samples + sample) * row_bytes, row_bytes);
    }
    return to;
  }
};

std::vector<Tensor> sample_products(const Tensor& d_gates, c10::SymInt apart, int64_t samples,
                                    const OptionalTensor& batch_sizes, c10::SymInt batch,
                                    const OptionalTensor& input, const OptionalTensor& hidden,
                                    const OptionalTensor& h0, const c10::List<bool>& wanted) {
  TORCH_CHECK(samples > 0 && d_gates.dim() == 3 && d_gates.size(1) % samples == 0,
              "sample_products: expected d_gates of shape (directions, rows*samples, gates) and "
              "samples > 0, got ",
              d_gates.sizes(), " and ", samples);
  // As the first sample alone would be.
  const Tensor first = d_gates.unflatten(1, {-1, samples}).select(2, 0);
  Layer layer(host::layer_of_products("sample_products", first, apart.expect_int(), batch_sizes,
                                      batch.expect_int(), input, hidden, {}, wanted));
  const LayerShape& shape = layer.shape;
  const int64_t D = layer.directions(), N = layer.rows(), B = layer.batch(), I = shape.input_size,
                P = shape.proj_size, GH = shape.hidden_size;

  size_t scratch_bytes = 0;
  const auto rows_of = [&](const Tensor& t, const char* name, int64_t groups, int64_t rows,
                           int64_t columns, bool is_grouped = true) {
    const at::DimVector size = is_grouped ? at::DimVector{groups, rows * samples, columns}
                                          : at::DimVector{rows * samples, columns};
    layer.check(t, name, size);
    const Rows r{
        t.contiguous(), groups, rows, samples, static_cast<size_t>(columns) * t.element_size(),
        scratch_bytes};
    scratch_bytes += (r.bytes() + 63) / 64 * 64;
    return r;
  };
  const Rows gates = rows_of(d_gates, "d_gates", D, N, d_gates.size(2));
  std::optional<Rows> inputs, states, initial;
  if (input) inputs = rows_of(*input, "input", 1, N, I, false);
  if (hidden) states = rows_of(*hidden, "hidden", D, N, P);
  if (h0) initial = rows_of(*h0, "h0", D, B, P);

  std::vector<Tensor> d_params;
  const at::DimVector sizes[] = {{samples, GH, I}, {samples, GH, P}, {samples, GH}, {samples, GH}};
  for (size_t k = 0; k < wanted.size(); ++k) {
    d_params.push_back(empty(layer, wanted.get(k) ? sizes[k % 4] : at::DimVector{0}));
    if (wanted.get(k) && N == 0) d_params.back().zero_();
  }
  if (N == 0) return d_params;

  const Kernels& k = kernels(shape.dtype);
  ProductParams layout{};
  layout.shape = shape;
  layout.apart = apart.expect_int();
  const size_t workspace_bytes = (k.products_workspace(layout, 1) + 63) / 64 * 64;
  const size_t thread_bytes = scratch_bytes + workspace_bytes;
  const int threads = static_cast<int>(
      std::min<int64_t>(samples, at::in_parallel_region() ? 1 : at::get_num_threads()));
  const std::unique_ptr<void, void (*)(void*)> memory(
      acquire_memory(thread_bytes * static_cast<size_t>(threads)), release_memory);
  run_team(threads, [&](const Worker& worker) {
    char* scratch = static_cast<char*>(memory.get()) + thread_bytes * worker.thread;
    ProductParams p = layout;
    p.workspace = scratch + scratch_bytes;
    const int64_t begin = samples * worker.thread / worker.threads;
    const int64_t end = samples * (worker.thread + 1) / worker.threads;
    for (int64_t sample = begin; sample < end; ++sample) {
      p.d_gates = gates.gather(sample, scratch);
      if (inputs) p.input = inputs->gather(sample, scratch);
      if (states) p.hidden = states->gather(sample, scratch);
      if (initial) p.h0 = initial->gather(sample, scratch);
      for (int64_t d = 0; d < D; ++d) {
        void** targets[] = {&p.gradients[d].d_w_ih, &p.gradients[d].d_w_hh, &p.gradients[d].d_b_ih,
                            &p.gradients[d].d_b_hh};
        for (int64_t i = 0; i < 4; ++i) {
          const Tensor& result = d_params[static_cast<size_t>(4 * d + i)];
          if (result.dim() == 1) continue;
          *targets[i] = static_cast<char*>(result.mutable_data_ptr()) +
                        sample * result.stride(0) * static_cast<int64_t>(result.element_size());
        }
      }
      k.products(p, {0, 1, nullptr});
    }
  });
  return d_params;
}

}  // namespace

TORCH_LIBRARY_IMPL(fastrnn, CPU, m) { m.impl("sample_products", sample_products); }

}  // namespace fastrnn::cpu
