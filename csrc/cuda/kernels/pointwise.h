// The kernels of the steps regime: what stands between two matrix products. A block owns
// a row (blockIdx.x) and kPointwiseThreads neighbouring units of it (blockIdx.y),
// a thread one unit; no thread reads what another one writes, so nothing
// synchronises. Row offsets are 64 bits wide.
#pragma once
#include <algorithm>

#include "cuda/kernels/value.h"
#include "cuda/launchers.h"

namespace fastrnn::cuda {
namespace {

FASTRNN_DEVICE int64_t own_unit() {
  return static_cast<int64_t>(block_y()) * block_threads() + thread_index();
}

// One block a row, threads enough for `columns` up to the limit of the grid's y.
inline Grid pointwise_grid(int64_t rows, int64_t columns) {
  const int64_t warps = (columns + 31) / 32;
  const int threads = static_cast<int>(std::min<int64_t>(32 * warps, kPointwiseThreads));
  return {rows, static_cast<int>((columns + threads - 1) / threads), threads, 0};
}

// One step's cell. Reads the products and the state, writes state, h and what is saved.
template <class Cell, class T>
FASTRNN_KERNEL(kPointwiseThreads)
pointwise_forward_kernel(const PointwiseForward p) {
  using A = Compute<T>;
  const int64_t row = block_x(), j = own_unit(), H = p.hidden_size;
  if (j >= H) return;
  A columns[Cell::kColumns], recurrent[Cell::kProducts];
  column_biases<Cell>(
      columns,
      [&](int g) {
        const int64_t column = g * H + j;
        return load<T>(p.input_product, row * Cell::kProducts * H + column) +
               load<T>(p.b_ih, column);
      },
      [&](int g) { return load<T>(p.b_hh, g * H + j); });
  FASTRNN_UNROLL
  for (int g = 0; g < Cell::kProducts; ++g) {
    recurrent[g] = load<T>(p.recurrent, row * Cell::kProducts * H + g * H + j);
  }
  const int64_t at = row * H + j;
  A state = load<A>(p.state, at);
  Value<A> own[cells::kOwn<Cell>];
  load_own<Cell, T>(own, p.w_ch, j, H);
  const A h = step_forward<Cell, A>(columns, recurrent, state, own);
  const bool reset = p.resets != nullptr && p.resets[row] != 0;
  store<A>(p.state, at, reset ? load<T>(p.reset_state, at) : state);
  store<T>(p.h, at, reset ? load<T>(p.reset_h, at) : h);
  store<T>(p.output, row * p.output_stride + j, h);
  store<T>(p.hidden, at, h);
  if constexpr (kHasC<Cell>) store<T>(p.cells, at, state);
  if constexpr (!Cell::kKeepsH) {
    constexpr int K = Cell::kColumns;
    FASTRNN_UNROLL
    for (int k = 0; k < K; ++k) store<T>(p.gates, row * K * H + k * H + j, columns[k]);
  }
}

// Adds a gradient that a reset sends to the initial state, to where it is collected.
template <class A>
FASTRNN_DEVICE void collect(void* target, int64_t i, A x) {
  if (target != nullptr) static_cast<A*>(target)[i] += x;
}

template <class T>
FASTRNN_DEVICE Compute<T> incoming(const IncomingGradient& p, int64_t row, int64_t j,
                                   int64_t size) {
  using A = Compute<T>;
  const int64_t at = row * size + j;
  A later = load<A>(p.carried, at) + (row < p.product_rows ? load<T>(p.product, at) : A(0));
  if (p.resets != nullptr && p.resets[row] != 0) {
    collect<A>(p.reset, at, later);
    later = 0;
  }
  return later + load<T>(p.d_output, row * p.d_output_stride + j);
}

// One step's gradients of the gates. Reads what forward saved, writes d_gates and what goes on to
// the step before besides the product.
template <class Cell, class T>
FASTRNN_KERNEL(kPointwiseThreads)
pointwise_backward_kernel(const PointwiseBackward p) {
  using A = Compute<T>;
  const int64_t row = block_x(), j = own_unit(), H = p.hidden_size;
  if (j >= H) return;
  const int64_t at = row * H + j;
  constexpr int K = Cell::kColumns;
  A in[kLoads<Cell>], d[K];
  if constexpr (!Cell::kKeepsH) {
    FASTRNN_UNROLL
    for (int k = 0; k < K; ++k) in[k] = load<T>(p.gates, row * K * H + k * H + j);
  }
  if constexpr (kReadsCurrent<Cell>) in[kCurrent<Cell>] = load<T>(p.current, at);
  if constexpr (kReadsPrevious<Cell>) {
    const Previous& previous = p.previous;
    const bool reset = previous.resets != nullptr && previous.resets[row] != 0;
    in[kLoads<Cell> - 1] = load<T>(reset                  ? previous.reset
                                   : row < previous.count ? previous.saved
                                                          : previous.initial,
                                   at);
  }
  A d_h = incoming<T>(p.d_h, row, j, H);
  A d_c = load<A>(p.d_c, at);
  if (kHasC<Cell> && p.d_c_resets != nullptr && p.d_c_resets[row] != 0) {
    collect<A>(p.reset_d_c, at, d_c);
    d_c = 0;
  }
  Value<A> own[cells::kOwn<Cell>], d_own[cells::kOwn<Cell>];
  load_own<Cell, T>(own, p.w_ch, j, H);
  step_backward<Cell, A>(in, d_h, d_c, d, own, d_own);
  if (p.d_w_ch != nullptr) {
    FASTRNN_UNROLL
    for (int k = 0; k < Cell::kVectors; ++k) {
      static_cast<A*>(p.d_w_ch)[(row * Cell::kVectors + k) * H + j] += d_own[k].v;
    }
  }
  store<A>(p.d_h.carried, at, d_h);
  store<A>(p.d_c, at, d_c);
  FASTRNN_UNROLL
  for (int k = 0; k < K; ++k) store<T>(p.d_gates, row * K * H + k * H + j, d[k]);
  if constexpr (cells::kApart<Cell>) {
    constexpr int G = Cell::kProducts;
    FASTRNN_UNROLL
    for (int g = 0; g < G; ++g) {
      store<T>(p.d_recurrent, row * G * H + g * H + j, d[cells::recurrent_column<Cell>(g)]);
    }
  }
}

template <class T>
FASTRNN_KERNEL(kPointwiseThreads)
gradient_sum_kernel(const GradientSum p) {
  const int64_t row = block_x(), j = own_unit();
  if (j >= p.size) return;
  store<T>(p.target, row * p.size + j, incoming<T>(p.d_h, row, j, p.size));
  store<Compute<T>>(p.d_h.carried, row * p.size + j, 0);
}

// A block owns a step (blockIdx.x) and every blocks_y()-th of its rows.
template <class T>
FASTRNN_KERNEL(kPointwiseThreads)
previous_hidden_kernel(const PreviousHidden p) {
  const int64_t t = block_x(), before = p.reverse ? t + 1 : t - 1;
  const bool first = before < 0 || before >= p.steps.seq_len;
  const int64_t known = first ? 0 : p.steps.count(before), count = p.steps.count(t);
  const int64_t from = first ? 0 : p.steps.offset(before), to = p.steps.offset(t);
  T* const previous = static_cast<T*>(p.previous);
  for (int64_t b = block_y(); b < count; b += blocks_y()) {
    // Resets are told of the later of the two steps.
    const bool reset =
        p.steps.resets != nullptr && !first && p.steps.resets[(p.reverse ? from : to) + b] != 0;
    const void* const initial = reset && !p.steps.to_initial ? nullptr : p.h0;
    for (int64_t j = thread_index(); j < p.size; j += block_threads()) {
      const Compute<T> h = b < known && !reset ? load<T>(p.hidden, (from + b) * p.size + j)
                                               : load<T>(initial, b * p.size + j);
      narrow(h, previous[(to + b) * p.size + j]);
    }
  }
}

template <class T>
const char* run_pointwise_forward(const PointwiseForward& p, Stream stream) {
  const Grid grid = pointwise_grid(p.rows, p.hidden_size);
  return cells::All::visit(p.cell, [&](auto cell) {
    return launch(pointwise_forward_kernel<decltype(cell), T>, grid, stream, p);
  });
}

template <class T>
const char* run_pointwise_backward(const PointwiseBackward& p, Stream stream) {
  const Grid grid = pointwise_grid(p.rows, p.hidden_size);
  return cells::All::visit(p.cell, [&](auto cell) {
    return launch(pointwise_backward_kernel<decltype(cell), T>, grid, stream, p);
  });
}

template <class T>
const char* run_gradient_sum(const GradientSum& p, Stream stream) {
  return launch(gradient_sum_kernel<T>, pointwise_grid(p.rows, p.size), stream, p);
}

template <class T>
const char* run_previous_hidden(const PreviousHidden& p, Stream stream) {
  Grid grid = pointwise_grid(p.steps.seq_len, p.size);
  grid.y = static_cast<int>(std::min<int64_t>(p.steps.batch, 64));
  return launch(previous_hidden_kernel<T>, grid, stream, p);
}

template <class T>
constexpr StepKernels step_kernels_of() {
  return {run_pointwise_forward<T>, run_pointwise_backward<T>, run_gradient_sum<T>,
          run_previous_hidden<T>};
}

}  // namespace
}  // namespace fastrnn::cuda
