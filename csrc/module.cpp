// The Python module fastrnn._C. Importing it loads the operators (ops.cpp).
#include <torch/extension.h>

#include "cpu/dispatch.h"

#ifndef FASTRNN_BUILD_CUDA
#define FASTRNN_BUILD_CUDA "unknown"
#endif
#ifndef FASTRNN_BUILD_FLAGS
#define FASTRNN_BUILD_FLAGS "unknown"
#endif
#if defined(__clang__)
#define FASTRNN_COMPILER "clang " __clang_version__
#else
#define FASTRNN_COMPILER "gcc " __VERSION__
#endif

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  namespace cpu = fastrnn::cpu;
  cpu::current_target();  // a wrong FASTRNN_CPU_TARGET fails the import, not a later call
  m.def("cpu_targets", &cpu::available_targets,
        "Names of the CPU targets this machine can run, the fastest last.");
  m.def("cpu_target", &cpu::current_target, "Name of the CPU target in use.");
  m.def("set_cpu_target", &cpu::set_target, pybind11::arg("name"),
        "Selects a CPU target and returns the name of the one used before; for tests.");
  m.def(
      "build_info",
      [] {
        return std::map<std::string, std::string>{
            {"compiler", FASTRNN_COMPILER},
            {"flags", FASTRNN_BUILD_FLAGS},
            {"torch", TORCH_VERSION},
            {"cuda", FASTRNN_BUILD_CUDA},
        };
      },
      "How this module was built: compiler, flags, torch, and whether with CUDA.");
}
