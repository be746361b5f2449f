// Rows times a packed weight of int8 or bfloat16, as float.
//
// int8 (symmetric, dynamic): a row x of an activation is s q with s = max|x| / 127 and q = x times
// (127 / max|x|) rounded to even; a row of the weight is its scale times its integers. The sum of
// products is exact, so it depends neither on the target nor on the shape of a tile, and becomes
// float(sum) * scale of the weight's row * s. A row of x whose largest magnitude is below 2^-100
// counts as zeros; one with a NaN or an infinity in it has s = NaN, and so are all its products.
//
// bfloat16: weights are widened, everything else is float, summed as tile.h says.
#pragma once
#include "cpu/kernels/tile.h"
#include "cpu/quantized_params.h"

namespace fastrnn::cpu {
namespace {

// Rows of a tile, by registers: kRows * 4 accumulators and 4 vectors of weights.
constexpr int kQuantizedRows = kManyRegisters ? 4 : 2;

// Vectors of the target in the 16 lanes of a panel's vector, and how many of them one pass over a
// panel serves: a single row has registers for two, and so reads whole cache lines.
constexpr int kParts = kBlockLanes / Vec<float>::kLanes;
template <int MR>
constexpr int kPassParts = MR == 1 && kParts > 1 ? 2 : 1;

constexpr float kSmallestRow = 0x1p-100f;

struct Int8 {
  using Element = uint8_t;  // of a prepared row
  static constexpr int kGroup = kInt8Group;
  static constexpr bool kPrepares = true;

  // q of a row of n values, zeros up to `padded`; returns s.
  static float prepare(const float* x, int64_t n, int64_t padded, Element* q) {
    using V = Vec<float>;
    constexpr int L = V::kLanes;
    V largest = V::zero(), bad = V::zero();  // bad becomes NaN with the first NaN or infinity
    for (int64_t k = 0; k < n; k += L) {
      const V v = load_lanes<V>(x + k, static_cast<int>(n - k < L ? n - k : L));
      largest = max_keep_nan(abs(v), largest);
      bad = fma(v, V::zero(), bad);
    }
    float lanes[L], most = 0.0f;
    largest.store(lanes);
    for (int i = 0; i < L; ++i) most = lanes[i] > most ? lanes[i] : most;
    const bool zeros = most < kSmallestRow;
    const V inverse = V::set1(zeros ? 0.0f : 127.0f / most);
    for (int64_t k = 0; k < padded; k += L) {
      const V v = k + L <= n ? V::load(x + k)
                  : k < n    ? V::load(x + k, static_cast<int>(n - k))
                             : V::zero();
      store_activations(round(v * inverse), q + k);
    }
    return (zeros ? 0.0f : most / 127.0f) + bad.sum();
  }

  // out [MR][NV][16] = rows times block `block` of w, whose terms are in `groups` groups.
  template <int MR, int NV>
  static FASTRNN_NOINLINE void multiply(const QuantizedMatrix& w, int64_t block, int64_t groups,
                                        const Element* rows, int64_t stride, const float* s,
                                        float* out) {
    constexpr int L = Integers::kLanes, N = kPassParts<MR>;
    const int8_t* panel =
        static_cast<const int8_t*>(w.panels) + block * groups * NV * kBlockLanes * kGroup;
    for (int part = 0; part < kParts; part += N) {
      Integers acc[MR][NV * N];
#pragma GCC unroll 8
      for (int m = 0; m < MR; ++m) {
#pragma GCC unroll 8
        for (int i = 0; i < NV * N; ++i) acc[m][i] = Integers::zero();
      }
      const int8_t* from = panel + part * L * kGroup;
      for (int64_t k = 0; k < groups; ++k, from += NV * kBlockLanes * kGroup) {
        Activation x[MR];
#pragma GCC unroll 8
        for (int m = 0; m < MR; ++m) x[m] = Activation::load(rows + m * stride + k * kGroup);
#pragma GCC unroll 8
        for (int i = 0; i < NV * N; ++i) {
          const Int8Vector terms =
              Int8Vector::load(from + (i / N * kBlockLanes + i % N * L) * kGroup);
#pragma GCC unroll 8
          for (int m = 0; m < MR; ++m) acc[m][i] = dot(acc[m][i], x[m], terms);
        }
      }
#pragma GCC unroll 8
      for (int i = 0; i < NV * N; ++i) {
        const int at = i / N * kBlockLanes + (part + i % N) * L;
        const int64_t row = block * NV * kBlockLanes + at;
        const Vec<float> scale = Vec<float>::load(w.scales + row);
#pragma GCC unroll 8
        for (int m = 0; m < MR; ++m) {
          Integers sum = acc[m][i];
          if constexpr (kActivationOffset != 0) sum = sum - Integers::load(w.sums + row);
          // In this order nothing overflows or vanishes that the product itself does not.
          (sum.to_float() * scale * Vec<float>::set1(s[m])).store(out + m * NV * kBlockLanes + at);
        }
      }
    }
  }
};

struct PackedBFloat16 {
  using Element = float;
  static constexpr int kGroup = kBFloat16Group;
  static constexpr bool kPrepares = false;

  // Copies a row of n values, zeros up to `padded`.
  static float prepare(const float* x, int64_t n, int64_t padded, Element* to) {
    std::memcpy(to, x, static_cast<size_t>(n) * sizeof(float));
    for (int64_t k = n; k < padded; ++k) to[k] = 0.0f;
    return 1.0f;
  }

  template <int MR, int NV>
  static FASTRNN_NOINLINE void multiply(const QuantizedMatrix& w, int64_t block, int64_t groups,
                                        const Element* rows, int64_t stride, const float*,
                                        float* out) {
    using V = Vec<float>;
    constexpr int L = V::kLanes, N = kPassParts<MR>, kStep = NV * kBlockLanes * kGroup;
    const uint16_t* panel = static_cast<const uint16_t*>(w.panels) + block * groups * kStep;
    for (int part = 0; part < kParts; part += N) {
      V acc[MR][NV * N];
#pragma GCC unroll 8
      for (int m = 0; m < MR; ++m) {
#pragma GCC unroll 8
        for (int i = 0; i < NV * N; ++i) acc[m][i] = V::zero();
      }
      const auto block_of_terms = [&](int64_t first, int64_t count) __attribute__((always_inline)) {
        const uint16_t* from = panel + first / kGroup * kStep + part * L * kGroup;
        for (int64_t k = first; k < first + count; k += kGroup, from += kStep) {
#pragma GCC unroll 8
          for (int i = 0; i < NV * N; ++i) {
            V even, odd;
            load_bf16_pairs(from + (i / N * kBlockLanes + i % N * L) * kGroup, even, odd);
#pragma GCC unroll 8
            for (int m = 0; m < MR; ++m) {
              const float* x = rows + m * stride + k;
              acc[m][i] = fma(V::set1(x[0]), even, acc[m][i]);
              acc[m][i] = fma(V::set1(x[1]), odd, acc[m][i]);
            }
          }
        }
      };
      sum_in_blocks(groups * kGroup, kSumTerms, acc, block_of_terms);
#pragma GCC unroll 8
      for (int m = 0; m < MR; ++m) {
#pragma GCC unroll 8
        for (int i = 0; i < NV * N; ++i) {
          acc[m][i].store(out + (m * NV + i / N) * kBlockLanes + (part + i % N) * L);
        }
      }
    }
  }
};
static_assert(kSumTerms % kBFloat16Group == 0, "a pair is in one block of a sum");

}  // namespace
}  // namespace fastrnn::cpu
