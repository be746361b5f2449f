// The whole backward pass of one layer: the recurrence of backward.h and the products of
// products.h in turns, a chunk of steps at a time, so that d_gates is never stored as a whole.
//
// All threads meet once a chunk, between the two. The room for d_gates has two halves: who is done
// with the products of a chunk goes on to the recurrence of the next, which writes the other half.
// Two directions pass over the chunks from opposite ends.
//
// Chunks depend on the shape of the layer alone, and with them the order of every sum.
#pragma once
#include "cpu/kernels/backward.h"
#include "cpu/kernels/products.h"

namespace fastrnn::cpu {
namespace {

template <class S>
class Vjp {
 public:
  Vjp(const VjpParams& p, const BackwardCell<S>& cell, int threads, void* workspace)
      : s_(p.backward.shape),
        T_(s_.steps.seq_len),
        backward_(p.backward, cell, static_cast<int>(smaller(threads, p.backward_threads)),
                  workspace),
        products_(p.products, threads, after(workspace, backward_.bytes())) {
    // Two directions bring their parts of d_input at different times. Where that is rounded to a
    // narrow dtype they have to be added before: in one chunk, then.
    const bool whole = s_.directions == 2 && !std::is_same_v<S, Compute<S>>;
    const int64_t rows_a_step = ceil_div(s_.steps.rows, T_);
    steps_ = whole ? T_ : smaller(T_, larger(1, p.chunk_rows / rows_a_step));
    chunks_ = ceil_div(T_, steps_);
    rows_ = s_.steps.offset(steps_ - 1) + s_.steps.count(steps_ - 1);  // no chunk has more
    halves_ = chunks_ > 1 ? 2 : 1;
    const size_t used = backward_.bytes() + products_.bytes();
    Arena arena(after(workspace, used));
    d_gates_ = arena.take<S>(halves_ * s_.directions * rows_ * products_.columns());
    bytes_ = used + arena.used();
  }

  size_t bytes() const { return bytes_; }

  void run(const Worker& worker) {
    const Place place = backward_.place(worker);
    products_.start(worker);
    backward_.pack(worker);
    products_.pack(worker);
    worker.barriers[0].wait(worker.threads);
    typename Backward<S>::Progress progress[2];
    for (int d = place.first_direction; d <= place.last_direction; ++d) {
      progress[d] = backward_.start(d, place, worker);
    }
    for (int64_t turn = 0; turn < chunks_; ++turn) {
      for (int d = place.first_direction; d <= place.last_direction; ++d) {
        const Range steps = steps_of(chunk_of(d, turn));
        // In the order of this pass, with the arrival at the initial state after the last.
        Range range = d == 0 ? Range{T_ - steps.end, T_ - steps.begin} : steps;
        if (range.end == T_) ++range.end;
        backward_.run_steps(range, place, worker, half(d, turn), progress[d]);
      }
      worker.barriers[0].wait(worker.threads);
      use(worker, turn);
    }
    for (int d = 0; d < s_.directions; ++d) products_.finish(d);
    backward_.finish(worker);
  }

 private:
  // The products of one turn.
  void use(const Worker& worker, int64_t turn) const {
    GateRows<const S> d_gates[2];
    for (int d = 0; d < s_.directions; ++d) {
      const GateRows<S> rows = half(d, turn);
      d_gates[d] = {rows.data, rows.first};
    }
    if (products_.wants_input()) {
      const auto mine = [&](int64_t chunk) {
        const Range rows = rows_of(chunk);
        const Range share = part(rows.size(), worker.threads, worker.thread);
        return Range{rows.begin + share.begin, rows.begin + share.end};
      };
      if (chunks_ == 1) {
        products_.input_gradient(mine(0), 0, s_.directions, d_gates, false);
      } else {
        for (int d = 0; d < s_.directions; ++d) {
          const int64_t chunk = chunk_of(d, turn);
          // The other direction has been there, in an earlier turn or just now.
          const int64_t others_turn = turn_of(1 - d, chunk);
          const bool adds =
              s_.directions == 2 && (d == 0 ? others_turn < turn : others_turn <= turn);
          products_.input_gradient(mine(chunk), d, d + 1, d_gates, adds);
        }
      }
    }
    for (int d = 0; d < s_.directions; ++d) {
      const int64_t chunk = chunk_of(d, turn);
      products_.weight_gradients(d, rows_of(chunk), steps_of(chunk).begin, d_gates[d], turn == 0);
    }
  }

  int64_t chunk_of(int d, int64_t turn) const { return d == 0 ? chunks_ - 1 - turn : turn; }
  int64_t turn_of(int d, int64_t chunk) const { return chunk_of(d, chunk); }  // its own inverse

  Range steps_of(int64_t chunk) const {
    return {chunk * steps_, smaller((chunk + 1) * steps_, T_)};
  }
  Range rows_of(int64_t chunk) const {
    const Range steps = steps_of(chunk);
    return {s_.steps.offset(steps.begin),
            s_.steps.offset(steps.end - 1) + s_.steps.count(steps.end - 1)};
  }

  GateRows<S> half(int d, int64_t turn) const {
    const int64_t index = turn % halves_ * s_.directions + d;
    return {d_gates_ + index * rows_ * products_.columns(), rows_of(chunk_of(d, turn)).begin};
  }

  const LayerShape& s_;
  const int64_t T_;
  Backward<S> backward_;
  Products<S> products_;
  int64_t steps_, chunks_;  // steps of a chunk, but perhaps for the last; how many chunks
  int64_t rows_;            // of the largest chunk
  int64_t halves_;
  S* d_gates_;  // [halves][directions][rows][columns]
  size_t bytes_;
};

}  // namespace
}  // namespace fastrnn::cpu
