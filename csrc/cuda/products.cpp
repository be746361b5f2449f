// The products of the CUDA engine: torch's products and sums over all steps at once. Each
// gradient is one product, so that it is accumulated in the matrix product's
// own precision and rounded once.
#include "cuda/host.h"

#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/sum.h>

#include "cuda/calls.h"
#include "cuda/device.h"

namespace fastrnn::cuda {
namespace {

// [N, P]: the h that each row's step started from, of one direction.
Tensor previous_hidden(const host::Layer& layer, const DeviceSteps& steps, const Tensor& hidden,
                       const OptionalTensor& h0, int64_t d, Stream stream) {
  Tensor previous = at::empty({layer.rows(), layer.shape.proj_size}, layer.options);
  const Tensor from = hidden.select(0, d);
  const OptionalTensor start = h0 ? OptionalTensor(h0->select(0, d)) : std::nullopt;
  const PreviousHidden p{steps.steps,           d == 1,
                         layer.shape.proj_size, host::data(from),
                         host::data(start),     previous.mutable_data_ptr()};
  check_launch(layer.op, step_kernels(layer.shape.dtype).previous_hidden(p, stream));
  return previous;
}

}  // namespace

DeviceSteps upload_steps(const host::Layer& layer, Stream stream) {
  const Steps& steps = layer.shape.steps;
  if (steps.counts == nullptr) return {steps, {}};
  const int64_t T = steps.seq_len;
  DeviceSteps device{steps, at::empty({2, T}, layer.options.dtype(at::kLong))};
  int64_t* const memory = device.memory.mutable_data_ptr<int64_t>();
  device.steps.counts = memory;
  device.steps.offsets = memory + T;
  for (int64_t i = 0; i < 2 * T; i += Upload::kValues) {
    Upload piece{};
    piece.count = static_cast<int>(std::min<int64_t>(Upload::kValues, 2 * T - i));
    piece.target = memory + i;
    for (int k = 0; k < piece.count; ++k) {
      piece.values[k] = i + k < T ? steps.counts[i + k] : steps.offsets[i + k - T];
    }
    check_launch(layer.op, upload(piece, stream));
  }
  return device;
}

host::Products Engine::products(const host::ProductsCall& call) {
  const host::Layer& layer = call.layer;
  const LayerShape& shape = layer.shape;
  const int64_t D = layer.directions(), N = layer.rows(), I = shape.input_size, P = shape.proj_size,
                GH = shape.hidden_size, apart = call.apart;
  const Stream stream = current_stream();

  host::Products result;
  auto& [d_input, d_params] = result;
  d_input = at::empty(call.w_ih.empty() ? at::DimVector{0} : at::DimVector{N, I}, layer.options);
  DeviceSteps steps;
  for (int64_t d = 0; d < D; ++d) {
    const Tensor all = call.d_gates.select(0, d);
    const Tensor of_input = all.narrow(1, 0, GH);
    if (!call.w_ih.empty() && N > 0) {
      const Tensor& weight = call.w_ih[static_cast<size_t>(d)];
      d == 0 ? at::mm_out(d_input, of_input, weight)
             : at::addmm_out(d_input, d_input, of_input, weight);
    }
    const at::DimVector sizes[] = {{GH, I}, {GH, P}, {GH}, {GH}};
    for (int k = 0; k < 4; ++k) {
      const bool want = call.wanted.get(static_cast<size_t>(4 * d + k));
      Tensor target = at::empty(want ? sizes[k] : at::DimVector{0}, layer.options);
      d_params.push_back(target);
      if (!want) continue;
      if (N == 0) {
        target.zero_();
        continue;
      }
      // Of recurrent products the last may be apart.
      const int64_t together = k % 2 == 1 ? GH - apart : GH;
      const auto parts = [&](auto product) {
        Tensor part = target.narrow(0, 0, together);
        product(part, all.narrow(1, 0, together));
        if (together == GH) return;
        part = target.narrow(0, together, apart);
        product(part, all.narrow(1, GH, apart));
      };
      if (k == 0) {
        at::mm_out(target, of_input.t(), *call.input);
      } else if (k == 1) {
        if (!steps.memory.defined()) steps = upload_steps(layer, stream);
        const Tensor before = previous_hidden(layer, steps, *call.hidden, call.h0, d, stream);
        parts([&](Tensor& part, const Tensor& d_part) { at::mm_out(part, d_part.t(), before); });
      } else {
        parts([&](Tensor& part, const Tensor& d_part) { at::sum_out(part, d_part, {0}); });
      }
    }
  }
  return result;
}

}  // namespace fastrnn::cuda
