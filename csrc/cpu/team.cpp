#include "cpu/team.h"

#include <memory>
#include <thread>
#include <vector>

// FASTRNN_STD_THREADS is the sanitizer build: ThreadSanitizer cannot see into libgomp.
#if !defined(FASTRNN_STD_THREADS) && defined(_OPENMP)
#include <omp.h>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <dirent.h>
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
std::atomic<bool> team_was_used{false}, lost{false};

// Threads of this process; 0: unknown.
int count_threads() {
  int count = 0;
#if defined(__linux__)
  if (DIR* const tasks = opendir("/proc/self/task")) {
    while (const dirent* const task = readdir(tasks)) count += task->d_name[0] != '.';
    closedir(tasks);
  }
#endif
  return count;
}

#if defined(__unix__) || defined(__APPLE__)
// More threads than there were when this was loaded may be the pool, started by others.
const int threads_at_load = count_threads();
bool had_pool = false;
const int fork_handler =
    pthread_atfork([] { had_pool = team_was_used || count_threads() > threads_at_load; }, nullptr,
                   [] {
                     forked = true;
                     lost = had_pool;
                   });
#endif

// CPUs that this thread may run on.
int usable_cpus() {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return CPU_COUNT(&set);
#endif
  return static_cast<int>(std::thread::hardware_concurrency());
}

// How often a waiting thread looks before it lets others run: for about 40 us, far longer than
// a balanced step waits, but not at all where the one it waits for may want its CPU.
constexpr int kSpins = 4096;
thread_local int spins_before_yield = kSpins;

}  // namespace

bool lost_its_threads() { return lost.load(std::memory_order_relaxed) && lost.exchange(false); }

void SpinBarrier::wait_for_change(unsigned phase) {
  int spins = 0;
  while (phase_.load(std::memory_order_acquire) == phase) {
    if (++spins < spins_before_yield) {
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
  team_was_used = true;
  [[maybe_unused]] const int spins = threads > usable_cpus() ? 0 : kSpins;
#if defined(FASTRNN_STD_THREADS)
  const std::unique_ptr<SpinBarrier[]> barriers(new SpinBarrier[threads + 1]);
  std::vector<std::thread> others;
  const auto run = [&](int thread) {
    const FlushDenormals flush;
    spins_before_yield = spins;
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
    spins_before_yield = spins;
    work(Worker{omp_get_thread_num(), omp_get_num_threads(), barriers.get()});
  }
#else
  run_alone(work);
#endif
}

}  // namespace fastrnn::cpu
