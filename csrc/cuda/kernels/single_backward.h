// The single regime backward. Blocks, rows and the thread's (unit, row) pairs are those of
// the forward kernel; steps are taken in the opposite order. A thread keeps d_h
// and d_c of its pairs in registers. A step: the gradients of the gates are
// computed, written, and left in shared memory for the product; what the next
// step reads of the saved tensors is asked for; one barrier; the product with
// w_hh gives the d_h that the step before receives. The next step writes the other
// buffer, which is why one barrier is enough.
#pragma once
#include "cuda/kernels/product.h"
#include "cuda/kernels/walk.h"

namespace fastrnn::cuda {
namespace {

template <class Config>
FASTRNN_KERNEL(Config::kThreads)
single_backward_kernel(const SingleBackward p) {
  using Cell = typename Config::Cell;
  using T = typename Config::T;
  using Product = typename Config::Product;
  constexpr int kPairs = Config::kPairs, G = Cell::kProducts, K = Cell::kColumns;
  constexpr int kLoads = cuda::kLoads<Cell>;
  // Whether a step's reset is asked for with what else the step reads, where registers bear it.
  constexpr bool kEarly = kHasC<Cell> && !Config::kScarce;
  // Whether its address is computed where it is needed; found by what spills (make cuda-check).
  constexpr bool kFresh = kReadsPrevious<Cell> && Config::kScarce;
  auto& shared = shared_memory<typename Config::Shared>();
  const int d = block_y();
  const int hidden_size = static_cast<int>(p.hidden_size), H = hidden_size, D = p.directions;
  const int64_t B = p.steps.batch, N = p.steps.rows, first_row = block_x() * Config::kRows;

  Product product;
  product.load(shared.spare(),
               static_cast<const Words*>(p.packed) + d * Config::kPackedBlocks * Config::kThreads);

  float d_h[kPairs], d_c[kPairs];
  bool own[kPairs];
  FASTRNN_UNROLL
  for (int i = 0; i < kPairs; ++i) {
    const int j = Product::unit(i), r = Product::row(i);
    const int64_t at = (d * B + first_row + r) * H + j;
    own[i] = j < H && first_row + r < B;
    d_h[i] = own[i] ? load<T>(p.d_h_n, at) : 0.0f;
    d_c[i] = kHasC<Cell> && own[i] ? load<T>(p.d_c_n, at) : 0.0f;
    // Rows that do not take part in a step are multiplied all the same, and ignored.
    for (int b = 0; b < 2; ++b) {
      FASTRNN_UNROLL
      for (int g = 0; g < G; ++g) {
        store_operand<Config::kNumeric>(&shared.operand[b][r * Config::kStride],
                                        g * Config::kHidden + j, 0.0f);
      }
    }
  }

  // What a step reads; `before` is the step that came before it in the forward pass. The block's
  // part of a step is a base of 64 bits, the same for all threads, a thread's place in it an int.
  const void* const saved_rows = kHasC<Cell> ? p.cells : p.hidden;
  const T* const initial = rows_of<T>(kHasC<Cell> ? p.c0 : p.h0, d * B + first_row, H);
  T next[kLoads][kPairs], next_d_output[kPairs];
  const auto fetch = [&](const auto& walk, int ahead) {
    const int count = walk.count(ahead), before_count = walk.count(ahead + 1);
    const int64_t offset = walk.offset(ahead), before_offset = walk.offset(ahead + 1);
    const int H = unhoisted(hidden_size);
    const int64_t row = d * N + offset + first_row;
    const T* const gates = !Cell::kKeepsH ? rows_of<T>(p.gates, row, K * H) : nullptr;
    const T* const saved = rows_of<T>(saved_rows, row, H);
    const T* const before = rows_of<T>(saved_rows, d * N + before_offset + first_row, H);
    const T* const d_output = rows_of<T>(p.d_output, (offset + first_row) * D + d, H);
    FASTRNN_UNROLL
    for (int i = 0; i < kPairs; ++i) {
      const int r = Product::row(i), j = Product::unit(i), at = r * H + j;
      if (!own[i] || first_row + r >= count) continue;
      if constexpr (!Cell::kKeepsH) {
        FASTRNN_UNROLL
        for (int k = 0; k < K; ++k) next[k][i] = gates[r * K * H + k * H + j];
      }
      if constexpr (kReadsPrevious<Cell>) {
        const bool parted = kEarly && walk.parted(first_row + r, ahead);
        const T* const previous = parted ? (p.steps.to_initial ? initial : nullptr)
                                  : first_row + r < before_count ? before
                                                                 : initial;
        next[kLoads - 1][i] = previous == nullptr ? T{} : previous[at];
      }
      if constexpr (kReadsCurrent<Cell>) next[kCurrent<Cell>][i] = saved[at];
      next_d_output[i] = d_output == nullptr ? T{} : d_output[r * D * H + j];
    }
  };
  Walk<2 + Config::kLookahead> walk(p.steps, d == 0);
  fetch(walk, 0);
  int into = 0;
  block_barrier();
  for (; !walk.done(); walk.next()) {
    const int count = walk.count(0);
    const int64_t offset = walk.offset(0);
    // The whole block is beyond this step: it comes later, or it has ended.
    if (first_row >= count) {
      if (d == 1) break;
      fetch(walk, 1);
      continue;
    }
    const int H = unhoisted(hidden_size);
    T* const target = rows_of<T>(p.d_gates, d * N + offset + first_row, K * H);
    FASTRNN_UNROLL
    for (int i = 0; i < kPairs; ++i) {
      const int j = Product::unit(i), r = Product::row(i);
      if (!own[i] || first_row + r >= count) continue;
      float in[kLoads], d_gates[K];
      FASTRNN_UNROLL
      for (int k = 0; k < kLoads; ++k) in[k] = widen(next[k][i]);
      const bool parted = walk.parted(first_row + (kFresh ? unhoisted(r) : r));
      if (kReadsPrevious<Cell> && !kEarly && parted) {
        in[kLoads - 1] =
            p.steps.to_initial && initial != nullptr ? widen(initial[r * H + j]) : 0.0f;
      }
      d_h[i] += widen(next_d_output[i]);
      step_backward<Cell, float>(in, d_h[i], d_c[i], d_gates);
      FASTRNN_UNROLL
      for (int g = 0; g < K; ++g) {
        target[r * K * H + g * H + j] = narrowed<T>(d_gates[g]);
      }
      if (parted)
        forget<Cell>(p, (d * B + first_row + (Config::kScarce ? unhoisted(r) : r)) * H + j, d_h[i],
                     d_c[i]);
      FASTRNN_UNROLL
      for (int g = 0; g < G; ++g) {
        store_operand<Config::kNumeric>(&shared.operand[into][r * Config::kStride],
                                        g * Config::kHidden + j,
                                        parted ? 0.0f : d_gates[cells::recurrent_column<Cell>(g)]);
      }
    }
    fetch(walk, 1);
    block_barrier();
    float sums[1][kPairs];
    product.multiply(shared.spare(), shared.operand[into], sums);
    FASTRNN_UNROLL
    for (int i = 0; i < kPairs; ++i) {
      if (own[i] && first_row + Product::row(i) < count) d_h[i] += sums[0][i];
    }
    into = 1 - into;
  }
  FASTRNN_UNROLL
  for (int i = 0; i < kPairs; ++i) {
    if (!own[i]) continue;
    const int64_t at = (d * B + first_row + Product::row(i)) * H + Product::unit(i);
    store<T>(p.d_h0, at, d_h[i] + load<float>(p.reset_d_h, at));
    if constexpr (kHasC<Cell>) store<T>(p.d_c0, at, d_c[i] + load<float>(p.reset_d_c, at));
  }
}

}  // namespace
}  // namespace fastrnn::cuda
