// The register tiles that every product is made of, and the loops over tiles.
// Invariant: an accumulator sums its terms in order of k and in the same blocks,
// one fused multiply-add each, whatever the shape of the tile it sits in. Hence results depend
// neither on the number of threads nor on how rows and units are divided.
#pragma once
#include "cpu/kernels/config.h"

namespace fastrnn::cpu {
namespace {

// acc[m][v] += a[m * lda] * w[v * kLanes + lane]
template <int MR, int NV, class V, class C = typename V::Scalar>
FASTRNN_INLINE void accumulate_term(const C* a, int64_t lda, const C* w, V (&acc)[MR][NV]) {
  if constexpr (NV <= MR) {  // the fewer of the two operands wait in registers
    V b[NV];
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) b[v] = V::load(w + v * V::kLanes);
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m) {
      const V x = V::set1(a[m * lda]);
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) acc[m][v] = fma(x, b[v], acc[m][v]);
    }
  } else {
    V x[MR];
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m) x[m] = V::set1(a[m * lda]);
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) {
      const V b = V::load(w + v * V::kLanes);
#pragma GCC unroll 8
      for (int m = 0; m < MR; ++m) acc[m][v] = fma(x[m], b, acc[m][v]);
    }
  }
}

// acc[m][v] += sum over k of a[m * lda + k] * w[k * ldw + v * kLanes + lane]
template <int MR, int NV, class V, class C = typename V::Scalar>
FASTRNN_INLINE void accumulate_block(int64_t terms, const C* a, int64_t lda, const C* w,
                                     int64_t ldw, V (&acc)[MR][NV]) {
  int64_t k = 0;
  if constexpr (MR * NV <= 8) {
    // A small tile's term is few instructions: the end of a loop over them is badly foreseen, and
    // what follows waits.
    for (; k + 4 <= terms; k += 4, w += 4 * ldw) {
      accumulate_term<MR, NV>(a + k, lda, w, acc);
      accumulate_term<MR, NV>(a + k + 1, lda, w + ldw, acc);
      accumulate_term<MR, NV>(a + k + 2, lda, w + 2 * ldw, acc);
      accumulate_term<MR, NV>(a + k + 3, lda, w + 3 * ldw, acc);
    }
  }
  for (; k < terms; ++k, w += ldw) accumulate_term<MR, NV>(a + k, lda, w, acc);
}

// acc goes to `aside` and starts anew from zero; add_back adds what was there.
template <int MR, int NV, class V, class C = typename V::Scalar>
FASTRNN_INLINE void set_aside(V (&acc)[MR][NV], C* aside) {
#pragma GCC unroll 8
  for (int m = 0; m < MR; ++m) {
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) {
      acc[m][v].store(aside + (m * NV + v) * V::kLanes);
      acc[m][v] = V::zero();
    }
  }
}
template <int MR, int NV, class V, class C = typename V::Scalar>
FASTRNN_INLINE void add_back(V (&acc)[MR][NV], const C* aside) {
#pragma GCC unroll 8
  for (int m = 0; m < MR; ++m) {
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) {
      acc[m][v] = acc[m][v] + V::load(aside + (m * NV + v) * V::kLanes);
    }
  }
}

// Calls block(first term, count), which adds that many terms to acc, for blocks of `each`
// terms, each of several starting from zero: that divides the rounding error of a long sum by
// about the square root of the number of blocks.
template <int MR, int NV, class V, class F>
FASTRNN_INLINE void sum_in_blocks(int64_t terms, int64_t each, V (&acc)[MR][NV], F&& block) {
  alignas(64) typename V::Scalar before[MR * NV * V::kLanes];
  const bool several = terms > each;
  for (int64_t k = 0; k < terms; k += each) {
    if (several) set_aside(acc, before);
    block(k, terms - k < each ? terms - k : each);
    if (several) add_back(acc, before);
  }
}

// acc[m][v] += sum over k of a[m * lda + k] * w[k * ldw + v * kLanes + lane]
template <int MR, int NV, class V, class C = typename V::Scalar>
FASTRNN_INLINE void accumulate(int64_t terms, const C* a, int64_t lda, const C* w, int64_t ldw,
                               V (&acc)[MR][NV], int64_t each = kSumTerms) {
  sum_in_blocks(terms, each, acc, [&](int64_t k, int64_t count) __attribute__((always_inline)) {
    accumulate_block<MR, NV>(count, a + k, lda, w + k * ldw, ldw, acc);
  });
}

// One tile of a product, for functions that are compiled once for all who multiply:
//   out[m][v] = start[m][v] + sum over k of a[m * lda + k] * w[k * ldw + v * kLanes + lane]
template <class C>
struct Product {
  int64_t terms;
  const C* a;
  int64_t lda;
  const C* w;
  int64_t ldw;
  const C* start;        // null: zeros
  int64_t start_stride;  // 0: the same for all rows
  C* out;
  int64_t out_stride;
  int64_t each = kSumTerms;  // terms of a block of the sum
};

template <int MR, int NV, class C>
FASTRNN_NOINLINE void product_tile(const Product<C>& p) {
  using V = Vec<C>;
  V acc[MR][NV];
#pragma GCC unroll 8
  for (int m = 0; m < MR; ++m) {
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) {
      acc[m][v] = p.start ? V::load(p.start + m * p.start_stride + v * V::kLanes) : V::zero();
    }
  }
  accumulate<MR, NV>(p.terms, p.a, p.lda, p.w, p.ldw, acc, p.each);
#pragma GCC unroll 8
  for (int m = 0; m < MR; ++m) {
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) acc[m][v].store(p.out + m * p.out_stride + v * V::kLanes);
  }
}

// The columns of a tile of NU vectors of units before activation: [MR][NU][G + APART vectors]. The
// last APART products of h are apart, behind the others; the rest is added to the input's product.
template <class C>
struct Columns {
  int64_t h_terms;
  const C* h;
  int64_t ldh;
  const C* w_hh;  // [h_terms][NV vectors], NV = G * NU
  // What the input brings: to be computed from here, or, where x is null, rows of pre.
  int64_t x_terms;
  const C* x;
  int64_t ldx;
  const C* w_ih;  // [x_terms][NV vectors]
  const C* bias;  // [NV vectors]
  const C* pre;
  int64_t pre_stride;
  int64_t pre_each;  // between vectors of units, each with G columns
  int64_t x_each;    // terms of a block of the input's sum
};

// Columns from products of h and what the input brings, rows `stride` and units `each` apart.
template <int MR, int NU, int G, int APART, class V, class C = typename V::Scalar>
FASTRNN_INLINE void store_columns(const V (&acc)[MR][G * NU], const C* pre, int64_t stride,
                                  int64_t each, C* out) {
  constexpr int L = V::kLanes, K = G + APART;
#pragma GCC unroll 8
  for (int m = 0; m < MR; ++m) {
#pragma GCC unroll 8
    for (int u = 0; u < NU; ++u) {
      const C* const from = pre + m * stride + u * each;
      C* const to = out + (m * NU + u) * K * L;
#pragma GCC unroll 8
      for (int g = 0; g < G; ++g) {
        const V x = V::load(from + g * L), h = acc[m][u * G + g];
        const bool together = g < G - APART;
        (together ? h + x : x).store(to + g * L);
        if (!together) h.store(to + (g + APART) * L);
      }
    }
  }
}

template <int MR, int NU, int G, int APART, class C>
FASTRNN_NOINLINE void column_tile(const Columns<C>& p, C* out) {
  using V = Vec<C>;
  constexpr int L = V::kLanes, NV = G * NU;
  alignas(64) C of_input[MR * NV * L];
  V acc[MR][NV];
  if (p.x) {
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) {
      const V bias = V::load(p.bias + v * L);
#pragma GCC unroll 8
      for (int m = 0; m < MR; ++m) acc[m][v] = bias;
    }
    accumulate<MR, NV>(p.x_terms, p.x, p.ldx, p.w_ih, NV * L, acc, p.x_each);
    set_aside<MR, NV>(acc, of_input);
  } else {
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m) {
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) acc[m][v] = V::zero();
    }
  }
  accumulate<MR, NV>(p.h_terms, p.h, p.ldh, p.w_hh, NV * L, acc);
  if (p.x) {
    store_columns<MR, NU, G, APART>(acc, of_input, NV * L, G * L, out);
  } else {
    store_columns<MR, NU, G, APART>(acc, p.pre, p.pre_stride, p.pre_each, out);
  }
}

// acc[m][v] += sum over k of a[k * lda + m] * w[(k * NV + v) * kLanes + lane]
template <int MR, int NV, class V, class C = typename V::Scalar>
FASTRNN_INLINE void accumulate_columns(int64_t terms, const C* a, int64_t lda, const C* w,
                                       V (&acc)[MR][NV]) {
  const auto block = [&](int64_t first, int64_t count) __attribute__((always_inline)) {
    const C* x = a + first * lda;
    const C* b = w + first * NV * V::kLanes;
    for (int64_t k = 0; k < count; ++k, x += lda, b += NV * V::kLanes) {
      V vectors[NV];
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) vectors[v] = V::load(b + v * V::kLanes);
#pragma GCC unroll 8
      for (int m = 0; m < MR; ++m) {
        const V row = V::set1(x[m]);
#pragma GCC unroll 8
        for (int v = 0; v < NV; ++v) acc[m][v] = fma(row, vectors[v], acc[m][v]);
      }
    }
  };
  sum_in_blocks(terms, kSumTerms, acc, block);
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

// products [NU][G][L] = a w^T for one row, w [G * units, terms] where it lies. Four rows of w at a
// time: fewer leave the multipliers waiting, eight are read more slowly (docs/decisions.md).
template <int G, int NU, class C, class S>
FASTRNN_INLINE void direct_products(const S* w, int64_t units, int64_t terms, const C* a, int64_t v,
                                    C* products) {
  using V = Vec<C>;
  constexpr int L = V::kLanes;
  constexpr int N = L < 4 ? L : 4;
  for (int g = 0; g < G; ++g) {
    for (int i = 0; i < NU * L; i += N) {
      const S* rows[N];
      for (int j = 0; j < N; ++j) {  // lanes beyond the last unit repeat it
        const int64_t unit = v * L + i + j;
        rows[j] = w + (g * units + (unit < units ? unit : units - 1)) * terms;
      }
      dots<N, V>(terms, a, rows, products + (i / L * G + g) * L + i % L);
    }
  }
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
  // The first vector of block i; the end of the last one where i is their number.
  int64_t first(int64_t i) const {
    const int64_t whole = (end - begin) / Max;
    if (i <= whole) return begin + i * Max;
    int64_t v = begin + whole * Max, left = i - whole;
    for (int64_t n = Max / 2; left > 0; n /= 2) {
      if (((end - begin) & n) == 0) continue;
      v += n;
      --left;
    }
    return v;
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
