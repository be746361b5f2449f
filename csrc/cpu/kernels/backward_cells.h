// What a cell does in a step of the backward recurrence: from the gradients of the states to those
// of the values before activation.
#pragma once
#include "cpu/kernels/backward_rows.h"

namespace fastrnn::cpu {
namespace {

// What the recurrence and its cells share, [D] each.
template <class S>
struct GradientStates : Walk<S> {
  using C = Compute<S>;

  GradientStates(const BackwardParams& p, int threads, Arena& arena)
      : Walk<S>(p.shape),
        gate_stride(this->cell.products * this->H + this->L),
        columns(this->cell.products + apart_columns(this->cell, p.inside.norm)),
        skips(this->cell.carries_h || p.inside.zoneout_h > 0),
        rows(p, *this, threads, arena) {
    const int64_t B = this->B;
    for (int d = 0; d < p.shape.directions; ++d) {
      d_gates[d] = arena.take<C>(2 * B * gate_stride);
      d_c[d] = arena.take<C>(this->cell.has_c() ? B * this->stride : 0);
      d_skip[d] = arena.take<C>(skips ? B * this->stride : 0);
      const bool goes_on = p.shape.projected || p.inside.any;
      d_h[d] = arena.take<C>(goes_on ? B * this->h_stride : 0);
    }
  }

  const int64_t gate_stride;  // of a row of d_gates here
  const int columns;          // of a unit in d_gates as results have it
  const bool skips;           // whether h reaches the next one by other ways than the product
  BackwardRows<S> rows;
  C* d_gates[2];  // [2][B][gate_stride]
  C* d_c[2];      // [B][stride]: what reaches c from the next step
  C* d_skip[2];   // [B][stride]: the part of d_h that bypasses the product
  C* d_h[2];      // [B][h_stride], gradient of this step's h, where it goes on in another phase
};

template <class S>
struct BackwardStep {
  using C = Compute<S>;

  int d;
  StepRows at;
  int64_t next_first;  // first row of the step done just before, whose d_gates_in it is
  int64_t joined;      // rows from here on are active for the first time
  const C* d_gates_in;
  C* d_gates_out;
  GateRows<S> target;  // where d_gates goes
  C* partial;          // this thread's sums of the first blocks of terms
};

// What a tile of gradients of h comes from: h's product in the step after, the final state where
// rows start, or the projection, whose h has everything already.
enum class From { kProduct, kFinal, kProjection };

// What else reaches the gradient of h by ways of the recurrence, besides the product.
template <class S>
FASTRNN_INLINE Vec<Compute<S>> past_product(const BackwardParams& p, const GradientStates<S>& w,
                                            const BackwardStep<S>& step, bool skips, int64_t v,
                                            int64_t b, Vec<Compute<S>> d_h) {
  if (p.direction && p.direction->through_w_hh) {
    const int64_t n = w.row(step.d, step.next_first + b);
    d_h = d_h + w.load_row(p.direction->through_w_hh, n, v, w.P);
  }
  if (p.inside.h_scale) d_h = d_h * w.load_state(p.inside.h_scale, step.d, b, v, w.P);
  if (!skips) return d_h;
  return d_h + Vec<Compute<S>>::load(w.d_skip[step.d] + b * w.stride + v * w.L);
}
template <class S>
FASTRNN_INLINE Vec<Compute<S>> complete(const BackwardParams& p, const GradientStates<S>& w,
                                        const BackwardStep<S>& step, From from, bool skips,
                                        int64_t v, int64_t b, Vec<Compute<S>> d_h) {
  if (from == From::kProjection) return d_h;
  if (from == From::kProduct) d_h = past_product(p, w, step, skips, v, b, d_h);
  if (!p.d_output) return d_h;
  const int64_t row = step.at.first + b;
  return d_h + w.load_row(p.d_output, row * w.s.directions + step.d, v, w.P);
}

// What a cell does: `tile` has gradients of h, one column.
template <class S>
struct BackwardCell {
  void (*tile)(const BackwardParams&, const GradientStates<S>&, const BackwardStep<S>&,
               const Tile<Compute<S>>&, From);
  void (*row)(const GradientStates<S>&, const typename BackwardRows<S>::Row&, int thread);
};

template <class Cell, class S>
class BackwardCells {
  using C = Compute<S>;
  using V = Vec<C>;
  using States = GradientStates<S>;
  using Rows = BackwardRows<S>;
  using Row = typename Rows::Row;
  using Scratch = typename Rows::Scratch;
  static constexpr int L = V::kLanes;
  static constexpr int G = Cell::kProducts, K = Cell::kColumns;
  static constexpr bool kHasC = Cell::kStates > 1;

 public:
  static constexpr BackwardCell<S> steps() {
    if constexpr (Cell::kVectors > 0) {
      return {nullptr, row};  // it is always done row by row
    } else {
      return {tile, row};
    }
  }

 private:
  // ---- tiles -----------------------------------------------------------------

  static void tile(const BackwardParams& p, const States& w, const BackwardStep<S>& step,
                   const Tile<C>& tile, From from) {
    const C* next = tile.columns;
    for (int m = 0; m < tile.rows; ++m) {
      for (int i = 0; i < tile.vectors; ++i, next += L) {
        const int64_t v = tile.v + i, b = tile.b + m;
        const V d_h = complete(p, w, step, from, Cell::kCarriesH, v, b, V::load(next));
        if (p.direction) {
          unit_tangent(p, w, step, v, b, d_h);
        } else {
          unit(p, w, step, v, b, d_h);
        }
      }
    }
  }

  static FASTRNN_INLINE void unit(const BackwardParams& p, const States& w,
                                  const BackwardStep<S>& step, int64_t v, int64_t b, V d_h) {
    const int64_t n = w.row(step.d, step.at.first + b);
    V a[K], before[Cell::kStates], after[Cell::kStates], d_states[Cell::kStates], d[K];
    const void* const kept = Cell::kKeepsH ? p.hidden : p.gates;
    for (int k = 0; k < K; ++k) a[k] = w.load_row(kept, n * K + k, v, w.H);
    C* const carry = w.d_c[step.d] + b * w.stride + v * L;
    if (p.d_cell_h) w.store_row(d_h, p.d_cell_h, n, v, w.H);
    d_states[0] = d_h;
    after[0] = V::zero();  // no cell reads it here
    before[0] = Cell::kCarriesH ? previous(w, step, p.hidden, p.h0, v, b) : V::zero();
    if constexpr (kHasC) {
      after[1] = w.load_row(p.cells, n, v, w.H);
      before[1] = previous(w, step, p.cells, p.c0, v, b);
      d_states[1] = arriving_d_c(p, w, step, n, v, b, carry);
      if (p.d_cell_c) w.store_row(d_states[1], p.d_cell_c, n, v, w.H);
    }
    cells::backward<Cell>(a, before, after, d_states, d);
    if constexpr (kHasC) d_states[1].store(carry);
    publish(w, step, v, b, d_states[0], [&](int k) { return d[k]; });
  }

  // The same on dual numbers: t_d_h is the tangent of d_h, and tangents are what is published.
  static FASTRNN_NOINLINE void unit_tangent(const BackwardParams& p, const States& w,
                                            const BackwardStep<S>& step, int64_t v, int64_t b,
                                            V t_d_h) {
    using D = Dual<V>;
    const BackwardDirection& t = *p.direction;
    const int64_t n = w.row(step.d, step.at.first + b);
    const auto load = [&](const void* from) { return w.load_row(from, n, v, w.H); };
    D a[K], before[Cell::kStates], after[Cell::kStates], d_states[Cell::kStates], d[K];
    for (int k = 0; k < K; ++k) {
      a[k] = {w.load_row(Cell::kKeepsH ? p.hidden : p.gates, n * K + k, v, w.H),
              w.load_row(Cell::kKeepsH ? t.t_hidden : t.t_gates, n * K + k, v, w.H)};
    }
    if (t.through_w_hr) t_d_h = t_d_h + load(t.through_w_hr);
    C* const carry = w.d_c[step.d] + b * w.stride + v * L;
    d_states[0] = {load(t.d_cell_h), t_d_h};
    after[0] = before[0] = D::set1(0);
    if constexpr (Cell::kCarriesH) {
      before[0] = {previous(w, step, p.hidden, p.h0, v, b),
                   previous(w, step, t.t_hidden, t.t_h0, v, b)};
    }
    if constexpr (kHasC) {
      after[1] = {load(p.cells), load(t.t_cells)};
      before[1] = {previous(w, step, p.cells, p.c0, v, b),
                   previous(w, step, t.t_cells, t.t_c0, v, b)};
      d_states[1] = {load(t.d_cell_c), arriving_d_c(p, w, step, n, v, b, carry)};
    }
    cells::backward<Cell>(a, before, after, d_states, d);
    if constexpr (kHasC) d_states[1].t.store(carry);
    publish(w, step, v, b, d_states[0].t, [&](int k) { return d[k].t; });
  }

  // The gradient of c but for what its h brings: from the step after, or from the final state, and
  // from outside.
  static FASTRNN_INLINE V arriving_d_c(const BackwardParams& p, const States& w,
                                       const BackwardStep<S>& step, int64_t n, int64_t v, int64_t b,
                                       const C* carry) {
    const V d_c = b < step.joined ? V::load(carry) : w.load_state(p.d_c_n, step.d, b, v, w.H);
    return p.d_cells ? d_c + w.load_row(p.d_cells, n, v, w.H) : d_c;
  }

  // The value a state had before this step.
  static FASTRNN_INLINE V previous(const States& w, const BackwardStep<S>& step, const void* saved,
                                   const void* initial, int64_t v, int64_t b) {
    if (b >= step.at.previous_rows) return w.load_state(initial, step.d, b, v, w.H);
    return w.load_row(saved, w.row(step.d, step.at.previous_first + b), v, w.H);
  }

  // The gradients of the columns, for the products and for the next step, and what of d_h goes past
  // the product.
  template <class Column>
  static FASTRNN_INLINE void publish(const States& w, const BackwardStep<S>& step, int64_t v,
                                     int64_t b, V skip, Column d) {
    const int k = w.lanes(v, w.H);
    if (Cell::kCarriesH) skip.store(w.d_skip[step.d] + b * w.stride + v * L);
    const int64_t row = step.at.first + b - step.target.first;
    S* const result = step.target.data + row * K * w.H + v * L;
    for (int i = 0; i < K; ++i) store_lanes(d(i), result + i * w.H, k);
    C* const next = step.d_gates_out + b * w.gate_stride + v * L;
    for (int g = 0; g < G; ++g) {
      store_lanes(d(cells::recurrent_column<Cell>(g)), next + g * w.H, k);
    }
  }

  // ---- rows ------------------------------------------------------------------

  static void row(const States& w, const Row& row, int thread) {
    const Rows& rows = w.rows;
    if (rows.p.direction) {
      RowPass<Dual<V>>{w, rows, rows.p, row, rows.masks(row, thread), rows.scratch(thread)}.run();
    } else {
      RowPass<V>{w, rows, rows.p, row, rows.masks(row, thread), rows.scratch(thread)}.run();
    }
  }

  // One row, of numbers N.
  template <class N>
  struct RowPass {
    using Ns = Numbers<N>;

    const States& w;
    const Rows& r;
    const BackwardParams& p;
    const Row& row;
    const RowMasks<C> masks;
    const Scratch scratch;

    // Phases over the whole row where c is normalised, else all of it vector by vector.
    FASTRNN_NOINLINE void run() const {
      const bool normalises_c = kHasC && p.weights[row.d].cell_gain;
      if constexpr (kHasC) {
        if (normalises_c) back_to_c();
      }
      for (int64_t v = 0; v < w.vectors; ++v) {
        const int k = w.lanes(v, w.H);
        Unit u;
        load_unit(v, u);
        N d_states[Cell::kStates], d_before[Cell::kStates], d[K];
        for (int s = 0; s < Cell::kStates; ++s) d_states[s] = d_before[s] = N::set1(0);
        if (normalises_c) {
          for (int i = 0; i < K; ++i) {
            d[i] = Ns::load(scratch.d_a + i * w.stride + v * L, r.wide, L);
          }
          d_states[Cell::kStates - 1] = Ns::load(scratch.d_cell + v * L, r.wide, L);
        } else {
          d_states[0] = through_zoneout(v, d_before[0]);
          Cell::update(u.kept, u.before, u.after);
          Cell::emit_backward(u.kept, u.after, d_states, d);
          if constexpr (Cell::kVectors > 0) finish_backward(v, u, d_states, d);
        }
        if constexpr (kHasC) {
          const N d_c = arriving_d_c(v);
          const N kept = masks.zoneout_c ? factor(masks.zoneout_c, v) : N::set1(0);
          d_before[1] = d_c * kept;
          d_states[1] = d_states[1] + d_c * (N::set1(1) - kept);
        }
        Cell::update_backward(u.kept, u.before, d_states, d_before, d);
        if constexpr (Cell::kCandidate >= 0) {
          d[Cell::kCandidate] = d[Cell::kCandidate] * u.factor;
          u.kept[Cell::kCandidate] = u.candidate;
        }
        Cell::activate_backward(u.kept, d);
        if constexpr (Cell::kVectors > 0) {
          N own[cells::kOwn<Cell>], d_own[cells::kOwn<Cell>];
          load_vectors(v, own, d_own);
          Cell::enter_backward(own, u.before, d, d_before, d_own);
          add_vectors(v, d_own);
        }
        if constexpr (kHasC) Ns::result(d_before[1]).store(row.d_c + v * L);
        if (w.skips && !normalises_c) Ns::result(d_before[0]).store(row.d_skip + v * L);
        if (p.inside.norm == Norm::kNone) {
          for (int i = 0; i < K; ++i) {
            store_lanes(Ns::result(d[i]), row.target + i * w.H + v * L, k);
          }
          for (int g = 0; g < G; ++g) {
            const V product = Ns::result(d[cells::recurrent_column<Cell>(g)]);
            store_lanes(product, row.next + g * w.H + v * L, k);
          }
          continue;
        }
        for (int g = 0; g < G; ++g) {
          Ns::store(d[g], scratch.d_x + g * w.H + v * L, r.wide, k);
          Ns::store(d[cells::recurrent_column<Cell>(g)], scratch.d_u + g * w.H + v * L, r.wide, k);
        }
      }
      r.template through_norms<N>(row, scratch);
    }

    // What a step of one row and vector was made of.
    struct Unit {
      N kept[K], before[Cell::kStates], after[Cell::kStates];
      N candidate, factor;  // of recurrent dropout: what it multiplied, and by what
    };
    FASTRNN_INLINE void load_unit(int64_t v, Unit& u) const {
      const Source<S> gates = r.source(p.gates, r.direction().t_gates).at(row.n * K * w.H + v * L);
      for (int i = 0; i < K; ++i) u.kept[i] = Numbers<N>::load(gates, i * w.H, w.lanes(v, w.H));
      const BackwardDirection& t = r.direction();
      u.before[0] = N::set1(0);
      if constexpr (Cell::kCarriesH) {
        u.before[0] = before(v, r.source(p.hidden, t.t_hidden), r.source(p.h0, t.t_h0));
      }
      if constexpr (kHasC) {
        u.before[1] = before(v, r.source(p.cells, t.t_cells), r.source(p.c0, t.t_c0));
      }
      if constexpr (Cell::kCandidate >= 0) {
        u.candidate = u.kept[Cell::kCandidate];
        u.factor = masks.dropout ? factor(masks.dropout, v) : N::set1(1);
        u.kept[Cell::kCandidate] = u.candidate * u.factor;
      }
    }

    // Vectors of the cell, and zeros for their gradients.
    FASTRNN_INLINE void load_vectors(int64_t v, N (&own)[cells::kOwn<Cell>],
                                     N (&d_own)[cells::kOwn<Cell>]) const {
      load_own<Cell>(r.source(p.weights[row.d].w_ch, r.direction().t_weights[row.d].w_ch), w.H,
                     v * L, own);
      for (N& d : d_own) d = N::set1(0);
    }
    FASTRNN_INLINE void add_vectors(int64_t v, const N (&d_own)[cells::kOwn<Cell>]) const {
      C* const sums = r.sums_of(row, Rows::kWCh);
      if (!sums) return;
      for (int i = 0; i < Cell::kVectors; ++i) {
        C* const sum = sums + i * w.H + v * L;
        store_lanes(load_lanes<V>(sum, w.lanes(v, w.H)) + Numbers<N>::result(d_own[i]), sum,
                    w.lanes(v, w.H));
      }
    }
    FASTRNN_INLINE void finish_backward(int64_t v, const Unit& u, N (&d_states)[Cell::kStates],
                                        N (&d)[K]) const {
      N own[cells::kOwn<Cell>], d_own[cells::kOwn<Cell>];
      load_vectors(v, own, d_own);
      Cell::finish_backward(own, u.after, u.kept, d_states, d, d_own);
      add_vectors(v, d_own);
    }

    // The value that a state had before this step.
    FASTRNN_INLINE N before(int64_t v, Source<S> saved, Source<S> initial) const {
      if (row.before >= 0)
        return Numbers<N>::load(saved, row.before * w.H + v * L, w.lanes(v, w.H));
      const int64_t at = (row.d * w.B + row.b) * w.H + v * L;
      const auto of = [&](const S* from) {
        return from ? load_lanes<V>(from + at, w.lanes(v, w.H)) : V::zero();
      };
      return Numbers<N>::of(of(initial.values), of(initial.tangents));
    }

    // From h to c as it was before normalisation: leaves its gradient, and those of the columns
    // that h was made with.
    FASTRNN_INLINE void back_to_c() const {
      using Ns = Numbers<N>;
      const Weights& weights = p.weights[row.d];
      const Weights& t = r.direction().t_weights[row.d];
      for (int64_t v = 0; v < w.vectors; ++v) {
        Unit u;
        load_unit(v, u);
        Cell::update(u.kept, u.before, u.after);
        Ns::store(u.after[1], scratch.cell + v * L, r.wide, L);
      }
      const RowStatistics<N> of = row_statistics<N>(scratch.cell, r.wide, 1, w.H, 0, p.inside.eps);
      C* const gains = r.sums_of(row, Rows::kCellGain);
      C* const biases = r.sums_of(row, Rows::kCellBias);
      for (int64_t v = 0; v < w.vectors; ++v) {
        const int k = w.lanes(v, w.H);
        Unit u;
        load_unit(v, u);
        N skip, d_states[2], d[K];
        d_states[0] = through_zoneout(v, skip);
        d_states[1] = N::set1(0);
        if (w.skips) Ns::result(skip).store(row.d_skip + v * L);
        const N normed = (Ns::load(scratch.cell + v * L, r.wide, L) - of.mean) * of.rstd;
        Ns::store(normed, scratch.cell + v * L, r.wide, L);
        const N gain = Ns::load(r.source(weights.cell_gain, t.cell_gain), v * L, k);
        N shift = N::set1(0);
        if (weights.cell_bias) shift = Ns::load(r.source(weights.cell_bias, t.cell_bias), v * L, k);
        u.after[0] = N::set1(0);
        u.after[1] = fma(normed, gain, shift);
        for (N& x : d) x = N::set1(0);
        Cell::emit_backward(u.kept, u.after, d_states, d);
        if constexpr (Cell::kVectors > 0) finish_backward(v, u, d_states, d);
        for (int i = 0; i < K; ++i) Ns::store(d[i], scratch.d_a + i * w.stride + v * L, r.wide, L);
        if (gains) {
          (V::load(gains + v * L) + Ns::result(d_states[1] * normed)).store(gains + v * L);
        }
        if (biases) {
          (V::load(biases + v * L) + Ns::result(d_states[1])).store(biases + v * L);
        }
        Ns::store(d_states[1] * gain, scratch.d_cell + v * L, r.wide, L);
      }
      row_norm_backward<N>(scratch.cell, of.rstd, w.H, r.wide, scratch.d_cell);
    }

    // The gradient of h before zoneout; `skip`: what goes to the h of the step before.
    FASTRNN_INLINE N through_zoneout(int64_t v, N& skip) const {
      const N d_h = received(v, V::load(row.d_h + v * L), r.direction().d_cell_h, p.d_cell_h);
      skip = N::set1(0);
      if (!masks.zoneout_h) return d_h;
      const N keep = factor(masks.zoneout_h, v);
      skip = d_h * keep;
      return d_h * (N::set1(1) - keep);
    }

    // The gradient of c but for what its h brings.
    FASTRNN_INLINE N arriving_d_c(int64_t v) const {
      const auto load = [&](const void* from, int64_t at) {
        return from ? load_lanes<V>(static_cast<const S*>(from) + at + v * L, w.lanes(v, w.H))
                    : V::zero();
      };
      V d_c = row.joined ? load(p.d_c_n, (row.d * w.B + row.b) * w.H) : V::load(row.d_c + v * L);
      if (p.d_cells) d_c = d_c + load(p.d_cells, row.n * w.H);
      return received(v, d_c, r.direction().d_cell_c, p.d_cell_c);
    }

    // What a cell received, left for the derivative, which gets it with its tangent.
    FASTRNN_INLINE N received(int64_t v, V d, const void* primal, void* left) const {
      const int64_t at = row.n * w.H + v * L;
      if (left) store_lanes(d, static_cast<S*>(left) + at, w.lanes(v, w.H));
      if constexpr (Numbers<N>::kParts == 1) return d;
      return Numbers<N>::of(load_lanes<V>(static_cast<const S*>(primal) + at, w.lanes(v, w.H)), d);
    }

    static FASTRNN_INLINE N factor(const C* mask, int64_t v) {
      return Numbers<N>::of(V::load(mask + v * L), V::zero());
    }
  };
};

}  // namespace
}  // namespace fastrnn::cpu
