// The kernels with packed int8 and bfloat16 weights, on the layers of kernels_main.cpp, which
// includes this in its middle. Weights there are exact in bfloat16, so results are those of the
// reference; in int8 they are near it (tests/numbers/test_quantization.py has exact comparisons).
#pragma once

// A packed weight; buffers have exactly the sizes that quantized_params.h states.
struct PackedWeight {
  std::unique_ptr<int8_t[]> int8;
  std::unique_ptr<uint16_t[]> bfloat16;
  std::unique_ptr<float[]> scales;
  std::unique_ptr<int32_t[]> sums;
  QuantizedMatrix matrix() const {
    const void* panels = int8 ? static_cast<const void*>(int8.get()) : bfloat16.get();
    return {panels, scales.get(), sums.get()};
  }
};

// Where row r of gate g lies among the lanes of all blocks.
int64_t lane_of(int64_t gates, int64_t g, int64_t r) {
  if (gates == 1) return r;
  return (r / kBlockLanes * gates + g) * kBlockLanes + r % kBlockLanes;
}

int64_t lanes_of(int64_t gates, int64_t rows) {
  const int64_t size = gates == 1 ? kSingleVectors * kBlockLanes : kBlockLanes;
  return (rows + size - 1) / size * size * gates;
}

PackedWeight pack_weight(const Values& w, int64_t gates, int64_t rows, int64_t terms, bool int8) {
  PackedWeight p;
  const int64_t V = gates == 1 ? kSingleVectors : gates, lanes = lanes_of(gates, rows);
  const int64_t group = int8 ? kInt8Group : kBFloat16Group, groups = (terms + group - 1) / group;
  const size_t size = static_cast<size_t>(lanes * groups * group);
  int8 ? p.int8.reset(new int8_t[size]()) : p.bfloat16.reset(new uint16_t[size]());
  if (int8) p.scales.reset(new float[static_cast<size_t>(lanes)]());
  if (int8) p.sums.reset(new int32_t[static_cast<size_t>(lanes)]());
  for (int64_t i = 0; i < gates * rows; ++i) {
    const int64_t lane = lane_of(gates, i / rows, i % rows), block = lane / (V * kBlockLanes);
    double largest = 0;
    for (int64_t k = 0; k < terms; ++k) largest = std::fmax(largest, std::fabs(w[i * terms + k]));
    for (int64_t k = 0; k < terms; ++k) {
      const int64_t at =
          ((block * groups + k / group) * V * kBlockLanes + lane % (V * kBlockLanes)) * group +
          k % group;
      const double value = w[i * terms + k];
      if (int8) {
        p.int8[at] = static_cast<int8_t>(largest > 0 ? std::nearbyint(value * 127 / largest) : 0);
        p.sums[lane] += 128 * p.int8[at];
        p.scales[lane] = static_cast<float>(largest / 127);
      } else {
        BFloat16 x;
        write(value, &x);
        p.bfloat16[at] = x.bits;
      }
    }
  }
  return p;
}

void run_quantized(const Config& c, const Tensors& t, const std::string& where) {
  const QuantizedKernels& k = quantized_kernels();
  const int64_t D = c.directions, N = c.rows, H = c.H, P = c.P, G = c.gates();
  const bool has_c = cells::traits(c.cell).has_c();
  const int64_t biases = c.columns();
  for (const bool int8 : {true, false}) {
    Buffers<float> memory;
    QuantizedParams p{};
    p.shape = {
        c.cell,
        DType::kFloat,
        {c.T, c.B, N, c.packed ? c.counts.data() : nullptr, c.packed ? c.offsets.data() : nullptr},
        c.I,
        H,
        P,
        c.projected,
        c.directions};
    p.int8 = int8;
    std::vector<PackedWeight> held;
    for (int d = 0; d < c.directions; ++d) {
      held.push_back(pack_weight(t.w_ih[d], G, H, c.I, int8));
      p.weights[d].w_ih = held.back().matrix();
      held.push_back(pack_weight(t.w_hh[d], G, H, P, int8));
      p.weights[d].w_hh = held.back().matrix();
      if (c.projected) {
        held.push_back(pack_weight(t.w_hr[d], 1, P, H, int8));
        p.weights[d].w_hr = held.back().matrix();
      }
      Values bias(static_cast<size_t>(lanes_of(G, H) / G * biases), 0);
      for (int64_t i = 0; i < G * H && c.biases; ++i) {
        const bool apart = biases > G && i >= (G - 1) * H;
        bias[lane_of(biases, i / H, i % H)] = t.b_ih[d][i] + (apart ? 0 : t.b_hh[d][i]);
        if (apart) bias[lane_of(biases, G, i % H)] = t.b_hh[d][i];
      }
      p.weights[d].bias = static_cast<const float*>(memory.in(bias));
    }
    p.input = static_cast<const float*>(memory.in(t.x));
    p.input_step_stride = c.B * c.I;
    p.input_row_stride = c.I;
    if (c.initial) p.h0 = static_cast<const float*>(memory.in(t.h0));
    if (c.initial && has_c) p.c0 = static_cast<const float*>(memory.in(t.c0));
    p.output = memory.out(N * D * P);
    p.h_n = memory.out(D * c.B * P);
    if (has_c) p.c_n = memory.out(D * c.B * H);
    if (c.saves_gates()) p.gates = memory.out(D * N * G * H);
    if (has_c) p.cells = memory.out(D * N * H);
    launch(p, k.forward_workspace, k.forward, c.threads);
    const std::string what = where + (int8 ? " int8" : " packed bfloat16");
    const double tolerance = int8 ? 0.1 : Info<float>::tolerance;
    compare("output", p.output, t.output, what, tolerance);
    compare("h_n", p.h_n, t.h_n, what, tolerance);
    if (has_c) compare("c_n", p.c_n, t.c_n, what, tolerance);
    if (has_c) compare("cells", p.cells, t.cells, what, tolerance);
    if (!c.saves_gates()) continue;
    Values gates;
    for (int64_t n = 0; n < D * N; ++n) {
      const auto row = t.gates.begin() + n * c.columns() * H;
      gates.insert(gates.end(), row, row + G * H);
    }
    compare("gates", p.gates, gates, what, tolerance);
  }
}
