// What csrc/cuda/primitives.h offers, on a CPU: found before it on the include
// path, so that the very same kernels run here. The matrix instruction is plain
// loops over what 32 lanes bring.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#include "cpu/kernels/base.h"
#include "cpu/kernels/vec_generic.h"
#include "cuda/storage.h"
#include "fibers.h"

#define FASTRNN_DEVICE inline
#define FASTRNN_KERNEL(threads) void
#define FASTRNN_KERNEL_OF_SM(threads) void
#define FASTRNN_UNROLL
#define FASTRNN_ROLL

namespace fastrnn::cuda {

inline int thread_index() { return shim::place.thread; }
inline int block_threads() { return shim::place.threads; }
inline int64_t block_x() { return shim::place.block_x; }
inline int block_y() { return shim::place.block_y; }
inline int64_t blocks_x() { return shim::place.blocks_x; }
inline int blocks_y() { return shim::place.blocks_y; }
inline void block_barrier() { shim::block_barrier(); }
inline void converge_warp() {}
inline void warp_barrier() { shim::warp_barrier(); }

template <class T>
T& shared_memory() {
  return *reinterpret_cast<T*>(shim::shared);
}

inline int unhoisted(int x) { return x; }

inline void add_and_release(uint32_t* counter) { shim::add_and_release(counter); }
inline void trap() { shim::trap(); }
inline void await_count(const uint32_t* counter, uint32_t count, const Watch& watch) {
  shim::await_count(counter, count, {watch.note, watch.code});
}
inline Words load_exchanged(const Words* from) { return *from; }
inline void store_exchanged(Words* to, const Words& x) { *to = x; }

// 80: as if kernels had been compiled from PTX that knows no clusters.
inline bool has_clusters() { return shim::ptx_version() >= 90; }
inline void cluster_barrier() { shim::cluster_barrier(); }
inline void store_at(Words* own, int peer, const Words& x) {
  *static_cast<Words*>(shim::address_at(own, peer)) = x;
}
using Arrivals = uint64_t;
inline void prepare(Arrivals* own, int count) { shim::prepare(own, count); }
inline void arrive_at(Arrivals* own, int peer) {
  shim::arrive(static_cast<Arrivals*>(shim::address_at(own, peer)));
}
inline void await_phase(const Arrivals* own, int parity, const Watch& watch) {
  shim::await_phase(own, parity, {watch.note, watch.code});
}

inline uint32_t bits_of(float x) { return cpu::float_bits(x); }
inline float float_of(uint32_t x) { return cpu::bits_float(x); }

inline float widen(float x) { return x; }
inline double widen(double x) { return x; }
inline float widen(BFloat16 x) { return cpu::widen(cpu::BFloat16{x.bits}); }
inline float widen(Half x) { return cpu::widen(cpu::Half{x.bits}); }
inline void narrow(float x, float& to) { to = x; }
inline void narrow(double x, double& to) { to = x; }
inline void narrow(float x, BFloat16& to) {
  cpu::BFloat16 y;
  cpu::narrow(x, &y);
  to.bits = y.bits;
}
inline void narrow(float x, Half& to) {
  cpu::Half y;
  cpu::narrow(x, &y);
  to.bits = y.bits;
}
inline uint32_t tf32_of(float x) {
  const uint32_t u = bits_of(x);
  return (u & 0x7f800000u) == 0x7f800000u ? u : (u + 0x1000u) & ~0x1fffu;
}

inline float fused(float a, float b, float c) { return std::fma(a, b, c); }
inline double fused(double a, double b, double c) { return std::fma(a, b, c); }
inline float tanh_of(float x) { return std::tanh(x); }
inline double tanh_of(double x) { return std::tanh(x); }
inline float sigmoid_of(float x) { return 1.0f / (1.0f + std::exp(-x)); }
inline double sigmoid_of(double x) { return 1.0 / (1.0 + std::exp(-x)); }

inline float shuffle_xor(float value, int bits) {
  const uint32_t in[] = {bits_of(value), static_cast<uint32_t>(bits)};
  uint32_t out;
  shim::warp_exchange(in, 2, &out, 1,
                      [](const uint32_t (*in)[shim::kSlot], uint32_t (*out)[shim::kSlot]) {
                        for (uint32_t lane = 0; lane < shim::kWarp; ++lane)
                          out[lane][0] = in[lane ^ in[lane][1]][0];
                      });
  return float_of(out);
}

// Element i of a word of operands: 16-bit values, or one TF32 value whose lower bits do not count.
inline float operand(BFloat16, uint32_t word, int i) {
  return widen(BFloat16{static_cast<uint16_t>(word >> (16 * i))});
}
inline float operand(Half, uint32_t word, int i) {
  return widen(Half{static_cast<uint16_t>(word >> (16 * i))});
}
inline float operand(float, uint32_t word, int) { return float_of(word & ~0x1fffu); }

// Slots: d in words 0 to 3, a in 4 to 7, b in 8 and 9.
template <class T>
void combine_products(const uint32_t (*in)[shim::kSlot], uint32_t (*out)[shim::kSlot]) {
  constexpr int kPerWord = sizeof(T) == 2 ? 2 : 1;
  for (int lane = 0; lane < shim::kWarp; ++lane) {
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + 8 * (i / 2), column = 2 * (lane % 4) + i % 2;
      float sum = float_of(in[lane][i]);
      for (int word = 0; word < 8; ++word) {
        const uint32_t a = in[row % 8 * 4 + word % 4][4 + row / 8 + 2 * (word / 4)];
        const uint32_t b = in[column * 4 + word % 4][8 + word / 4];
        for (int e = 0; e < kPerWord; ++e) sum += operand(T{}, a, e) * operand(T{}, b, e);
      }
      out[lane][i] = bits_of(sum);
    }
  }
}

template <class T>
void matrix_multiply(T, float (&d)[4], const uint32_t* a, uint32_t b0, uint32_t b1) {
  const uint32_t in[] = {
      bits_of(d[0]), bits_of(d[1]), bits_of(d[2]), bits_of(d[3]), a[0], a[1], a[2], a[3], b0, b1};
  uint32_t out[4];
  shim::warp_exchange(in, 10, out, 4, combine_products<T>);
  for (int i = 0; i < 4; ++i) d[i] = float_of(out[i]);
}

}  // namespace fastrnn::cuda
