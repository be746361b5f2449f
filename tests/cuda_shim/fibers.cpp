#include "fibers.h"

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <vector>

// Under ThreadSanitizer the kernels are instrumented and this file is not: its memory is the
// scheduler's, not the block's. It is then compiled with FASTRNN_SHIM_TSAN.
#if defined(FASTRNN_SHIM_TSAN)
#include <sanitizer/tsan_interface.h>
static const bool kTsan = true;
#else
static const bool kTsan = false;
static void* __tsan_get_current_fiber() { return nullptr; }
static void* __tsan_create_fiber(unsigned) { return nullptr; }
static void __tsan_switch_to_fiber(void*, unsigned) {}
static void __tsan_acquire(void*) {}
static void __tsan_release(void*) {}
static const unsigned __tsan_switch_to_fiber_no_sync = 1;
#endif

namespace shim {

Place place;
unsigned char* shared;
uint32_t note;

namespace {

constexpr size_t kStack = 64 * 1024;
// ThreadSanitizer takes what one fiber does for ordered, so under it blocks take turns over at
// least this many: eight blocks of 256 threads before one is used again. It has room for 8,128.
constexpr size_t kLeastFibers = kTsan ? 2048 : 0;

enum class State { kReady, kAtBarrier, kAtWarp, kWaiting, kDone };

// A place to continue at. swapcontext asks the kernel to save signal masks, which is most of the
// time of a test; where we know how to, we only keep what a call must preserve.
#if defined(__x86_64__)
extern "C" void shim_switch(void** from, void* to);
asm(R"(
    .text
    .type shim_switch, @function
shim_switch:
    push %rbp
    push %rbx
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, (%rdi)
    mov %rsi, %rsp
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbx
    pop %rbp
    ret
    .size shim_switch, .-shim_switch
)");

struct Context {
  void* top;

  void start(unsigned char* stack, size_t size, void (*entry)()) {
    // As if `entry` had been called: a return address that is never used below it.
    void** const words = reinterpret_cast<void**>(stack + size - size % 16) - 2;
    words[0] = reinterpret_cast<void*>(entry);
    top = words - 6;
  }
  void go(Context& to) { shim_switch(&top, to.top); }
};
#else
struct Context {
  ucontext_t context;

  void start(unsigned char* stack, size_t size, void (*entry)()) {
    getcontext(&context);
    context.uc_stack.ss_sp = stack;
    context.uc_stack.ss_size = size;
    context.uc_link = nullptr;
    makecontext(&context, entry, 0);
  }
  void go(Context& to) { swapcontext(&context, &to.context); }
};
#endif

// What ThreadSanitizer orders a barrier by: two addresses in turns, for a thread may reach the next
// barrier before another one has left this one, and must not be ordered before that one by it.
struct Keys {
  char key[2];
};

struct Fiber {
  Context context;
  void* tsan;
  std::unique_ptr<unsigned char[]> stack;
  // Of the block that it is in:
  int block_barriers, warp_barriers, cluster_barriers;  // that it has met
  State state;
  Combine combine;
  Watch watch;  // of what it waits for; no note: of nothing that could run out
};

struct Warp {
  Keys keys;
  int arrived;
  uint32_t in[kWarp][kSlot], out[kWarp][kSlot];
};

struct Block {
  Place place;
  std::unique_ptr<unsigned char[]> memory;
  unsigned char* shared;
  std::vector<Fiber*> fibers;
  std::vector<Warp> warps;
  bool descending;
  Keys keys;
};

std::mutex one_grid_at_a_time;
std::vector<std::unique_ptr<Fiber>> all_fibers;
std::vector<std::unique_ptr<Block>> together;
Block* running;
Context scheduler;
void* scheduler_tsan;
const std::function<void()>* body;
// What has happened that another fiber may have waited for.
uint64_t events;
bool trapped;
int cluster_arrived;
uint64_t cluster_phase;
Keys cluster_keys;
char at_begin, at_end;  // of a grid: addresses that ThreadSanitizer orders by

[[noreturn]] void fail(const char* what) {
  std::fprintf(stderr, "cuda shim: %s (block %lld, %d)\n", what,
               static_cast<long long>(place.block_x), place.block_y);
  std::abort();
}

// The running fiber.
Fiber& self() { return *running->fibers[static_cast<size_t>(place.thread)]; }

// Gives the CPU back to the scheduler until it resumes this fiber.
void yield(State state) {
  Fiber& own = self();
  own.state = state;
  __tsan_switch_to_fiber(scheduler_tsan, __tsan_switch_to_fiber_no_sync);
  own.context.go(scheduler);
}

// Until something has happened, in this block or another one.
template <class Condition>
void wait_until(Condition condition, const Watch& watch = {}) {
  self().watch = watch;
  while (!condition()) yield(State::kWaiting);
  ++events;
}

// What the scheduler leaves a grid by.
struct Trap {};

void set_place(Block& block, int thread) {
  running = &block;
  shared = block.shared;
  place = block.place;
  place.thread = thread;
}

void resume(Block& block, int thread) {
  Fiber& fiber = *block.fibers[static_cast<size_t>(thread)];
  fiber.state = State::kReady;
  set_place(block, thread);
  __tsan_switch_to_fiber(fiber.tsan, __tsan_switch_to_fiber_no_sync);
  scheduler.go(fiber.context);
  if (trapped) throw Trap{};
}

// A fiber's life: one thread of every block that it is given.
void enter() {
  for (;;) {
    __tsan_acquire(&at_begin);
    (*body)();
    __tsan_release(&at_end);
    yield(State::kDone);
  }
}

// Runs the warp until no lane of it can go on without others.
void run_warp(Block& block, int warp) {
  const int threads = block.place.threads;
  const int first = warp * kWarp, end = first + kWarp < threads ? first + kWarp : threads;
  const auto fiber = [&](int t) -> Fiber& { return *block.fibers[static_cast<size_t>(t)]; };
  for (int t = first; t < end; ++t) {
    if (fiber(t).state == State::kWaiting) resume(block, t);
  }
  for (bool again = true; again;) {
    again = false;
    bool waiting = false;
    for (int t = first; t < end; ++t) {
      if (fiber(t).state == State::kReady) resume(block, t);
      waiting |= fiber(t).state == State::kWaiting;
    }
    Warp& w = block.warps[static_cast<size_t>(warp)];
    if (w.arrived == 0 || waiting) continue;
    if (w.arrived != kWarp) fail("a warp's lanes diverge at a collective operation");
    fiber(first).combine(w.in, w.out);
    w.arrived = 0;
    for (int t = first; t < end; ++t) {
      if (fiber(t).combine != fiber(first).combine) {
        fail("a warp's lanes call different collective operations");
      }
      fiber(t).state = State::kReady;
    }
    ++events;
    again = true;
  }
}

// Runs the block until it ends or waits for another one; whether it has ended.
bool run_block(Block& block) {
  const int threads = block.place.threads, count = (threads + kWarp - 1) / kWarp;
  for (;;) {
    for (int i = 0; i < count; ++i) run_warp(block, block.descending ? count - 1 - i : i);
    int at_barrier_now = 0, waiting = 0, done = 0;
    for (const Fiber* fiber : block.fibers) {
      at_barrier_now += fiber->state == State::kAtBarrier;
      waiting += fiber->state == State::kWaiting;
      done += fiber->state == State::kDone;
    }
    if (done == threads) return true;
    if (waiting > 0) return false;
    if (at_barrier_now != threads) fail("a barrier is not reached by all threads of the block");
    for (Fiber* fiber : block.fibers) fiber->state = State::kReady;
    block.descending = !block.descending;
    ++events;
  }
}

// Nothing can happen any more: the first wait that there is runs out.
[[noreturn]] void run_out() {
  for (const auto& block : together) {
    for (const Fiber* fiber : block->fibers) {
      if (fiber->state != State::kWaiting || fiber->watch.note == nullptr) continue;
      *fiber->watch.note = fiber->watch.code;
      throw Trap{};
    }
  }
  fail("blocks wait for each other without end");
}

// Runs blocks together to their ends.
void run_together() {
  std::vector<bool> ended(together.size());
  for (bool descending = false;; descending = !descending) {
    const uint64_t before = events;
    bool all = true;
    for (size_t i = 0; i < together.size(); ++i) {
      const size_t k = descending ? together.size() - 1 - i : i;
      if (ended[k]) continue;
      ended[k] = run_block(*together[k]);
      events += ended[k];
      all = all && ended[k];
    }
    if (all) return;
    if (events == before) run_out();
  }
}

// Fibers for the threads of blocks that run together.
class Turns {
 public:
  explicit Turns(size_t threads) {
    while (all_fibers.size() < threads || all_fibers.size() < kLeastFibers) {
      all_fibers.emplace_back(new Fiber{});
      Fiber& fiber = *all_fibers.back();
      fiber.stack.reset(new unsigned char[kStack]);
      fiber.context.start(fiber.stack.get(), kStack, enter);
      fiber.tsan = __tsan_create_fiber(0);
    }
  }
  Fiber* next() {
    Fiber* const fiber = all_fibers[index_++ % all_fibers.size()].get();
    fiber->block_barriers = fiber->warp_barriers = fiber->cluster_barriers = 0;
    fiber->state = State::kReady;
    return fiber;
  }
  // Those used last are in the caches; under ThreadSanitizer they are not to be used again.
  void blocks_have_ended() {
    if (!kTsan) index_ = 0;
  }

 private:
  size_t index_ = 0;
};

void copy_words(uint32_t* to, const uint32_t* from, int count) {
  for (int i = 0; i < count; ++i) to[i] = from[i];
}

}  // namespace

void block_barrier() {
  char* const key = &running->keys.key[self().block_barriers++ % 2];
  __tsan_release(key);
  yield(State::kAtBarrier);
  __tsan_acquire(key);
}

void warp_exchange(const uint32_t* in, int in_words, uint32_t* out, int out_words,
                   Combine combine) {
  const int lane = place.thread % kWarp;
  Warp& w = running->warps[static_cast<size_t>(place.thread / kWarp)];
  copy_words(w.in[lane], in, in_words);
  ++w.arrived;
  self().combine = combine;
  yield(State::kAtWarp);
  copy_words(out, w.out[lane], out_words);
}

void warp_barrier() {
  Warp& w = running->warps[static_cast<size_t>(place.thread / kWarp)];
  char* const key = &w.keys.key[self().warp_barriers++ % 2];
  __tsan_release(key);
  warp_exchange(nullptr, 0, nullptr, 0, [](const uint32_t (*)[kSlot], uint32_t (*)[kSlot]) {});
  __tsan_acquire(key);
}

void cluster_barrier() {
  char* const key = &cluster_keys.key[self().cluster_barriers++ % 2];
  __tsan_release(key);
  const uint64_t own = cluster_phase;
  if (++cluster_arrived == static_cast<int>(together.size()) * place.threads) {
    cluster_arrived = 0;
    ++cluster_phase;
  }
  wait_until([own] { return cluster_phase != own; });
  __tsan_acquire(key);
}

void* address_at(void* own, int peer) {
  return together[static_cast<size_t>(peer)]->shared +
         (static_cast<unsigned char*>(own) - running->shared);
}

void add_and_release(uint32_t* counter) {
  __tsan_release(counter);
  ++*counter;
  ++events;
}

void await_count(const uint32_t* counter, uint32_t count, const Watch& watch) {
  wait_until([=] { return static_cast<int32_t>(*counter - count) >= 0; }, watch);
  __tsan_acquire(const_cast<uint32_t*>(counter));
}

namespace {
struct Phase {
  uint16_t expected, pending;
  uint32_t number;
};
static_assert(sizeof(Phase) == sizeof(uint64_t), "as large as on the machine");
}  // namespace

void prepare(uint64_t* arrivals, int count) {
  *reinterpret_cast<Phase*>(arrivals) = {static_cast<uint16_t>(count), static_cast<uint16_t>(count),
                                         0};
}

void arrive(uint64_t* arrivals) {
  Phase& phase = *reinterpret_cast<Phase*>(arrivals);
  __tsan_release(arrivals);
  if (--phase.pending == 0) {
    phase.pending = phase.expected;
    ++phase.number;
  }
  ++events;
}

void await_phase(const uint64_t* arrivals, int parity, const Watch& watch) {
  const Phase& phase = *reinterpret_cast<const Phase*>(arrivals);
  wait_until([&] { return static_cast<int>(phase.number % 2) != parity; }, watch);
  __tsan_acquire(const_cast<uint64_t*>(arrivals));
}

void trap() {
  trapped = true;
  yield(State::kDone);
}

int ptx_version() {
  const char* const text = std::getenv("FASTRNN_SHIM_PTX");
  return text == nullptr ? 90 : std::atoi(text);
}

const char* run_grid(const Shape& shape, const std::function<void()>& kernel) {
  const auto [x, y, threads, shared_bytes, cluster, cooperative] = shape;
  if (x < 1 || x > INT32_MAX || y < 1 || y > 65535 || threads < 1 || threads > kMaxThreads ||
      shared_bytes > kSharedBytes || cluster < 1 || cluster > 16 || x % cluster != 0) {
    return "invalid configuration argument";
  }
  const std::lock_guard<std::mutex> lock(one_grid_at_a_time);
  note = 0;
  std::vector<std::unique_ptr<Block>> past;  // ThreadSanitizer would see its memory used again
  scheduler_tsan = __tsan_get_current_fiber();
  body = &kernel;
  const int64_t group = cooperative ? x * y : cluster;
  Turns turns(static_cast<size_t>(group * threads));
  for (int64_t begin = 0; begin < x * y; begin += group) {
    for (int64_t i = begin; i < begin + group; ++i) {
      together.emplace_back(new Block{});
      Block& block = *together.back();
      block.place = {i % x, x, static_cast<int>(i / x), y, threads, 0};
      // A fresh allocation each block, exactly as large: what lies beyond it, and what another
      // block left there, must not be used. All ones are NaN.
      block.memory.reset(new unsigned char[shared_bytes + 16]);
      std::memset(block.memory.get(), 0xff, shared_bytes + 16);
      block.shared =
          block.memory.get() + (16 - reinterpret_cast<uintptr_t>(block.memory.get()) % 16) % 16;
      block.warps.resize(static_cast<size_t>((threads + kWarp - 1) / kWarp));
      for (int t = 0; t < threads; ++t) block.fibers.push_back(turns.next());
    }
    cluster_arrived = 0;
    __tsan_release(&at_begin);
    try {
      run_together();
    } catch (const Trap&) {
      // Its fibers are where they were, and are never resumed.
      trapped = false;
      together.clear();
      all_fibers.clear();
      return kTrapped;
    }
    for (auto& block : together) {
      if (kTsan) past.push_back(std::move(block));
    }
    together.clear();
    turns.blocks_have_ended();
  }
  // Only now: had this thread seen the end of one block, those after it would be ordered.
  __tsan_acquire(&at_end);
  return nullptr;
}

}  // namespace shim
