// A GPU in small, for tests: the threads of a block are fibers of one CPU thread,
// which change places only where a kernel waits for others. Blocks run one after
// the other, but those of a cluster or of a cooperative grid together. Warps and
// blocks run in ascending order up to one point where they wait and descending to
// the next, so that a missing barrier shows in the numbers; under ThreadSanitizer,
// which is told of barriers and of what orders blocks, and of nothing else, it
// shows whatever the order. Where all blocks wait for each other, the first wait runs
// out, which ends the grid with an error, as a trap does.
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
  int64_t block_x, blocks_x;
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

// All lanes of the warp, and what they wrote.
void warp_barrier();

// Between blocks that run together; see primitives.h for what they stand for.
void cluster_barrier();
void* address_at(void* own, int peer);
void add_and_release(uint32_t* counter);
struct Watch {
  uint32_t* note;
  uint32_t code;
};
void await_count(const uint32_t* counter, uint32_t count, const Watch& watch);
void prepare(uint64_t* arrivals, int count);
void arrive(uint64_t* arrivals);
void await_phase(const uint64_t* arrivals, int parity, const Watch& watch);

// Ends the grid: run_grid returns kTrapped.
void trap();
inline constexpr char kTrapped[] = "unspecified launch failure";
// For Watch: zero at the start of every grid.
extern uint32_t note;

// What kernels were compiled from: 90, or what FASTRNN_SHIM_PTX says.
int ptx_version();

struct Shape {
  int64_t x;
  int y, threads;
  size_t shared_bytes;
  int cluster;       // blocks of a cluster
  bool cooperative;  // all blocks run together
};

// Runs a grid; null, or what CUDA would say of it.
const char* run_grid(const Shape& shape, const std::function<void()>& kernel);

}  // namespace shim
