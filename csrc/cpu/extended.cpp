// The CPU operators of the extended recurrence: layer normalisation, zoneout, recurrent dropout;
// and of weights with elements dropped.
#include <torch/library.h>

#include "cpu/layer.h"

namespace fastrnn::cpu {
namespace {

// One layer as the arguments that both operators have describe it.
struct Extended {
  Layer layer;
  ExtendedOptions options{};
  std::vector<Tensor> keep;  // what the pointers point into

  explicit Extended(Layer&& of) : layer(std::move(of)) {}

  const void* pointer(const OptionalTensor& t, const char* name, at::IntArrayRef size) {
    if (!t) return nullptr;
    layer.check(*t, name, size);
    keep.push_back(t->contiguous());
    return data(keep.back());
  }
  int64_t D() const { return layer.directions(); }
  int64_t N() const { return layer.rows(); }
  int64_t B() const { return layer.batch(); }
  int64_t H() const { return layer.shape.hidden_size; }
  int64_t GH() const { return layer.products() * H(); }
  int64_t saved() const { return layer.columns() * H(); }
  bool has_c() const { return layer.has_c(); }
  bool normalises() const { return options.norm != Norm::kNone; }
  // Whether the gradients of gates_x and of the product are two.
  bool apart() const {
    return options.norm == Norm::kRecurrent || (layer.cell().apart() && !normalises());
  }
  at::TensorOptions compute_options() const {
    return layer.shape.dtype == DType::kDouble ? layer.options : layer.options.dtype(at::kFloat);
  }
  const void* statistics(const Tensor& t, const char* name, at::IntArrayRef size) {
    TORCH_CHECK(t.device().is_cpu() && t.dtype() == compute_options().dtype() && t.sizes() == size,
                layer.op, ": expected ", name, " of shape ", size, ", got ", t.sizes(), " ",
                t.scalar_type());
    keep.push_back(t.contiguous());
    return data(keep.back());
  }
};

uint64_t seed_of(const char* op, const Tensor& seed) {
  TORCH_CHECK(seed.device().is_cpu() && seed.scalar_type() == at::kLong && seed.numel() == 1, op,
              ": expected seed as one int64 on cpu, got ", seed.sizes(), " ", seed.scalar_type());
  return static_cast<uint64_t>(*seed.const_data_ptr<int64_t>());
}

Extended read(const char* op, c10::string_view cell, c10::string_view norm, const Tensor& like,
              const OptionalTensor& batch_sizes, const c10::SymInt& batch, const Tensor& w_hh,
              const OptionalTensor& gain_x, const OptionalTensor& gain,
              const OptionalTensor& cell_gain, const OptionalTensor& cell_bias,
              const OptionalTensor& h_scale, const OptionalTensor& seed, int64_t layer_index,
              at::ArrayRef<double> rates, double eps) {
  TORCH_CHECK(norm == "none" || norm == "recurrent" || norm == "joint", op,
              ": expected norm none, recurrent or joint, got ", norm);
  TORCH_CHECK(like.dim() == 3 && (like.size(0) == 1 || like.size(0) == 2), op,
              ": expected tensors of shape (directions, rows, values), got ", like.sizes());
  const int64_t D = like.size(0), N = like.size(1), B = batch.expect_int();
  Extended e(Layer(op, like, host::cell_kind(op, cell), static_cast<int>(D)));
  LayerShape& shape = e.layer.shape;
  const int64_t G = e.layer.products();
  TORCH_CHECK(w_hh.dim() == 3 && w_hh.size(2) > 0 && w_hh.size(1) == G * w_hh.size(2), op,
              ": expected w_hh of shape (directions, ", G, "*hidden_size, hidden_size), got ",
              w_hh.sizes());
  shape.hidden_size = shape.proj_size = w_hh.size(2);
  shape.input_size = 1;  // the input takes no part
  e.layer.set_steps(batch_sizes, N, B);
  const int64_t H = e.H(), GH = e.GH();
  TORCH_CHECK(rates.size() == 3, op, ": expected rates of zoneout of c, zoneout of h and dropout, ",
              "got ", rates.size());
  for (const double rate : rates) {
    TORCH_CHECK(rate >= 0 && rate < 1, op, ": expected rates in [0, 1), got ", rate);
  }
  TORCH_CHECK(layer_index >= 0, op, ": expected layer >= 0, got ", layer_index);
  ExtendedOptions& o = e.options;
  o.norm = norm == "none" ? Norm::kNone : norm == "recurrent" ? Norm::kRecurrent : Norm::kJoint;
  TORCH_CHECK(gain.has_value() == e.normalises(), op, ": expected gain with normalisation alone");
  TORCH_CHECK(gain_x.has_value() == (o.norm == Norm::kRecurrent), op,
              ": expected gain_x with norm recurrent alone");
  TORCH_CHECK(cell_gain.has_value() == cell_bias.has_value() && (e.has_c() || !cell_gain), op,
              ": expected cell_gain and cell_bias together, of an lstm");
  o.w_hh = e.pointer(w_hh, "w_hh", {D, GH, H});
  o.gain_x = e.pointer(gain_x, "gain_x", {D, GH});
  o.gain = e.pointer(gain, "gain", {D, GH});
  o.cell_gain = e.pointer(cell_gain, "cell_gain", {D, H});
  o.cell_bias = e.pointer(cell_bias, "cell_bias", {D, H});
  o.h_scale = e.pointer(h_scale, "h_scale", {D, B, H});
  o.eps = eps;
  o.random = seed.has_value();
  if (seed) o.seed = seed_of(op, *seed);
  o.layer = layer_index;
  o.zoneout_c = rates[0];
  o.zoneout_h = rates[1];
  o.dropout = rates[2];
  return e;
}

using Forward = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;
using Backward =
    std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Forward extended_forward(c10::string_view cell, c10::string_view norm, const Tensor& gates_x,
                         const OptionalTensor& batch_sizes, c10::SymInt batch,
                         const OptionalTensor& h0, const OptionalTensor& c0, const Tensor& w_hh,
                         const OptionalTensor& gain_x, const OptionalTensor& bias_x,
                         const OptionalTensor& bias, const OptionalTensor& gain,
                         const OptionalTensor& cell_gain, const OptionalTensor& cell_bias,
                         const OptionalTensor& h_scale, const OptionalTensor& seed,
                         int64_t layer_index, at::ArrayRef<double> rates, double eps, bool save) {
  Extended e = read("extended_forward", cell, norm, gates_x, batch_sizes, batch, w_hh, gain_x, gain,
                    cell_gain, cell_bias, h_scale, seed, layer_index, rates, eps);
  const Layer& layer = e.layer;
  const int64_t D = e.D(), N = e.N(), B = e.B(), H = e.H(), GH = e.GH();
  TORCH_CHECK(gain_x || !bias_x, "extended_forward: expected bias_x with gain_x alone");
  e.options.bias_x = e.pointer(bias_x, "bias_x", {D, GH});
  e.options.bias = e.pointer(bias, "bias", {D, GH});
  ExtendedForwardParams p{};
  p.gates_x = e.pointer(gates_x, "gates_x", {D, N, GH});
  p.h0 = e.pointer(h0, "h0", {D, B, H});
  p.c0 = e.has_c() ? e.pointer(c0, "c0", {D, B, H}) : nullptr;

  const auto saved = [&](at::IntArrayRef size, bool exists = true) {
    return save && exists ? empty(layer, size) : empty(layer, {0});
  };
  Tensor output = empty(layer, {N, D * H}), h_n = empty(layer, {D, B, H});
  Tensor c_n = empty(layer, e.has_c() ? at::DimVector{D, B, H} : at::DimVector{0});
  Tensor gates = saved({D, N, e.saved()}), hidden = saved({D, N, H});
  Tensor cells = saved({D, N, H}, e.has_c()), normed = saved({D, N, GH}, e.normalises());
  const auto statistics = [&](at::IntArrayRef size, bool exists) {
    return empty(save && exists ? size : at::IntArrayRef({0}), e.compute_options());
  };
  Tensor rstd = statistics({D, N}, e.normalises());
  Tensor moments_x = statistics({D, N, 2}, gain_x.has_value());
  if (N == 0) {
    h0 ? h_n.copy_(*h0) : h_n.zero_();
    if (e.has_c()) c0 ? c_n.copy_(*c0) : c_n.zero_();
    return {output, h_n, c_n, gates, hidden, cells, normed, rstd, moments_x};
  }
  p.shape = layer.shape;
  p.options = e.options;
  p.output = output.mutable_data_ptr();
  p.h_n = h_n.mutable_data_ptr();
  if (e.has_c()) p.c_n = c_n.mutable_data_ptr();
  if (save) {
    p.gates = gates.mutable_data_ptr();
    p.hidden = hidden.mutable_data_ptr();
    if (e.has_c()) p.cells = cells.mutable_data_ptr();
    if (e.normalises()) {
      p.normed = normed.mutable_data_ptr();
      p.rstd = rstd.mutable_data_ptr();
    }
    if (gain_x) p.moments_x = moments_x.mutable_data_ptr();
  }
  const Kernels& k = kernels(layer.shape.dtype);
  run(layer, p, 0, k.extended_forward_workspace, k.extended_forward);
  return {output, h_n, c_n, gates, hidden, cells, normed, rstd, moments_x};
}

Backward extended_backward(
    c10::string_view cell, c10::string_view norm, const OptionalTensor& d_output,
    const OptionalTensor& d_h_n, const OptionalTensor& d_c_n, const OptionalTensor& d_cells,
    const OptionalTensor& batch_sizes, c10::SymInt batch, const OptionalTensor& h0,
    const OptionalTensor& c0, const OptionalTensor& gates_x, const Tensor& gates,
    const Tensor& hidden, const Tensor& cells, const Tensor& normed, const Tensor& rstd,
    const Tensor& moments_x, const Tensor& w_hh, const OptionalTensor& gain_x, bool has_bias_x,
    bool has_bias, const OptionalTensor& gain, const OptionalTensor& cell_gain,
    const OptionalTensor& cell_bias, const OptionalTensor& h_scale, const OptionalTensor& seed,
    int64_t layer_index, at::ArrayRef<double> rates, double eps) {
  Extended e = read("extended_backward", cell, norm, gates, batch_sizes, batch, w_hh, gain_x, gain,
                    cell_gain, cell_bias, h_scale, seed, layer_index, rates, eps);
  const Layer& layer = e.layer;
  const int64_t D = e.D(), N = e.N(), B = e.B(), H = e.H(), GH = e.GH();
  ExtendedBackwardParams p{};
  p.gates = e.pointer(gates, "gates", {D, N, e.saved()});
  p.hidden = layer.cell().carries_h ? e.pointer(hidden, "hidden", {D, N, H}) : nullptr;
  p.cells = e.has_c() ? e.pointer(cells, "cells", {D, N, H}) : nullptr;
  if (e.normalises()) {
    p.normed = e.pointer(normed, "normed", {D, N, GH});
    p.rstd = e.statistics(rstd, "rstd", {D, N});
  }
  TORCH_CHECK(gain_x.has_value() == gates_x.has_value() && (gain_x || !has_bias_x),
              "extended_backward: expected gates_x, and bias_x, with gain_x alone");
  if (gain_x) {
    p.gates_x = e.pointer(gates_x, "gates_x", {D, N, GH});
    p.moments_x = e.statistics(moments_x, "moments_x", {D, N, 2});
  }
  p.h0 = e.pointer(h0, "h0", {D, B, H});
  p.c0 = e.has_c() ? e.pointer(c0, "c0", {D, B, H}) : nullptr;
  p.d_output = e.pointer(d_output, "d_output", {N, D * H});
  p.d_h_n = e.pointer(d_h_n, "d_h_n", {D, B, H});
  p.d_c_n = e.has_c() ? e.pointer(d_c_n, "d_c_n", {D, B, H}) : nullptr;
  p.d_cells = e.has_c() ? e.pointer(d_cells, "d_cells", {D, N, H}) : nullptr;

  const auto sized = [&](at::IntArrayRef size, bool exists) {
    return empty(layer, exists ? size : at::IntArrayRef({0}));
  };
  Tensor d_gates = empty(layer, {D, N, GH});
  Tensor d_product = e.apart() ? empty(layer, {D, N, GH}) : empty(layer, {0});
  Tensor d_h0 = empty(layer, {D, B, H}), d_c0 = sized({D, B, H}, e.has_c());
  Tensor d_gain_x = sized({D, GH}, gain_x.has_value()), d_bias_x = sized({D, GH}, has_bias_x);
  Tensor d_bias = sized({D, GH}, has_bias), d_gain = sized({D, GH}, e.normalises());
  Tensor d_cell_gain = sized({D, H}, cell_gain.has_value());
  Tensor d_cell_bias = sized({D, H}, cell_gain.has_value());
  if (N == 0) {
    d_h_n ? d_h0.copy_(*d_h_n) : d_h0.zero_();
    if (e.has_c()) d_c_n ? d_c0.copy_(*d_c_n) : d_c0.zero_();
    for (Tensor* t : {&d_gain_x, &d_bias_x, &d_bias, &d_gain, &d_cell_gain, &d_cell_bias}) {
      t->zero_();
    }
    return {d_gates,  d_product, d_h0,   d_c0,        d_gain_x,
            d_bias_x, d_bias,    d_gain, d_cell_gain, d_cell_bias};
  }
  const auto target = [](const Tensor& t) {
    return t.numel() > 0 ? t.mutable_data_ptr() : nullptr;
  };
  p.shape = layer.shape;
  p.options = e.options;
  p.d_gates = target(d_gates);
  p.d_product = target(d_product);
  p.d_h0 = target(d_h0);
  p.d_c0 = target(d_c0);
  p.d_gain_x = target(d_gain_x);
  p.d_bias_x = target(d_bias_x);
  p.d_bias = target(d_bias);
  p.d_gain = target(d_gain);
  p.d_cell_gain = target(d_cell_gain);
  p.d_cell_bias = target(d_cell_bias);
  const Kernels& k = kernels(layer.shape.dtype);
  run(layer, p, 0, k.extended_backward_workspace, k.extended_backward);
  return {d_gates,  d_product, d_h0,   d_c0,        d_gain_x,
          d_bias_x, d_bias,    d_gain, d_cell_gain, d_cell_bias};
}

// Elements dropped at random, what stays divided by 1 - rate; of a gradient the same ones.
Tensor drop_weights(const Tensor& weights, const Tensor& seed, int64_t stream, double rate) {
  TORCH_CHECK(weights.device().is_cpu() && weights.dim() == 2,
              "drop_weights: expected weights of 2 dimensions on cpu, got ", weights.sizes());
  TORCH_CHECK(rate >= 0 && rate < 1, "drop_weights: expected rate in [0, 1), got ", rate);
  TORCH_CHECK(stream >= 0, "drop_weights: expected stream >= 0, got ", stream);
  const Tensor from = weights.contiguous();
  Tensor to = empty(from.sizes(), from.options());
  if (to.numel() == 0) return to;
  DropParams p{};
  p.dtype = host::dtype_of("drop_weights", weights);
  p.rows = from.size(0);
  p.columns = from.size(1);
  p.from = data(from);
  p.to = to.mutable_data_ptr();
  p.seed = seed_of("drop_weights", seed);
  p.stream = static_cast<uint32_t>(stream);
  p.rate = rate;
  // A thread is worth its start where it has tens of microseconds of work.
  constexpr int64_t kElementsPerThread = int64_t{1} << 16;
  const int64_t worth = at::in_parallel_region() ? 1 : to.numel() / kElementsPerThread;
  const int threads =
      static_cast<int>(std::clamp<int64_t>(worth, 1, static_cast<int64_t>(at::get_num_threads())));
  const Kernels& k = kernels(p.dtype);
  const std::unique_ptr<void, void (*)(void*)> workspace(
      acquire_memory(k.drop_workspace(p, threads)), release_memory);
  p.workspace = workspace.get();
  run_team(threads, [&](const Worker& worker) { k.drop(p, worker); });
  return to;
}

}  // namespace

TORCH_LIBRARY_IMPL(fastrnn, CPU, m) {
  m.impl("extended_forward", extended_forward);
  m.impl("extended_backward", extended_backward);
  m.impl("drop_weights", drop_weights);
}

}  // namespace fastrnn::cpu
