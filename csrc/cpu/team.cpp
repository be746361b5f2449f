#include "cpu/team.h"

#include <memory>
#include <vector>

#if defined(FASTRNN_STD_THREADS)  // the sanitizer build: ThreadSanitizer cannot see into libgomp
#include <thread>
#elif defined(_OPENMP)
#include <omp.h>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#include <sched.h>
#endif
#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace fastrnn::cpu {
namespace {

inline void pause_briefly() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Flushes denormal results and operands to zero for as long as it lives.
class FlushDenormals {
 public:
#if defined(__x86_64__)
  FlushDenormals() : saved_(_mm_getcsr()) { _mm_setcsr(saved_ | 0x8040u); }  // FTZ | DAZ
  ~FlushDenormals() { _mm_setcsr(saved_); }

 private:
  unsigned saved_;
#elif defined(__aarch64__)
  FlushDenormals() {
    asm volatile("mrs %0, fpcr" : "=r"(saved_));
    asm volatile("msr fpcr, %0" ::"r"(saved_ | (uint64_t{1} << 24)));
  }
  ~FlushDenormals() { asm volatile("msr fpcr, %0" ::"r"(saved_)); }

 private:
  uint64_t saved_;
#endif
 public:
  FlushDenormals(const FlushDenormals&) = delete;
  FlushDenormals& operator=(const FlushDenormals&) = delete;
};

void run_alone(const std::function<void(const Worker&)>& work) {
  const FlushDenormals flush;
  SpinBarrier barriers[2];
  work(Worker{0, 1, barriers});
}

// libgomp's pool does not survive fork: a parallel region in the child would
// wait for threads that are gone.
bool forked = false;

#if defined(__unix__) || defined(__APPLE__)
const int fork_handler = pthread_atfork(nullptr, nullptr, [] { forked = true; });
#endif

}  // namespace

void SpinBarrier::wait_for_change(unsigned phase) {
  constexpr int kSpins = 4096;  // about 40 us: far longer than a balanced step waits
  int spins = 0;
  while (phase_.load(std::memory_order_acquire) == phase) {
    if (++spins < kSpins) {
      pause_briefly();
    } else {
#if defined(__unix__) || defined(__APPLE__)
      sched_yield();
#endif
    }
  }
}

void run_team(int threads, const std::function<void(const Worker&)>& work) {
  if (threads <= 1 || forked) return run_alone(work);
#if defined(FASTRNN_STD_THREADS)
  const std::unique_ptr<SpinBarrier[]> barriers(new SpinBarrier[threads + 1]);
  std::vector<std::thread> others;
  const auto run = [&](int thread) {
    const FlushDenormals flush;
    work(Worker{thread, threads, barriers.get()});
  };
  for (int thread = 1; thread < threads; ++thread) others.emplace_back(run, thread);
  run(0);
  for (auto& other : others) other.join();
#elif defined(_OPENMP)
  if (omp_in_parallel()) return run_alone(work);
  const std::unique_ptr<SpinBarrier[]> barriers(new SpinBarrier[threads + 1]);
#pragma omp parallel num_threads(threads)
  {
    // Fewer threads may come than were asked for: the team is who came.
    const FlushDenormals flush;
    work(Worker{omp_get_thread_num(), omp_get_num_threads(), barriers.get()});
  }
#else
  run_alone(work);
#endif
}

}  // namespace fastrnn::cpu
