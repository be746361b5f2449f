// What a cell does in a step of the forward recurrence's tangent: from the tangents of values
// before activation, and what the forward pass saved, to those of the new states.
#pragma once
#include "cpu/kernels/recurrence.h"

namespace fastrnn::cpu {
namespace {

template <class S>
using TangentCell = CellSteps<TangentParams, S>;

template <class Cell, class S>
class TangentCells {
  using C = Compute<S>;
  using V = Vec<C>;
  using N = Dual<V>;
  static constexpr int L = V::kLanes;
  static constexpr int G = Cell::kProducts, K = Cell::kColumns;
  static constexpr bool kHasC = Cell::kStates > 1;

 public:
  static constexpr TangentCell<S> steps() {
    if constexpr (Cell::kVectors > 0) {
      return {nullptr, row};  // it is always done row by row
    } else {
      return {tile, row};
    }
  }

 private:
  // A value that a state had before this step; zeros where it was not saved, for nobody needs it.
  static FASTRNN_INLINE V previous(const States<S>& w, const Step<S>& step, const void* saved,
                                   const void* initial, int64_t b, int64_t v) {
    if (b >= step.at.previous_rows) return w.load_state(initial, step.d, b, v, w.H);
    if (!saved) return V::zero();
    return w.load_row(saved, w.row(step.d, step.at.previous_first + b), v, w.H);
  }

  // The states before this step, of vector v of row b: h where somebody reads it (of a projected
  // layer, whose h is of another size, nobody does).
  template <bool kWithH>
  static FASTRNN_INLINE void load_before(const TangentParams& p, const States<S>& w,
                                         const Step<S>& step, int64_t b, int64_t v,
                                         N (&before)[Cell::kStates]) {
    before[0] = N::set1(0);
    if constexpr (kWithH) {
      before[0] = {previous(w, step, p.hidden, p.h0, b, v),
                   V::load(step.h_in + b * w.h_stride + v * L)};
    }
    if constexpr (kHasC) {
      before[1] = {previous(w, step, p.cells, p.c0, b, v),
                   V::load(w.c[step.d] + b * w.stride + v * L)};
    }
  }

  // ---- tiles -----------------------------------------------------------------

  static void tile(const TangentParams& p, const States<S>& w, const Step<S>& step,
                   const Tile<C>& tile) {
    const C* columns = tile.columns;
    for (int m = 0; m < tile.rows; ++m) {
      for (int u = 0; u < tile.vectors; ++u, columns += K * L) {
        unit(p, w, step, tile.v + u, tile.b + m, columns);
      }
    }
  }

  static FASTRNN_INLINE void unit(const TangentParams& p, const States<S>& w, const Step<S>& step,
                                  int64_t v, int64_t b, const C* columns) {
    const int64_t n = w.row(step.d, step.at.first + b);
    const void* const saved = Cell::kKeepsH ? p.hidden : p.gates;
    V kept[K], t[K];
    for (int k = 0; k < K; ++k) {
      kept[k] = w.load_row(saved, n * K + k, v, w.H);
      t[k] = V::load(columns + k * L);
    }
    Cell::activate_tangent(kept, t);
    N a[K], before[Cell::kStates], after[Cell::kStates];
    for (int k = 0; k < K; ++k) a[k] = {kept[k], t[k]};
    load_before<Cell::kCarriesH>(p, w, step, b, v, before);
    Cell::update(a, before, after);
    if constexpr (kHasC) after[1].v = w.load_row(p.cells, n, v, w.H);
    Cell::emit(a, after);
    if (kSaved<Cell> > 0 && p.t_gates) {
      for (int k = 0; k < K; ++k) w.store_row(t[k], p.t_gates, n * K + k, v, w.H);
    }
    if constexpr (kHasC) {
      after[1].t.store(w.c[step.d] + b * w.stride + v * L);
      if (p.t_cells) w.store_row(after[1].t, p.t_cells, n, v, w.H);
    }
    if (w.s.projected) {
      after[0].t.store(w.m[step.d] + b * w.stride + v * L);
    } else {
      after[0].t.store(step.h_out + b * w.h_stride + v * L);
      w.store_row(after[0].t, p.t_hidden, n, v, w.P);
    }
  }

  // ---- rows ------------------------------------------------------------------

  static Source<S> source(const void* values, const void* tangents) {
    return {static_cast<const S*>(values), static_cast<const S*>(tangents)};
  }

  static void row(const TangentParams& p, const States<S>& w, const Step<S>& step,
                  const Row<C>& row) {
    const int d = step.d;
    const int64_t b = row.b, n = w.row(d, step.at.first + b);
    const Weights& weights = p.weights[d];
    const Weights& t = p.t_weights[d];
    if (p.inside.norm == Norm::kRecurrent) {
      normalise(p, w, n, 0, source(weights.gain_ih, t.gain_ih), t.b_ih, row.values);
      normalise(p, w, n, 1, source(weights.gain_hh, t.gain_hh), t.b_hh, row.values + G * w.stride);
    } else if (p.inside.norm == Norm::kJoint) {
      normalise(p, w, n, 0, source(weights.gain_hh, t.gain_hh), t.b_hh, row.values);
    }
    const CellNorm<S> norm{source(weights.cell_gain, t.cell_gain),
                           source(weights.cell_bias, t.cell_bias), p.inside.eps};
    const Source<S> vectors = source(weights.w_ch, t.w_ch);
    new_states<Cell, N, S>(
        w.H, w.stride, row.masks, kHasC && weights.cell_gain ? &norm : nullptr, row.scratch,
        [&](int64_t i, N(&a)[K]) {
          V kept[K], tangents[K];
          load_columns(p, w, row.values + i, tangents);
          for (int k = 0; k < K; ++k) kept[k] = w.load_row(p.gates, n * K + k, i / L, w.H);
          if constexpr (Cell::kVectors > 0) {
            N own[cells::kOwn<Cell>], before[Cell::kStates], entered[K];
            load_own<Cell>(vectors, w.H, i, own);
            load_before<true>(p, w, step, b, i / L, before);
            for (int k = 0; k < K; ++k) entered[k] = {V::zero(), tangents[k]};
            Cell::enter(own, before, entered);
            for (int k = 0; k < K; ++k) tangents[k] = entered[k].t;
          }
          Cell::activate_tangent(kept, tangents);
          for (int k = 0; k < K; ++k) a[k] = {kept[k], tangents[k]};
          if (!p.t_gates) return;
          for (int k = 0; k < K; ++k) w.store_row(tangents[k], p.t_gates, n * K + k, i / L, w.H);
        },
        [&](int64_t i, N(&before)[Cell::kStates]) {
          load_before<true>(p, w, step, b, i / L, before);
        },
        [&](int64_t i, const N(&states)[Cell::kStates], N(&a)[K]) {
          if constexpr (Cell::kVectors > 0) {
            N own[cells::kOwn<Cell>];
            load_own<Cell>(vectors, w.H, i, own);
            Cell::finish_tangent(own, states, a);
            if (p.t_gates) w.store_row(a[K - 1].t, p.t_gates, n * K + K - 1, i / L, w.H);
          }
        },
        [&](int64_t i, N h, N c) {
          if constexpr (kHasC) {
            c.t.store(w.c[d] + b * w.stride + i);
            if (p.t_cells) w.store_row(c.t, p.t_cells, n, i / L, w.H);
          }
          h.t.store(step.h_out + b * w.h_stride + i);
          w.rows.put_h(d, b, i, h.t);
          w.store_row(h.t, p.t_hidden, n, i / L, w.H);
        });
  }

  // `part` of what is normalised: tangents of G columns of products, in place to those of
  // gain x^ + bias. With rstd r and means over the row, that of x^ is r (t - mean(t) - x^
  // mean(x^ t)), that of r is -r^2 mean(x^ t).
  static FASTRNN_NOINLINE void normalise(const TangentParams& p, const States<S>& w, int64_t n,
                                         int part, Source<S> gain, const void* t_biases,
                                         C* values) {
    const int64_t place = n * p.inside.parts() + part, count = G * w.H;
    const S* const normed = static_cast<const S*>(p.normed) + place * count;
    S* const t_normed = p.t_normed ? static_cast<S*>(p.t_normed) + place * count : nullptr;
    const S* const t_bias = static_cast<const S*>(t_biases);
    const V rstd = V::set1(static_cast<const C*>(p.rstd)[place]);
    V sum = V::zero(), product = V::zero();
    for (int g = 0; g < G; ++g) {
      each_vector<V>(w.H, [&](int64_t i, int k) {
        const V t = load_lanes<V>(values + g * w.stride + i, k);
        sum = sum + t;
        product = fma(t, load_lanes<V>(normed + g * w.H + i, k), product);
      });
    }
    const V mean = Numbers<V>::mean(sum, count), slope = Numbers<V>::mean(product, count);
    if (p.t_rstd) {
      const V t = V::zero() - rstd * rstd * slope;
      t.store(static_cast<C*>(p.t_rstd) + place, 1);
    }
    for (int g = 0; g < G; ++g) {
      each_vector<V>(w.H, [&](int64_t i, int k) {
        C* const at = values + g * w.stride + i;
        const int64_t column = g * w.H + i;
        const V x = load_lanes<V>(normed + column, k);
        const V t = rstd * fnma(x, slope, V::load(at) - mean);
        if (t_normed) store_lanes(t, t_normed + column, k);
        V result = t * load_lanes<V>(gain.values + column, k);
        if (gain.tangents) result = fma(x, load_lanes<V>(gain.tangents + column, k), result);
        if (t_bias) result = result + load_lanes<V>(t_bias + column, k);
        result.store(at);
      });
    }
  }

  // Tangents of a unit's values before activation, from the products' columns.
  static FASTRNN_INLINE void load_columns(const TangentParams& p, const States<S>& w, const C* from,
                                          V (&t)[K]) {
    const Norm norm = p.inside.norm;
    for (int k = 0; k < K; ++k) {
      t[k] = norm == Norm::kNone ? V::load(from + k * w.stride) : V::zero();
    }
    if (norm == Norm::kNone) return;
    for (int g = 0; g < G; ++g) {
      V& recurrent = t[cells::recurrent_column<Cell>(g)];
      if (norm == Norm::kRecurrent) {
        t[g] = V::load(from + g * w.stride);
        recurrent = recurrent + V::load(from + (G + g) * w.stride);
      } else {
        recurrent = V::load(from + g * w.stride);
      }
    }
  }
};

}  // namespace
}  // namespace fastrnn::cpu
