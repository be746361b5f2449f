// The last header of a target file: instantiates the recurrences for one dtype
// and puts them behind one table.
#pragma once
#include "cpu/kernels/drop.h"
#include "cpu/kernels/forward.h"
#include "cpu/kernels/tangent.h"
#include "cpu/kernels/vjp.h"

namespace fastrnn::cpu {
namespace {

template <class S>
constexpr Kernels make_kernels() {
  return {
      [](const ForwardParams& p, int threads) {
        return cells::All::visit(p.shape.cell, [&](auto cell) {
          return Forward<decltype(cell), S>::workspace_bytes(p, threads);
        });
      },
      [](const ForwardParams& p, const Worker& worker) {
        cells::All::visit(p.shape.cell,
                          [&](auto cell) { Forward<decltype(cell), S>::run(p, worker); });
      },
      [](const BackwardParams& p, int threads) {
        return cells::All::visit(p.shape.cell, [&](auto cell) {
          return Backward<decltype(cell), S>::workspace_bytes(p, threads);
        });
      },
      [](const BackwardParams& p, const Worker& worker) {
        cells::All::visit(p.shape.cell,
                          [&](auto cell) { Backward<decltype(cell), S>::run(p, worker); });
      },
      [](const ProductParams& p, int threads) { return Products<S>::workspace_bytes(p, threads); },
      [](const ProductParams& p, const Worker& worker) { Products<S>::run(p, worker); },
      [](const VjpParams& p, int threads) {
        return cells::All::visit(p.backward.shape.cell, [&](auto cell) {
          return Vjp<decltype(cell), S>::workspace_bytes(p, threads);
        });
      },
      [](const VjpParams& p, const Worker& worker) {
        cells::All::visit(p.backward.shape.cell,
                          [&](auto cell) { Vjp<decltype(cell), S>::run(p, worker); });
      },
      [](const TangentParams& p, int threads) {
        return cells::All::visit(p.shape.cell, [&](auto cell) {
          return Tangent<decltype(cell), S>::workspace_bytes(p, threads);
        });
      },
      [](const TangentParams& p, const Worker& worker) {
        cells::All::visit(p.shape.cell,
                          [&](auto cell) { Tangent<decltype(cell), S>::run(p, worker); });
      },
      [](const DropParams& p, int threads) { return Drop<S>::workspace_bytes(p, threads); },
      [](const DropParams& p, const Worker& worker) { Drop<S>::run(p, worker); },
  };
}

}  // namespace
}  // namespace fastrnn::cpu
