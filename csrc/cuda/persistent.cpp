// Regimes single, cluster and grid: the input product of all steps by torch, the weights in the
// order in which the kernel reads them, then one launch.
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/zeros.h>

#include "cuda/calls.h"
#include "cuda/device.h"

namespace fastrnn::cuda {
namespace {

template <size_t kCount>
size_t column_of(const int (&sizes)[kCount], const Plan& plan) {
  size_t i = 0;
  while (sizes[i] != plan.hidden) ++i;
  return i;
}

const TeamKernels& team_kernels(CellKind cell, const Plan& plan) {
  const TeamTable& table = team_table(cell, plan.numeric);
  const size_t column = column_of(kTeamHidden, plan);
  return plan.regime == Regime::kCluster ? table.clusters[column] : table.grids[column];
}

TeamSize team_size(const Plan& plan, int directions) {
  return {plan.blocks, plan.replicas, directions, plan.shared_bytes};
}

// What the blocks of a grid exchange their operands in. A cluster needs none.
struct TeamMemoryOnDevice {
  Team team;
  Tensor memory;
};

TeamMemoryOnDevice team_memory_on_device(const host::Layer& layer, Pass pass, const Plan& plan) {
  TeamMemoryOnDevice device{{plan.blocks, plan.row_tiles, nullptr, nullptr, wait_note()}, {}};
  if (plan.regime == Regime::kCluster) return device;
  const TeamTile tile =
      team_tile(static_cast<int>(layer.products()), pass, plan.numeric, plan.hidden);
  const int64_t row_tiles = layer.directions() * plan.replicas * plan.row_tiles;
  const int64_t counters = row_tiles * kCounterStride;
  // Zeroed in stream order, in every call and every replay of a graph: what an earlier launch left
  // in the counters would let blocks pass.
  device.memory =
      at::zeros({counters + row_tiles * 2 * kTeamRows * tile.words}, layer.options.dtype(at::kInt));
  int* const words = device.memory.mutable_data_ptr<int>();
  device.team.arrived = words;
  device.team.exchange = words + counters;
  return device;
}

// Fills in what both passes have; `packed` is the memory that both launches use.
template <class Params>
SinglePack fill(Params& p, const host::Layer& layer, const DeviceSteps& steps,
                const Tensor& packed) {
  TORCH_CHECK(layer.shape.steps.seq_len <= INT32_MAX, layer.op, ": expected fewer than 2^31 steps");
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
  const int gates = static_cast<int>(layer.products());
  const size_t bytes = plan.regime == Regime::kSingle
                           ? single_tile(gates, pass, plan.numeric, plan.hidden).packed_bytes
                           : team_tile(gates, pass, plan.numeric, plan.hidden).packed_bytes *
                                 static_cast<size_t>(plan.blocks);
  return at::empty({layer.directions(), static_cast<int64_t>(bytes)},
                   layer.options.dtype(at::kByte));
}

// What resets to the initial state add to d_h0 through the recurrent product, which the kernels
// leave out: the sum of the gates' gradients of all steps behind a reset, times w_hh.
void add_through_products(const host::Layer& layer, const host::GateGradients& r) {
  const Steps& steps = layer.shape.steps;
  const int64_t H = layer.shape.hidden_size, others = steps.seq_len - 1;
  if (others == 0) return;
  const Tensor others_stay = layer.resets->narrow(0, 1, others).unsqueeze(2).logical_not();
  for (int d = 0; d < layer.shape.directions; ++d) {
    const Tensor all = r.d_gates.select(0, d).view({steps.seq_len, steps.batch, -1});
    const Tensor behind = all.narrow(0, d == 0 ? 1 : 0, others);
    // Filled, not multiplied: what is not finite elsewhere in the sequence stays there.
    Tensor sum = at::sum(behind.masked_fill(others_stay, 0), {0}, false, at::kFloat);
    if (layer.cell().apart()) {
      const int64_t GH = layer.products() * H;
      sum = at::cat({sum.narrow(1, 0, GH - H), sum.narrow(1, GH, H)}, 1);
    }
    r.d_h0.select(0, d).add_(at::mm(sum, layer.params_of(d)[1].to(at::kFloat)));
  }
}

// Whether the layer ran: not so where the device, shared as it is, has no room for the grid.
bool launched(const host::Layer& layer, const char* error) {
  if (error == kDoesNotFit) return false;
  check_launch(layer.op, error);
  return true;
}

}  // namespace

std::string said_of_waits() {
  const volatile uint32_t* note = nullptr;
  try {
    note = wait_note();
  } catch (const c10::Error&) {
    return "";  // no kernel that could wait was ever started, and now nothing can be any more
  }
  for (const bool cluster : {false, true}) {
    for (const bool forward : {false, true}) {
      if (*note != wait_code(cluster, forward)) continue;
      return std::string("; before that, a wait between blocks of the ") +
             (forward ? "forward" : "backward") + " kernel of the " +
             name_of(cluster ? Regime::kCluster : Regime::kGrid) +
             " regime ran out (a fault of fastrnn's or of the device's, please report it)";
    }
  }
  return "";
}

int64_t team_capacity(const host::Layer& layer, Pass pass, const Plan& plan) {
  return team_kernels(layer.shape.cell, plan)
      .capacity[static_cast<int>(pass)](team_size(plan, layer.shape.directions));
}

bool forward_persistent(const ForwardCall& call, const Plan& plan, Stream stream) {
  const host::Layer& layer = call.layer;
  const int64_t D = layer.directions(), GH = layer.products() * layer.shape.hidden_size;
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
  p.h0 = host::data(layer.h0);
  p.c0 = host::data(layer.c0);
  p.output = r.output.mutable_data_ptr();
  p.h_n = r.h_n.mutable_data_ptr();
  if (layer.has_c()) p.c_n = r.c_n.mutable_data_ptr();
  if (call.save) {
    if (r.gates.defined()) p.gates = r.gates.mutable_data_ptr();
    p.hidden = r.hidden.mutable_data_ptr();
    if (layer.has_c()) p.cells = r.cells.mutable_data_ptr();
  }
  if (plan.regime == Regime::kSingle) {
    const SingleKernels& kernels = single_kernels(layer.shape.cell, plan.numeric);
    return launched(layer, kernels.forward[column_of(kSingleHidden, plan)](pack, p, stream));
  }
  const TeamMemoryOnDevice device = team_memory_on_device(layer, Pass::kForward, plan);
  return launched(
      layer, team_kernels(layer.shape.cell, plan)
                 .forward(pack, {p, device.team}, team_size(plan, layer.shape.directions), stream));
}

bool backward_persistent(const BackwardCall& call, const Plan& plan, Stream stream) {
  const host::Layer& layer = call.layer;
  const DeviceSteps steps = upload_steps(layer, stream);
  const host::GateGradients& r = call.result;
  const Tensor packed = packed_memory(layer, Pass::kBackward, plan);
  SingleBackward p{};
  const SinglePack pack = fill(p, layer, steps, packed);
  p.d_output = host::data(call.d_output);
  p.d_h_n = host::data(call.d_h_n);
  p.d_c_n = host::data(call.d_c_n);
  p.h0 = host::data(layer.h0);
  p.c0 = host::data(layer.c0);
  p.gates = host::data(layer.gates);
  (layer.has_c() ? p.cells : p.hidden) = host::data(saved_state(layer));
  p.d_gates = r.d_gates.mutable_data_ptr();
  p.d_h0 = r.d_h0.mutable_data_ptr();
  if (layer.has_c()) p.d_c0 = r.d_c0.mutable_data_ptr();
  Tensor of_resets;  // what they add to d_h0 and d_c0 past the product
  if (layer.shape.steps.resets != nullptr && layer.shape.steps.to_initial) {
    of_resets = at::zeros({2, r.d_h0.numel()}, layer.options.dtype(at::kFloat));
    p.reset_d_h = of_resets.mutable_data_ptr<float>();
    if (layer.has_c()) p.reset_d_c = p.reset_d_h + r.d_h0.numel();
  }
  const auto run = [&] {
    if (plan.regime == Regime::kSingle) {
      const SingleKernels& kernels = single_kernels(layer.shape.cell, plan.numeric);
      return launched(layer, kernels.backward[column_of(kSingleHidden, plan)](pack, p, stream));
    }
    const TeamMemoryOnDevice device = team_memory_on_device(layer, Pass::kBackward, plan);
    return launched(layer, team_kernels(layer.shape.cell, plan)
                               .backward(pack, {p, device.team},
                                         team_size(plan, layer.shape.directions), stream));
  };
  if (!run()) return false;
  if (of_resets.defined()) add_through_products(layer, r);
  return true;
}

}  // namespace fastrnn::cuda
