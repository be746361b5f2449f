// What the passes through time have in common: a layer's sizes in vectors, the order of its steps,
// who has which of its rows and units, and states as users hand them over.
#pragma once
#include "cpu/kernels/cells.h"
#include "cpu/kernels/pack.h"
#include "cpu/kernels/plan.h"

namespace fastrnn::cpu {
namespace {

// What one worker has of one direction, in common with `peers` that have the same rows.
struct Share {
  Range rows, units, h_units;  // of the batch; of vectors of units and of values of h
  int peers, peer;
  SpinBarrier* barrier;

  void meet() const { barrier->wait(peers); }
  // Its part of rows of a step that all peers are done with.
  Range rows_of(Range active) const {
    const Range r = part(active.size(), peers, peer);
    return {active.begin + r.begin, active.begin + r.end};
  }
};

template <class S>
struct Walk {
  using C = Compute<S>;
  using V = Vec<C>;
  static constexpr int L = V::kLanes;

  explicit Walk(const LayerShape& shape)
      : s(shape),
        cell(cells::traits(shape.cell)),
        I(s.input_size),
        H(s.hidden_size),
        P(s.proj_size),
        B(s.steps.batch),
        vectors(ceil_div(H, L)),
        h_vectors(ceil_div(P, L)),
        stride(vectors * L),
        h_stride(h_vectors * L),
        weight_bytes(cell.products * H * P * static_cast<int64_t>(sizeof(C))) {}

  Place place(int thread, int threads) const {
    return place_of(thread, threads, s.directions, B, vectors, weight_bytes);
  }
  Share share(const Place& place, const Worker& worker) const {
    const int groups = place.split.unit_groups;
    const Range units = part(vectors, groups, place.unit_group);
    return {batch_rows(s.steps, place.split.batch_groups, place.batch_group),
            units,
            s.projected ? part(h_vectors, groups, place.unit_group) : units,
            groups,
            place.unit_group,
            &worker.barriers[place.barrier]};
  }
  // Rows of a step that one worker may have: batch groups of packed data are uneven.
  int64_t most_rows(const Split& split) const {
    return s.steps.counts ? B : ceil_div(B, split.batch_groups);
  }

  // The time of step number i of a direction.
  int64_t time(int d, int64_t i) const { return d == 1 ? s.steps.seq_len - 1 - i : i; }
  static Range within(Range rows, int64_t count) {
    return {rows.begin, larger(rows.begin, smaller(rows.end, count))};
  }
  // A direction's row in tensors [D, N, *].
  int64_t row(int d, int64_t row) const { return d * s.steps.rows + row; }

  static FASTRNN_INLINE int lanes(int64_t v, int64_t size) {
    return static_cast<int>(smaller(L, size - v * L));
  }
  // Vector v of `size` values of a state [D, B, size].
  FASTRNN_INLINE V load_state(const void* state, int d, int64_t b, int64_t v, int64_t size) const {
    if (!state) return V::zero();
    return load_lanes<V>(static_cast<const S*>(state) + (d * B + b) * size + v * L, lanes(v, size));
  }
  FASTRNN_INLINE void store_state(V x, void* state, int d, int64_t b, int64_t v,
                                  int64_t size) const {
    store_lanes(x, static_cast<S*>(state) + (d * B + b) * size + v * L, lanes(v, size));
  }
  // Vector v of row n of a tensor [*, size].
  static FASTRNN_INLINE V load_row(const void* from, int64_t n, int64_t v, int64_t size) {
    return load_lanes<V>(static_cast<const S*>(from) + n * size + v * L, lanes(v, size));
  }
  static FASTRNN_INLINE void store_row(V x, void* to, int64_t n, int64_t v, int64_t size) {
    store_lanes(x, static_cast<S*>(to) + n * size + v * L, lanes(v, size));
  }
  FASTRNN_INLINE V load_bias(const void* bias, int g, int64_t v) const {
    return bias ? load_row(bias, g, v, H) : V::zero();
  }

  const LayerShape& s;
  const cells::Traits& cell;
  const int64_t I, H, P, B;
  const int64_t vectors, h_vectors;  // of units, of values of h
  const int64_t stride, h_stride;    // the same in elements, padded
  const int64_t weight_bytes;        // of w_hh in the compute type
};

// Where the rows of a step of a pass are, and those of the step before it in the recurrence.
struct StepRows {
  int64_t t;
  int64_t first;           // first row of the step in tensors of N rows
  int64_t previous_first;  // the same of the step before
  int64_t previous_rows;   // rows that have such a step; the others had the initial state

  StepRows() = default;
  StepRows(const Steps& steps, int64_t time, int64_t previous)
      : t(time), first(steps.offset(time)) {
    const bool exists = previous >= 0 && previous < steps.seq_len;
    previous_first = exists ? steps.offset(previous) : 0;
    previous_rows = exists ? steps.count(previous) : 0;
  }
};

// What products hand to a cell: of `vectors` vectors of units from v on, for `rows` rows from b on,
// columns [rows][vectors][columns of a unit][L].
template <class C>
struct Tile {
  int64_t v;
  int vectors;
  int64_t b;
  int rows;
  const C* columns;
};

}  // namespace
}  // namespace fastrnn::cpu
