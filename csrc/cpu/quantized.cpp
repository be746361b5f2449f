// The CPU operator of layers with packed int8 or bfloat16 weights, for inference.
#include <torch/library.h>

#include "cpu/layer.h"

namespace fastrnn::cpu {
namespace {

constexpr const char* kOp = "quantized_forward";

// The parameters of one call, checked as they are taken, in order.
class Parameters {
 public:
  Parameters(at::TensorList list, std::vector<Tensor>& held) : list_(list), held_(held) {
    held_.reserve(list.size());
  }
  bool done() const { return next_ == list_.size(); }
  const Tensor& peek() const {
    TORCH_CHECK(next_ < list_.size(), kOp, ": expected more params than ", list_.size());
    return list_[next_];
  }

  template <class T>
  const T* take(const char* name, at::ScalarType dtype, at::IntArrayRef size) {
    const Tensor& t = peek();
    TORCH_CHECK(t.device().is_cpu() && t.scalar_type() == dtype && t.sizes() == size, kOp,
                ": expected ", name, " of shape ", size, " and dtype ", dtype, " on cpu, got ",
                t.sizes(), " ", t.scalar_type(), " on ", t.device());
    held_.push_back(t.contiguous());
    ++next_;
    return static_cast<const T*>(held_.back().const_data_ptr());
  }

  // A packed weight of `blocks` blocks of V vectors, for products over `terms` terms.
  QuantizedMatrix matrix(const char* name, bool int8, int64_t blocks, int64_t V, int64_t terms) {
    QuantizedMatrix m{};
    const int64_t group = int8 ? kInt8Group : kBFloat16Group;
    const int64_t groups = (terms + group - 1) / group;
    m.panels =
        take<void>(name, int8 ? at::kChar : at::kBFloat16, {blocks, groups, V, kBlockLanes, group});
    if (!int8) return m;
    m.scales = take<float>("scales", at::kFloat, {blocks, V, kBlockLanes});
    m.sums = take<int32_t>("sums", at::kInt, {blocks, V, kBlockLanes});
    return m;
  }

 private:
  at::TensorList list_;
  std::vector<Tensor>& held_;
  size_t next_ = 0;
};

std::vector<Tensor> quantized_forward(c10::string_view cell, const Tensor& input,
                                      const OptionalTensor& batch_sizes,
                                      const host::OptionalTensors& states,
                                      at::TensorList param_list, int64_t hidden_size,
                                      int64_t proj_size, bool bidirectional, bool save) {
  Layer layer(kOp, input, host::cell_kind(kOp, cell), bidirectional ? 2 : 1);
  LayerShape& shape = layer.shape;
  TORCH_CHECK(input.device().is_cpu() && shape.dtype == DType::kFloat, kOp,
              ": expected float32 input on cpu, got ", input.scalar_type(), " on ", input.device());
  layer.set_input(input, batch_sizes);
  const int64_t D = shape.directions, G = layer.products(), I = shape.input_size, H = hidden_size;
  TORCH_CHECK(I > 0 && H > 0, kOp, ": expected input_size and hidden_size > 0, got ", I, " and ",
              H);
  const Tensor x = with_contiguous_rows(input);

  QuantizedParams p{};
  Parameters params(param_list, layer.params);
  p.int8 = params.peek().scalar_type() == at::kChar;
  TORCH_CHECK(proj_size >= 0 && (proj_size == 0 || layer.has_c()), kOp,
              ": expected proj_size 0, or > 0 of an lstm, got ", proj_size);
  TORCH_CHECK(layer.cell().vectors == 0, layer.op, ": expected a cell without vectors of its own");
  shape.projected = proj_size > 0;
  const size_t matrix = p.int8 ? 3 : 1, each = (shape.projected ? 3 : 2) * matrix + 1;
  TORCH_CHECK(param_list.size() == static_cast<size_t>(D) * each, kOp, ": expected ", each,
              " params for each of ", D, " directions, got ", param_list.size());
  shape.hidden_size = H;
  shape.proj_size = shape.projected ? proj_size : H;
  const int64_t P = shape.proj_size;
  const int64_t V = G == 1 ? kSingleVectors : G;
  const int64_t units = (G == 1 ? V : 1) * kBlockLanes, blocks = (H + units - 1) / units;
  for (int64_t d = 0; d < D; ++d) {
    QuantizedWeights& w = p.weights[d];
    w.w_ih = params.matrix("w_ih", p.int8, blocks, V, I);
    w.w_hh = params.matrix("w_hh", p.int8, blocks, V, P);
    w.bias = params.take<float>("bias", at::kFloat,
                                {blocks, layer.cell().apart() ? layer.columns() : V, kBlockLanes});
    if (shape.projected) {
      constexpr int64_t kValues = kSingleVectors * kBlockLanes;
      w.w_hr = params.matrix("w_hr", p.int8, (P + kValues - 1) / kValues, kSingleVectors, H);
    }
  }
  layer.set_states(states);

  at::DimVector output_size(input.sizes());
  output_size.back() = D * P;
  std::vector<Tensor> results{empty(layer, output_size), empty(layer, layer.h_state())};
  if (layer.has_c()) results.push_back(empty(layer, layer.c_state()));
  if (save && layer.saves_gates()) {
    results.push_back(empty(layer, layer.rows_of(G * H)));
    p.gates = results.back().mutable_data_ptr<float>();
  }
  if (save && layer.has_c()) {
    results.push_back(empty(layer, layer.rows_of(H)));
    p.cells = results.back().mutable_data_ptr<float>();
  }
  if (layer.rows() == 0) return results;
  p.shape = shape;
  p.input = x.const_data_ptr<float>();
  p.input_step_stride = batch_sizes ? 0 : x.stride(0);
  p.input_row_stride = x.stride(-2);
  p.h0 = static_cast<const float*>(data(layer.h0));
  p.c0 = static_cast<const float*>(data(layer.c0));
  p.output = results[0].mutable_data_ptr<float>();
  p.h_n = results[1].mutable_data_ptr<float>();
  if (layer.has_c()) p.c_n = results[2].mutable_data_ptr<float>();
  const QuantizedKernels& k = quantized_kernels();
  run(layer, p, I, k.forward_workspace, k.forward);
  return results;
}

}  // namespace

TORCH_LIBRARY_IMPL(fastrnn, CPU, m) { m.impl("quantized_forward", &quantized_forward); }

}  // namespace fastrnn::cpu
