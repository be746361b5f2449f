// Elements of a weight dropped at random: zero with probability `rate`, else divided by 1 - rate.
//
// A decision depends on seed, stream, row and column alone (philox.h), and 16 bits make it. One
// word serves two columns: its low half the column of its own number, its high half the one `words`
// further on. The counter's third word is that of no step, so that a layer's masks of zoneout and
// dropout may share the seed.
#pragma once
#include "cpu/kernels/math.h"
#include "cpu/kernels/philox.h"
#include "cpu/kernels/plan.h"
#include "cpu/kernels/tile.h"

namespace fastrnn::cpu {
namespace {

template <class S>
class Drop {
  using C = Compute<S>;
  using V = Vec<C>;
  static constexpr int L = V::kLanes;
  static constexpr uint32_t kNoStep = 0xffffffffu;

 public:
  Drop(const DropParams& p, int threads, void* workspace)
      : p_(p), groups_(ceil_div(p.columns, 2 * kPhiloxGroup)), words_(groups_ * kPhiloxGroup) {
    Arena arena(workspace);
    drawn_ = arena.take<uint32_t>(threads * words_);
    factors_ = arena.take<C>(threads * 2 * words_);
    bytes_ = arena.used();
  }

  size_t bytes() const { return bytes_; }

  void run(const Worker& worker) const {
    uint32_t* const drawn = drawn_ + worker.thread * words_;
    C* const factors = factors_ + worker.thread * 2 * words_;
    const PhiloxKey key{static_cast<uint32_t>(p_.seed), static_cast<uint32_t>(p_.seed >> 32)};
    const uint32_t below = philox_threshold(p_.rate);
    const C kept = static_cast<C>(1 / (1 - p_.rate));
    const Range rows = part(p_.rows, worker.threads, worker.thread);
    for (int64_t r = rows.begin; r < rows.end; ++r) {
      philox_row(key, static_cast<uint32_t>(r), kNoStep, p_.stream, groups_, drawn);
      for (int64_t i = 0; i < words_; ++i) {
        factors[i] = (drawn[i] & 0xffffu) < below ? C(0) : kept;
        factors[words_ + i] = (drawn[i] >> 16) < below ? C(0) : kept;
      }
      const S* from = static_cast<const S*>(p_.from) + r * p_.columns;
      S* to = static_cast<S*>(p_.to) + r * p_.columns;
      for (int64_t j = 0; j < p_.columns; j += L) {
        const int k = static_cast<int>(smaller(L, p_.columns - j));
        store_lanes(load_lanes<V>(from + j, k) * V::load(factors + j), to + j, k);
      }
    }
  }

 private:
  const DropParams& p_;
  const int64_t groups_, words_;
  uint32_t* drawn_;
  C* factors_;
  size_t bytes_;
};

}  // namespace
}  // namespace fastrnn::cpu
