// What a kernel may ask of the machine, by name: its place in the grid,
// barriers, shuffles, shared memory, 16-bit conversions, function values and the
// matrix instruction. Kernels know CUDA through this file alone; the tests put
// another one before it on the include path (tests/cuda_shim/cuda/primitives.h),
// with which the same kernels run on a CPU.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "cuda/storage.h"
#include "cuda/tiles.h"

#define FASTRNN_DEVICE __device__ __forceinline__
#define FASTRNN_KERNEL(threads) __global__ void __launch_bounds__(threads)
// Of a kernel whose blocks have an SM each: the compiler need not save registers for a second one.
#define FASTRNN_KERNEL_OF_SM(threads) __global__ void __launch_bounds__(threads, 1)
#define FASTRNN_UNROLL _Pragma("unroll")
#define FASTRNN_ROLL _Pragma("unroll 1")

namespace fastrnn::cuda {

// -- Place and order ------------------------------------------------------------

FASTRNN_DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }
FASTRNN_DEVICE int block_threads() { return static_cast<int>(blockDim.x); }
FASTRNN_DEVICE int64_t block_x() { return blockIdx.x; }
FASTRNN_DEVICE int block_y() { return static_cast<int>(blockIdx.y); }
FASTRNN_DEVICE int64_t blocks_x() { return gridDim.x; }
FASTRNN_DEVICE int blocks_y() { return static_cast<int>(gridDim.y); }

// All threads of the block, and what they wrote to shared memory.
FASTRNN_DEVICE void block_barrier() { __syncthreads(); }

// Brings the lanes of a warp together after branches, as the matrix instruction needs them.
FASTRNN_DEVICE void converge_warp() { __syncwarp(); }

// The value of the lane whose number differs in `bits`; all lanes of the warp call.
FASTRNN_DEVICE float shuffle_xor(float value, int bits) {
  return __shfl_xor_sync(0xffffffffu, value, bits);
}

// The block's dynamic shared memory, uninitialised.
template <class T>
FASTRNN_DEVICE T& shared_memory() {
  extern __shared__ __align__(16) unsigned char fastrnn_shared[];
  return *reinterpret_cast<T*>(fastrnn_shared);
}

// All lanes of the warp, and what they wrote to any memory.
FASTRNN_DEVICE void warp_barrier() { __syncwarp(); }

// The same number, but not to the compiler: what is computed from it inside a loop stays there.
// Address arithmetic kept in registers through a loop would push weights out of them.
FASTRNN_DEVICE int unhoisted(int x) {
  asm volatile("" : "+r"(x));
  return x;
}

// -- Between blocks ---------------------------------------------------------------

// Ends the kernel, and the use of this device by the process: its next call gets an error.
FASTRNN_DEVICE void trap() { __trap(); }

// A wait has run out. A trap alone would not say where; a message would cost every kernel a stack.
FASTRNN_DEVICE void give_up(const Watch& watch) {
  *static_cast<volatile uint32_t*>(watch.note) = watch.code;
  __threadfence_system();
  trap();
}

// Counters in device memory only grow, and may wrap around. What a thread wrote before it adds,
// and what threads wrote that it had met at a barrier, is seen by whoever has seen the sum.
FASTRNN_DEVICE void add_and_release(uint32_t* counter) {
  asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory");
}
FASTRNN_DEVICE void await_count(const uint32_t* counter, uint32_t count, const Watch& watch) {
  uint32_t seen;
  FASTRNN_ROLL
  for (int polls = 0; polls < kMostPolls; ++polls) {
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(counter) : "memory");
    if (static_cast<int32_t>(seen - count) >= 0) return;
  }
  give_up(watch);
}

// What other blocks write while the kernel runs goes past the L1 cache, which may hold older words.
FASTRNN_DEVICE Words load_exchanged(const Words* from) {
  Words x;
  asm volatile("ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(x.w[0]), "=r"(x.w[1]), "=r"(x.w[2]), "=r"(x.w[3])
               : "l"(from)
               : "memory");
  return x;
}
FASTRNN_DEVICE void store_exchanged(Words* to, const Words& x) {
  asm volatile("st.global.cg.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(x.w[0]), "r"(x.w[1]),
               "r"(x.w[2]), "r"(x.w[3])
               : "memory");
}

// -- Inside a cluster ---------------------------------------------------------------

// Of sm_90 and later. Kernels that call these are compiled for older devices too, as nothing but
// this question; and a newer device may run what was compiled for an older one.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
FASTRNN_DEVICE constexpr bool has_clusters() { return false; }
#define FASTRNN_CLUSTER_ASM(...)
#else
FASTRNN_DEVICE constexpr bool has_clusters() { return true; }
#define FASTRNN_CLUSTER_ASM(...) asm volatile(__VA_ARGS__)
#endif

FASTRNN_DEVICE uint32_t shared_address(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

// The same place in the shared memory of another block of the cluster.
FASTRNN_DEVICE uint32_t address_at(const void* own, int peer) {
  uint32_t address = 0;
  FASTRNN_CLUSTER_ASM(
      "mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(shared_address(own)), "r"(peer));
  return address;
}

// All threads of the cluster, and what they wrote to each other's shared memory.
FASTRNN_DEVICE void cluster_barrier() {
  FASTRNN_CLUSTER_ASM("barrier.cluster.arrive.release;" :: : "memory");
  FASTRNN_CLUSTER_ASM("barrier.cluster.wait.acquire;" :: : "memory");
}

FASTRNN_DEVICE void store_at(Words* own, int peer, const Words& x) {
  FASTRNN_CLUSTER_ASM(
      "st.shared::cluster.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(address_at(own, peer)), "r"(x.w[0]),
      "r"(x.w[1]), "r"(x.w[2]), "r"(x.w[3]) : "memory");
}

// Arrivals of `count` blocks complete a phase, then the next one begins. Order is as of counters.
using Arrivals = uint64_t;
FASTRNN_DEVICE void prepare(Arrivals* own, int count) {
  FASTRNN_CLUSTER_ASM("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(own)),
                      "r"(count) : "memory");
}
FASTRNN_DEVICE void arrive_at(Arrivals* own, int peer) {
  FASTRNN_CLUSTER_ASM("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(
      address_at(own, peer)) : "memory");
}
// Waits for the end of a phase: its number is given, modulo 2. A try may itself wait for a while,
// for kTryNanoseconds where the device does as it is told.
FASTRNN_DEVICE void await_phase(const Arrivals* own, int parity, const Watch& watch) {
  uint32_t done = 1;
  FASTRNN_ROLL
  for (int polls = 0; polls < kMostPolls; ++polls) {
    FASTRNN_CLUSTER_ASM(
        "{\n\t.reg .pred p;\n\t"
        "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2, %3;\n\t"
        "selp.u32 %0, 1, 0, p;\n\t}" : "=r"(done) : "r"(shared_address(own)),
        "r"(parity), "n"(kTryNanoseconds) : "memory");
    if (done != 0) return;
  }
  give_up(watch);
}

// -- Bits -----------------------------------------------------------------------

FASTRNN_DEVICE uint32_t bits_of(float x) { return __float_as_uint(x); }
FASTRNN_DEVICE float float_of(uint32_t x) { return __uint_as_float(x); }

FASTRNN_DEVICE float widen(float x) { return x; }
FASTRNN_DEVICE double widen(double x) { return x; }
FASTRNN_DEVICE float widen(BFloat16 x) { return __uint_as_float(uint32_t{x.bits} << 16); }
FASTRNN_DEVICE float widen(Half x) { return __half2float(__ushort_as_half(x.bits)); }

// To the nearest, ties to even.
FASTRNN_DEVICE void narrow(float x, float& to) { to = x; }
FASTRNN_DEVICE void narrow(double x, double& to) { to = x; }
FASTRNN_DEVICE void narrow(float x, BFloat16& to) {
  to.bits = __bfloat16_as_ushort(__float2bfloat16_rn(x));
}
FASTRNN_DEVICE void narrow(float x, Half& to) { to.bits = __half_as_ushort(__float2half_rn(x)); }

// Rounded to TF32, ties away from zero, as bits of a float.
FASTRNN_DEVICE uint32_t tf32_of(float x) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits;
}

// -- Function values ------------------------------------------------------------

FASTRNN_DEVICE float fused(float a, float b, float c) { return fmaf(a, b, c); }
FASTRNN_DEVICE double fused(double a, double b, double c) { return ::fma(a, b, c); }

// CUDA's bounds: tanhf 2 ulp, expf 2 ulp; the division at most 2 ulp for divisors up to 2^126,
// beyond which the quotient is 0 (1e-38 in truth).
FASTRNN_DEVICE float tanh_of(float x) { return tanhf(x); }
FASTRNN_DEVICE double tanh_of(double x) { return ::tanh(x); }
FASTRNN_DEVICE float sigmoid_of(float x) { return __fdividef(1.0f, 1.0f + expf(-x)); }
FASTRNN_DEVICE double sigmoid_of(double x) { return 1.0 / (1.0 + exp(-x)); }

// -- The matrix instruction -----------------------------------------------------

// Volatile: the compiler must not move one behind a condition that only some lanes meet.
//
// d [16, 8] += a [16, K] * b [K, 8] by one warp, fp32 accumulation; K is 16 in 16 bits and 8 in
// TF32. With g = lane / 4 and l = lane % 4, and a word of k two neighbouring values (16 bits)
// or one (TF32), a thread holds
//   a: rows g, g + 8 of word l, then of word l + 4       b: column g of words l, l + 4
//   d: row g, columns 2l and 2l + 1, then row g + 8
FASTRNN_DEVICE void matrix_multiply(BFloat16, float (&d)[4], const uint32_t* a, uint32_t b0,
                                    uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

FASTRNN_DEVICE void matrix_multiply(Half, float (&d)[4], const uint32_t* a, uint32_t b0,
                                    uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// float stands for TF32 here: there is no such instruction for fp32.
FASTRNN_DEVICE void matrix_multiply(float, float (&d)[4], const uint32_t* a, uint32_t b0,
                                    uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

}  // namespace fastrnn::cuda
