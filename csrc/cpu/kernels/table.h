// The last header of a target file: instantiates the recurrences for one dtype
// and puts them behind one table.
#pragma once
#include "cpu/kernels/drop.h"
#include "cpu/kernels/forward.h"
#include "cpu/kernels/tangent.h"
#include "cpu/kernels/vjp.h"

namespace fastrnn::cpu {
namespace {

// What the cell of a kind does: Steps<Cell, S>::steps() of that cell.
template <template <class, class> class Steps, class S>
const auto& steps_of(CellKind kind) {
  using Table = decltype(Steps<cells::Lstm, S>::steps());
  return *cells::All::visit(kind, [](auto cell) -> const Table* {
    static constexpr Table kSteps = Steps<decltype(cell), S>::steps();
    return &kSteps;
  });
}

// f(integral_constant) of the number of a cell's products.
template <int G = 1, class F>
auto with_products(int products, F&& f) {
  if constexpr (!cells::All::any(G)) {
    return with_products<G + 1>(products, f);
  } else {
    if constexpr (G < cells::All::kMostProducts) {
      if (products != G) return with_products<G + 1>(products, f);
    }
    return f(std::integral_constant<int, G>{});
  }
}

// f(pass): one that runs, or, without a workspace, that only counts its bytes.
template <class S, class F>
auto with_pass(const ForwardParams& p, int threads, void* workspace, F&& f) {
  return with_products(cells::traits(p.shape.cell).products, [&](auto products) {
    return f(
        Forward<products(), S>(p, steps_of<ForwardCells, S>(p.shape.cell), threads, workspace));
  });
}
template <class S, class F>
auto with_pass(const TangentParams& p, int threads, void* workspace, F&& f) {
  return with_products(cells::traits(p.shape.cell).products, [&](auto products) {
    return f(
        Tangent<products(), S>(p, steps_of<TangentCells, S>(p.shape.cell), threads, workspace));
  });
}
template <class S, class F>
auto with_pass(const BackwardParams& p, int threads, void* workspace, F&& f) {
  return f(Backward<S>(p, steps_of<BackwardCells, S>(p.shape.cell), threads, workspace));
}
template <class S, class F>
auto with_pass(const VjpParams& p, int threads, void* workspace, F&& f) {
  return f(Vjp<S>(p, steps_of<BackwardCells, S>(p.backward.shape.cell), threads, workspace));
}
template <class S, class F>
auto with_pass(const ProductParams& p, int threads, void* workspace, F&& f) {
  return f(Products<S>(p, threads, workspace));
}
template <class S, class F>
auto with_pass(const DropParams& p, int threads, void* workspace, F&& f) {
  return f(Drop<S>(p, threads, workspace));
}

template <class Params, class S>
size_t workspace_bytes(const Params& p, int threads) {
  return with_pass<S>(p, threads, nullptr, [](const auto& pass) { return pass.bytes(); });
}
template <class Params, class S>
void run(const Params& p, const Worker& worker) {
  with_pass<S>(p, worker.threads, p.workspace, [&](auto&& pass) { pass.run(worker); });
}

template <class S>
constexpr Kernels make_kernels() {
  return {workspace_bytes<ForwardParams, S>,  run<ForwardParams, S>,
          workspace_bytes<BackwardParams, S>, run<BackwardParams, S>,
          workspace_bytes<ProductParams, S>,  run<ProductParams, S>,
          workspace_bytes<VjpParams, S>,      run<VjpParams, S>,
          workspace_bytes<TangentParams, S>,  run<TangentParams, S>,
          workspace_bytes<DropParams, S>,     run<DropParams, S>};
}

}  // namespace
}  // namespace fastrnn::cpu
