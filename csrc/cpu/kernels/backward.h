// The backward recurrence of one layer, all directions, any cell.
//
// Steps run against time. A tile of rows x one block of units accumulates
//   d_h = d_gates(next step) w_hh
// and the cell's backward equations (backward_cells.h) turn it, with the saved values of this step,
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
// With options inside the recurrence the cell's part is a phase of its own, over whole rows.
#pragma once
#include "cpu/kernels/backward_cells.h"

namespace fastrnn::cpu {
namespace {

template <class S>
class Backward {
  using C = Compute<S>;
  using V = Vec<C>;
  using Step = BackwardStep<S>;
  static constexpr int L = V::kLanes;
  using Blocks = VectorBlocks<kWideVectors>;
  using Rows = RowBlocks<kWideRows>;

 public:
  // How far a worker has come in one direction.
  struct Progress {
    Step step;
    int64_t was_active;
  };

  // threads: over how many of the team the recurrence is divided.
  Backward(const BackwardParams& p, const BackwardCell<S>& cell, int threads, void* workspace)
      : p_(p),
        cell_(cell),
        threads_(threads),
        arena_(workspace),
        w_(p, threads, arena_),
        terms_(w_.cell.products * w_.H),
        direct_(std::is_same_v<S, C> && w_.s.steps.rows < kDirectRows && w_.P % L == 0) {
    for (int d = 0; d < w_.s.directions; ++d) {
      w_hh_[d] = arena_.template take<C>(direct_ ? 0 : terms_ * w_.h_stride);
      w_hr_[d] = arena_.template take<C>(w_.s.projected ? w_.P * w_.stride : 0);
    }
    partial_elements_ = terms_ > kReduction ? w_.B * kWideVectors * L : 0;
    partial_ = arena_.template take<C>(threads * partial_elements_);
  }
  size_t bytes() const { return arena_.used(); }

  // The whole recurrence, d_gates into its tensor.
  void run(const Worker& worker) const {
    const Place mine = place(worker);
    pack(worker);
    worker.barriers[0].wait(worker.threads);
    for (int d = mine.first_direction; d <= mine.last_direction; ++d) {
      Progress progress = start(d, mine, worker);
      S* const rows = static_cast<S*>(p_.d_gates) + w_.row(d, 0) * w_.columns * w_.H;
      run_steps({0, w_.s.steps.seq_len + 1}, mine, worker, {rows, 0}, progress);
    }
    if (!p_.inside.any) return;
    worker.barriers[0].wait(worker.threads);
    finish(worker);
  }

  // What a worker does of it: nothing where the team has more threads than it is divided over.
  Place place(const Worker& worker) const {
    if (worker.thread >= threads_) return {{1, 1}, 0, -1, 0, 0, 0};
    return w_.place(worker.thread, threads_);
  }

  void pack(const Worker& worker) const {
    const int unit_groups = w_.place(0, threads_).split.unit_groups;
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
    for (int d = 0; d < w_.s.directions; ++d) {
      const Weights& w = p_.weights[d];
      if (!direct_) pack_all(w.w_hh, terms_, w_.P, w_.h_vectors, w_hh_[d]);
      if (w_.s.projected) pack_all(w.w_hr, w_.P, w_.H, w_.vectors, w_hr_[d]);
    }
  }

  Progress start(int d, const Place& place, const Worker& worker) const {
    Progress progress{};
    progress.step.d = d;
    progress.step.partial = partial_ + worker.thread * partial_elements_;
    const Share mine = w_.share(place, worker);
    progress.was_active = mine.rows.begin;
    w_.rows.clear_sums(d, mine.rows_of(mine.rows));
    return progress;
  }

  // After all steps of all workers.
  void finish(const Worker& worker) const { w_.rows.sum_rows(worker); }

  // Steps `range` of T + 1 in the order of this pass: against that of the recurrence.
  void run_steps(Range range, const Place& place, const Worker& worker, GateRows<S> target,
                 Progress& progress) const {
    Step& step = progress.step;
    const int d = step.d;
    const Steps& steps = w_.s.steps;
    const int64_t T = steps.seq_len;
    const Share mine = w_.share(place, worker);
    const Range rows = mine.rows;

    int64_t& was_active = progress.was_active;
    step.target = target;
    for (int64_t s = range.begin; s < range.end; ++s) {  // s == T: the rest reaches h0 and c0
      const int64_t t = w_.time(d, T - 1 - s);
      const int64_t active = s < T ? w_.within(rows, steps.count(t)).end : rows.begin;
      step.next_first = step.at.first;
      if (s < T) step.at = StepRows(steps, t, w_.time(d, T - 2 - s));
      step.joined = was_active;
      step.d_gates_in = w_.d_gates[d] + ((s + 1) % 2) * w_.B * w_.gate_stride;
      step.d_gates_out = w_.d_gates[d] + (s % 2) * w_.B * w_.gate_stride;
      const int64_t staying = smaller(was_active, active);
      const Blocks blocks{mine.h_units.begin, mine.h_units.end};
      const int64_t count = blocks.count();
      for (int64_t i = 0; i < count; ++i) {
        // Back and forth, so that what is still in the cache is used first.
        blocks.call(s % 2 ? count - 1 - i : i, [&](auto nv, int64_t v) {
          product_block<nv()>(step, v, rows.begin, staying, was_active, active);
        });
      }
      if (w_.cell.has_c() && was_active > active) {
        store_d_c0(d, {active, was_active}, mine.units);
      }
      if (p_.inside.any && s < T) {
        mine.meet();
        apply_rows(step, mine.rows_of({rows.begin, active}), worker.thread);
      } else if (w_.s.projected && s < T) {
        mine.meet();
        const Blocks cell_blocks{mine.units.begin, mine.units.end};
        for (int64_t i = 0; i < cell_blocks.count(); ++i) {
          cell_blocks.call(i, [&](auto nv, int64_t v) {
            Rows::each(rows.begin, active,
                       [&](auto mr, int64_t b) { projection_tile<mr(), nv()>(step, v, b); });
          });
        }
      }
      mine.meet();
      was_active = active;
    }
  }

 private:
  // One block of columns of d_h for one step: rows [begin, staying) have a next
  // step, [staying, was_active) have reached the initial state, [was_active,
  // active) start here.
  template <int NV>
  void product_block(const Step& step, int64_t v, int64_t begin, int64_t staying,
                     int64_t was_active, int64_t active) const {
    int64_t k = 0;
    for (; terms_ - k > kReduction; k += kReduction) {
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
    Rows::each(was_active, active,
               [&](auto mr, int64_t b) { starting_tile<mr(), NV>(step, v, b); });
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
    const C* const d_gates = step.d_gates_in + b * w_.gate_stride + k;
    constexpr int width = NV * L;
    const bool direct = direct_;
    const C* const w = direct ? static_cast<const C*>(p_.weights[step.d].w_hh) + k * w_.P + v * L
                              : w_hh_[step.d] + v * L * terms_ + k * width;
    product_tile<MR, NV, C>({count, d_gates, w_.gate_stride, w, direct ? w_.P : width, start,
                             kWideVectors * L, to, stride});
  }

  // The last terms of the product; then the cell, or the end of the recurrence. d_h goes through
  // memory, so that each cell is compiled once and not once a tile shape.
  template <int MR, int NV, bool kStays>
  FASTRNN_NOINLINE void tile(const Step& step, int64_t v, int64_t b, int64_t begin,
                             int64_t k) const {
    alignas(64) C d_h[MR * NV * L];
    if constexpr (kStays) prefetch<MR, NV>(step, v, b);
    product<MR, NV>(step, v, b, k, terms_ - k, partial_of(step, b, begin), d_h, NV * L);
    if constexpr (kStays) {
      receive_tile(step, {v, NV, b, MR, d_h}, From::kProduct);
    } else {
      arrive_tile(step, {v, NV, b, MR, d_h});
    }
  }

  // Rows that start here, from the gradient of the final state.
  template <int MR, int NV>
  FASTRNN_NOINLINE void starting_tile(const Step& step, int64_t v, int64_t b) const {
    alignas(64) C d_h[MR * NV * L];
    for (int m = 0; m < MR; ++m) {
      for (int i = 0; i < NV; ++i) {
        w_.load_state(p_.d_h_n, step.d, b + m, v + i, w_.P).store(d_h + (m * NV + i) * L);
      }
    }
    receive_tile(step, {v, NV, b, MR, d_h}, From::kFinal);
  }

  // Gradients of h to the cell, or to what has to come before it.
  FASTRNN_NOINLINE void receive_tile(const Step& step, const Tile<C>& tile, From from) const {
    if (!w_.s.projected && !p_.inside.any) return cell_.tile(p_, w_, step, tile, from);
    const int d = step.d;
    const C* next = tile.columns;
    for (int m = 0; m < tile.rows; ++m) {
      for (int i = 0; i < tile.vectors; ++i, next += L) {
        const int64_t v = tile.v + i, b = tile.b + m;
        const V d_h = complete(p_, w_, step, from, w_.skips, v, b, V::load(next));
        d_h.store(w_.d_h[d] + b * w_.h_stride + v * L);
        if (!w_.s.projected) continue;
        w_.store_row(d_h, p_.d_hidden, w_.row(d, step.at.first + b), v, w_.P);
      }
    }
  }

  // Those of rows that have reached the initial state.
  FASTRNN_NOINLINE void arrive_tile(const Step& step, const Tile<C>& tile) const {
    const C* next = tile.columns;
    for (int m = 0; m < tile.rows; ++m) {
      for (int i = 0; i < tile.vectors; ++i, next += L) {
        const int64_t v = tile.v + i, b = tile.b + m;
        w_.store_state(past_product(p_, w_, step, w_.skips, v, b, V::load(next)), p_.d_h0, step.d,
                       b, v, w_.P);
      }
    }
  }

  // Asks for the saved values that the cell reads after the product: they were
  // written a whole pass ago and lie far away.
  template <int MR, int NV>
  FASTRNN_INLINE void prefetch(const Step& step, int64_t v, int64_t b) const {
    const int64_t n = w_.row(step.d, step.at.first + b), H = w_.H;
    const int64_t earlier = w_.row(step.d, step.at.previous_first + b);
    const cells::Traits& cell = w_.cell;
    const void* const state = cell.has_c() ? p_.cells : p_.hidden;
    for (int m = 0; m < MR; ++m) {
      const auto touch = [&](const void* base, int64_t element) {
        const char* at = static_cast<const char*>(base) + element * int64_t{sizeof(S)};
        for (int i = 0; i < NV; ++i) __builtin_prefetch(at + i * L * int64_t{sizeof(S)});
      };
      for (int k = 0; k < cell.saved(); ++k) {
        touch(p_.gates, ((n + m) * cell.columns + k) * H + v * L);
      }
      if (cell.has_c() || cell.keeps_h) touch(state, (n + m) * H + v * L);
      if ((cell.has_c() || cell.carries_h) && b + m < step.at.previous_rows) {
        touch(state, (earlier + m) * H + v * L);
      }
      if (p_.d_output) {
        touch(p_.d_output, ((step.at.first + b + m) * w_.s.directions + step.d) * w_.P + v * L);
      }
    }
  }

  template <int MR, int NV>
  FASTRNN_INLINE void projection_tile(const Step& step, int64_t v, int64_t b) const {
    alignas(64) C d_m[MR * NV * L];
    product_tile<MR, NV, C>({w_.P, w_.d_h[step.d] + b * w_.h_stride, w_.h_stride,
                             w_hr_[step.d] + v * L * w_.P, NV * L, nullptr, 0, d_m, NV * L});
    cell_.tile(p_, w_, step, {v, NV, b, MR, d_m}, From::kProjection);
  }

  void apply_rows(const Step& step, Range rows, int thread) const {
    const int d = step.d;
    for (int64_t b = rows.begin; b < rows.end; ++b) {
      const int64_t row = step.at.first + b;
      const int64_t before = w_.row(d, step.at.previous_first + b);
      cell_.row(w_,
                {d, step.at.t, b, w_.row(d, row), b < step.at.previous_rows ? before : -1,
                 b >= step.joined, w_.d_h[d] + b * w_.h_stride, w_.d_skip[d] + b * w_.stride,
                 w_.d_c[d] + b * w_.stride, step.d_gates_out + b * w_.gate_stride,
                 step.target.data + (row - step.target.first) * w_.columns * w_.H},
                thread);
    }
  }

  void store_d_c0(int d, Range rows, Range units) const {
    for (int64_t b = rows.begin; b < rows.end; ++b) {
      for (int64_t v = units.begin; v < units.end; ++v) {
        w_.store_state(V::load(w_.d_c[d] + b * w_.stride + v * L), p_.d_c0, d, b, v, w_.H);
      }
    }
  }

  const BackwardParams& p_;
  const BackwardCell<S>& cell_;
  const int threads_;
  Arena arena_;
  const GradientStates<S> w_;
  const int64_t terms_;    // G*H
  const bool direct_;      // w_hh is read where it lies
  C *w_hh_[2], *w_hr_[2];  // panels [G*H][NV * L], one a block of columns; [P][NV * L]
  C* partial_;             // of each thread, [rows][kWideVectors * L]
  int64_t partial_elements_;
};

}  // namespace
}  // namespace fastrnn::cpu
