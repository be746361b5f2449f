// The steps regime: for every step a matrix product by torch and one pointwise kernel, in
// stream order. Takes any shape and dtype; torch.backends.cuda.matmul says how
// products are computed. The counts of packed data are known on the host, so
// nothing waits for the device, and a captured graph repeats the whole layer.
#include <ATen/ops/addmm.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>

#include "cuda/calls.h"

namespace fastrnn::cuda {
namespace {

// The input product of as many steps at once as fit into this many bytes: enough to fill the
// device, little beside what is saved.
constexpr int64_t kInputProductBytes = int64_t{256} << 20;

// A state [B, size] of one direction, in the type it is kept in.
Tensor initial_state(const host::Layer& layer, const OptionalTensor& initial, int64_t direction,
                     int64_t size) {
  const at::TensorOptions options = layer.options.dtype(state_type(layer));
  Tensor state = initial ? at::empty({layer.batch(), size}, options)
                         : at::zeros({layer.batch(), size}, options);
  if (initial) state.copy_(initial->select(0, direction));
  return state;
}

// Where resets part step t from a neighbour: they are told of the later of the two in time.
const uint8_t* parted(const Steps& steps, int64_t t, int64_t neighbour) {
  return steps.resets == nullptr ? nullptr : steps.resets + steps.offset(std::max(t, neighbour));
}
// The same as a tensor [B, 1], for torch's operations.
Tensor parted(const host::Layer& layer, int64_t t, int64_t neighbour) {
  return layer.resets->select(0, std::max(t, neighbour)).unsqueeze(1);
}

// The vectors of a cell that has some, the last of its params.
const void* own_vectors(const host::Layer& layer, int direction) {
  const size_t each = layer.params.size() / static_cast<size_t>(layer.shape.directions);
  return layer.cell().vectors > 0 ? host::data(layer.params_of(direction)[each - 1]) : nullptr;
}

// Rows of target where a reset is become those of `initial`, or zeros.
void reset_rows(const Tensor& target, const Tensor& mask, const OptionalTensor& initial) {
  target.copy_(initial ? at::where(mask, initial->to(target.scalar_type()), target)
                       : target.masked_fill(mask, 0));
}

// Step number s of a direction, which runs from the other end in reverse.
int64_t step_at(const Steps& steps, int64_t s, bool reverse) {
  return reverse ? steps.seq_len - 1 - s : s;
}

// The first n rows of the buffers of a step. n rarely changes, and a view costs a microsecond.
class Rows {
 public:
  explicit Rows(std::vector<Tensor> buffers) : all_(std::move(buffers)), part_(all_.size()) {}
  const std::vector<Tensor>& first(int64_t n) {
    if (n != count_) {
      for (size_t i = 0; i < all_.size(); ++i) part_[i] = all_[i].narrow(0, 0, n);
      count_ = n;
    }
    return part_;
  }

 private:
  std::vector<Tensor> all_, part_;
  int64_t count_ = -1;
};

// Rows of input product, computed a piece at a time in the order of the recurrence.
class InputProduct {
 public:
  InputProduct(const host::Layer& layer, const Tensor& input, const Tensor& w_ih, bool reverse)
      : steps_(layer.shape.steps), input_(input), w_ih_t_(w_ih.t()), reverse_(reverse) {
    const int64_t row_bytes = w_ih.size(0) * w_ih.element_size();
    rows_ = std::max(steps_.batch, std::min(kInputProductBytes / row_bytes, steps_.rows));
    memory_ = at::empty({rows_, w_ih.size(0)}, layer.options);
  }

  // The rows of step number s; s counts up by one from call to call.
  const void* rows_of(int64_t s) {
    if (s == end_) fill(s);
    return at_element(memory_,
                      (steps_.offset(step_at(steps_, s, reverse_)) - first_row_) * memory_.size(1));
  }

 private:
  void fill(int64_t s) {
    int64_t rows = 0;
    while (end_ < steps_.seq_len) {
      const int64_t count = steps_.count(step_at(steps_, end_, reverse_));
      if (rows + count > rows_) break;
      rows += count;
      ++end_;
    }
    first_row_ = steps_.offset(step_at(steps_, reverse_ ? end_ - 1 : s, reverse_));
    Tensor target = memory_.narrow(0, 0, rows);
    at::mm_out(target, input_.narrow(0, first_row_, rows), w_ih_t_);
  }

  const Steps& steps_;
  Tensor input_, w_ih_t_, memory_;
  bool reverse_;
  int64_t rows_ = 0, first_row_ = 0, end_ = 0;
};

}  // namespace

void forward_by_steps(const ForwardCall& call, Stream stream) {
  const host::Layer& layer = call.layer;
  const LayerShape& shape = layer.shape;
  const Steps& steps = shape.steps;
  const int64_t D = layer.directions(), N = steps.rows, H = shape.hidden_size, P = shape.proj_size,
                B = steps.batch, GH = layer.products() * H;
  const StepKernels& kernels = step_kernels(shape.dtype);
  const host::ForwardResult& r = call.result;
  const bool gates_saved = r.gates.defined();
  for (int d = 0; d < D; ++d) {
    const bool reverse = d == 1;
    const Tensor* w = layer.params_of(d);
    const Tensor w_hh_t = w[1].t();
    const Tensor w_hr_t = shape.projected ? w[layer.has_biases ? 4 : 2].t() : Tensor();
    // h_n is every step's h until it is the last one's.
    Tensor h = r.h_n.select(0, d);
    layer.h0 ? h.copy_(layer.h0->select(0, d)) : h.zero_();
    Tensor state;
    if (layer.has_c()) state = initial_state(layer, layer.c0, d, H);
    if (layer.cell().carries_h) state = initial_state(layer, layer.h0, d, H);
    Tensor before_projection = shape.projected ? at::empty({B, H}, layer.options) : h;
    Rows buffers({at::empty({B, GH}, layer.options), h, before_projection});
    InputProduct input_product(layer, call.input, w[0], reverse);
    Tensor output = r.output.view({N, D * P});

    PointwiseForward p{};
    p.cell = shape.cell;
    p.hidden_size = H;
    p.b_ih = layer.has_biases ? host::data(w[2]) : nullptr;
    p.b_hh = layer.has_biases ? host::data(w[3]) : nullptr;
    p.w_ch = own_vectors(layer, d);
    p.state = state.defined() ? state.mutable_data_ptr() : nullptr;
    p.h = before_projection.mutable_data_ptr();
    p.output_stride = D * P;
    // What a reset starts from; absent: zeros.
    OptionalTensor reset_h, reset_c;
    if (steps.to_initial && layer.h0) reset_h = layer.h0->select(0, d);
    if (steps.to_initial && layer.c0) reset_c = layer.c0->select(0, d);
    if (!shape.projected) {
      p.reset_h = host::data(reset_h);
      p.reset_state = layer.has_c() ? host::data(reset_c) : p.reset_h;
    }
    for (int64_t s = 0; s < steps.seq_len; ++s) {
      const int64_t t = step_at(steps, s, reverse), row = steps.offset(t);
      p.rows = steps.count(t);
      const std::vector<Tensor>& first = buffers.first(p.rows);
      Tensor recurrent = first[0], h_rows = first[1];
      p.input_product = input_product.rows_of(s);
      p.recurrent = nullptr;
      if (s > 0 || layer.h0) {
        at::mm_out(recurrent, h_rows, w_hh_t);
        p.recurrent = recurrent.const_data_ptr();
      }
      if (!shape.projected) {
        p.output = at_element_mutable(output, row * D * P + d * P);
        p.hidden = call.save ? at_element_mutable(r.hidden, (d * N + row) * P) : nullptr;
      }
      if (gates_saved) p.gates = at_element_mutable(r.gates, (d * N + row) * layer.columns() * H);
      if (call.save && layer.has_c()) p.cells = at_element_mutable(r.cells, (d * N + row) * H);
      const int64_t next = step_at(steps, s + 1, reverse);
      const bool may_reset = steps.resets != nullptr && s + 1 < steps.seq_len;
      p.resets = may_reset && !shape.projected ? parted(steps, t, next) : nullptr;
      check_launch(layer.op, kernels.forward(p, stream));
      if (shape.projected) {
        at::mm_out(h_rows, first[2], w_hr_t);
        output.narrow(0, row, p.rows).narrow(1, d * P, P).copy_(h_rows);
        if (call.save) r.hidden.select(0, d).narrow(0, row, p.rows).copy_(h_rows);
        if (may_reset) {
          reset_rows(h_rows, parted(layer, t, next), reset_h);
          reset_rows(state, parted(layer, t, next), reset_c);
        }
      }
    }
    if (layer.has_c()) r.c_n.select(0, d).copy_(state);
  }
}

void backward_by_steps(const BackwardCall& call, Stream stream) {
  const host::Layer& layer = call.layer;
  const LayerShape& shape = layer.shape;
  const Steps& steps = shape.steps;
  const int64_t D = layer.directions(), N = steps.rows, H = shape.hidden_size, P = shape.proj_size,
                B = steps.batch, SH = layer.columns() * H;
  const StepKernels& kernels = step_kernels(shape.dtype);
  const host::GateGradients& r = call.result;
  for (int d = 0; d < D; ++d) {
    // Backward through a direction is the other way round.
    const bool reverse = d == 0;
    const Tensor* w = layer.params_of(d);
    const Tensor w_hr = shape.projected ? w[layer.has_biases ? 4 : 2] : Tensor();
    Tensor carried = initial_state(layer, call.d_h_n, d, P);
    Tensor d_c = layer.has_c() ? initial_state(layer, call.d_c_n, d, H) : Tensor();
    Tensor product = at::empty({B, P}, layer.options);
    Tensor d_before_projection = shape.projected ? at::empty({B, H}, layer.options) : product;
    Tensor d_recurrent =
        layer.cell().apart() ? at::empty({B, layer.products() * H}, layer.options) : product;
    Rows buffers({product, d_before_projection, d_recurrent});

    PointwiseBackward p{};
    p.cell = shape.cell;
    p.hidden_size = H;
    p.d_c = layer.has_c() ? d_c.mutable_data_ptr() : nullptr;
    p.d_recurrent = layer.cell().apart() ? d_recurrent.mutable_data_ptr() : nullptr;
    p.w_ch = own_vectors(layer, d);
    const Tensor& d_w_ch = r.of_inside[d][static_cast<int>(host::Param::kWCh)];
    Tensor sums;  // of each row, over the steps
    if (d_w_ch.defined()) {
      sums = at::zeros({B, d_w_ch.numel()}, layer.options.dtype(state_type(layer)));
      p.d_w_ch = sums.mutable_data_ptr();
    }
    IncomingGradient d_h{nullptr, D * P,  product.const_data_ptr(), 0, carried.mutable_data_ptr(),
                         nullptr, nullptr};
    const OptionalTensor& initial = layer.has_c() ? layer.c0 : layer.h0;
    // What resets to the initial state add to its gradients.
    Tensor reset_d_h, reset_d_c;
    if (steps.resets != nullptr && steps.to_initial) {
      reset_d_h = initial_state(layer, std::nullopt, d, P);
      d_h.reset = reset_d_h.mutable_data_ptr();
      if (layer.has_c()) {
        reset_d_c = initial_state(layer, std::nullopt, d, H);
        p.reset_d_c = reset_d_c.mutable_data_ptr();
      }
    }
    for (int64_t s = 0; s < steps.seq_len; ++s) {
      const int64_t t = step_at(steps, s, reverse), row = steps.offset(t);
      p.rows = steps.count(t);
      const std::vector<Tensor>& first = buffers.first(p.rows);
      d_h.d_output = at_element(call.d_output, row * D * P + d * P);
      d_h.resets = s > 0 ? parted(steps, t, step_at(steps, s - 1, reverse)) : nullptr;
      p.d_c_resets = d_h.resets;
      if (shape.projected) {
        Tensor d_hidden = r.d_hidden.select(0, d).narrow(0, row, p.rows);
        const GradientSum sum{p.rows, P, d_h, d_hidden.mutable_data_ptr()};
        check_launch(layer.op, kernels.gradient_sum(sum, stream));
        Tensor d_m = first[1];
        at::mm_out(d_m, d_hidden, w_hr);
        p.d_h = {nullptr, 0, d_m.const_data_ptr(), p.rows, nullptr, nullptr, nullptr};
      } else {
        p.d_h = d_h;
      }
      // The step before, in the order of the forward pass.
      const int64_t before = reverse ? t - 1 : t + 1;
      const bool known = s + 1 < steps.seq_len;
      p.previous = {
          known ? at_element(saved_state(layer), (d * N + steps.offset(before)) * H) : nullptr,
          known ? steps.count(before) : 0, at_element(initial, d * B * H),
          known ? parted(steps, t, before) : nullptr,
          steps.to_initial ? at_element(initial, d * B * H) : nullptr};
      p.gates = at_element(layer.gates, (d * N + row) * SH);
      p.current = at_element(saved_state(layer), (d * N + row) * H);
      p.d_gates = at_element_mutable(r.d_gates, (d * N + row) * SH);
      if (call.d_cells) {
        if (p.d_c_resets != nullptr) {  // of the later step's alone, before this one's come in
          const Tensor mask = parted(layer, t, step_at(steps, s - 1, reverse));
          if (reset_d_c.defined()) reset_d_c.add_(d_c.masked_fill(mask.logical_not(), 0));
          d_c.masked_fill_(mask, 0);
          p.d_c_resets = nullptr;
        }
        d_c.narrow(0, 0, p.rows).add_(call.d_cells->select(0, d).narrow(0, row, p.rows));
      }
      check_launch(layer.op, kernels.backward(p, stream));
      Tensor product_rows = first[0];
      at::mm_out(product_rows,
                 layer.cell().apart() ? first[2] : r.d_gates.select(0, d).narrow(0, row, p.rows),
                 w[1]);
      d_h.product_rows = p.rows;
    }
    // By now every row has had a step, and keeps the product of its last one.
    d_h.d_output = nullptr;
    d_h.product_rows = B;
    d_h.resets = nullptr;
    const GradientSum sum{B, P, d_h, at_element_mutable(r.d_h0, d * B * P)};
    check_launch(layer.op, kernels.gradient_sum(sum, stream));
    if (reset_d_h.defined()) r.d_h0.select(0, d).add_(reset_d_h);
    if (reset_d_c.defined()) d_c.add_(reset_d_c);
    if (layer.has_c()) r.d_c0.select(0, d).copy_(d_c);
    if (sums.defined()) d_w_ch.copy_(at::sum(sums, {0}));
  }
}

}  // namespace fastrnn::cuda
