// What the CPU operators have in common: the checks of a layer's tensors, their
// allocation, and the launch of a kernel.
#pragma once
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>

#include "cpu/dispatch.h"
#include "cpu/memory.h"
#include "cpu/params.h"
#include "cpu/team.h"

namespace fastrnn::cpu {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

inline DType dtype_of(const char* op, const Tensor& t) {
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

inline const void* data(const Tensor& t) { return t.const_data_ptr(); }
inline const void* data(const OptionalTensor& t) { return t ? t->const_data_ptr() : nullptr; }

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
inline int worthwhile_threads(const Layer& layer, int64_t input_size, bool meets_every_step) {
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

}  // namespace
}  // namespace fastrnn::cpu
