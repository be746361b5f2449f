// The order in which a direction's kernel meets its steps.
#pragma once
#include "cuda/primitives.h"
#include "layer_shape.h"

namespace fastrnn::cuda {
namespace {

// The steps as a direction meets them. Counts and offsets are read before they are needed:
// ahead(0) is of this step, ahead(1) of the next one.
template <int kAhead>
class Walk {
 public:
  FASTRNN_DEVICE Walk(const Steps& steps, bool reverse)
      : steps_(steps), reverse_(reverse), left_(static_cast<int>(steps.seq_len)) {
    FASTRNN_UNROLL
    for (int i = 0; i <= kAhead; ++i) read(i, i);
  }
  FASTRNN_DEVICE bool done() const { return left_ <= 0; }
  FASTRNN_DEVICE void next() {
    FASTRNN_UNROLL
    for (int i = 0; i < kAhead; ++i) {
      counts_[i] = counts_[i + 1];
      offsets_[i] = offsets_[i + 1];
    }
    --left_;
    read(kAhead, kAhead);
  }
  // Rows of a step, none beyond the last; the first row of them.
  FASTRNN_DEVICE int count(int ahead) const { return counts_[ahead]; }
  FASTRNN_DEVICE int64_t offset(int ahead) const { return offsets_[ahead]; }

  // Whether a reset parts a row's step from the next one of the walk: it is told of the later of
  // the two in time. Kernels read it where they need it, for lack of a register to keep it in.
  FASTRNN_DEVICE bool parted(int64_t row, int ahead = 0) const {
    if (steps_.resets == nullptr || left_ - ahead <= 1) return false;
    return steps_.resets[(reverse_ ? offsets_[ahead] : offsets_[ahead + 1]) + row] != 0;
  }

 private:
  FASTRNN_DEVICE void read(int slot, int ahead) {
    const bool known = ahead < left_;
    const int64_t t = reverse_ ? left_ - 1 - ahead : steps_.seq_len - left_ + ahead;
    counts_[slot] = known ? static_cast<int>(steps_.count(t)) : 0;
    offsets_[slot] = known ? steps_.offset(t) : 0;
  }

  const Steps& steps_;
  bool reverse_;
  int left_;                // steps, this one among them; the host sees to it that they fit
  int counts_[kAhead + 1];  // a grid has fewer than 2^31 rows
  int64_t offsets_[kAhead + 1];
};

}  // namespace
}  // namespace fastrnn::cuda
