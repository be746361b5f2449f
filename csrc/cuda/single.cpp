// Regime S: the input product of all steps by torch, then one launch.
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>

#include "cuda/calls.h"

namespace fastrnn::cuda {
namespace {

size_t column_of(const Plan& plan) {
  size_t i = 0;
  while (kSingleHidden[i] != plan.hidden) ++i;
  return i;
}

// Fills in what both passes have; `packed` is the memory that both launches use.
template <class Params>
SinglePack fill(Params& p, const host::Layer& layer, const DeviceSteps& steps,
                const Tensor& packed) {
  TORCH_CHECK(layer.shape.steps.seq_len <= INT32_MAX, layer.op, ": expected fewer than 2^31 steps");
  p.cell = layer.shape.cell;
  p.steps = steps.steps;
  p.hidden_size = layer.shape.hidden_size;
  p.directions = layer.shape.directions;
  p.packed = host::data(packed);
  SinglePack pack{};
  pack.hidden_size = layer.shape.hidden_size;
  pack.packed = packed.mutable_data_ptr();
  for (int d = 0; d < p.directions; ++d) pack.w_hh[d] = host::data(layer.params_of(d)[1]);
  return pack;
}

Tensor packed_memory(const host::Layer& layer, Pass pass, const Plan& plan) {
  const SingleTile tile =
      single_tile(static_cast<int>(layer.gates()), pass, plan.numeric, plan.hidden);
  return at::empty({layer.directions(), static_cast<int64_t>(tile.packed_bytes)},
                   layer.options.dtype(at::kByte));
}

}  // namespace

void forward_single(const ForwardCall& call, const Plan& plan, Stream stream) {
  const host::Layer& layer = call.layer;
  const int64_t D = layer.directions(), GH = layer.gates() * layer.shape.hidden_size;
  Tensor input_product = at::empty({D, layer.rows(), GH}, layer.options);
  for (int d = 0; d < D; ++d) {
    Tensor target = input_product.select(0, d);
    at::mm_out(target, call.input, layer.params_of(d)[0].t());
  }
  const DeviceSteps steps = upload_steps(layer, stream);
  const host::ForwardResult& r = call.result;
  const Tensor packed = packed_memory(layer, Pass::kForward, plan);
  SingleForward p{};
  const SinglePack pack = fill(p, layer, steps, packed);
  for (int d = 0; d < D && layer.has_biases; ++d) {
    p.b_ih[d] = host::data(layer.params_of(d)[2]);
    p.b_hh[d] = host::data(layer.params_of(d)[3]);
  }
  p.input_product = host::data(input_product);
  p.h0 = host::data(call.h0);
  p.c0 = host::data(call.c0);
  p.output = r.output.mutable_data_ptr();
  p.h_n = r.h_n.mutable_data_ptr();
  if (layer.lstm()) p.c_n = r.c_n.mutable_data_ptr();
  if (call.save) {
    if (r.gates.defined()) p.gates = r.gates.mutable_data_ptr();
    p.hidden = r.hidden.mutable_data_ptr();
    if (layer.lstm()) p.cells = r.cells.mutable_data_ptr();
  }
  const SingleKernels& kernels = single_kernels(p.cell, plan.numeric);
  check_launch(layer.op, kernels.forward[column_of(plan)](pack, p, stream));
}

void backward_single(const BackwardCall& call, const Plan& plan, Stream stream) {
  const host::Layer& layer = call.layer;
  const DeviceSteps steps = upload_steps(layer, stream);
  const host::BackwardResult& r = call.result;
  const Tensor packed = packed_memory(layer, Pass::kBackward, plan);
  SingleBackward p{};
  const SinglePack pack = fill(p, layer, steps, packed);
  p.d_output = host::data(call.d_output);
  p.d_h_n = host::data(call.d_h_n);
  p.d_c_n = host::data(call.d_c_n);
  p.h0 = host::data(call.h0);
  p.c0 = host::data(call.c0);
  p.gates = host::data(call.gates);
  (layer.lstm() ? p.cells : p.hidden) = host::data(call.saved);
  p.d_gates = r.d_gates.mutable_data_ptr();
  p.d_h0 = r.d_h0.mutable_data_ptr();
  if (layer.lstm()) p.d_c0 = r.d_c0.mutable_data_ptr();
  const SingleKernels& kernels = single_kernels(p.cell, plan.numeric);
  check_launch(layer.op, kernels.backward[column_of(plan)](pack, p, stream));
}

}  // namespace fastrnn::cuda
