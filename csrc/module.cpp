// The Python module fastrnn._C. Importing it loads the operators (ops.cpp).
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/version.h>

#include "cpu/dispatch.h"
#include "cuda/plan.h"
#include "direct.h"
#include "host/layer.h"

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

namespace {

namespace cells = fastrnn::cells;
namespace cuda = fastrnn::cuda;

// The members of cuda::DeviceLimits, in order.
using LimitsTuple = std::tuple<int, int, size_t, int64_t, int64_t, int64_t>;

template <class Value>
Value one_of(const char* what, const std::string& name, const std::map<std::string, Value>& all) {
  const auto found = all.find(name);
  if (found == all.end()) throw pybind11::value_error(std::string(what) + ": got " + name);
  return found->second;
}

fastrnn::CellKind cell_of(const std::string& name) {
  const auto kind = fastrnn::host::find_cell(name);
  if (!kind) throw pybind11::value_error("cell: got " + name);
  return *kind;
}

// (name, products, columns, states, vectors, carries_h, keeps_h) of every cell.
std::vector<std::tuple<std::string, int, int, int, int, bool, bool>> all_cells() {
  std::vector<std::tuple<std::string, int, int, int, int, bool, bool>> all;
  for (const cells::Traits& c : cells::All::kTraits) {
    all.emplace_back(c.name, c.products, c.columns, c.states, c.vectors, c.carries_h, c.keeps_h);
  }
  return all;
}

// What the params of one direction are, in order.
std::vector<std::string> params(const std::string& cell, const std::string& norm, bool biases,
                                bool projected) {
  using fastrnn::Norm;
  const Norm kind = one_of<Norm>(
      "norm", norm,
      {{"none", Norm::kNone}, {"recurrent", Norm::kRecurrent}, {"joint", Norm::kJoint}});
  const fastrnn::host::ParamList list(kind, cells::traits(cell_of(cell)), biases, projected);
  std::vector<std::string> names;
  for (size_t i = 0; i < list.count; ++i) {
    names.emplace_back(fastrnn::host::name_of(list.each[i]));
  }
  return names;
}

pybind11::dict cuda_plan(const std::string& cell, bool backward, const std::string& dtype,
                         bool tf32, int64_t hidden_size, int64_t batch, int directions,
                         bool projected, int64_t seq_len, const LimitsTuple& limits) {
  using fastrnn::DType;
  const cuda::Problem problem{cell_of(cell),
                              backward ? cuda::Pass::kBackward : cuda::Pass::kForward,
                              one_of<DType>("dtype", dtype,
                                            {{"float32", DType::kFloat},
                                             {"float64", DType::kDouble},
                                             {"bfloat16", DType::kBFloat16},
                                             {"float16", DType::kHalf}}),
                              tf32,
                              hidden_size,
                              batch,
                              directions,
                              projected,
                              seq_len};
  const auto [capability, multiprocessors, shared_bytes, blocks, clusters_of_8, clusters_of_16] =
      limits;
  const cuda::DeviceLimits device{capability,
                                  multiprocessors,
                                  shared_bytes,
                                  cuda::cooperative_ruled_out() ? 0 : blocks,
                                  {clusters_of_8, clusters_of_16}};
  const cuda::Plan plan = cuda::make_plan(problem, device, cuda::forced_regime());
  pybind11::dict result;
  result["regime"] = cuda::name_of(plan.regime);
  result["hidden"] = plan.hidden;
  result["rows"] = plan.rows;
  result["threads"] = plan.threads;
  result["replicas"] = plan.replicas;
  result["shared_bytes"] = plan.shared_bytes;
  result["blocks"] = plan.blocks;
  result["row_tiles"] = plan.row_tiles;
  result["step_us"] = plan.step_us;
  result["start_us"] = plan.start_us;
  result["text"] = cuda::describe(plan);
  return result;
}

std::map<std::string, LimitsTuple> cuda_devices() {
  std::map<std::string, LimitsTuple> devices;
  for (const auto& [name, limits] : cuda::known_devices()) {
    devices[name] = {limits.capability,         limits.multiprocessors, limits.shared_bytes,
                     limits.cooperative_blocks, limits.clusters[0],     limits.clusters[1]};
  }
  return devices;
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  namespace cpu = fastrnn::cpu;
  cpu::current_target();  // a wrong FASTRNN_CPU_TARGET fails the import, not a later call
  m.def("cpu_targets", &cpu::available_targets,
        "Names of the CPU targets this machine can run, the fastest last.");
  m.def("cpu_target", &cpu::current_target, "Name of the CPU target in use.");
  m.def("set_cpu_target", &cpu::set_target, pybind11::arg("name"),
        "Selects a CPU target and returns the name of the one used before; for tests.");
  m.def("cells", &all_cells,
        "Every cell: (name, products, columns, states, vectors, carries_h, keeps_h), as "
        "csrc/cells/cell.h says what they are.");
  if (!fastrnn::add_direct(m.ptr())) throw pybind11::error_already_set();
  using pybind11::arg;
  m.def("params", &params, arg("cell"), arg("norm"), arg("biases"), arg("projected"),
        "What the params of one direction of a layer are, in order.");
  m.def("cuda_plan", &cuda_plan, arg("cell"), arg("backward"), arg("dtype"), arg("tf32"),
        arg("hidden_size"), arg("batch"), arg("directions"), arg("projected"), arg("seq_len"),
        arg("limits"), "What the CUDA engine would do on a device of these limits; needs no GPU.");
  m.def("cuda_devices", &cuda_devices,
        "Devices to plan for: name to (capability, multiprocessors, shared_bytes, blocks of a "
        "cooperative grid, clusters of 8, clusters of 16).");
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
