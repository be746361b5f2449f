// A team of threads for one kernel call: one OpenMP region (the pool torch uses,
// so nothing is oversubscribed), spin barriers, denormals flushed meanwhile.
#pragma once
#include <atomic>
#include <functional>

#include "cpu/params.h"

namespace fastrnn::cpu {

// A barrier for threads that are all running. It yields when the wait is long,
// so that it also passes when there are more threads than cores.
class alignas(64) SpinBarrier {
 public:
  void wait(int threads) {
    if (threads == 1) return;
    const unsigned phase = phase_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads) {
      arrived_.store(0, std::memory_order_relaxed);
      phase_.store(phase + 1, std::memory_order_release);
    } else {
      wait_for_change(phase);
    }
  }

 private:
  void wait_for_change(unsigned phase);

  std::atomic<int> arrived_{0};
  std::atomic<unsigned> phase_{0};
};

// Runs `work` on at most `threads` threads, all at the same time; it learns from
// its Worker how many came. Inside a parallel region, and in a child forked from
// a process that had started threads, on the calling thread alone.
void run_team(int threads, const std::function<void(const Worker&)>& work);

// True once in a process forked from one that had started threads of the OpenMP pool, or may have:
// whoever else uses that pool would wait forever.
bool lost_its_threads();

}  // namespace fastrnn::cpu
