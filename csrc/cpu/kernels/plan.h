// Who does what: directions, batch rows and units over the threads of a team,
// and the layout of the workspace. Pure functions of shapes and team size.
#pragma once
#include "cpu/kernels/config.h"

namespace fastrnn::cpu {
namespace {

struct Range {
  int64_t begin, end;
  int64_t size() const { return end - begin; }
};

FASTRNN_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
FASTRNN_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
FASTRNN_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
FASTRNN_INLINE Range part(int64_t total, int64_t parts, int64_t index) {
  return {total * index / parts, total * (index + 1) / parts};
}

// Rows of one direction's d_gates from row `first` on.
template <class S>
struct GateRows {
  S* data;
  int64_t first;
};

// How one direction's threads divide it.
struct Split {
  int batch_groups, unit_groups;
};

FASTRNN_INLINE Split split_threads(int threads, int64_t batch, int64_t vectors,
                                   int64_t weight_bytes) {
  const int64_t rows = weight_bytes > kSplitBytes ? kSplitRowsLarge : kSplitRows;
  int groups = 1;
  for (int n = 1; n <= threads; ++n) {
    if (threads % n == 0 && (batch >= n * rows || (vectors < threads && batch >= n))) groups = n;
  }
  const int units = static_cast<int>(smaller(threads / groups, vectors));
  return {groups, units};
}

// Rows of batch group `index`: an equal share of all steps' rows. Packed data
// has its long sequences first.
FASTRNN_INLINE Range batch_rows(const Steps& steps, int groups, int index) {
  if (!steps.counts || groups == 1) return part(steps.batch, groups, index);
  const auto boundary = [&](int64_t i) {
    // The smallest b with (rows of sequences before b) >= i / groups of all.
    int64_t low = 0, high = steps.batch;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      int64_t before = 0;
      for (int64_t t = 0; t < steps.seq_len; ++t) before += smaller(middle, steps.counts[t]);
      if (before * groups >= steps.rows * i) {
        high = middle;
      } else {
        low = middle + 1;
      }
    }
    return low;
  };
  return {boundary(index), index + 1 == groups ? steps.batch : boundary(index + 1)};
}

// What a worker is in a team of `threads` for `directions`: two directions run
// side by side when there are two threads, else one after the other.
struct Place {
  Split split;
  int first_direction, last_direction;  // inclusive; none when first > last
  int batch_group, unit_group;
  int barrier;  // of the threads that share this batch group
};

FASTRNN_INLINE Place place_of(int thread, int threads, int directions, int64_t batch,
                              int64_t vectors, int64_t weight_bytes) {
  const bool side_by_side = directions == 2 && threads >= 2;
  const int each = side_by_side ? threads / 2 : threads;
  Place place;
  place.split = split_threads(each, batch, vectors, weight_bytes);
  const int used = place.split.batch_groups * place.split.unit_groups;
  const int slot = thread / each;
  const int member = thread % each;
  place.first_direction = side_by_side ? slot : 0;
  place.last_direction = side_by_side ? slot : directions - 1;
  if (member >= used || slot > (side_by_side ? 1 : 0)) {
    place.first_direction = 0;
    place.last_direction = -1;
  }
  place.batch_group = member / place.split.unit_groups;
  place.unit_group = member % place.split.unit_groups;
  place.barrier = 1 + slot * place.split.batch_groups + place.batch_group;
  return place;
}

// Hands out aligned pieces of the workspace; with a null base it only counts.
class Arena {
 public:
  explicit Arena(void* base) : base_(static_cast<char*>(base)) {}
  template <class T>
  T* take(int64_t elements) {
    char* p = base_ ? base_ + used_ : nullptr;
    used_ += (static_cast<size_t>(elements) * sizeof(T) + 63) / 64 * 64;
    return reinterpret_cast<T*>(p);
  }
  size_t used() const { return used_; }

 private:
  char* base_;
  size_t used_ = 0;
};

// What is left of a workspace behind its first bytes.
FASTRNN_INLINE void* after(void* workspace, size_t bytes) {
  return workspace ? static_cast<char*>(workspace) + bytes : nullptr;
}

}  // namespace
}  // namespace fastrnn::cpu
