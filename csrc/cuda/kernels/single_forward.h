// The single regime forward. A block owns kRows batch rows (blockIdx.x) of one direction
// (blockIdx.y) and runs through all of their steps; blocks never meet, so any
// number of them may queue. A thread owns the (unit, row) pairs of its product:
// their c and h stay in its registers. h is exchanged through shared memory,
// rounded as the product wants it. A step: the recurrent product runs on the h of
// the step before, the cell's equations run, h goes to the other buffer, the next
// step's input product is asked for (it has until the end of that step's
// recurrent product to come), one barrier.
//
// Rows that have not begun (reverse direction of packed data) have their initial
// h in both buffers; rows that have ended, and units of padding, are multiplied
// and ignored.
#pragma once
#include "cuda/kernels/product.h"
#include "cuda/kernels/walk.h"

namespace fastrnn::cuda {
namespace {

template <class Config>
FASTRNN_KERNEL(Config::kThreads)
single_forward_kernel(const SingleForward p) {
  using Cell = typename Config::Cell;
  using T = typename Config::T;
  using Product = typename Config::Product;
  constexpr int G = Cell::kProducts, K = Cell::kColumns, kPairs = Config::kPairs;
  auto& shared = shared_memory<typename Config::Shared>();
  const int d = block_y();
  const int hidden_size = static_cast<int>(p.hidden_size), H = hidden_size, D = p.directions;
  const int64_t B = p.steps.batch, N = p.steps.rows, first_row = block_x() * Config::kRows;
  const void* const b_ih = d == 0 ? p.b_ih[0] : p.b_ih[1];
  const void* const b_hh = d == 0 ? p.b_hh[0] : p.b_hh[1];

  Product product;
  product.load(shared.spare(),
               static_cast<const Words*>(p.packed) + d * Config::kPackedBlocks * Config::kThreads);

  constexpr int kUnits = Product::kUnits, kPairsOfUnit = kPairs / kUnits;
  float bias[kUnits][K], state[kPairs];
  const auto read_biases = [&] {
    FASTRNN_UNROLL
    for (int u = 0; u < kUnits; ++u) {
      const int j = Product::unit(u * kPairsOfUnit);
      column_biases<Cell>(
          bias[u], [&](int g) { return j < H ? load<T>(b_ih, g * H + j) : 0.0f; },
          [&](int g) { return j < H ? load<T>(b_hh, g * H + j) : 0.0f; });
    }
  };
  if (!Config::kScarce) read_biases();
  bool own[kPairs];
  FASTRNN_UNROLL
  for (int i = 0; i < kPairs; ++i) {
    const int j = Product::unit(i), r = Product::row(i);
    const int64_t at = (d * B + first_row + r) * H + j;
    own[i] = j < H && first_row + r < B;
    const float h = own[i] ? load<T>(p.h0, at) : 0.0f;
    state[i] = kHasC<Cell> ? (own[i] ? load<T>(p.c0, at) : 0.0f) : h;
    for (int b = 0; b < 2; ++b) {
      store_operand<Config::kNumeric>(&shared.operand[b][r * Config::kStride], j, h);
    }
  }
  block_barrier();

  T next[G][kPairs];
  // Everywhere below, the block's part of a step is a base of 64 bits, the same for all threads,
  // and a thread's place in it an int.
  const auto fetch = [&](int count, int64_t offset) {
    const int H = unhoisted(hidden_size);
    const T* const rows =
        static_cast<const T*>(p.input_product) + (d * N + offset + first_row) * G * H;
    FASTRNN_UNROLL
    for (int i = 0; i < kPairs; ++i) {
      const int r = Product::row(i);
      if (!own[i] || first_row + r >= count) continue;
      FASTRNN_UNROLL
      for (int g = 0; g < G; ++g) {
        next[g][i] = rows[r * G * H + g * H + Product::unit(i)];
      }
    }
  };
  Walk<1 + Config::kLookahead> walk(p.steps, d == 1);
  fetch(walk.count(0), walk.offset(0));
  int from = 0;
  for (; !walk.done(); walk.next()) {
    const int count = walk.count(0);
    const int64_t offset = walk.offset(0);
    // The whole block is beyond this step: it has ended, or it has not begun.
    if (first_row >= count) {
      if (d == 0) break;
      fetch(walk.count(1), walk.offset(1));
      continue;
    }
    const int H = unhoisted(hidden_size);
    const int64_t row = d * N + offset + first_row;
    T* const output = rows_of<T>(p.output, (offset + first_row) * D + d, H);
    T* const hidden = rows_of<T>(p.hidden, row, H);
    T* const cells = kHasC<Cell> ? rows_of<T>(p.cells, row, H) : nullptr;
    T* const gates = !Cell::kKeepsH ? rows_of<T>(p.gates, row, K * H) : nullptr;
    float sums[G][kPairs];
    product.multiply(shared.spare(), shared.operand[from], sums);
    if (Config::kScarce) read_biases();
    FASTRNN_UNROLL
    for (int i = 0; i < kPairs; ++i) {
      const int j = Product::unit(i), r = Product::row(i);
      if (first_row + r >= count) continue;
      float columns[K], recurrent[G];
      FASTRNN_UNROLL
      for (int k = 0; k < K; ++k) {
        columns[k] = bias[i / kPairsOfUnit][k];
        if (k < G) columns[k] += own[i] ? widen(next[k < G ? k : 0][i]) : 0.0f;
      }
      FASTRNN_UNROLL
      for (int g = 0; g < G; ++g) recurrent[g] = sums[g][i];
      const float h = step_forward<Cell, float>(columns, recurrent, state[i]);
      const float kept = state[i];
      float next_h = h;
      if (own[i] && walk.parted(first_row + r)) {
        const int64_t at = (d * B + first_row + unhoisted(r)) * H + j;
        next_h = p.steps.to_initial ? load<T>(p.h0, at) : 0.0f;
        state[i] = !kHasC<Cell> ? next_h : p.steps.to_initial ? load<T>(p.c0, at) : 0.0f;
      }
      // Units of padding stay zero even where the row has infinities: 0 * inf is NaN.
      store_operand<Config::kNumeric>(&shared.operand[1 - from][r * Config::kStride], j,
                                      own[i] ? next_h : 0.0f);
      if (!own[i]) continue;
      const int at = r * H + j;
      output[r * D * H + j] = narrowed<T>(h);
      if (hidden != nullptr) hidden[at] = narrowed<T>(h);
      if constexpr (kHasC<Cell>) {
        if (cells != nullptr) cells[at] = narrowed<T>(kept);
      }
      if constexpr (!Cell::kKeepsH) {
        FASTRNN_UNROLL
        for (int k = 0; k < K; ++k) {
          if (gates != nullptr) gates[r * K * H + k * H + j] = narrowed<T>(columns[k]);
        }
      }
      if (first_row + r >= walk.count(1)) {  // the row's last step
        const int64_t final = (d * B + first_row + unhoisted(r)) * H + j;
        store<T>(p.h_n, final, h);
        if constexpr (kHasC<Cell>) store<T>(p.c_n, final, kept);
      }
    }
    fetch(walk.count(1), walk.offset(1));
    block_barrier();
    from = 1 - from;
  }
}

}  // namespace
}  // namespace fastrnn::cuda
