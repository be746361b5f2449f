// The register tile that every product is made of, and the loops over tiles.
// Invariant: an accumulator sums its terms in order of k and in the same blocks,
// one fused multiply-add each, whatever the shape of the tile it sits in. Hence results depend
// neither on the number of threads nor on how rows and units are divided.
#pragma once
#include "cpu/kernels/config.h"

namespace fastrnn::cpu {
namespace {

// acc[m][v] += sum over k of a[m * lda + k] * w[k * ldw + v * kLanes + lane]
template <int MR, int NV, class V, class C = typename V::Scalar>
FASTRNN_INLINE void accumulate_block(int64_t terms, const C* a, int64_t lda, const C* w,
                                     int64_t ldw, V (&acc)[MR][NV]) {
  for (int64_t k = 0; k < terms; ++k) {
    if constexpr (NV <= MR) {  // the fewer of the two operands wait in registers
      V b[NV];
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) b[v] = V::load(w + v * V::kLanes);
#pragma GCC unroll 8
      for (int m = 0; m < MR; ++m) {
        const V x = V::set1(a[m * lda + k]);
#pragma GCC unroll 8
        for (int v = 0; v < NV; ++v) acc[m][v] = fma(x, b[v], acc[m][v]);
      }
    } else {
      V x[MR];
#pragma GCC unroll 8
      for (int m = 0; m < MR; ++m) x[m] = V::set1(a[m * lda + k]);
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) {
        const V b = V::load(w + v * V::kLanes);
#pragma GCC unroll 8
        for (int m = 0; m < MR; ++m) acc[m][v] = fma(x[m], b, acc[m][v]);
      }
    }
    w += ldw;
  }
}

// The same for any number of terms: long sums run in blocks of kSumTerms, each
// from zero, which divides their rounding error by about the number of blocks.
template <int MR, int NV, class V, class C = typename V::Scalar>
FASTRNN_INLINE void accumulate(int64_t terms, const C* a, int64_t lda, const C* w, int64_t ldw,
                               V (&acc)[MR][NV]) {
  alignas(64) C total[MR * NV * V::kLanes];
  const bool blocked = terms > kSumTerms;
  for (int64_t k = 0; k < terms; k += kSumTerms) {
    if (blocked) {
#pragma GCC unroll 8
      for (int m = 0; m < MR; ++m) {
#pragma GCC unroll 8
        for (int v = 0; v < NV; ++v) {
          acc[m][v].store(total + (m * NV + v) * V::kLanes);
          acc[m][v] = V::zero();
        }
      }
    }
    const int64_t count = terms - k < kSumTerms ? terms - k : kSumTerms;
    accumulate_block<MR, NV>(count, a + k, lda, w + k * ldw, ldw, acc);
    if (blocked) {
#pragma GCC unroll 8
      for (int m = 0; m < MR; ++m) {
#pragma GCC unroll 8
        for (int v = 0; v < NV; ++v) {
          acc[m][v] = acc[m][v] + V::load(total + (m * NV + v) * V::kLanes);
        }
      }
    }
  }
}

// acc[m][v] += sum over k of a[k * MR + m] * w[(k * NV + v) * kLanes + lane]
template <int MR, int NV, class V, class C = typename V::Scalar>
FASTRNN_INLINE void accumulate_packed(int64_t terms, const C* a, const C* w, V (&acc)[MR][NV]) {
  for (int64_t k = 0; k < terms; ++k) {
    V b[NV];
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) b[v] = V::load(w + v * V::kLanes);
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m) {
      const V x = V::set1(a[m]);
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) acc[m][v] = fma(x, b[v], acc[m][v]);
    }
    a += MR;
    w += NV * V::kLanes;
  }
}

// out[i] = sum over k of a[k] * rows[i][k]: N rows of a row-major matrix.
template <int N, class V, class C, class W>
FASTRNN_INLINE void dots(int64_t terms, const C* a, const W* const (&rows)[N], C* out) {
  constexpr int L = V::kLanes;
  V sum[N];
#pragma GCC unroll 8
  for (int i = 0; i < N; ++i) sum[i] = V::zero();
  int64_t k = 0;
  for (; k + L <= terms; k += L) {
    const V x = V::load(a + k);
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) sum[i] = fma(x, V::load(rows[i] + k), sum[i]);
  }
  if (k < terms) {
    const int n = static_cast<int>(terms - k);
    const V x = V::load(a + k, n);
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) sum[i] = fma(x, V::load(rows[i] + k, n), sum[i]);
  }
#pragma GCC unroll 8
  for (int i = 0; i < N; ++i) out[i] = sum[i].sum();
}

template <class V, class S>
FASTRNN_INLINE V load_lanes(const S* p, int n) {
  return n == V::kLanes ? V::load(p) : V::load(p, n);
}
template <class V, class S>
FASTRNN_INLINE void store_lanes(V x, S* p, int n) {
  if (n == V::kLanes) {
    x.store(p);
  } else {
    x.store(p, n);
  }
}

// Calls f(std::integral_constant MR, first row) until `rows` are done, in blocks
// of at most MaxRows that are as even as can be: a short last block would leave
// the multipliers waiting for their own results.
template <int MaxRows>
struct RowBlocks {
  template <int MR, class F>
  static FASTRNN_INLINE void call(int rows, int64_t row, F&& f) {
    if constexpr (MR > 1) {
      if (rows < MR) return call<MR - 1>(rows, row, f);
    }
    f(std::integral_constant<int, MR>{}, row);
  }
  template <class F>
  static FASTRNN_INLINE void each(int64_t begin, int64_t end, F&& f) {
    int64_t left = end - begin;
    for (int64_t blocks = (left + MaxRows - 1) / MaxRows; blocks > 0; --blocks) {
      const int rows = static_cast<int>((left + blocks - 1) / blocks);
      call<MaxRows>(rows, end - left, f);
      left -= rows;
    }
  }
};

// Vectors [begin, end) of units, cut into blocks of Max vectors and, at the end,
// of smaller powers of two.
template <int Max>
struct VectorBlocks {
  int64_t begin, end;

  int64_t count() const {
    const int64_t n = end - begin;
    return n / Max + __builtin_popcountll(static_cast<unsigned long long>(n % Max));
  }
  // Calls f(std::integral_constant NU, first vector) for block i.
  template <class F>
  FASTRNN_INLINE void call(int64_t i, F&& f) const {
    const int64_t whole = (end - begin) / Max;
    if (i < whole) return f(std::integral_constant<int, Max>{}, begin + i * Max);
    tail<Max / 2>(i - whole, begin + whole * Max, f);
  }

 private:
  template <int NU, class F>
  FASTRNN_INLINE void tail(int64_t i, int64_t first, F&& f) const {
    if constexpr (NU >= 1) {
      if (((end - begin) & NU) != 0) {
        if (i == 0) return f(std::integral_constant<int, NU>{}, first);
        --i;
        first += NU;
      }
      tail<NU / 2>(i, first, f);
    }
  }
};

}  // namespace
}  // namespace fastrnn::cpu
