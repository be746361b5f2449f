// Packing of weights into panels: for each block of vectors of units,
// panel[k][vector][gate][kLanes], zeros beyond the last unit.
#pragma once
#include "cpu/kernels/tile.h"

namespace fastrnn::cpu {
namespace {

// Converts n values.
template <class C, class S>
FASTRNN_INLINE void convert(const S* from, int64_t n, C* to) {
  using V = Vec<C>;
  int64_t i = 0;
  for (; i + V::kLanes <= n; i += V::kLanes) V::load(from + i).store(to + i);
  if (i < n) V::load(from + i, static_cast<int>(n - i)).store(to + i, static_cast<int>(n - i));
}

// w [gates * units, terms] row-major; the block of so many vectors from `vector` on.
template <class C, class S>
void pack_rows(const S* w, int gates, int64_t units, int64_t terms, int64_t vector, int vectors,
               C* panel) {
  using V = Vec<C>;
  constexpr int L = V::kLanes;
  const int64_t width = gates * vectors * L;
  // L units by L terms at a time, turned in registers. The L rows of one gate are read to their
  // end before the next: no more streams than the hardware prefetches.
  for (int g = 0; g < gates; ++g) {
    for (int u = 0; u < vectors; ++u) {
      const int64_t unit = (vector + u) * L;
      for (int64_t k0 = 0; k0 < terms; k0 += L) {
        const int n = static_cast<int>(terms - k0 < L ? terms - k0 : L);
        const S* from = w + (g * units + unit) * terms + k0;
        V rows[L];
        for (int i = 0; i < L; ++i) {
          rows[i] = unit + i < units ? load_lanes<V>(from + i * terms, n) : V::zero();
        }
        V::transpose(rows);
        C* to = panel + k0 * width + (u * gates + g) * L;
        for (int k = 0; k < n; ++k, to += width) rows[k].store(to);
      }
    }
  }
}

// w [terms, columns] row-major, already in panel order but for the blocks.
template <int NV, class C, class S>
void pack_columns(const S* w, int64_t terms, int64_t columns, int64_t vector, C* panel) {
  constexpr int L = Vec<C>::kLanes;
  const int64_t first = vector * L;
  for (int64_t k = 0; k < terms; ++k) {
    for (int v = 0; v < NV; ++v) {
      const int64_t left = columns - first - v * L;
      const S* from = w + k * columns + first + v * L;
      C* to = panel + (k * NV + v) * L;
      if (left >= L) {
        Vec<C>::load(from).store(to);
      } else if (left > 0) {
        Vec<C>::load(from, static_cast<int>(left)).store(to);
      } else {
        Vec<C>::zero().store(to);
      }
    }
  }
}

}  // namespace
}  // namespace fastrnn::cpu
