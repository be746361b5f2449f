// The backward recurrence of one layer, all directions, any cell.
//
// Steps run against time. A tile of rows x one block of units accumulates
//   d_h = d_gates(next step) w_hh
// and the cell's backward equations turn it, with the saved values of this step,
// into this step's d_gates. With a projection the product gives the gradient of
// the projected h, and a second one, with w_hr, that of the unprojected h.
//
// Invariants: d_gates goes to the result and, in the compute type, to a slot of
// scratch that the next step multiplies; slots alternate. The result is the whole
// tensor, or room for the steps of one call of run_steps: kernels/vjp.h uses each
// part of it before the next is made. A thread writes its
// own rows and units only. Rows that become active (packed data) start from the
// gradient of the final state; rows that were active and are no more have
// reached the initial state, whose gradient is then written.
//
// The derivative of all this in a direction is the same recurrence for tangents
// of gradients: the products are linear, and the cells get dual numbers.
//
// With options inside the recurrence the cell's part is a phase of its own, over whole rows:
// backward_rows.h.
#pragma once
#include "cpu/kernels/backward_rows.h"

namespace fastrnn::cpu {
namespace {

template <class Cell, class S>
class Backward {
  using C = Compute<S>;
  using V = Vec<C>;
  static constexpr int L = V::kLanes;
  static constexpr int G = Cell::kProducts, K = Cell::kColumns;
  static constexpr bool kHasC = Cell::kStates > 1;
  using Blocks = VectorBlocks<kWideVectors>;
  using Rows = RowBlocks<kWideRows>;

  struct Direction {
    C* w_hh;     // panels [G*H][NV * L], one a block of columns
    C* w_hr;     // panels [P][NV * L]
    C* d_gates;  // [2][B][gate_stride]
    C* d_c;      // [B][stride]: what reaches c from the next step
    C* d_skip;   // [B][stride]: the part of d_h that bypasses the product
    C* d_h;      // [B][h_stride], gradient of this step's h, where it goes on in another phase
  };

  struct Step {
    int d;
    int64_t t;
    int64_t row;            // first row of this step in tensors of N rows
    int64_t next_row;       // the same of the step done just before, whose d_gates_in it is
    int64_t previous_row;   // the same of the step before it in the recurrence
    int64_t previous_rows;  // rows that have such a step; the others had h0, c0
    int64_t joined;         // rows from here on are active for the first time
    const C* d_gates_in;
    C* d_gates_out;
    GateRows<S> target;  // where d_gates goes
    C* partial;          // this thread's sums of the first blocks of terms
  };

 public:
  // How far a worker has come in one direction.
  struct Progress {
    Step step;
    Range rows;  // of a step, that are the worker's
    int64_t was_active;
  };

  static size_t workspace_bytes(const BackwardParams& p, int threads) {
    return Backward(p, threads, nullptr).bytes_;
  }
  static void run(const BackwardParams& p, const Worker& worker) {
    Backward(p, worker.threads, p.workspace).run_worker(worker);
  }

  // threads: over how many of the team the recurrence is divided.
  Backward(const BackwardParams& p, int threads, void* workspace)
      : p_(p),
        threads_(threads),
        s_(p.shape),
        H_(s_.hidden_size),
        P_(s_.proj_size),
        B_(s_.steps.batch),
        vectors_(ceil_div(H_, L)),
        h_vectors_(ceil_div(P_, L)),
        stride_(vectors_ * L),
        h_stride_(h_vectors_ * L),
        gate_stride_(G * H_ + L),
        rows_(p, threads, workspace) {
    weight_bytes_ = G * H_ * P_ * static_cast<int64_t>(sizeof(C));
    direct_ = std::is_same_v<S, C> && s_.steps.rows < kDirectRows && P_ % L == 0;
    Arena arena(after(workspace, rows_.bytes()));
    for (int d = 0; d < s_.directions; ++d) {
      Direction& a = directions_[d];
      a.w_hh = arena.take<C>(direct_ ? 0 : G * H_ * h_stride_);
      a.w_hr = arena.take<C>(s_.projected ? P_ * stride_ : 0);
      a.d_gates = arena.take<C>(2 * B_ * gate_stride_);
      a.d_c = arena.take<C>(kHasC ? B_ * stride_ : 0);
      a.d_skip = arena.take<C>(rows_.skips() ? B_ * stride_ : 0);
      a.d_h = arena.take<C>(s_.projected || p.inside.any ? B_ * h_stride_ : 0);
    }
    partial_elements_ = G * H_ > kReduction ? B_ * kWideVectors * L : 0;
    partial_ = arena.take<C>(threads * partial_elements_);
    bytes_ = rows_.bytes() + arena.used();
  }
  size_t bytes() const { return bytes_; }

  // What a worker does of it: nothing where the team has more threads than it is divided over.
  Place place(const Worker& worker) const {
    if (worker.thread >= threads_) return {{1, 1}, 0, -1, 0, 0, 0};
    return place_of(worker.thread, threads_, s_.directions, B_, vectors_, weight_bytes_);
  }

  void pack(const Worker& worker) const {
    const int unit_groups =
        place_of(0, threads_, s_.directions, B_, vectors_, weight_bytes_).split.unit_groups;
    int64_t job = 0;
    const auto pack_all = [&](const void* w, int64_t terms, int64_t columns, int64_t vectors,
                              C* panels) {
      for (int g = 0; g < unit_groups; ++g) {
        const Range range = part(vectors, unit_groups, g);
        const Blocks blocks{range.begin, range.end};
        for (int64_t i = 0; i < blocks.count(); ++i) {
          if (job++ % worker.threads != worker.thread) continue;
          blocks.call(i, [&](auto nv, int64_t v) {
            pack_columns<nv()>(static_cast<const S*>(w), terms, columns, v, panels + v * L * terms);
          });
        }
      }
    };
    for (int d = 0; d < s_.directions; ++d) {
      const Direction& a = directions_[d];
      if (!direct_) pack_all(p_.weights[d].w_hh, G * H_, P_, h_vectors_, a.w_hh);
      if (s_.projected) pack_all(p_.weights[d].w_hr, P_, H_, vectors_, a.w_hr);
    }
  }

  Progress start(int d, const Place& place, const Worker& worker) const {
    Progress progress{};
    progress.step.d = d;
    progress.step.partial = partial_ + worker.thread * partial_elements_;
    progress.rows = batch_rows(s_.steps, place.split.batch_groups, place.batch_group);
    progress.was_active = progress.rows.begin;
    rows_.clear_sums(d, share_of(progress.rows, place.split.unit_groups, place.unit_group));
    return progress;
  }

  // After all steps of all workers.
  void finish(const Worker& worker) const { rows_.sum_rows(worker); }

  // Steps `range` of T + 1 in the order of this pass: against that of the recurrence.
  void run_steps(Range range, const Place& place, const Worker& worker, GateRows<S> target,
                 Progress& progress) const {
    Step& step = progress.step;
    const int d = step.d;
    const Steps& steps = s_.steps;
    const Direction& a = directions_[d];
    const int64_t T = steps.seq_len;
    const Range rows = progress.rows;
    const Range units = part(vectors_, place.split.unit_groups, place.unit_group);
    const Range h_units =
        s_.projected ? part(h_vectors_, place.split.unit_groups, place.unit_group) : units;
    SpinBarrier& barrier = worker.barriers[place.barrier];
    const int peers = place.split.unit_groups;
    const int64_t direction =
        d == 0 ? -1 : 1;  // from a step to the one before it in the recurrence

    int64_t& was_active = progress.was_active;
    step.target = target;
    for (int64_t s = range.begin; s < range.end; ++s) {  // s == T: the rest reaches h0 and c0
      const int64_t t = d == 0 ? T - 1 - s : s;
      const int64_t active = s < T ? within(rows, steps.count(t)) : rows.begin;
      step.next_row = step.row;
      step.t = t;
      if (s < T) {
        const int64_t previous = t + direction;
        const bool exists = previous >= 0 && previous < T;
        step.row = steps.offset(t);
        step.previous_row = exists ? steps.offset(previous) : 0;
        step.previous_rows = exists ? steps.count(previous) : 0;
      }
      step.joined = was_active;
      step.d_gates_in = a.d_gates + ((s + 1) % 2) * B_ * gate_stride_;
      step.d_gates_out = a.d_gates + (s % 2) * B_ * gate_stride_;
      const int64_t staying = smaller(was_active, active);
      const Blocks blocks{h_units.begin, h_units.end};
      const int64_t count = blocks.count();
      for (int64_t i = 0; i < count; ++i) {
        // Back and forth, so that what is still in the cache is used first.
        blocks.call(s % 2 ? count - 1 - i : i, [&](auto nv, int64_t v) {
          product_block<nv()>(step, v, rows.begin, staying, was_active, active);
        });
      }
      if (kHasC && was_active > active) {
        store_d_c0(d, {active, was_active}, units);
      }
      if (p_.inside.any && s < T) {
        barrier.wait(peers);
        apply_rows(step, share_of({rows.begin, active}, peers, place.unit_group), worker.thread);
      } else if (s_.projected && s < T) {
        barrier.wait(peers);
        const Blocks cell_blocks{units.begin, units.end};
        for (int64_t i = 0; i < cell_blocks.count(); ++i) {
          cell_blocks.call(i, [&](auto nv, int64_t v) {
            Rows::each(rows.begin, active,
                       [&](auto mr, int64_t b) { projection_tile<mr(), nv()>(step, v, b); });
          });
        }
      }
      barrier.wait(peers);
      was_active = active;
    }
  }

 private:
  void run_worker(const Worker& worker) const {
    const Place mine = place(worker);
    pack(worker);
    worker.barriers[0].wait(worker.threads);
    for (int d = mine.first_direction; d <= mine.last_direction; ++d) {
      Progress progress = start(d, mine, worker);
      S* const rows = static_cast<S*>(p_.d_gates) + d * s_.steps.rows * rows_.columns() * H_;
      run_steps({0, s_.steps.seq_len + 1}, mine, worker, {rows, 0}, progress);
    }
    if (!p_.inside.any) return;
    worker.barriers[0].wait(worker.threads);
    finish(worker);
  }

  static int64_t within(Range rows, int64_t count) {
    return larger(rows.begin, smaller(rows.end, count));
  }

  // One block of columns of d_h for one step: rows [begin, staying) have a next
  // step, [staying, was_active) have reached the initial state, [was_active,
  // active) start here.
  template <int NV>
  void product_block(const Step& step, int64_t v, int64_t begin, int64_t staying,
                     int64_t was_active, int64_t active) const {
    const int64_t terms = G * H_;
    int64_t k = 0;
    for (; terms - k > kReduction; k += kReduction) {
      Rows::each(begin, was_active, [&](auto mr, int64_t b) {
        C* const partial = partial_of(step, b, begin);
        product<mr(), NV>(step, v, b, k, kReduction, partial, partial, kWideVectors * L);
      });
    }
    Rows::each(begin, staying,
               [&](auto mr, int64_t b) { tile<mr(), NV, true>(step, v, b, begin, k); });
    if (was_active > staying) {
      Rows::each(staying, was_active,
                 [&](auto mr, int64_t b) { tile<mr(), NV, false>(step, v, b, begin, k); });
    }
    if (active > was_active) {
      receive_tile(step, v, NV, was_active, static_cast<int>(active - was_active), nullptr);
    }
  }

  // ---- tiles ---------------------------------------------------------------

  C* partial_of(const Step& step, int64_t b, int64_t begin) const {
    return step.partial + (b - begin) * kWideVectors * L;
  }

  // `count` terms from k on, added to those before it (partial; none where k is 0).
  template <int MR, int NV>
  FASTRNN_INLINE void product(const Step& step, int64_t v, int64_t b, int64_t k, int64_t count,
                              const C* partial, C* to, int64_t stride) const {
    const C* const start = k == 0 ? nullptr : partial;
    const C* const d_gates = step.d_gates_in + b * gate_stride_ + k;
    constexpr int width = NV * L;
    const bool direct = direct_;
    const C* const w = direct ? static_cast<const C*>(p_.weights[step.d].w_hh) + k * P_ + v * L
                              : directions_[step.d].w_hh + v * L * G * H_ + k * width;
    product_tile<MR, NV, C>({count, d_gates, gate_stride_, w, direct ? P_ : width, start,
                             kWideVectors * L, to, stride});
  }

  // The last terms of the product; then the cell, or the end of the recurrence. d_h goes through
  // memory, so that each cell is compiled once and not once a tile shape.
  template <int MR, int NV, bool kStays>
  FASTRNN_NOINLINE void tile(const Step& step, int64_t v, int64_t b, int64_t begin,
                             int64_t k) const {
    alignas(64) C d_h[MR * NV * L];
    if constexpr (kStays) prefetch<MR, NV>(step, v, b);
    product<MR, NV>(step, v, b, k, G * H_ - k, partial_of(step, b, begin), d_h, NV * L);
    if constexpr (kStays) {
      receive_tile(step, v, NV, b, MR, d_h);
    } else {
      arrive_tile(step, v, NV, b, MR, d_h);
    }
  }

  // d_h [rows][vectors * L] from the product: a step, or rows that start here.
  FASTRNN_NOINLINE void receive_tile(const Step& step, int64_t v, int vectors, int64_t b, int rows,
                                     const C* d_h) const {
    for (int m = 0; m < rows; ++m) {
      for (int i = 0; i < vectors; ++i) {
        if (d_h) {
          receive(step, v + i, b + m, product_and_skip(step, v + i, b + m, d_h));
          d_h += L;
        } else {
          receive(step, v + i, b + m, load_state(p_.d_h_n, step.d, b + m, v + i, P_));
        }
      }
    }
  }

  // d_h of rows that have reached the initial state.
  FASTRNN_NOINLINE void arrive_tile(const Step& step, int64_t v, int vectors, int64_t b, int rows,
                                    const C* d_h) const {
    for (int m = 0; m < rows; ++m) {
      for (int i = 0; i < vectors; ++i, d_h += L) {
        store_lanes(product_and_skip(step, v + i, b + m, d_h),
                    static_cast<S*>(p_.d_h0) + (step.d * B_ + b + m) * P_ + (v + i) * L,
                    lanes(v + i, P_));
      }
    }
  }

  FASTRNN_INLINE V product_and_skip(const Step& step, int64_t v, int64_t b, const C* d_h) const {
    V product = V::load(d_h);
    if (p_.direction && p_.direction->through_w_hh) {
      const int64_t n = step.d * s_.steps.rows + step.next_row + b;
      const S* more = static_cast<const S*>(p_.direction->through_w_hh) + n * P_ + v * L;
      product = product + load_lanes<V>(more, lanes(v, P_));
    }
    if (p_.inside.any) {
      if (p_.inside.h_scale) product = product * load_state(p_.inside.h_scale, step.d, b, v, P_);
      if (!rows_.skips()) return product;
    } else if constexpr (!Cell::kCarriesH) {
      return product;
    }
    return product + V::load(directions_[step.d].d_skip + b * stride_ + v * L);
  }

  // Asks for the saved values that the cell reads after the product: they were
  // written a whole pass ago and lie far away.
  template <int MR, int NV>
  FASTRNN_INLINE void prefetch(const Step& step, int64_t v, int64_t b) const {
    const int64_t n = step.d * s_.steps.rows + step.row + b;
    const int64_t earlier = step.d * s_.steps.rows + step.previous_row + b;
    const void* state = kHasC ? p_.cells : p_.hidden;
    for (int m = 0; m < MR; ++m) {
      const auto touch = [&](const void* base, int64_t element) {
        const char* at = static_cast<const char*>(base) + element * int64_t{sizeof(S)};
        for (int i = 0; i < NV; ++i) __builtin_prefetch(at + i * L * int64_t{sizeof(S)});
      };
      for (int k = 0; k < kSaved<Cell>; ++k) touch(p_.gates, ((n + m) * K + k) * H_ + v * L);
      if (kHasC || Cell::kKeepsH) touch(state, (n + m) * H_ + v * L);
      if ((kHasC || Cell::kCarriesH) && b + m < step.previous_rows) {
        touch(state, (earlier + m) * H_ + v * L);
      }
      if (p_.d_output) {
        touch(p_.d_output, ((step.row + b + m) * s_.directions + step.d) * P_ + v * L);
      }
    }
  }

  // d_h of one row and vector, but for what comes from the output.
  FASTRNN_INLINE void receive(const Step& step, int64_t v, int64_t b, V d_h) const {
    const int64_t row = step.row + b;
    if (p_.d_output) {
      const S* d_output = static_cast<const S*>(p_.d_output);
      d_h =
          d_h + load_lanes<V>(d_output + (row * s_.directions + step.d) * P_ + v * L, lanes(v, P_));
    }
    if (p_.inside.any) {
      d_h.store(directions_[step.d].d_h + b * h_stride_ + v * L);
    } else if (s_.projected) {
      d_h.store(directions_[step.d].d_h + b * h_stride_ + v * L);
      store_lanes(d_h, static_cast<S*>(p_.d_hidden) + (step.d * s_.steps.rows + row) * P_ + v * L,
                  lanes(v, P_));
    } else {
      apply_cell(step, v, b, d_h);
    }
  }

  template <int MR, int NV>
  FASTRNN_INLINE void projection_tile(const Step& step, int64_t v, int64_t b) const {
    const Direction& a = directions_[step.d];
    alignas(64) C d_m[MR * NV * L];
    product_tile<MR, NV, C>({P_, a.d_h + b * h_stride_, h_stride_, a.w_hr + v * L * P_, NV * L,
                             nullptr, 0, d_m, NV * L});
    apply_cell_tile(step, v, NV, b, MR, d_m);
  }

  FASTRNN_NOINLINE void apply_cell_tile(const Step& step, int64_t v, int vectors, int64_t b,
                                        int rows, const C* d_h) const {
    for (int m = 0; m < rows; ++m) {
      for (int i = 0; i < vectors; ++i, d_h += L) apply_cell(step, v + i, b + m, V::load(d_h));
    }
  }

  // ---- cells ---------------------------------------------------------------

  void apply_rows(const Step& step, Range rows, int thread) const {
    const Direction& a = directions_[step.d];
    const int64_t first = step.d * s_.steps.rows;
    for (int64_t b = rows.begin; b < rows.end; ++b) {
      const int64_t row = step.row + b - step.target.first;
      rows_.apply(
          {step.d, step.t, b, first + step.row + b,
           b < step.previous_rows ? first + step.previous_row + b : -1, b >= step.joined,
           a.d_h + b * h_stride_, a.d_skip + b * stride_, a.d_c + b * stride_,
           step.d_gates_out + b * gate_stride_, step.target.data + row * rows_.columns() * H_},
          thread);
    }
  }

  // Of a cell with vectors backward_rows.h does all of it.
  FASTRNN_INLINE void apply_cell(const Step& step, int64_t v, int64_t b, V d_h) const {
    if constexpr (Cell::kVectors == 0) apply_plain_cell(step, v, b, d_h);
  }

  FASTRNN_INLINE void apply_plain_cell(const Step& step, int64_t v, int64_t b, V d_h) const {
    const int64_t n = step.d * s_.steps.rows + step.row + b;
    const int k = lanes(v, H_);
    if (p_.direction) return apply_cell_tangent(step, n, v, b, k, d_h);
    const auto store = [&](V x, void* to) {
      if (to) store_lanes(x, static_cast<S*>(to) + n * H_ + v * L, k);
    };
    V a[K], before[Cell::kStates], after[Cell::kStates], d_states[Cell::kStates], d[K];
    load_kept(p_.gates, p_.hidden, n, v, k, [&](int i) -> V& { return a[i]; });
    C* const carry = directions_[step.d].d_c + b * stride_ + v * L;
    store(d_h, p_.d_cell_h);
    d_states[0] = d_h;
    after[0] = V::zero();  // no cell reads it here
    before[0] = Cell::kCarriesH ? previous(step, p_.hidden, p_.h0, v, b, k) : V::zero();
    if constexpr (kHasC) {
      after[1] = load_lanes<V>(static_cast<const S*>(p_.cells) + n * H_ + v * L, k);
      before[1] = previous(step, p_.cells, p_.c0, v, b, k);
      d_states[1] = arriving_d_c(step, n, v, b, k, carry);
      store(d_states[1], p_.d_cell_c);
    }
    cells::backward<Cell>(a, before, after, d_states, d);
    if constexpr (kHasC) d_states[1].store(carry);
    publish(step, v, b, k, d_states[0], [&](int i) { return d[i]; });
  }

  // The same on dual numbers: t_d_h is the tangent of d_h, and tangents are what is published.
  FASTRNN_NOINLINE void apply_cell_tangent(const Step& step, int64_t n, int64_t v, int64_t b, int k,
                                           V t_d_h) const {
    using D = Dual<V>;
    const BackwardDirection& p = *p_.direction;
    const auto load = [&](const void* from) {
      return load_lanes<V>(static_cast<const S*>(from) + n * H_ + v * L, k);
    };
    D a[K], before[Cell::kStates], after[Cell::kStates], d_states[Cell::kStates], d[K];
    load_kept(p_.gates, p_.hidden, n, v, k, [&](int i) -> V& { return a[i].v; });
    load_kept(p.t_gates, p.t_hidden, n, v, k, [&](int i) -> V& { return a[i].t; });
    if (p.through_w_hr) t_d_h = t_d_h + load(p.through_w_hr);
    C* const carry = directions_[step.d].d_c + b * stride_ + v * L;
    d_states[0] = {load(p.d_cell_h), t_d_h};
    after[0] = before[0] = D::set1(0);
    if constexpr (Cell::kCarriesH) {
      before[0] = {previous(step, p_.hidden, p_.h0, v, b, k),
                   previous(step, p.t_hidden, p.t_h0, v, b, k)};
    }
    if constexpr (kHasC) {
      after[1] = {load(p_.cells), load(p.t_cells)};
      before[1] = {previous(step, p_.cells, p_.c0, v, b, k),
                   previous(step, p.t_cells, p.t_c0, v, b, k)};
      d_states[1] = {load(p.d_cell_c), arriving_d_c(step, n, v, b, k, carry)};
    }
    cells::backward<Cell>(a, before, after, d_states, d);
    if constexpr (kHasC) d_states[1].t.store(carry);
    publish(step, v, b, k, d_states[0].t, [&](int i) { return d[i].t; });
  }

  // What the forward pass kept: of cells that keep h it is saved as such.
  template <class To>
  FASTRNN_INLINE void load_kept(const void* gates, const void* hidden, int64_t n, int64_t v, int k,
                                To to) const {
    const S* const from = static_cast<const S*>(Cell::kKeepsH ? hidden : gates);
    for (int i = 0; i < K; ++i) to(i) = load_lanes<V>(from + (n * K + i) * H_ + v * L, k);
  }

  // The gradient of c but for what its h brings: from the step after, or from the final state, and
  // from outside.
  FASTRNN_INLINE V arriving_d_c(const Step& step, int64_t n, int64_t v, int64_t b, int k,
                                const C* carry) const {
    const V d_c = b < step.joined ? V::load(carry) : load_state(p_.d_c_n, step.d, b, v, H_);
    if (!p_.d_cells) return d_c;
    return d_c + load_lanes<V>(static_cast<const S*>(p_.d_cells) + n * H_ + v * L, k);
  }

  // The value a state had before this step.
  FASTRNN_INLINE V previous(const Step& step, const void* saved, const void* initial, int64_t v,
                            int64_t b, int k) const {
    if (b >= step.previous_rows) return load_state(initial, step.d, b, v, H_);
    const int64_t n = step.d * s_.steps.rows + step.previous_row + b;
    return load_lanes<V>(static_cast<const S*>(saved) + n * H_ + v * L, k);
  }

  // The gradients of the columns, for the products and for the next step, and what of d_h goes past
  // the product.
  template <class Column>
  FASTRNN_INLINE void publish(const Step& step, int64_t v, int64_t b, int k, V skip,
                              Column d) const {
    if (Cell::kCarriesH) skip.store(directions_[step.d].d_skip + b * stride_ + v * L);
    const int64_t n = step.row + b - step.target.first;
    S* const result = step.target.data + n * K * H_ + v * L;
    for (int i = 0; i < K; ++i) store_lanes(d(i), result + i * H_, k);
    C* const next = step.d_gates_out + b * gate_stride_ + v * L;
    for (int g = 0; g < G; ++g) store_lanes(d(cells::recurrent_column<Cell>(g)), next + g * H_, k);
  }

  FASTRNN_INLINE V load_state(const void* state, int d, int64_t b, int64_t v, int64_t size) const {
    if (!state) return V::zero();
    return load_lanes<V>(static_cast<const S*>(state) + (d * B_ + b) * size + v * L,
                         lanes(v, size));
  }

  void store_d_c0(int d, Range rows, Range units) const {
    for (int64_t b = rows.begin; b < rows.end; ++b) {
      for (int64_t v = units.begin; v < units.end; ++v) {
        store_lanes(V::load(directions_[d].d_c + b * stride_ + v * L),
                    static_cast<S*>(p_.d_c0) + (d * B_ + b) * H_ + v * L, lanes(v, H_));
      }
    }
  }

  static FASTRNN_INLINE int lanes(int64_t v, int64_t size) {
    return static_cast<int>(smaller(L, size - v * L));
  }

  const BackwardParams& p_;
  const int threads_;
  const LayerShape& s_;
  const int64_t H_, P_, B_;
  const int64_t vectors_, h_vectors_;  // of units, of values of h
  const int64_t stride_, h_stride_;    // the same in elements, padded
  const int64_t gate_stride_;          // of a row of d_gates scratch
  int64_t weight_bytes_;               // of w_hh in the compute type
  bool direct_;                        // w_hh is read where it lies
  int64_t partial_elements_;
  C* partial_;  // of each thread, [rows][kWideVectors * L]
  BackwardRows<Cell, S> rows_;
  Direction directions_[2];
  size_t bytes_;
};

}  // namespace
}  // namespace fastrnn::cpu
