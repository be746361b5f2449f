#include "cpu/dispatch.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

namespace fastrnn::cpu {

#define FASTRNN_DECLARE_TARGET(name)                                                  \
  extern const Kernels k##name##Float, k##name##Double, k##name##Bf16, k##name##Half; \
  extern const QuantizedKernels k##name##Quantized;
FASTRNN_DECLARE_TARGET(Generic)
#if defined(__x86_64__)
FASTRNN_DECLARE_TARGET(Avx2)
FASTRNN_DECLARE_TARGET(Avx512)
extern const QuantizedKernels kAvx512VnniQuantized;
#endif
#undef FASTRNN_DECLARE_TARGET

namespace {

struct Target {
  const char* name;
  bool (*supported)();
  const Kernels* kernels[4];  // in the order of DType
  const QuantizedKernels* quantized;
};

#if defined(__x86_64__)
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c");
}
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
bool has_avx512_vnni() { return has_avx512() && __builtin_cpu_supports("avx512vnni"); }
#endif

const Target kTargets[] = {
    {"generic",
     [] { return true; },
     {&kGenericFloat, &kGenericDouble, &kGenericBf16, &kGenericHalf},
     &kGenericQuantized},
#if defined(__x86_64__)
    {"avx2", has_avx2, {&kAvx2Float, &kAvx2Double, &kAvx2Bf16, &kAvx2Half}, &kAvx2Quantized},
    {"avx512",
     has_avx512,
     {&kAvx512Float, &kAvx512Double, &kAvx512Bf16, &kAvx512Half},
     &kAvx512Quantized},
    {"avx512_vnni",
     has_avx512_vnni,
     {&kAvx512Float, &kAvx512Double, &kAvx512Bf16, &kAvx512Half},
     &kAvx512VnniQuantized},
#endif
};

const Target& find_target(const std::string& name) {
  std::string available;
  for (const Target& target : kTargets) {
    if (!target.supported()) continue;
    if (target.name == name) return target;
    available += (available.empty() ? "" : ", ") + std::string(target.name);
  }
  throw std::invalid_argument("FASTRNN_CPU_TARGET: expected one of " + available + ", got \"" +
                              name + "\"");
}

std::atomic<const Target*>& current() {
  static std::atomic<const Target*> target = [] {
    if (const char* forced = std::getenv("FASTRNN_CPU_TARGET")) {
      if (*forced) return &find_target(forced);
    }
    return &find_target(available_targets().back());
  }();
  return target;
}

}  // namespace

std::vector<std::string> available_targets() {
  std::vector<std::string> names;
  for (const Target& target : kTargets) {
    if (target.supported()) names.push_back(target.name);
  }
  return names;
}

std::string current_target() { return current().load()->name; }

std::string set_target(const std::string& name) {
  return current().exchange(&find_target(name))->name;
}

const Kernels& kernels(DType dtype) {
  return *current().load(std::memory_order_relaxed)->kernels[static_cast<int>(dtype)];
}

const QuantizedKernels& quantized_kernels() {
  return *current().load(std::memory_order_relaxed)->quantized;
}

}  // namespace fastrnn::cpu
