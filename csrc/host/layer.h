// One call of an operator, on any device: the checks of its arguments and the
// shape they add up to. Each check stands here once; a device's host.cpp
// allocates and runs.
#pragma once
#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include "host/cells.h"
#include "host/inside.h"

namespace fastrnn::host {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;
using OptionalTensors = c10::List<std::optional<Tensor>>;

inline DType dtype_of(const char* op, const Tensor& t) {
  switch (t.scalar_type()) {
    case at::kFloat:
      return DType::kFloat;
    case at::kDouble:
      return DType::kDouble;
    case at::kBFloat16:
      return DType::kBFloat16;
    case at::kHalf:
      return DType::kHalf;
    default:
      TORCH_CHECK(false, op,
                  ": expected input of dtype float64, float32, bfloat16 or float16, got ",
                  t.scalar_type());
  }
}

inline const void* data(const Tensor& t) { return t.const_data_ptr(); }
inline const void* data(const OptionalTensor& t) { return t ? t->const_data_ptr() : nullptr; }

constexpr int64_t kUnknown = -1;

// What a param is; those of one direction come in this order.
enum class Param { kWIh, kWHh, kBIh, kBHh, kWHr, kGainIh, kGainHh, kCellGain, kCellBias, kWCh };
constexpr int kParamKinds = 10;

constexpr bool is_bias(Param param) { return param == Param::kBIh || param == Param::kBHh; }

constexpr const char* name_of(Param param) {
  constexpr const char* kNames[kParamKinds] = {"w_ih",      "w_hh",    "b_ih",    "b_hh",
                                               "w_hr",      "gain_ih", "gain_hh", "cell_gain",
                                               "cell_bias", "w_ch"};
  return kNames[static_cast<int>(param)];
}

// The params of one direction.
struct ParamList {
  Param each[kParamKinds]{};
  size_t count = 0;

  constexpr ParamList() = default;
  constexpr ParamList(Norm norm, const cells::Traits& cell, bool biases, bool projected) {
    const bool both = norm == Norm::kRecurrent, joint = norm == Norm::kJoint;
    const bool of_c = both && cell.has_c();
    const bool present[kParamKinds] = {
        true,          true, biases && !joint, biases || joint, projected, both,
        both || joint, of_c, of_c && biases,   cell.vectors > 0};
    for (int i = 0; i < kParamKinds; ++i) {
      if (present[i]) each[count++] = static_cast<Param>(i);
    }
  }
  constexpr ParamList without_biases() const {
    ParamList list = *this;
    list.count = 0;
    for (size_t i = 0; i < count; ++i) {
      if (!is_bias(each[i])) list.each[list.count++] = each[i];
    }
    return list;
  }
};

// The tensors of a call, made contiguous and checked, and the shape. Device and
// dtype of every tensor are those of `like`.
struct Layer {
  const char* op;
  at::TensorOptions options;
  LayerShape shape{};
  bool has_biases = false;  // among params
  ParamList kinds;
  std::vector<Tensor> params;           // of each direction those kinds
  OptionalTensor h0, c0;                // [D, B, P] and [D, B, H]; absent: zeros
  OptionalTensor gates, hidden, cells;  // what a forward pass saved
  OptionalTensor normed, rstd;
  OptionalTensor h_scale;
  Inside inside{};
  bool has_options = false;      // inside the recurrence; a cell's vectors are none
  std::vector<int64_t> offsets;  // of the rows of each step of packed data
  OptionalTensor batch_sizes, resets;

  Layer(const char* op, const Tensor& like, CellKind cell, int directions)
      : op(op), options(like.options().requires_grad(false)) {
    shape.cell = cell;
    shape.dtype = dtype_of(op, like);
    shape.directions = directions;
    shape.input_size = kUnknown;
  }
  // shape points into offsets: a move keeps that, a copy would not.
  Layer(Layer&&) = default;
  Layer(const Layer&) = delete;

  const cells::Traits& cell() const { return cells::traits(shape.cell); }
  bool has_c() const { return cell().has_c(); }
  int64_t products() const { return cell().products; }
  // Columns of d_gates, times H, and how many of them are the recurrent product's alone.
  int64_t columns() const {
    return inside.norm == Norm::kNone ? cell().columns : products() * inside.parts();
  }
  int64_t apart() const { return (columns() - products()) * shape.hidden_size; }
  bool saves_gates() const { return cell().saved() > 0 || inside.any; }
  at::DimVector gate_rows() const { return rows_of(cell().columns * shape.hidden_size); }
  at::DimVector normed_rows() const {
    return {directions(), rows(), inside.parts(), products() * shape.hidden_size};
  }
  at::DimVector rstd_rows() const { return {directions(), rows(), inside.parts()}; }
  at::TensorOptions compute_options() const {
    return shape.dtype == DType::kDouble ? options : options.dtype(at::kFloat);
  }
  int64_t rows() const { return shape.steps.rows; }
  int64_t batch() const { return shape.steps.batch; }
  int64_t directions() const { return shape.directions; }
  at::DimVector rows_of(int64_t columns) const { return {directions(), rows(), columns}; }
  at::DimVector h_state() const { return {directions(), batch(), shape.proj_size}; }
  at::DimVector c_state() const { return {directions(), batch(), shape.hidden_size}; }

  void check(const Tensor& t, const char* name, at::IntArrayRef size) const {
    TORCH_CHECK(t.device() == options.device() && t.scalar_type() == options.dtype().toScalarType(),
                op, ": expected ", name, " on ", options.device(), " with dtype ",
                options.dtype().toScalarType(), ", got ", t.device(), " with dtype ",
                t.scalar_type());
    TORCH_CHECK(t.sizes() == size, op, ": expected ", name, " of shape ", size, ", got ",
                t.sizes());
  }
  OptionalTensor contiguous(const OptionalTensor& t, const char* name, at::IntArrayRef size) const {
    if (!t) return std::nullopt;
    check(*t, name, size);
    return t->contiguous();
  }

  OptionalTensor required(const OptionalTensor& t, const char* name, at::IntArrayRef size) const {
    TORCH_CHECK(t, op, ": expected ", name, ", got None");
    return contiguous(t, name, size);
  }

  // One or two values of each row, in the compute type.
  Tensor contiguous_statistics(const Tensor& t, const char* name) const {
    TORCH_CHECK(t.device() == options.device() && t.dtype() == compute_options().dtype() &&
                    t.sizes() == rstd_rows(),
                op, ": expected ", name, " of shape ", rstd_rows(), " and dtype ",
                compute_options().dtype(), ", got ", t.sizes(), " ", t.dtype());
    return t.contiguous();
  }

  // Dimensions and steps of the layer's input.
  void set_input(const Tensor& input, const OptionalTensor& sizes) {
    const int64_t dim = sizes ? 2 : 3;
    TORCH_CHECK(input.dim() == dim, op, ": expected input with ", dim, " dimensions, got ",
                input.sizes());
    shape.input_size = input.size(-1);
    if (sizes) {
      set_packed(*sizes, input.size(0));
      return;
    }
    TORCH_CHECK(input.size(0) > 0, op, ": expected input with at least one step, got shape ",
                input.sizes());
    shape.steps = {input.size(0), input.size(1), input.size(0) * input.size(1), nullptr, nullptr};
  }

  // Before params, which it adds to.
  void set_inside(const InsideArguments& arguments) {
    inside = arguments.read(op);
    has_options = inside.any;
    inside.any = has_options || cell().vectors > 0;
    h_scale = arguments.h_scale;
  }

  // Which params there are their number says. with_biases: else all but b_ih and b_hh.
  void set_params(at::TensorList list, bool with_biases) {
    const size_t count = static_cast<size_t>(shape.directions), each = list.size() / count;
    bool found = false;
    for (int i = 0; i < 4 && !found; ++i) {
      const bool biases = i / 2 == 1;
      shape.projected = i % 2 == 1;
      if (shape.projected && inside.any) continue;  // as many may be those of a norm
      kinds = ParamList(inside.norm, cell(), biases, shape.projected);
      if (!with_biases) kinds = kinds.without_biases();
      has_biases = with_biases && biases;
      found = kinds.count == each && list.size() == each * count;
    }
    TORCH_CHECK(found, op, ": expected ", counts(with_biases), with_biases ? " params" : " weights",
                " for each of ", count, " directions, got ", list.size());
    TORCH_CHECK(!shape.projected || has_c(), op, ": expected no projection weight");
    const Tensor& w_ih = list[0];
    const Tensor& w_hh = list[1];
    TORCH_CHECK(w_ih.dim() == 2 && w_hh.dim() == 2 && w_hh.size(0) % products() == 0, op,
                ": expected w_ih and w_hh of shape (", products(),
                "*hidden_size, input_size) and (", products(), "*hidden_size, h_size), got ",
                w_ih.sizes(), " and ", w_hh.sizes());
    if (shape.input_size == kUnknown) shape.input_size = w_ih.size(1);
    shape.hidden_size = w_hh.size(0) / products();
    shape.proj_size = w_hh.size(1);
    const int64_t H = shape.hidden_size, P = shape.proj_size;
    TORCH_CHECK(H > 0 && P > 0 && shape.input_size > 0 && (shape.projected || P == H), op,
                ": expected w_hh of shape (", products(), "*hidden_size, hidden_size), got ",
                w_hh.sizes());
    params.reserve(list.size());
    for (size_t i = 0; i < list.size(); ++i) {
      const Param kind = kinds.each[i % each];
      check(list[i], name_of(kind), size_of(kind));
      params.push_back(list[i].contiguous());
    }
  }

  at::DimVector size_of(Param kind) const {
    const int64_t H = shape.hidden_size, GH = products() * H;
    switch (kind) {
      case Param::kWIh:
        return {GH, shape.input_size};
      case Param::kWHh:
        return {GH, shape.proj_size};
      case Param::kWHr:
        return {shape.proj_size, H};
      case Param::kCellGain:
      case Param::kCellBias:
        return {H};
      case Param::kWCh:
        return {cell().vectors * H};
      default:
        return {GH};
    }
  }

  // How many params a direction may have, as messages say it.
  std::string counts(bool with_biases) const {
    if (!inside.any) return with_biases ? "2 to 5" : "2 to 3";
    std::string text;
    for (const bool biases : {false, true}) {
      const ParamList list(inside.norm, cell(), biases, false);
      const std::string n = std::to_string(with_biases ? list.count : list.without_biases().count);
      if (n != text) text += (text.empty() ? "" : " or ") + n;
    }
    return text;
  }

  // After params and steps.
  void set_states(const OptionalTensors& states) {
    const size_t count = static_cast<size_t>(cell().states);
    TORCH_CHECK(states.size() == count, op, ": expected ", count, " initial states, got ",
                states.size());
    h0 = contiguous(states.get(0), "h0", h_state());
    if (has_c()) c0 = contiguous(states.get(1), "c0", c_state());
    h_scale = contiguous(h_scale, "h_scale", h_state());
    inside.h_scale = data(h_scale);
  }

  // The params of one direction, in the order of the operator's argument.
  const Tensor* params_of(int direction) const {
    return params.data() +
           static_cast<size_t>(direction) * params.size() / static_cast<size_t>(shape.directions);
  }

  // rows: N of packed data.
  void set_packed(const Tensor& sizes, int64_t rows) {
    TORCH_CHECK(sizes.device().is_cpu() && sizes.scalar_type() == at::kLong && sizes.dim() == 1 &&
                    sizes.numel() > 0,
                op, ": expected batch_sizes as a non-empty 1-D int64 tensor on cpu, got ",
                sizes.sizes(), " ", sizes.scalar_type(), " on ", sizes.device());
    batch_sizes = sizes.contiguous();
    const int64_t* counts = batch_sizes->const_data_ptr<int64_t>();
    const int64_t T = batch_sizes->numel();
    offsets.resize(static_cast<size_t>(T));
    int64_t sum = 0;
    for (int64_t t = 0; t < T; ++t) {
      TORCH_CHECK(counts[t] <= rows - sum, op,
                  ": expected as many rows as batch_sizes sum up to, got ", rows);
      TORCH_CHECK(counts[t] > 0 && (t == 0 || counts[t] <= counts[t - 1]), op,
                  ": expected batch_sizes positive and non-increasing, got ", counts[t],
                  " at step ", t);
      offsets[static_cast<size_t>(t)] = sum;
      sum += counts[t];
    }
    TORCH_CHECK(sum == rows, op, ": expected as many rows as batch_sizes sum up to (", sum,
                "), got ", rows);
    shape.steps = {T, counts[0], rows, counts, offsets.data()};
  }

  // N rows, of B sequences.
  void set_steps(const OptionalTensor& sizes, int64_t N, int64_t B) {
    if (sizes) {
      set_packed(*sizes, N);
      TORCH_CHECK(batch() == B, op, ": expected batch ", batch(), ", got ", B);
    } else {
      TORCH_CHECK(B > 0 ? N % B == 0 : N == 0, op, ": expected a batch that divides ", N,
                  " rows, got ", B);
      shape.steps = {B > 0 ? N / B : 0, B, N, nullptr, nullptr};
    }
  }

  // Where padded data forgets what came before, after its steps are set: bool [T, B]. to_hx: what
  // it starts from there is the initial state, not zeros.
  void set_resets(const OptionalTensor& mask, bool to_hx) {
    if (!mask) return;
    Steps& steps = shape.steps;
    TORCH_CHECK(steps.counts == nullptr, op, ": expected padded data with resets");
    TORCH_CHECK(mask->device() == options.device() && mask->scalar_type() == at::kBool &&
                    mask->sizes() == at::IntArrayRef({steps.seq_len, steps.batch}),
                op, ": expected resets as bool (", steps.seq_len, ", ", steps.batch, ") on ",
                options.device(), ", got ", mask->sizes(), " ", mask->scalar_type(), " on ",
                mask->device());
    resets = mask->contiguous();
    // A bool may be a byte other than 1: kernels ask whether it is zero.
    steps.resets = static_cast<const uint8_t*>(resets->const_data_ptr());
    steps.to_initial = to_hx;
  }

  // N rows by D*P, or with steps and batch as dimensions.
  OptionalTensor contiguous_d_output(const OptionalTensor& d_output) const {
    if (!d_output) return std::nullopt;
    const int64_t columns = directions() * shape.proj_size;
    TORCH_CHECK(d_output->numel() == rows() * columns, op, ": expected d_output of ", rows(),
                " rows by ", columns, ", got ", d_output->sizes());
    check(*d_output, "d_output", d_output->sizes());
    return d_output->contiguous();
  }
};

// The layer whose products over all steps `products` computes, all arguments checked but for the
// shapes of the tensors. apart: how many columns at the end of d_gates are the recurrent product's
// alone; as many before them are then the input product's alone.
inline Layer layer_of_products(const char* op, const Tensor& d_gates, int64_t apart,
                               const OptionalTensor& batch_sizes, int64_t B,
                               const OptionalTensor& input, const OptionalTensor& hidden,
                               at::TensorList w_ih, const c10::List<bool>& wanted) {
  TORCH_CHECK(d_gates.dim() == 3 && (d_gates.size(0) == 1 || d_gates.size(0) == 2), op,
              ": expected d_gates of shape (directions, rows, columns), got ", d_gates.sizes());
  Layer layer(op, d_gates, cells::kKind<cells::RnnTanh>, static_cast<int>(d_gates.size(0)));
  layer.check(d_gates, "d_gates", d_gates.sizes());
  const int64_t D = d_gates.size(0), N = d_gates.size(1), columns = d_gates.size(2);
  TORCH_CHECK(columns > 0 && apart >= 0 && 2 * apart <= columns, op,
              ": expected d_gates with at least 2*apart = ", 2 * apart, " columns, got ", columns);
  TORCH_CHECK(wanted.size() == static_cast<size_t>(4 * D), op, ": expected ", 4 * D, " flags, got ",
              wanted.size());
  TORCH_CHECK(w_ih.empty() || w_ih.size() == static_cast<size_t>(D), op, ": expected ", D,
              " w_ih, got ", w_ih.size());
  for (int64_t d = 0; d < D; ++d) {
    TORCH_CHECK(input || !wanted.get(static_cast<size_t>(4 * d)), op,
                ": expected input for d_w_ih, got None");
    TORCH_CHECK(hidden || !wanted.get(static_cast<size_t>(4 * d + 1)), op,
                ": expected hidden for d_w_hh, got None");
  }
  LayerShape& shape = layer.shape;
  layer.set_steps(batch_sizes, N, B);
  // To products a layer has one block of as many rows as each of its weights.
  shape.hidden_size = columns - apart;
  shape.proj_size = hidden ? hidden->size(-1) : 1;
  shape.input_size = input ? input->size(-1) : !w_ih.empty() ? w_ih[0].size(1) : 1;
  return layer;
}

}  // namespace fastrnn::host
