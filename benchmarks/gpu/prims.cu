// Fences, exchanges and the matrix instruction of this GPU alone, in cycles of a multiprocessor:
// what a step of the CUDA engine is made of (csrc/cuda/kernels/exchange.h), beside ways to do it
// that the engine does not use. A few seconds; every wait is bounded, and traps.
//
//   nvcc -std=c++17 -O3 -arch=sm_90a -o prims prims.cu
//
// Needs compute capability 9.0. A round of an exchange: every block publishes its pieces of 16
// bytes, waits for all, and reads all. 8 batch rows of 16 units in 16 bits are 16 pieces, of the
// gradients of four gates 64.
#include <cuda_runtime.h>
#include <cstdint>
#include <cstdio>

#define CHECK(call)                                                                   \
  do {                                                                                \
    const cudaError_t error = (call);                                                 \
    if (error != cudaSuccess) {                                                       \
      printf("%s:%d %s: %s\n", __FILE__, __LINE__, #call, cudaGetErrorString(error)); \
      return 1;                                                                       \
    }                                                                                 \
  } while (0)

// The four words of a uint4 as an instruction's operands.
#define FROM(x) "r"(x.x), "r"(x.y), "r"(x.z), "r"(x.w)
#define INTO(x) "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)

namespace {

constexpr int kThreads = 256, kWarps = 8;
constexpr int kRounds = 2000, kUntimed = 100;  // the first rounds are not timed
constexpr int kRepeats = 256;                  // of fences and products

__device__ uint32_t shared_address(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

// The same place in the shared memory of another block of the cluster.
__device__ uint32_t address_at(const void* own, int peer) {
  uint32_t address;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;"
               : "=r"(address)
               : "r"(shared_address(own)), "r"(peer));
  return address;
}

__device__ void cluster_barrier() {
  asm volatile("barrier.cluster.arrive.release;" ::: "memory");
  asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
}

// Bounds a wait.
struct Polls {
  uint32_t count = 0;
  __device__ void next() {
    if (++count > (1u << 22)) __trap();
  }
};

__device__ void store_past_l1(uint4* to, uint4 x) {
  asm volatile("st.global.cg.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), FROM(x) : "memory");
}

__device__ uint4 load_past_l1(const uint4* from) {
  uint4 x;
  asm volatile("ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];" : INTO(x) : "l"(from) : "memory");
  return x;
}

__device__ void add_and_release(uint32_t* counter) {
  asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory");
}

__device__ void await_count(const uint32_t* counter, uint32_t count) {
  Polls polls;
  uint32_t seen;
  do {
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(counter) : "memory");
    polls.next();
  } while (static_cast<int32_t>(seen - count) < 0);
}

// -- Fences of one warp ---------------------------------------------------------------

enum Fence { kIdle, kAfterStores, kAfterStoresPastL1, kReleasingAdd, kFenceModes };

// One warp. cycles [kFenceModes].
__global__ void fences(long long* cycles, uint4* memory) {
  const uint4 value = make_uint4(1, 2, 3, 4);
  for (int mode = 0; mode < kFenceModes; ++mode) {
    const long long begin = clock64();
    for (int i = 0; i < kRepeats; ++i) {
      uint4* to = memory + (i % 64) * 1024 + threadIdx.x;
      if (mode == kAfterStores) *to = value;
      if (mode == kAfterStoresPastL1) store_past_l1(to, value);
      if (mode == kReleasingAdd) {
        add_and_release(reinterpret_cast<uint32_t*>(memory) + threadIdx.x * 64);
      } else {
        asm volatile("fence.acq_rel.gpu;" ::: "memory");
      }
    }
    if (threadIdx.x == 0) cycles[mode] = (clock64() - begin) / kRepeats;
  }
}

// -- Exchange through L2 --------------------------------------------------------------

// kEngine: one warp publishes and adds to a counter, every warp polls it. kOnePoller: one warp
// polls. kFlagged: half of the data says of which round it is; no counter and no fence, twice the
// bytes.
enum GridMode { kEngine, kOnePoller, kFlagged, kGridModes };

__device__ void publish_flagged(uint4* to, int value, int round) {
  asm volatile("st.relaxed.gpu.global.v4.u32 [%0], {%1, %2, %1, %2};" ::"l"(to), "r"(value),
               "r"(round)
               : "memory");
}

__device__ uint4 await_flagged(const uint4* from, uint32_t round) {
  Polls polls;
  uint4 x;
  do {
    asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : INTO(x)
                 : "l"(from)
                 : "memory");
    polls.next();
  } while (x.y != round || x.w != round);
  return x;
}

// slots [2, blocks, pieces]; counter and slots are zeros before. cycles [blocks], a round.
template <GridMode mode>
__global__ void __launch_bounds__(kThreads, 1)
    grid_exchange(long long* cycles, uint4* slots, uint32_t* counter, int pieces) {
  const int blocks = gridDim.x, total = blocks * pieces;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  uint32_t sum = 0;
  long long begin = 0;
  for (int round = 1; round <= kRounds; ++round) {
    if (round == kUntimed) begin = clock64();
    uint4* slot = slots + static_cast<size_t>(round % 2) * total;
    uint4* own = slot + blockIdx.x * pieces;
    if (mode == kFlagged) {
      if (warp == 0) {
        for (int i = lane; i < pieces; i += 32) publish_flagged(own + i, i, round);
      }
      for (int i = threadIdx.x; i < total; i += kThreads) sum += await_flagged(slot + i, round).x;
    } else {
      if (warp == 0) {
        for (int i = lane; i < pieces; i += 32) {
          store_past_l1(own + i, make_uint4(round, round, sum, i));
        }
        __syncwarp();
        if (lane == 0) add_and_release(counter);
      }
      if (lane == 0 && (mode == kEngine || warp == 0)) await_count(counter, blocks * round);
      __syncwarp();
      if (mode == kOnePoller) __syncthreads();
      for (int i = threadIdx.x; i < total; i += kThreads) sum += load_past_l1(slot + i).x;
    }
    __syncthreads();
  }
  if (threadIdx.x == 0) {  // the sum is used, so that nothing is left out
    cycles[blockIdx.x] = (clock64() - begin) / (kRounds - kUntimed + 1) + (sum == 0x7fffffff);
  }
}

// -- Exchange in a cluster ------------------------------------------------------------

// kArrive: stores, then an arrival that releases them, for each peer. kAsync: st.async, whose bytes
// the barrier counts, without a fence.
enum ClusterMode { kArrive, kAsync };

__device__ void store_at(uint32_t to, uint4 x) {
  asm volatile("st.shared::cluster.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(to), FROM(x) : "memory");
}

__device__ void store_async(uint32_t to, uint4 x, uint32_t barrier) {
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.u32 "
      "[%0], {%1, %2, %3, %4}, [%5];" ::"r"(to),
      FROM(x), "r"(barrier)
      : "memory");
}

// Whether the phase of this parity is over; a try may itself wait for a while.
#define TRY_WAIT(order)                                                      \
  asm volatile("{\n\t.reg .pred p;\n\tmbarrier.try_wait.parity" order        \
               ".shared::cta.b64 p, [%1], %2;\n\tselp.u32 %0, 1, 0, p;\n\t}" \
               : "=r"(done)                                                  \
               : "r"(shared_address(barrier)), "r"(parity)                   \
               : "memory")

template <ClusterMode mode>
__device__ void await_phase(const uint64_t* barrier, uint32_t parity) {
  Polls polls;
  uint32_t done;
  do {
    if (mode == kArrive) TRY_WAIT(".acquire.cluster");
    if (mode == kAsync) TRY_WAIT("");
    polls.next();
  } while (done == 0);
}

// The pieces of one block to all, each warp to every eighth peer.
template <ClusterMode mode>
__device__ void publish(uint4* own, uint64_t* barrier, int blocks, int pieces, uint4 value) {
  const int lane = threadIdx.x % 32;
  for (int peer = threadIdx.x / 32; peer < blocks; peer += kWarps) {
    const uint32_t there = address_at(barrier, peer);
    for (int i = lane; i < pieces; i += 32) {
      value.z = i;
      if (mode == kArrive) {
        store_at(address_at(own + i, peer), value);
      } else {
        store_async(address_at(own + i, peer), value, there);
      }
    }
    if (mode == kAsync) continue;
    __syncwarp();
    if (lane == 0) {
      asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(there)
                   : "memory");
    }
  }
}

// Shared memory: two barriers, then slots [2, blocks, pieces]. outputs, where there are any: what a
// layer's results would do to the memory system meanwhile. cycles [blocks], a round.
template <ClusterMode mode>
__global__ void __launch_bounds__(kThreads, 1)
    cluster_exchange(long long* cycles, int blocks, int pieces, uint4* outputs) {
  extern __shared__ __align__(128) unsigned char shared[];
  uint64_t* barriers = reinterpret_cast<uint64_t*>(shared);
  uint4* slots = reinterpret_cast<uint4*>(shared + 128);
  const int total = blocks * pieces, rank = blockIdx.x % blocks;
  if (threadIdx.x < 2) {
    const uint32_t own = shared_address(barriers + threadIdx.x);
    const int arrivals = mode == kArrive ? blocks : 1;
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(own), "r"(arrivals) : "memory");
  }
  cluster_barrier();
  uint32_t sum = 0;
  long long begin = 0;
  for (int round = 1; round <= kRounds; ++round) {
    if (round == kUntimed) begin = clock64();
    uint4* slot = slots + (round % 2) * total;
    uint64_t* barrier = barriers + round % 2;
    if (mode == kAsync && threadIdx.x == 0) {
      const uint32_t own = shared_address(barrier), bytes = total * sizeof(uint4);
      asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(own), "r"(bytes)
                   : "memory");
    }
    const uint4 value = make_uint4(round, round, 0, sum);
    publish<mode>(slot + rank * pieces, barrier, blocks, pieces, value);
    if (outputs != nullptr) {
      outputs[(round % 64) * size_t{65536} + blockIdx.x * kThreads + threadIdx.x] = value;
    }
    await_phase<mode>(barrier, (round - 1) / 2 % 2);
    for (int i = threadIdx.x; i < total; i += kThreads) sum += slot[i].x;
    __syncthreads();
  }
  if (threadIdx.x == 0) {
    cycles[blockIdx.x] = (clock64() - begin) / (kRounds - kUntimed + 1) + (sum == 0x7fffffff);
  }
  cluster_barrier();  // nobody leaves while others write to its shared memory
}

// -- The matrix instruction -----------------------------------------------------------

// One block, weights in registers, 8 sums a warp, which nobody needs: the instruction is volatile.
// cycles [1], of 10 instructions on each scheduler.
__global__ void __launch_bounds__(kThreads, 1) products(long long* cycles) {
  float d[8][4] = {};
  uint32_t a[16][4], b0 = threadIdx.x, b1 = threadIdx.x * 3;
  for (int i = 0; i < 16; ++i) {
    for (int j = 0; j < 4; ++j) a[i][j] = threadIdx.x * 7 + i * 5 + j;
  }
  __syncthreads();
  const long long begin = clock64();
#pragma unroll 1
  for (int repeat = 0; repeat < kRepeats; ++repeat) {
#pragma unroll
    for (int i = 0; i < 32; ++i) {
      float (&sum)[4] = d[i % 8];
      const uint32_t (&weights)[4] = a[i % 16];
      asm volatile(
          "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
          "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
          : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
          : "r"(weights[0]), "r"(weights[1]), "r"(weights[2]), "r"(weights[3]), "r"(b0), "r"(b1));
    }
  }
  __syncthreads();
  // Two warps share a scheduler.
  if (threadIdx.x == 0) cycles[0] = (clock64() - begin) * 10 / (kRepeats * 64);
}

// -- Host -----------------------------------------------------------------------------

template <class Kernel, class... Arguments>
cudaError_t run(Kernel kernel, int blocks, int shared_bytes, int cluster, Arguments... arguments) {
  cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
  if (error == cudaSuccess && cluster > 8) {
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  }
  if (error != cudaSuccess) return error;
  cudaLaunchAttribute attribute;
  attribute.id = cluster > 0 ? cudaLaunchAttributeClusterDimension : cudaLaunchAttributeCooperative;
  attribute.val.cooperative = 1;
  if (cluster > 0) attribute.val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = blocks;
  config.blockDim = kThreads;
  config.dynamicSmemBytes = shared_bytes;
  config.attrs = &attribute;
  config.numAttrs = 1;
  error = cudaLaunchKernelEx(&config, kernel, arguments...);
  return error != cudaSuccess ? error : cudaDeviceSynchronize();
}

struct Buffers {
  long long* cycles;
  uint4* memory;
  uint32_t* counter;
};

int measure_grid(const Buffers& buffers, int blocks, int pieces) {
  constexpr int kShared = 120 << 10;  // one block a multiprocessor
  long long found[kGridModes];
  for (int mode = 0; mode < kGridModes; ++mode) {
    CHECK(cudaMemset(buffers.memory, 0, 8 << 20));
    CHECK(cudaMemset(buffers.counter, 0, sizeof(uint32_t)));
    auto kernel = mode == kEngine      ? grid_exchange<kEngine>
                  : mode == kOnePoller ? grid_exchange<kOnePoller>
                                       : grid_exchange<kFlagged>;
    CHECK(run(kernel, blocks, kShared, 0, buffers.cycles, buffers.memory, buffers.counter,
              mode == kFlagged ? 2 * pieces : pieces));
    found[mode] = buffers.cycles[0];
  }
  printf(
      "L2, %3d blocks x %3d pieces: as grid %lld, one poller %lld, flag in the data %lld cycles\n",
      blocks, pieces, found[kEngine], found[kOnePoller], found[kFlagged]);
  return 0;
}

int measure_cluster(const Buffers& buffers, int blocks, int pieces, bool outputs) {
  const int shared_bytes = 128 + 2 * blocks * pieces * 16;
  uint4* stored = outputs ? buffers.memory : nullptr;
  CHECK(run(cluster_exchange<kArrive>, blocks * 4, shared_bytes, blocks, buffers.cycles, blocks,
            pieces, stored));
  const long long arrive = buffers.cycles[0];
  CHECK(run(cluster_exchange<kAsync>, blocks * 4, shared_bytes, blocks, buffers.cycles, blocks,
            pieces, stored));
  printf("cluster of %2d x %3d pieces%s: as cluster %lld, st.async %lld cycles\n", blocks, pieces,
         outputs ? ", outputs stored" : "", arrive, buffers.cycles[0]);
  return 0;
}

int measure_alone(const Buffers& buffers) {
  const long long* cycles = buffers.cycles;
  fences<<<1, 32>>>(buffers.cycles, buffers.memory);
  CHECK(cudaDeviceSynchronize());
  printf("fence.acq_rel.gpu: idle %lld, after st %lld, after st.cg %lld; red.release.gpu %lld\n",
         cycles[kIdle], cycles[kAfterStores], cycles[kAfterStoresPastL1], cycles[kReleasingAdd]);
  products<<<1, kThreads>>>(buffers.cycles);
  CHECK(cudaDeviceSynchronize());
  printf("mma.sync m16n8k16 bf16: %.1f cycles each on a scheduler\n", cycles[0] / 10.0);
  return 0;
}

}  // namespace

int main() {
  setvbuf(stdout, nullptr, _IONBF, 0);
  cudaDeviceProp device;
  CHECK(cudaGetDeviceProperties(&device, 0));
  printf("%s, %d multiprocessors\n", device.name, device.multiProcessorCount);
  Buffers buffers;
  CHECK(cudaMallocHost(&buffers.cycles, 4096));
  const size_t bytes = size_t{128} << 20;
  CHECK(cudaMalloc(&buffers.memory, bytes));
  CHECK(cudaMalloc(&buffers.counter, sizeof(uint32_t)));
  CHECK(cudaMemset(buffers.memory, 0, bytes));
  int failed = measure_alone(buffers);
  for (int blocks : {16, 48, 64, 128}) {
    for (int pieces : {16, 64, 256}) {
      // No grid that could not be resident.
      if (blocks * pieces > 8192 || blocks > device.multiProcessorCount) continue;
      failed |= measure_grid(buffers, blocks, pieces);
    }
  }
  for (int blocks : {4, 8, 16}) {
    for (int pieces : {16, 32, 128}) {
      failed |= measure_cluster(buffers, blocks, pieces, false);
      failed |= measure_cluster(buffers, blocks, pieces, true);
    }
  }
  return failed;
}
