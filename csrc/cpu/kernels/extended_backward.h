// The backward pass of the extended recurrence (extended.h), all directions of one layer, any cell.
//
// Steps run against time. The first phase of a step is d_h = d_product(next step) w_hh; the second
// turns, row by row, what reaches h and c into the gradients of gates_x and of the product.
//
// Invariants: d_product in scratch is what the next step's rows left, in the compute type; only the
// second phase writes it, only the first reads it. Gradients of gains and biases are summed over
// time row by row, each row by itself, and over rows at the end: the same sums whoever works on a
// row. Rows that become active (packed data) start from the gradient of the final state; rows that
// were active and are no more have reached the initial state.
#pragma once
#include "cpu/kernels/extended.h"

namespace fastrnn::cpu {
namespace {

template <class Cell, class S>
class ExtendedBackward {
  using C = Compute<S>;
  using V = Vec<C>;
  static constexpr int L = V::kLanes;
  static constexpr int G = Cell::kProducts, K = Cell::kColumns;
  static constexpr bool kHasC = Cell::kStates > 1;
  using Blocks = VectorBlocks<kWideVectors>;
  using Rows = RowBlocks<kWideRows>;

 public:
  static size_t workspace_bytes(const ExtendedBackwardParams& p, int threads) {
    return ExtendedBackward(p, threads, nullptr).bytes_;
  }
  static void run(const ExtendedBackwardParams& p, const Worker& worker) {
    ExtendedBackward(p, worker.threads, p.workspace).run_worker(worker);
  }

 private:
  struct Direction {
    C* w_hh;       // panels [G*H][NV * L], one a block of columns
    C* d_product;  // [B][gate_stride]
    C* d_h;        // [B][stride]: what the product brings
    C* skip;       // [B][stride]: what reaches the h before by other ways
    C* d_c;        // [B][stride]
    // [B][gate_stride], sums over time
    C *bias, *gain, *bias_x, *gain_x;
    C *cell_gain, *cell_bias;  // [B][stride]
  };

  struct Step {
    int d;
    int64_t t;
    int64_t row;            // first row of this step in tensors of N rows
    int64_t previous_row;   // the same of the step before it in the recurrence
    int64_t previous_rows;  // rows that have such a step; the others had h0, c0
    int64_t joined;         // rows from here on are active for the first time
  };

  // A thread's scratch for one row.
  struct Row {
    C* d_x;            // [G*H], of gates_x
    C* d_v;            // [G*H], of what the product became; where they differ in a column
    C* scaled;         // [G*H], a gradient times a gain
    C *cell, *d_cell;  // [stride], where c is normalised; d_a: [K][stride]
    C* d_a;
  };

  ExtendedBackward(const ExtendedBackwardParams& p, int threads, void* workspace)
      : p_(p),
        o_(p.options),
        s_(p.shape),
        H_(s_.hidden_size),
        B_(s_.steps.batch),
        vectors_(ceil_div(H_, L)),
        stride_(vectors_ * L),
        gate_stride_(G * H_ + L),
        weight_bytes_(G * H_ * H_ * static_cast<int64_t>(sizeof(C))),
        direct_(std::is_same_v<S, C> && s_.steps.rows < kDirectRows && H_ % L == 0),
        skips_(Cell::kCarriesH || p.options.zoneout_h > 0),
        masks_(p.options, H_) {
    Arena arena(workspace);
    const auto rows_of = [&](int64_t stride, bool exists) {
      return arena.take<C>(exists ? B_ * stride : 0);
    };
    for (int d = 0; d < s_.directions; ++d) {
      Direction& a = directions_[d];
      a.w_hh = arena.take<C>(direct_ ? 0 : G * H_ * stride_);
      a.d_product = rows_of(gate_stride_, true);
      a.d_h = rows_of(stride_, true);
      a.skip = rows_of(stride_, skips_);
      a.d_c = rows_of(stride_, kHasC);
      a.bias = rows_of(gate_stride_, p.d_bias);
      a.gain = rows_of(gate_stride_, p.d_gain);
      a.bias_x = rows_of(gate_stride_, p.d_bias_x);
      a.gain_x = rows_of(gate_stride_, p.d_gain_x);
      a.cell_gain = rows_of(stride_, p.d_cell_gain);
      a.cell_bias = rows_of(stride_, p.d_cell_bias);
    }
    scratch_ = arena.take<C>(threads * scratch_elements());
    masks_.allocate(arena, threads);
    bytes_ = arena.used();
  }

  int64_t scratch_elements() const { return 3 * (G * stride_ + L) + (2 + K) * stride_; }

  void run_worker(const Worker& worker) {
    const Place place =
        place_of(worker.thread, worker.threads, s_.directions, B_, vectors_, weight_bytes_);
    if (!direct_) pack(worker, place.split.unit_groups);
    worker.barriers[0].wait(worker.threads);
    for (int d = place.first_direction; d <= place.last_direction; ++d) {
      run_direction(d, place, worker);
    }
    worker.barriers[0].wait(worker.threads);
    sum_rows(worker);
  }

  const S* w_hh(int d) const { return static_cast<const S*>(o_.w_hh) + d * G * H_ * H_; }

  void pack(const Worker& worker, int unit_groups) const {
    int64_t job = 0;
    for (int d = 0; d < s_.directions; ++d) {
      for (int g = 0; g < unit_groups; ++g) {
        const Range range = part(vectors_, unit_groups, g);
        const Blocks blocks{range.begin, range.end};
        for (int64_t i = 0; i < blocks.count(); ++i) {
          if (job++ % worker.threads != worker.thread) continue;
          blocks.call(i, [&](auto nv, int64_t v) {
            pack_columns<nv()>(w_hh(d), G * H_, H_, v, directions_[d].w_hh + v * L * G * H_);
          });
        }
      }
    }
  }

  void run_direction(int d, const Place& place, const Worker& worker) const {
    const Steps& steps = s_.steps;
    const int64_t T = steps.seq_len;
    const Range rows = batch_rows(steps, place.split.batch_groups, place.batch_group);
    const Range units = part(vectors_, place.split.unit_groups, place.unit_group);
    SpinBarrier& barrier = worker.barriers[place.barrier];
    const int peers = place.split.unit_groups;
    const int64_t direction = d == 0 ? -1 : 1;  // to the step before it in the recurrence
    const auto share = [&](Range of) {
      const Range r = part(of.size(), peers, place.unit_group);
      return Range{of.begin + r.begin, of.begin + r.end};
    };
    C* const scratch = scratch_ + worker.thread * scratch_elements();
    const int64_t wide = G * stride_ + L;
    C* const narrow = scratch + 3 * wide;
    const Row row{scratch, scratch + wide,   scratch + 2 * wide,
                  narrow,  narrow + stride_, narrow + 2 * stride_};

    clear_sums(d, share(rows));
    barrier.wait(peers);
    int64_t was_active = rows.begin;
    Step step{};
    step.d = d;
    for (int64_t s = 0; s <= T; ++s) {  // s == T: what is left reaches the initial state
      step.t = d == 0 ? T - 1 - s : s;
      const int64_t active =
          s < T ? larger(rows.begin, smaller(rows.end, steps.count(step.t))) : rows.begin;
      step.joined = was_active;
      multiply(d, s, {rows.begin, was_active}, units);
      barrier.wait(peers);
      const Range mine = share({rows.begin, larger(active, was_active)});
      if (s < T) {
        const int64_t previous = step.t + direction;
        const bool exists = previous >= 0 && previous < T;
        step.row = steps.offset(step.t);
        step.previous_row = exists ? steps.offset(previous) : 0;
        step.previous_rows = exists ? steps.count(previous) : 0;
      }
      for (int64_t b = mine.begin; b < mine.end; ++b) {
        if (b < active) {
          apply_row(step, b, row, masks_.row(worker.thread, d, step.t, b));
        } else {
          arrive(step, b);
        }
      }
      barrier.wait(peers);
      was_active = active;
    }
  }

  void clear_sums(int d, Range rows) const {
    const Direction& a = directions_[d];
    const auto clear = [&](C* sums, int64_t stride) {
      if (sums) std::memset(sums + rows.begin * stride, 0, rows.size() * stride * sizeof(C));
    };
    if (p_.d_bias) clear(a.bias, gate_stride_);
    if (p_.d_gain) clear(a.gain, gate_stride_);
    if (p_.d_bias_x) clear(a.bias_x, gate_stride_);
    if (p_.d_gain_x) clear(a.gain_x, gate_stride_);
    if (p_.d_cell_gain) clear(a.cell_gain, stride_);
    if (p_.d_cell_bias) clear(a.cell_bias, stride_);
  }

  // ---- d_h = d_product w_hh --------------------------------------------------

  void multiply(int d, int64_t s, Range rows, Range units) const {
    const Blocks blocks{units.begin, units.end};
    const int64_t count = blocks.count();
    for (int64_t i = 0; i < count; ++i) {
      blocks.call(s % 2 ? count - 1 - i : i, [&](auto nv, int64_t v) {
        for (int64_t k = 0; k < G * H_; k += kReduction) {
          Rows::each(rows.begin, rows.end,
                     [&](auto mr, int64_t b) { tile<mr(), nv()>(d, v, b, k); });
        }
      });
    }
  }

  // Adds kReduction terms from k on to what those before k left in d_h.
  template <int MR, int NV>
  FASTRNN_INLINE void tile(int d, int64_t v, int64_t b, int64_t k) const {
    const Direction& a = directions_[d];
    C* const to = a.d_h + b * stride_ + v * L;
    const int64_t count = smaller(kReduction, G * H_ - k);
    const C* const from = a.d_product + b * gate_stride_ + k;
    constexpr int width = NV * L;
    const C* const w = direct_ ? static_cast<const C*>(o_.w_hh) + (d * G * H_ + k) * H_ + v * L
                               : a.w_hh + v * L * G * H_ + k * width;
    product_tile<MR, NV, C>({count, from, gate_stride_, w, direct_ ? H_ : width,
                             k == 0 ? nullptr : to, stride_, to, stride_});
  }

  // ---- rows ------------------------------------------------------------------

  // What the step after row b's sent to h before it.
  FASTRNN_INLINE V received(int d, int64_t b, int64_t v) const {
    const Direction& a = directions_[d];
    V d_h = V::load(a.d_h + b * stride_ + v * L);
    if (o_.h_scale) d_h = d_h * load_state(o_.h_scale, d, b, v);
    return skips_ ? d_h + V::load(a.skip + b * stride_ + v * L) : d_h;
  }

  void arrive(const Step& step, int64_t b) const {
    for (int64_t v = 0; v < vectors_; ++v) {
      const int64_t to = (step.d * B_ + b) * H_ + v * L;
      store_lanes(received(step.d, b, v), static_cast<S*>(p_.d_h0) + to, lanes(v));
      if constexpr (kHasC) {
        store_lanes(V::load(directions_[step.d].d_c + b * stride_ + v * L),
                    static_cast<S*>(p_.d_c0) + to, lanes(v));
      }
    }
  }

  // Phases over the whole row where c is normalised, else all of it vector by vector.
  FASTRNN_NOINLINE void apply_row(const Step& step, int64_t b, Row row, RowMasks<C> masks) const {
    const int64_t n = step.d * s_.steps.rows + step.row + b;
    const bool normalises_c = o_.cell_gain;
    if constexpr (kHasC) {
      if (normalises_c) back_to_c(step, n, b, row, masks);
    }
    for (int64_t v = 0; v < vectors_; ++v) {
      const int k = lanes(v);
      Unit u;
      load_unit(step, n, b, v, masks, u);
      V d_states[Cell::kStates], d_before[Cell::kStates], d[K];
      d_states[0] = V::zero();
      if (normalises_c) {
        for (int i = 0; i < K; ++i) d[i] = V::load(row.d_a + i * stride_ + v * L);
        d_before[0] = V::zero();
        d_states[Cell::kStates - 1] = V::load(row.d_cell + v * L);
      } else {
        for (V& x : d_states) x = V::zero();
        d_states[0] = through_zoneout(step, b, v, masks, d_before[0]);
        Cell::update(u.kept, u.before, u.after);
        Cell::emit_backward(u.kept, u.after, d_states, d);
      }
      C* const carry = directions_[step.d].d_c + b * stride_ + v * L;
      if constexpr (kHasC) {
        V d_c = b < step.joined ? V::load(carry) : load_state(p_.d_c_n, step.d, b, v);
        if (p_.d_cells) {
          d_c = d_c + load_lanes<V>(static_cast<const S*>(p_.d_cells) + n * H_ + v * L, k);
        }
        d_before[1] = V::zero();
        if (masks.zoneout_c) {
          const V keep = V::load(masks.zoneout_c + v * L);
          d_before[1] = d_c * keep;
          d_c = d_c * (V::set1(1) - keep);
        }
        d_states[1] = d_states[1] + d_c;
      }
      Cell::update_backward(u.kept, u.before, d_states, d_before, d);
      if constexpr (Cell::kCandidate >= 0) {
        d[Cell::kCandidate] = d[Cell::kCandidate] * u.factor;
        u.kept[Cell::kCandidate] = u.candidate;
      }
      Cell::activate_backward(u.kept, d);
      if constexpr (kHasC) d_before[1].store(carry);
      if (skips_ && !normalises_c) {
        d_before[0].store(directions_[step.d].skip + b * stride_ + v * L);
      }
      for (int g = 0; g < G; ++g) {
        put(row.d_v, v, g, d[cells::recurrent_column<Cell>(g)], k);
        if (cells::kApart<Cell>) put(row.d_x, v, g, d[g], k);
      }
    }
    finish_row(step.d, n, b, row);
  }

  // What a step of one row and vector was made of.
  struct Unit {
    V kept[K], before[Cell::kStates], after[Cell::kStates];
    V candidate, factor;  // of recurrent dropout: what it multiplied, and by what
  };
  FASTRNN_INLINE void load_unit(const Step& step, int64_t n, int64_t b, int64_t v,
                                RowMasks<C> masks, Unit& u) const {
    const int k = lanes(v);
    for (int i = 0; i < K; ++i) u.kept[i] = gate(n, v, i, k);
    u.before[0] = Cell::kCarriesH ? previous(step, p_.hidden, p_.h0, b, v, k) : V::zero();
    if constexpr (kHasC) u.before[1] = previous(step, p_.cells, p_.c0, b, v, k);
    if constexpr (Cell::kCandidate >= 0) {
      u.candidate = u.kept[Cell::kCandidate];
      u.factor = masks.dropout ? V::load(masks.dropout + v * L) : V::set1(1);
      u.kept[Cell::kCandidate] = u.candidate * u.factor;
    }
  }

  // From h to c as it was before normalisation: leaves its gradient, and those of the columns that
  // h was made with.
  FASTRNN_INLINE void back_to_c(const Step& step, int64_t n, int64_t b, Row row,
                                RowMasks<C> masks) const {
    const Direction& a = directions_[step.d];
    for (int64_t v = 0; v < vectors_; ++v) {
      Unit u;
      load_unit(step, n, b, v, masks, u);
      Cell::update(u.kept, u.before, u.after);
      u.after[1].store(row.cell + v * L);
    }
    const RowStatistics<C> of = row_statistics<V>(row.cell, H_, o_.eps);
    const S* gain = static_cast<const S*>(o_.cell_gain) + step.d * H_;
    const S* bias = static_cast<const S*>(o_.cell_bias) + step.d * H_;
    for (int64_t v = 0; v < vectors_; ++v) {
      const int k = lanes(v);
      Unit u;
      load_unit(step, n, b, v, masks, u);
      V skip, d_states[Cell::kStates], d[K];
      d_states[0] = through_zoneout(step, b, v, masks, skip);
      d_states[1] = V::zero();
      if (skips_) skip.store(a.skip + b * stride_ + v * L);
      const V normed = (V::load(row.cell + v * L) - V::set1(of.mean)) * V::set1(of.rstd);
      normed.store(row.cell + v * L);
      u.after[0] = V::zero();
      u.after[1] = fma(normed, load_lanes<V>(gain + v * L, k), load_lanes<V>(bias + v * L, k));
      for (V& x : d) x = V::zero();
      Cell::emit_backward(u.kept, u.after, d_states, d);
      for (int i = 0; i < K; ++i) d[i].store(row.d_a + i * stride_ + v * L);
      C* const gains = a.cell_gain + b * stride_ + v * L;
      C* const biases = a.cell_bias + b * stride_ + v * L;
      fma(d_states[1], normed, V::load(gains)).store(gains);
      (V::load(biases) + d_states[1]).store(biases);
      (d_states[1] * load_lanes<V>(gain + v * L, k)).store(row.d_cell + v * L);
    }
    row_norm_backward<V>(row.cell, of.rstd, H_, row.d_cell);
  }

  // The gradient of h before zoneout; `skip`: what goes to the h of the step before.
  FASTRNN_INLINE V through_zoneout(const Step& step, int64_t b, int64_t v, RowMasks<C> masks,
                                   V& skip) const {
    V d_h = b < step.joined ? received(step.d, b, v) : load_state(p_.d_h_n, step.d, b, v);
    if (p_.d_output) {
      const int64_t at = ((step.row + b) * s_.directions + step.d) * H_ + v * L;
      d_h = d_h + load_lanes<V>(static_cast<const S*>(p_.d_output) + at, lanes(v));
    }
    skip = V::zero();
    if (!masks.zoneout_h) return d_h;
    const V keep = V::load(masks.zoneout_h + v * L);
    skip = d_h * keep;
    return d_h * (V::set1(1) - keep);
  }

  // From d_v and d_x on: back through the normalisations, with the sums for gains and biases.
  FASTRNN_NOINLINE void finish_row(int d, int64_t n, int64_t b, Row row) const {
    const Direction& a = directions_[d];
    const int64_t columns = G * H_, sums = b * gate_stride_;
    S* result = static_cast<S*>(p_.d_gates) + n * columns;
    S* product = p_.d_product ? static_cast<S*>(p_.d_product) + n * columns : nullptr;
    C* to = a.d_product + b * gate_stride_;
    // With a product apart d_x is another than d_v, unless their sum was normalised as one.
    C* const d_x = cells::kApart<Cell> && o_.norm != Norm::kJoint ? row.d_x : row.d_v;
    if (o_.gain_x) {
      const C* moments = static_cast<const C*>(p_.moments_x) + 2 * n;
      const S* x = static_cast<const S*>(p_.gates_x) + n * columns;
      const V mean = V::set1(moments[0]), rstd = V::set1(moments[1]);
      const auto normed = [&](int64_t i, int k) { return (load_lanes<V>(x + i, k) - mean) * rstd; };
      through_norm(columns, d_x, normed, static_cast<const S*>(o_.gain_x) + d * columns, moments[1],
                   p_.d_gain_x ? a.gain_x + sums : nullptr, p_.d_bias_x ? a.bias_x + sums : nullptr,
                   row.scaled, result, static_cast<S*>(nullptr));
    } else if (o_.norm != Norm::kJoint) {
      copy(d_x, columns, result);
    }
    C* const biases = p_.d_bias ? a.bias + sums : nullptr;
    if (o_.norm == Norm::kNone) {
      if (biases) {
        each_vector<V>(columns, [&](int64_t i, int k) {
          store_lanes(load_lanes<V>(biases + i, k) + load_lanes<V>(row.d_v + i, k), biases + i, k);
        });
      }
      if (product) copy(row.d_v, columns, product);
      copy(row.d_v, columns, to);
      return;
    }
    const S* saved = static_cast<const S*>(p_.normed) + n * columns;
    const auto normed = [&](int64_t i, int k) { return load_lanes<V>(saved + i, k); };
    through_norm(columns, row.d_v, normed, static_cast<const S*>(o_.gain) + d * columns,
                 static_cast<const C*>(p_.rstd)[n], p_.d_gain ? a.gain + sums : nullptr, biases,
                 row.scaled, to, o_.norm == Norm::kJoint ? result : product);
  }

  // d, the gradient of gain * x^ + bias, to that of what was normalised, in `to` and, unless null,
  // `also`: rstd (g - mean(g) - x^ mean(g x^)) with g = gain d. Adds to the gain's and bias's sums
  // that are not null. scaled: scratch.
  template <class Normed, class To, class Also>
  FASTRNN_INLINE static void through_norm(int64_t columns, const C* d, const Normed& normed,
                                          const S* gain, C rstd, C* gains, C* biases, C* scaled,
                                          To* to, Also* also) {
    V sum = V::zero(), product = V::zero();
    each_vector<V>(columns, [&](int64_t i, int k) {
      const V d_y = load_lanes<V>(d + i, k), x = normed(i, k);
      if (gains) store_lanes(fma(d_y, x, load_lanes<V>(gains + i, k)), gains + i, k);
      if (biases) store_lanes(load_lanes<V>(biases + i, k) + d_y, biases + i, k);
      const V g = d_y * load_lanes<V>(gain + i, k);
      sum = sum + g;
      product = fma(g, x, product);  // beyond the end g is zero, whatever x is
      store_lanes(g, scaled + i, k);
    });
    const V mean = V::set1(sum.sum() / static_cast<C>(columns));
    const V slope = V::set1(product.sum() / static_cast<C>(columns));
    each_vector<V>(columns, [&](int64_t i, int k) {
      const V g = load_lanes<V>(scaled + i, k), x = normed(i, k);
      const V value = V::set1(rstd) * fnma(x, slope, g - mean);
      store_lanes(value, to + i, k);
      if (also) store_lanes(value, also + i, k);
    });
  }

  // The gains' and biases' gradients: sums over rows, each thread some columns.
  void sum_rows(const Worker& worker) const {
    for (int d = 0; d < s_.directions; ++d) {
      const Direction& a = directions_[d];
      sum_columns(worker, a.bias, gate_stride_, G * H_, p_.d_bias, d);
      sum_columns(worker, a.gain, gate_stride_, G * H_, p_.d_gain, d);
      sum_columns(worker, a.bias_x, gate_stride_, G * H_, p_.d_bias_x, d);
      sum_columns(worker, a.gain_x, gate_stride_, G * H_, p_.d_gain_x, d);
      sum_columns(worker, a.cell_gain, stride_, H_, p_.d_cell_gain, d);
      sum_columns(worker, a.cell_bias, stride_, H_, p_.d_cell_bias, d);
    }
  }
  void sum_columns(const Worker& worker, const C* sums, int64_t stride, int64_t columns,
                   void* result, int d) const {
    if (!result) return;
    const Range mine = part(ceil_div(columns, L), worker.threads, worker.thread);
    for (int64_t i = mine.begin * L; i < smaller(mine.end * L, columns); i += L) {
      const int k = static_cast<int>(smaller(L, columns - i));
      V all = V::zero();
      for (int64_t b0 = 0; b0 < B_; b0 += kSumRows) {
        V some = V::zero();
        for (int64_t b = b0; b < smaller(B_, b0 + kSumRows); ++b) {
          some = some + load_lanes<V>(sums + b * stride + i, k);
        }
        all = all + some;
      }
      store_lanes(all, static_cast<S*>(result) + d * columns + i, k);
    }
  }

  template <class To>
  static void copy(const C* from, int64_t size, To* to) {
    if constexpr (std::is_same_v<To, C>) {
      std::memcpy(to, from, static_cast<size_t>(size) * sizeof(C));
    } else {
      each_vector<V>(size,
                     [&](int64_t i, int k) { store_lanes(load_lanes<V>(from + i, k), to + i, k); });
    }
  }

  FASTRNN_INLINE V gate(int64_t n, int64_t v, int gate, int k) const {
    return load_lanes<V>(static_cast<const S*>(p_.gates) + (n * K + gate) * H_ + v * L, k);
  }
  FASTRNN_INLINE void put(C* row, int64_t v, int gate, V x, int k) const {
    store_lanes(x, row + gate * H_ + v * L, k);
  }

  // The value a state had before this step.
  FASTRNN_INLINE V previous(const Step& step, const void* saved, const void* initial, int64_t b,
                            int64_t v, int k) const {
    if (b >= step.previous_rows) return load_state(initial, step.d, b, v);
    const int64_t n = step.d * s_.steps.rows + step.previous_row + b;
    return load_lanes<V>(static_cast<const S*>(saved) + n * H_ + v * L, k);
  }
  FASTRNN_INLINE V load_state(const void* state, int d, int64_t b, int64_t v) const {
    if (!state) return V::zero();
    return load_lanes<V>(static_cast<const S*>(state) + (d * B_ + b) * H_ + v * L, lanes(v));
  }
  FASTRNN_INLINE int lanes(int64_t v) const { return static_cast<int>(smaller(L, H_ - v * L)); }

  const ExtendedBackwardParams& p_;
  const ExtendedOptions& o_;
  const LayerShape& s_;
  const int64_t H_, B_;
  const int64_t vectors_, stride_, gate_stride_;
  const int64_t weight_bytes_;  // of w_hh in the compute type
  const bool direct_;           // w_hh is read where it lies
  const bool skips_;            // h reaches the next one by other ways than the product
  Masks<C> masks_;
  C* scratch_;
  Direction directions_[2];
  size_t bytes_;
};

}  // namespace
}  // namespace fastrnn::cpu
