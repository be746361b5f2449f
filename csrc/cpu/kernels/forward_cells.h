// What a cell does in a step of the forward recurrence: from values before activation to the new
// states, the output and, in training, what is saved.
#pragma once
#include "cpu/kernels/recurrence.h"

namespace fastrnn::cpu {
namespace {

template <class S>
using ForwardCell = CellSteps<ForwardParams, S>;

template <class Cell, class S>
class ForwardCells {
  using C = Compute<S>;
  using V = Vec<C>;
  static constexpr int L = V::kLanes;
  static constexpr int G = Cell::kProducts, K = Cell::kColumns;
  static constexpr bool kHasC = Cell::kStates > 1;

 public:
  static constexpr ForwardCell<S> steps() {
    if constexpr (Cell::kVectors > 0) {
      return {nullptr, row};  // it is always done row by row
    } else {
      return {tile, row};
    }
  }

 private:
  // ---- tiles -----------------------------------------------------------------

  // Where h of a row goes besides the state: the output and, in training, the saved copy.
  struct Published {
    S *output, *hidden;  // hidden: or null
    int64_t output_stride, hidden_stride;
    FASTRNN_INLINE void put(V h, int64_t at, int lanes) const {
      store_lanes(h, output + at, lanes);
      if (hidden) store_lanes(h, hidden + at, lanes);
    }
    FASTRNN_INLINE void next() {
      output += output_stride;
      if (hidden) hidden += hidden_stride;
    }
  };

  static void tile(const ForwardParams& p, const States<S>& w, const Step<S>& step,
                   const Tile<C>& tile) {
    // Everything that a row's place follows from is worked out before the first row: whatever is
    // stored might change the members, for all the compiler knows.
    const int d = step.d, vectors = tile.vectors, last = w.lanes(tile.v + vectors - 1, w.H);
    const int64_t unit = tile.v * L, row = step.at.first + tile.b;
    const int64_t H = w.H, h_stride = w.h_stride, stride = w.stride;
    const bool projected = w.s.projected, saves = kSaved<Cell> > 0 && p.gates;
    const int64_t n = w.row(d, row);
    S* const hidden = static_cast<S*>(p.hidden);
    S* gates = saves ? static_cast<S*>(p.gates) + n * K * H + unit : nullptr;
    S* cells = kHasC && saves ? static_cast<S*>(p.cells) + n * H + unit : nullptr;
    const C* columns = tile.columns;
    const C* const bias_u = w.bias_u[d] + unit;
    const C* h_in = step.h_in + tile.b * h_stride + unit;
    C* c = kHasC ? w.c[d] + tile.b * stride + unit : nullptr;
    C* h_out = (projected ? w.m[d] + tile.b * stride : step.h_out + tile.b * h_stride) + unit;
    const int64_t h_out_stride = projected ? stride : h_stride;
    Published to{static_cast<S*>(p.output) + (row * w.s.directions + d) * w.P + unit,
                 hidden ? hidden + n * w.P + unit : nullptr, w.s.directions * w.P, w.P};
    for (int m = 0; m < tile.rows; ++m) {
      for (int u = 0; u < vectors; ++u, columns += K * L) {
        const int i = u * L, lanes = u + 1 == vectors ? last : L;
        V a[K], before[Cell::kStates], after[Cell::kStates];
        for (int k = 0; k < K; ++k) a[k] = V::load(columns + k * L);
        if constexpr (cells::kApart<Cell>) a[K - 1] = a[K - 1] + V::load(bias_u + i);
        before[0] = Cell::kCarriesH ? V::load(h_in + i) : V::zero();
        if constexpr (kHasC) before[1] = V::load(c + i);
        cells::forward<Cell>(a, before, after);
        if constexpr (kHasC) after[1].store(c + i);
        if (saves) {
          for (int k = 0; k < K; ++k) store_lanes(a[k], gates + k * H + i, lanes);
          if constexpr (kHasC) store_lanes(after[1], cells + i, lanes);
        }
        after[0].store(h_out + i);
        if (!projected) to.put(after[0], i, lanes);
      }
      h_in += h_stride;
      if (kHasC) c += stride;
      if (saves) gates += K * H;
      if (kHasC && saves) cells += H;
      h_out += h_out_stride;
      to.next();
    }
  }

  // ---- rows ------------------------------------------------------------------

  static void row(const ForwardParams& p, const States<S>& w, const Step<S>& step,
                  const Row<C>& row) {
    switch (p.inside.norm) {
      case Norm::kNone:
        return normed_row<Norm::kNone>(p, w, step, row);
      case Norm::kRecurrent:
        return normed_row<Norm::kRecurrent>(p, w, step, row);
      case Norm::kJoint:
        return normed_row<Norm::kJoint>(p, w, step, row);
    }
  }

  // One of the parts of a row that are normalised, each by itself.
  struct Part {
    RowStatistics<V> of;
    const S *gain, *bias;  // bias: or null
    S* normed;             // or null

    // What becomes of k values of column g from unit i on.
    FASTRNN_INLINE V affine(V x, int64_t at, int k) const {
      x = (x - of.mean) * of.rstd;
      if (normed) store_lanes(x, normed + at, k);
      const V shift = bias ? load_lanes<V>(bias + at, k) : V::zero();
      return fma(x, load_lanes<V>(gain + at, k), shift);
    }
  };
  static Part part_of(const ForwardParams& p, const States<S>& w, int64_t n, int index,
                      const void* gain, const void* bias, const C* values) {
    const int64_t place = n * p.inside.parts() + index;
    const Part part{row_statistics<V>(values, 0, G, w.H, w.stride, p.inside.eps),
                    static_cast<const S*>(gain), static_cast<const S*>(bias),
                    p.normed ? static_cast<S*>(p.normed) + place * G * w.H : nullptr};
    if (p.rstd) part.of.rstd.store(static_cast<C*>(p.rstd) + place, 1);
    return part;
  }

  template <Norm N>
  static FASTRNN_NOINLINE void normed_row(const ForwardParams& p, const States<S>& w,
                                          const Step<S>& step, const Row<C>& row) {
    const Weights& weights = p.weights[step.d];
    const int d = step.d;
    const int64_t H = w.H, n = w.row(d, step.at.first + row.b);
    const C* const values = row.values;
    Part input{}, recurrent{};
    if constexpr (N == Norm::kRecurrent) {
      input = part_of(p, w, n, 0, weights.gain_ih, weights.b_ih, values);
      recurrent = part_of(p, w, n, 1, weights.gain_hh, weights.b_hh, values + G * w.stride);
    } else if constexpr (N == Norm::kJoint) {
      recurrent = part_of(p, w, n, 0, weights.gain_hh, weights.b_hh, values);
    }
    const auto source = [](const void* from) {
      return Source<S>{static_cast<const S*>(from), nullptr};
    };
    const auto lanes = [&](int64_t i) { return static_cast<int>(smaller(L, H - i)); };
    const CellNorm<S> norm{source(weights.cell_gain), source(weights.cell_bias), p.inside.eps};
    const C* const h_before = step.h_in + row.b * w.h_stride;
    C* const c = w.c[d] + row.b * w.stride;
    new_states<Cell, V, S>(
        H, w.stride, row.masks, kHasC && weights.cell_gain ? &norm : nullptr, row.scratch,
        [&](int64_t i, V(&a)[K]) __attribute__((always_inline)) {
          load_columns<N>(w, values, w.bias_u[d], input, recurrent, i, lanes(i), a);
          if constexpr (Cell::kVectors > 0) {
            V own[cells::kOwn<Cell>];
            load_own<Cell>(source(weights.w_ch), H, i, own);
            const V before[] = {V::zero(), V::load(c + i)};
            Cell::enter(own, before, a);
          }
          Cell::activate(a);
          if (!p.gates) return;
          S* const gates = static_cast<S*>(p.gates) + n * K * H + i;
          for (int k = 0; k < K; ++k) store_lanes(a[k], gates + k * H, lanes(i));
        },
        [&](int64_t i, V(&before)[Cell::kStates]) __attribute__((always_inline)) {
          before[0] = V::load(h_before + i);
          if constexpr (kHasC) before[1] = V::load(c + i);
        },
        [&](int64_t i, const V(&states)[Cell::kStates], V(&a)[K]) __attribute__((always_inline)) {
          if constexpr (Cell::kVectors > 0) {
            V own[cells::kOwn<Cell>];
            load_own<Cell>(source(weights.w_ch), H, i, own);
            Cell::finish(own, states, a);
            if (!p.gates) return;
            store_lanes(a[K - 1], static_cast<S*>(p.gates) + (n * K + K - 1) * H + i, lanes(i));
          }
        },
        [&](int64_t i, V h, V fresh_c) __attribute__((always_inline)) {
          if constexpr (kHasC) {
            fresh_c.store(c + i);
            if (p.cells) store_lanes(fresh_c, static_cast<S*>(p.cells) + n * H + i, lanes(i));
          }
          h.store(step.h_out + row.b * w.h_stride + i);
          w.rows.put_h(d, row.b, i, h);
          const int64_t to = ((step.at.first + row.b) * w.s.directions + d) * H + i;
          store_lanes(h, static_cast<S*>(p.output) + to, lanes(i));
          if (p.hidden) store_lanes(h, static_cast<S*>(p.hidden) + n * H + i, lanes(i));
        });
  }

  // A unit's values before activation, from the products' columns.
  template <Norm N>
  static FASTRNN_INLINE void load_columns(const States<S>& w, const C* values, const C* bias_u,
                                          const Part& input, const Part& recurrent, int64_t i,
                                          int k, V (&a)[K]) {
    if constexpr (N == Norm::kNone) {
      for (int j = 0; j < K; ++j) a[j] = V::load(values + j * w.stride + i);
      if constexpr (cells::kApart<Cell>) a[K - 1] = a[K - 1] + V::load(bias_u + i);
      return;
    }
    for (V& x : a) x = V::zero();
    for (int g = 0; g < G; ++g) {
      V& sum = a[cells::recurrent_column<Cell>(g)];
      if constexpr (N == Norm::kRecurrent) {
        a[g] = input.affine(V::load(values + g * w.stride + i), g * w.H + i, k);
        sum = sum + recurrent.affine(V::load(values + (G + g) * w.stride + i), g * w.H + i, k);
      } else {
        sum = recurrent.affine(V::load(values + g * w.stride + i), g * w.H + i, k);
      }
    }
  }
};

}  // namespace
}  // namespace fastrnn::cpu
