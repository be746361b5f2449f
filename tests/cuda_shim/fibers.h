// A GPU in small, for tests: blocks one after the other, the threads of a block
// as fibers of one CPU thread, which change places only where a kernel waits
// for others. Warps run in ascending order up to one barrier and descending to
// the next, so that a missing barrier shows in the numbers; under
// ThreadSanitizer, which is told of barriers and of nothing else, it shows
// whatever the order.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>

namespace shim {

constexpr int kWarp = 32;
constexpr int kMaxThreads = 1024;
constexpr size_t kSharedBytes = 227 * 1024;

// Where the running fiber is.
struct Place {
  int64_t block_x;
  int block_y, blocks_y, threads, thread;
};
extern Place place;
extern unsigned char* shared;

// Waits for all threads of the block; makes what they wrote visible.
void block_barrier();

// A warp's collective operation: every lane brings `in` and takes its `out`; the last one to come
// runs `combine` on all 32. Orders no memory, as on the machine. At most kSlot words each.
constexpr int kSlot = 12;
using Combine = void (*)(const uint32_t (*in)[kSlot], uint32_t (*out)[kSlot]);
void warp_exchange(const uint32_t* in, int in_words, uint32_t* out, int out_words, Combine combine);

// Runs a grid; null, or what CUDA would refuse it with.
const char* run_grid(int64_t x, int y, int threads, size_t shared_bytes,
                     const std::function<void()>& kernel);

}  // namespace shim
