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
// A stack that threads of two blocks used one after the other would look shared.
static const bool kFreshStacks = true;
#else
static const bool kFreshStacks = false;
static void* __tsan_get_current_fiber() { return nullptr; }
static void* __tsan_create_fiber(unsigned) { return nullptr; }
static void __tsan_destroy_fiber(void*) {}
static void __tsan_switch_to_fiber(void*, unsigned) {}
static void __tsan_acquire(void*) {}
static void __tsan_release(void*) {}
static const unsigned __tsan_switch_to_fiber_no_sync = 1;
#endif

namespace shim {

Place place;
unsigned char* shared;

namespace {

constexpr size_t kStack = 64 * 1024;

enum class State { kReady, kAtBarrier, kAtWarp, kDone };

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

struct Fiber {
  Context context;
  bool started;
  void* tsan;
  State state;
  Combine combine;
};

struct Warp {
  int arrived;
  uint32_t in[kWarp][kSlot], out[kWarp][kSlot];
};

std::mutex one_grid_at_a_time;
std::vector<Fiber> fibers(kMaxThreads);
std::vector<Warp> warps(kMaxThreads / kWarp);
std::unique_ptr<unsigned char[]> stacks;
Context scheduler;
void* scheduler_tsan;
const std::function<void()>* body;
char at_barrier, at_end;  // addresses that ThreadSanitizer orders by

[[noreturn]] void fail(const char* what) {
  std::fprintf(stderr, "cuda shim: %s (block %lld, %d)\n", what,
               static_cast<long long>(place.block_x), place.block_y);
  std::abort();
}

// Gives the CPU back to the scheduler until it resumes this fiber.
void yield(State state) {
  Fiber& self = fibers[static_cast<size_t>(place.thread)];
  self.state = state;
  __tsan_switch_to_fiber(scheduler_tsan, __tsan_switch_to_fiber_no_sync);
  self.context.go(scheduler);
}

void resume(int thread) {
  Fiber& fiber = fibers[static_cast<size_t>(thread)];
  fiber.state = State::kReady;
  place.thread = thread;
  __tsan_switch_to_fiber(fiber.tsan, __tsan_switch_to_fiber_no_sync);
  scheduler.go(fiber.context);
}

// A fiber's life: one thread of every block.
void enter() {
  for (;;) {
    (*body)();
    __tsan_release(&at_end);
    yield(State::kDone);
  }
}

// Runs the warp until no lane of it can go on without other warps.
void run_warp(int warp, int threads) {
  const int first = warp * kWarp, end = first + kWarp < threads ? first + kWarp : threads;
  for (bool again = true; again;) {
    again = false;
    for (int t = first; t < end; ++t) {
      if (fibers[static_cast<size_t>(t)].state == State::kReady) resume(t);
    }
    Warp& w = warps[static_cast<size_t>(warp)];
    if (w.arrived == 0) continue;
    if (w.arrived != kWarp) fail("a warp's lanes diverge at a collective operation");
    fibers[static_cast<size_t>(first)].combine(w.in, w.out);
    w.arrived = 0;
    for (int t = first; t < end; ++t) {
      if (fibers[static_cast<size_t>(t)].combine != fibers[static_cast<size_t>(first)].combine) {
        fail("a warp's lanes call different collective operations");
      }
      fibers[static_cast<size_t>(t)].state = State::kReady;
    }
    again = true;
  }
}

void set_place(const Place& where, unsigned char* memory) {
  place = where;
  shared = memory;
}

void run_block(int threads, std::vector<void*>& tsan_fibers) {
  for (int t = 0; t < threads; ++t) {
    Fiber& fiber = fibers[static_cast<size_t>(t)];
    if (!fiber.started) {
      fiber.context.start(stacks.get() + static_cast<size_t>(t) * kStack, kStack, enter);
      fiber.started = true;
    }
    fiber.tsan = __tsan_create_fiber(0);
    tsan_fibers.push_back(fiber.tsan);
    fiber.state = State::kReady;
  }
  const int count = (threads + kWarp - 1) / kWarp;
  for (int w = 0; w < count; ++w) warps[static_cast<size_t>(w)].arrived = 0;
  for (bool descending = false;; descending = !descending) {
    for (int i = 0; i < count; ++i) run_warp(descending ? count - 1 - i : i, threads);
    int waiting = 0, done = 0;
    for (int t = 0; t < threads; ++t) {
      Fiber& fiber = fibers[static_cast<size_t>(t)];
      waiting += fiber.state == State::kAtBarrier;
      done += fiber.state == State::kDone;
      if (fiber.state == State::kAtBarrier) fiber.state = State::kReady;
    }
    if (done == threads) return;
    if (waiting != threads) fail("a barrier is not reached by all threads of the block");
  }
}

void copy_words(uint32_t* to, const uint32_t* from, int count) {
  for (int i = 0; i < count; ++i) to[i] = from[i];
}

}  // namespace

void block_barrier() {
  __tsan_release(&at_barrier);
  yield(State::kAtBarrier);
  __tsan_acquire(&at_barrier);
}

void warp_exchange(const uint32_t* in, int in_words, uint32_t* out, int out_words,
                   Combine combine) {
  const int lane = place.thread % kWarp;
  Warp& w = warps[static_cast<size_t>(place.thread / kWarp)];
  copy_words(w.in[lane], in, in_words);
  ++w.arrived;
  fibers[static_cast<size_t>(place.thread)].combine = combine;
  yield(State::kAtWarp);
  copy_words(out, w.out[lane], out_words);
}

const char* run_grid(int64_t x, int y, int threads, size_t shared_bytes,
                     const std::function<void()>& kernel) {
  if (x < 1 || x > INT32_MAX || y < 1 || y > 65535 || threads < 1 || threads > kMaxThreads ||
      shared_bytes > kSharedBytes) {
    return "invalid configuration argument";
  }
  const std::lock_guard<std::mutex> lock(one_grid_at_a_time);
  std::vector<void*> tsan_fibers;
  std::vector<std::unique_ptr<unsigned char[]>> memories;
  scheduler_tsan = __tsan_get_current_fiber();
  body = &kernel;
  for (int by = 0; by < y; ++by) {
    for (int64_t bx = 0; bx < x; ++bx) {
      // A fresh allocation each block, exactly as large: what lies beyond it, and what another
      // block left there, must not be used. All ones are NaN.
      memories.emplace_back(new unsigned char[shared_bytes + 16]);
      const auto& memory = memories.back();
      std::memset(memory.get(), 0xff, shared_bytes + 16);
      unsigned char* const aligned =
          memory.get() + (16 - reinterpret_cast<uintptr_t>(memory.get()) % 16) % 16;
      set_place({bx, by, y, threads, 0}, aligned);
      if (kFreshStacks || !stacks) {
        if (stacks) memories.push_back(std::move(stacks));
        stacks.reset(new unsigned char[(kFreshStacks ? threads : kMaxThreads) * kStack]);
        for (Fiber& fiber : fibers) fiber.started = false;
      }
      run_block(threads, tsan_fibers);
    }
  }
  // Only now: had this thread seen the end of one block, those after it would be ordered.
  __tsan_acquire(&at_end);
  for (void* fiber : tsan_fibers) __tsan_destroy_fiber(fiber);
  memories.clear();
  return nullptr;
}

}  // namespace shim
