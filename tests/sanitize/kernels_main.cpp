// Runs every CPU kernel, without Python or torch, on random layers of odd sizes
// and checks the results against plain scalar loops in double. Built by `make
// sanitize` with AddressSanitizer + UndefinedBehaviorSanitizer and, with std::thread
// in place of OpenMP, with ThreadSanitizer. Every buffer is its own allocation
// of exactly the size the params struct states, filled with NaN, so that a read or
// write beyond it, or of something nobody wrote, shows.
#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "cells/list.h"
#include "cpu/dispatch.h"
#include "cpu/kernels/types.h"
#include "cpu/params.h"
#include "cpu/team.h"

namespace {

using namespace fastrnn;
using namespace fastrnn::cpu;

// ---- storage types ---------------------------------------------------------

float bits_to_float(uint32_t u) {
  float x;
  std::memcpy(&x, &u, sizeof x);
  return x;
}
double read(const float& x) { return x; }
double read(const double& x) { return x; }
double read(const BFloat16& x) { return bits_to_float(uint32_t{x.bits} << 16); }
double read(const Half& x) {
  const int exponent = (x.bits >> 10) & 31;
  const double mantissa = x.bits & 0x3ff;
  const double sign = x.bits & 0x8000 ? -1 : 1;
  if (exponent == 31) return mantissa != 0 ? NAN : sign * INFINITY;
  if (exponent == 0) return sign * std::ldexp(mantissa, -24);
  return sign * std::ldexp(1024 + mantissa, exponent - 25);
}
// Only values that a multiple of 1/64 below 2 can be are written, exactly.
void write(double v, float* x) { *x = static_cast<float>(v); }
void write(double v, double* x) { *x = v; }
void write(double v, BFloat16* x) {
  const float f = static_cast<float>(v);
  uint32_t u;
  std::memcpy(&u, &f, sizeof u);
  x->bits = static_cast<uint16_t>(u >> 16);
}
void write(double v, Half* x) {
  x->bits = 0;
  if (v == 0) return;
  if (std::isnan(v)) {
    x->bits = 0x7e00;
    return;
  }
  if (std::fabs(v) < 0x1p-14) {  // relu's slope must stay what it was
    x->bits = static_cast<uint16_t>((v < 0 ? 0x8000 : 0) | static_cast<int>(std::fabs(v) * 0x1p24));
    return;
  }
  int exponent;
  const double m = std::frexp(std::fabs(v), &exponent);  // m in [0.5, 1)
  x->bits = static_cast<uint16_t>((v < 0 ? 0x8000 : 0) | ((exponent + 14) << 10) |
                                  (static_cast<int>(m * 2048) - 1024));
}

// Any value, rounded to nearest even but for ties beyond float's precision.
void round_to(double v, float* x) { write(v, x); }
void round_to(double v, double* x) { write(v, x); }
void round_to(double v, BFloat16* x) {
  const double ulp = v == 0 ? 1 : std::ldexp(1, std::ilogb(v) - 7);
  write(std::nearbyint(v / ulp) * ulp, x);
}
void round_to(double v, Half* x) {
  const double ulp = std::ldexp(1, std::max(v == 0 ? -14 : std::ilogb(v), -14) - 10);
  write(std::nearbyint(v / ulp) * ulp, x);
}

template <class S>
struct Info;
template <>
struct Info<float> {
  static constexpr DType dtype = DType::kFloat;
  static constexpr double tolerance = 2e-5;
};
template <>
struct Info<double> {
  static constexpr DType dtype = DType::kDouble;
  static constexpr double tolerance = 1e-12;
};
template <>
struct Info<BFloat16> {
  static constexpr DType dtype = DType::kBFloat16;
  static constexpr double tolerance = 4e-2;
};
template <>
struct Info<Half> {
  static constexpr DType dtype = DType::kHalf;
  static constexpr double tolerance = 5e-3;
};

// ---- random values ---------------------------------------------------------

using Values = std::vector<double>;

std::mt19937_64 generator(20261121);

int64_t pick(std::initializer_list<int64_t> values) {
  return values.begin()[generator() % values.size()];
}

Values random_values(int64_t size, double spread) {
  Values v(static_cast<size_t>(size));
  for (double& x : v) {
    // Multiples of 1/64: exact in every dtype.
    x = std::round((static_cast<double>(generator() % 2001) / 1000 - 1) * spread * 64) / 64;
  }
  return v;
}

// ---- one layer, the way one reads it in a book -----------------------------

struct Config {
  CellKind cell;
  int64_t T, B, I, H, P;
  int directions;
  bool projected, biases, initial, packed;
  int threads;
  std::vector<int64_t> counts, offsets;
  int64_t rows;

  int64_t gates() const { return cells::traits(cell).products; }
  int64_t columns() const { return cells::traits(cell).columns; }
  int64_t vectors() const { return cells::traits(cell).vectors; }
  bool saves_gates() const { return cells::traits(cell).saved() > 0; }
};

struct Tensors {
  Values x, h0, c0, w_ih[2], w_hh[2], b_ih[2], b_hh[2], w_hr[2];
  Values output, h_n, c_n, gates, hidden, cells;
  Values d_output, d_h_n, d_c_n;
  Values d_gates, d_h0, d_c0, d_hidden, d_cell_h, d_cell_c, d_x, d_w_ih[2], d_w_hh[2], d_b_ih[2],
      d_b_hh[2];
};

// y[i] += sum over k of w[i * n + k] * v[k]
void multiply(const double* w, const double* v, int64_t m, int64_t n, double* y) {
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t k = 0; k < n; ++k) y[i] += w[i * n + k] * v[k];
  }
}
// y[k] += sum over i of v[i] * w[i * n + k]
void multiply_transposed(const double* w, const double* v, int64_t m, int64_t n, double* y) {
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t k = 0; k < n; ++k) y[k] += v[i] * w[i * n + k];
  }
}

// A number as the equations of csrc/cells/ take it; what they say, tests/numbers/ checks.
struct Number {
  double v;

  static Number set1(double x) { return {x}; }
  friend Number operator+(Number a, Number b) { return {a.v + b.v}; }
  friend Number operator-(Number a, Number b) { return {a.v - b.v}; }
  friend Number operator*(Number a, Number b) { return {a.v * b.v}; }
  friend Number fma(Number a, Number b, Number c) { return {a.v * b.v + c.v}; }
  friend Number fnma(Number a, Number b, Number c) { return {c.v - a.v * b.v}; }
  friend Number sigmoid(Number a) { return {1 / (1 + std::exp(-a.v))}; }
  friend Number tanh(Number a) { return {std::tanh(a.v)}; }
  friend Number relu(Number a) { return {a.v > 0 ? a.v : 0}; }
  friend Number zero_where_not_positive(Number test, Number a) { return {test.v > 0 ? a.v : 0}; }
};

// Of cells without vectors: those of the others run as if options were there (inside.h).
template <class Cell>
void reference_of(const Config& c, Tensors& t) {
  constexpr int K = Cell::kColumns;
  constexpr bool kHasC = Cell::kStates > 1;
  const int64_t H = c.H, P = c.P, D = c.directions, G = c.gates(), N = c.rows;
  t.output.assign(N * D * P, 0);
  t.hidden.assign(D * N * P, 0);
  t.cells.assign(D * N * H, 0);
  t.gates.assign(D * N * K * H, 0);
  t.h_n = t.h0;
  t.c_n = t.c0;
  const auto time = [&](int64_t d, int64_t s) { return d == 1 ? c.T - 1 - s : s; };
  for (int64_t d = 0; d < D; ++d) {
    for (int64_t s = 0; s < c.T; ++s) {
      for (int64_t b = 0; b < c.counts[time(d, s)]; ++b) {
        const int64_t row = c.offsets[time(d, s)] + b;
        double* h = &t.h_n[(d * c.B + b) * P];
        Values in(G * H, 0), rec(G * H, 0), m(H);
        if (c.biases) in = t.b_ih[d], rec = t.b_hh[d];
        multiply(t.w_ih[d].data(), &t.x[row * c.I], G * H, c.I, in.data());
        multiply(t.w_hh[d].data(), h, G * H, P, rec.data());
        double* g = &t.gates[(d * N + row) * K * H];
        for (int64_t j = 0; j < H; ++j) {
          double* state = &t.c_n[(d * c.B + b) * H + j];
          Number a[K] = {}, before[Cell::kStates], after[Cell::kStates];
          for (int k = 0; k < G; ++k) a[k].v += in[k * H + j];
          for (int k = 0; k < G; ++k) a[cells::recurrent_column<Cell>(k)].v += rec[k * H + j];
          before[0] = {Cell::kCarriesH ? h[j] : NAN};
          if constexpr (kHasC) before[1] = {*state};
          cells::forward<Cell>(a, before, after);
          for (int k = 0; k < K; ++k) g[k * H + j] = a[k].v;
          m[j] = after[0].v;
          if constexpr (kHasC) t.cells[(d * N + row) * H + j] = *state = after[1].v;
        }
        if (c.projected) {
          for (int64_t i = 0; i < P; ++i) h[i] = 0;
          multiply(t.w_hr[d].data(), m.data(), P, H, h);
        } else {
          for (int64_t j = 0; j < H; ++j) h[j] = m[j];
        }
        for (int64_t i = 0; i < P; ++i) {
          t.output[(row * D + d) * P + i] = t.hidden[(d * N + row) * P + i] = h[i];
        }
      }
    }
  }

  t.d_gates.assign(D * N * K * H, 0);
  t.d_hidden.assign(D * N * P, 0);
  t.d_cell_h.assign(D * N * H, 0);
  t.d_cell_c.assign(D * N * H, 0);
  t.d_h0 = t.d_h_n;
  t.d_c0 = t.d_c_n;
  t.d_x.assign(N * c.I, 0);
  for (int64_t d = 0; d < D; ++d) {
    t.d_w_ih[d].assign(G * H * c.I, 0);
    t.d_w_hh[d].assign(G * H * P, 0);
    t.d_b_ih[d].assign(G * H, 0);
    t.d_b_hh[d].assign(G * H, 0);
    for (int64_t s = c.T - 1; s >= 0; --s) {
      const int64_t now = time(d, s);
      for (int64_t b = 0; b < c.counts[now]; ++b) {
        const int64_t row = c.offsets[now] + b;
        const int64_t earlier = s > 0 ? time(d, s - 1) : -1;
        const bool has = earlier >= 0 && b < c.counts[earlier];
        const double* h_prev =
            has ? &t.hidden[(d * N + c.offsets[earlier] + b) * P] : &t.h0[(d * c.B + b) * P];
        const double* c_prev =
            has ? &t.cells[(d * N + c.offsets[earlier] + b) * H] : &t.c0[(d * c.B + b) * H];
        double* d_h = &t.d_h0[(d * c.B + b) * P];
        double* d_c = &t.d_c0[(d * c.B + b) * H];
        for (int64_t i = 0; i < P; ++i) {
          d_h[i] += t.d_output[(row * D + d) * P + i];
          t.d_hidden[(d * N + row) * P + i] = d_h[i];
        }
        // What the cell receives.
        double* d_m = &t.d_cell_h[(d * N + row) * H];
        if (c.projected) {
          multiply_transposed(t.w_hr[d].data(), d_h, P, H, d_m);
        } else {
          for (int64_t j = 0; j < H; ++j) d_m[j] = d_h[j];
        }
        Values d_in(G * H), d_rec(G * H), skip(P, 0);
        const double* g = &t.gates[(d * N + row) * K * H];
        double* out = &t.d_gates[(d * N + row) * K * H];
        for (int64_t j = 0; j < H; ++j) {
          Number kept[K], before[Cell::kStates], after[Cell::kStates], of[Cell::kStates], of_a[K];
          for (int k = 0; k < K; ++k) kept[k] = {g[k * H + j]};
          before[0] = {Cell::kCarriesH ? h_prev[j] : NAN};
          after[0] = {NAN};
          of[0] = {d_m[j]};
          if constexpr (kHasC) {
            before[1] = {c_prev[j]};
            after[1] = {t.cells[(d * N + row) * H + j]};
            of[1] = {t.d_cell_c[(d * N + row) * H + j] = d_c[j]};
          }
          cells::backward<Cell>(kept, before, after, of, of_a);
          for (int k = 0; k < K; ++k) out[k * H + j] = of_a[k].v;
          for (int k = 0; k < G; ++k) {
            d_in[k * H + j] = of_a[k].v;
            d_rec[k * H + j] = of_a[cells::recurrent_column<Cell>(k)].v;
          }
          if constexpr (Cell::kCarriesH) skip[j] = of[0].v;
          if constexpr (kHasC) d_c[j] = of[1].v;
        }
        for (int64_t i = 0; i < P; ++i) d_h[i] = skip[i];
        multiply_transposed(t.w_hh[d].data(), d_rec.data(), G * H, P, d_h);
        multiply_transposed(t.w_ih[d].data(), d_in.data(), G * H, c.I, &t.d_x[row * c.I]);
        for (int64_t k = 0; k < G * H; ++k) {
          t.d_b_ih[d][k] += d_in[k];
          t.d_b_hh[d][k] += d_rec[k];
          for (int64_t i = 0; i < c.I; ++i) {
            t.d_w_ih[d][k * c.I + i] += d_in[k] * t.x[row * c.I + i];
          }
          for (int64_t i = 0; i < P; ++i) t.d_w_hh[d][k * P + i] += d_rec[k] * h_prev[i];
        }
      }
    }
  }
}

void reference(const Config& c, Tensors& t) {
  cells::All::visit(c.cell, [&](auto cell) {
    if constexpr (decltype(cell)::kVectors == 0) reference_of<decltype(cell)>(c, t);
  });
}

// ---- the kernels on the same layer -----------------------------------------

int failures = 0;

template <class S>
class Buffers {
 public:
  const void* in(const Values& values) {
    S* p = make(values.size());
    for (size_t i = 0; i < values.size(); ++i) write(values[i], p + i);
    return p;
  }
  S* out(size_t size) {
    S* p = make(size);
    for (size_t i = 0; i < size; ++i) write(NAN, p + i);
    return p;
  }

 private:
  S* make(size_t size) {
    held_.emplace_back(new S[size == 0 ? 1 : size]);
    return held_.back().get();
  }
  std::vector<std::unique_ptr<S[]>> held_;
};

template <class S>
void compare(const char* what, const S* got, const Values& expected, const std::string& where,
             double tolerance = Info<S>::tolerance) {
  double scale = 1;
  for (double v : expected) scale = std::fmax(scale, std::fabs(v));
  for (size_t i = 0; i < expected.size(); ++i) {
    const double error = std::fabs(read(got[i]) - expected[i]) / scale;
    if (!(error <= tolerance)) {
      std::printf("FAILED %s: %s[%zu] is %g, expected %g\n", where.c_str(), what, i, read(got[i]),
                  expected[i]);
      ++failures;
      return;
    }
  }
}

template <class Params>
void launch(Params& p, size_t (*bytes)(const Params&, int),
            void (*kernel)(const Params&, const Worker&), int threads) {
  size_t size = 0;
  for (int n = 1; n <= threads; ++n) size = std::max(size, bytes(p, n));
  void* workspace = std::aligned_alloc(64, (size + 63) / 64 * 64 + 64);
  std::memset(workspace, 0xff, size);  // NaN in every type
  p.workspace = workspace;
  run_team(threads, [&](const Worker& worker) { kernel(p, worker); });
  std::free(workspace);
}

template <class S>
void run_kernels(const Config& c, const Tensors& t, const std::string& where) {
  const Kernels& k = kernels(Info<S>::dtype);
  const int64_t D = c.directions, N = c.rows, H = c.H, P = c.P, G = c.gates(), K = c.columns();
  const bool has_c = cells::traits(c.cell).has_c(), gated = c.saves_gates();
  Buffers<S> memory;
  LayerShape shape{
      c.cell,
      Info<S>::dtype,
      {c.T, c.B, N, c.packed ? c.counts.data() : nullptr, c.packed ? c.offsets.data() : nullptr},
      c.I,
      H,
      P,
      c.projected,
      c.directions};
  Weights weights[2] = {};
  for (int d = 0; d < c.directions; ++d) {
    Weights& w = weights[d];
    w.w_ih = memory.in(t.w_ih[d]);
    w.w_hh = memory.in(t.w_hh[d]);
    if (c.biases) w.b_ih = memory.in(t.b_ih[d]);
    if (c.biases) w.b_hh = memory.in(t.b_hh[d]);
    if (c.projected) w.w_hr = memory.in(t.w_hr[d]);
  }
  const void* x = memory.in(t.x);
  const void* h0 = c.initial ? memory.in(t.h0) : nullptr;
  const void* c0 = c.initial && has_c ? memory.in(t.c0) : nullptr;
  S *output = memory.out(N * D * P), *h_n = memory.out(D * c.B * P), *c_n = memory.out(D * c.B * H);
  S *gates = memory.out(D * N * K * H), *hidden = memory.out(D * N * P),
    *cells = memory.out(D * N * H);

  for (const bool save : {false, true}) {
    ForwardParams f{};
    f.shape = shape;
    std::copy(weights, weights + 2, f.weights);
    f.input = x;
    f.input_step_stride = c.B * c.I;
    f.input_row_stride = c.I;
    f.h0 = h0;
    f.c0 = c0;
    f.output = output;
    f.h_n = h_n;
    f.c_n = has_c ? c_n : nullptr;
    if (save) {
      f.gates = gated ? gates : nullptr;
      f.hidden = hidden;
      f.cells = has_c ? cells : nullptr;
    }
    launch(f, k.forward_workspace, k.forward, c.threads);
    compare("output", output, t.output, where);
    compare("h_n", h_n, t.h_n, where);
    if (has_c) compare("c_n", c_n, t.c_n, where);
  }
  compare("hidden", hidden, t.hidden, where);
  if (gated) compare("gates", gates, t.gates, where);
  if (has_c) compare("cells", cells, t.cells, where);

  BackwardParams b{};
  b.shape = shape;
  std::copy(weights, weights + 2, b.weights);
  b.d_output = memory.in(t.d_output);
  b.d_h_n = memory.in(t.d_h_n);
  b.d_c_n = has_c ? memory.in(t.d_c_n) : nullptr;
  b.h0 = h0;
  b.c0 = c0;
  b.gates = gated ? gates : nullptr;
  (has_c ? b.cells : b.hidden) = has_c ? cells : hidden;
  S *d_gates = memory.out(D * N * K * H), *d_h0 = memory.out(D * c.B * P),
    *d_c0 = memory.out(D * c.B * H), *d_hidden = memory.out(D * N * P);
  b.d_gates = d_gates;
  b.d_h0 = d_h0;
  b.d_c0 = has_c ? d_c0 : nullptr;
  b.d_hidden = c.projected ? d_hidden : nullptr;
  launch(b, k.backward_workspace, k.backward, c.threads);
  compare("d_gates", d_gates, t.d_gates, where);
  compare("d_h0", d_h0, t.d_h0, where);
  if (has_c) compare("d_c0", d_c0, t.d_c0, where);
  if (c.projected) compare("d_hidden", d_hidden, t.d_hidden, where);

  ProductParams p{};
  p.shape = shape;
  p.shape.hidden_size = G * H;
  p.apart = (c.columns() - G) * H;
  std::copy(weights, weights + 2, p.weights);
  p.d_gates = d_gates;
  p.input = x;
  p.hidden = hidden;
  p.h0 = h0;
  S* d_x = memory.out(N * c.I);
  p.d_input = d_x;
  S *d_w_ih[2], *d_w_hh[2], *d_b_ih[2], *d_b_hh[2];
  for (int d = 0; d < c.directions; ++d) {
    p.gradients[d] = {d_w_ih[d] = memory.out(G * H * c.I), d_w_hh[d] = memory.out(G * H * P),
                      d_b_ih[d] = memory.out(G * H), d_b_hh[d] = memory.out(G * H)};
  }
  const auto compare_products = [&] {
    compare("d_x", d_x, t.d_x, where);
    for (int d = 0; d < c.directions; ++d) {
      compare("d_w_ih", d_w_ih[d], t.d_w_ih[d], where);
      compare("d_w_hh", d_w_hh[d], t.d_w_hh[d], where);
      compare("d_b_ih", d_b_ih[d], t.d_b_ih[d], where);
      compare("d_b_hh", d_b_hh[d], t.d_b_hh[d], where);
    }
  };
  launch(p, k.products_workspace, k.products, c.threads);
  compare_products();

  // Both in one pass, into results that hold NaN again.
  const auto spoil = [](S* values, int64_t count) {
    std::memset(values, 0xff, static_cast<size_t>(count) * sizeof(S));
  };
  spoil(d_x, N * c.I);
  spoil(d_h0, D * c.B * P);
  spoil(d_c0, D * c.B * H);
  spoil(d_hidden, D * N * P);
  for (int d = 0; d < c.directions; ++d) {
    spoil(d_w_ih[d], G * H * c.I);
    spoil(d_w_hh[d], G * H * P);
    spoil(d_b_ih[d], G * H);
    spoil(d_b_hh[d], G * H);
  }
  VjpParams v{};
  v.backward = b;
  v.products = p;
  v.backward.d_gates = nullptr;
  v.products.d_gates = nullptr;
  v.backward_threads = 1 + static_cast<int>(generator() % static_cast<unsigned>(c.threads));
  v.chunk_rows = pick({1, 10, 40, 300});
  launch(v, k.vjp_workspace, k.vjp, c.threads);
  compare("d_h0 of vjp", d_h0, t.d_h0, where);
  if (has_c) compare("d_c0 of vjp", d_c0, t.d_c0, where);
  if (c.projected) compare("d_hidden of vjp", d_hidden, t.d_hidden, where);
  compare_products();
}

#include "quantized.h"
#include "inside.h"
#include "tangents.h"

// ---- random layers ---------------------------------------------------------

Config random_config() {
  Config c;
  c.cell = static_cast<CellKind>(generator() % cells::All::kCount);
  c.T = pick({1, 2, 3, 7, 20, 50});
  c.B = pick({1, 2, 3, 5, 8, 13, 17});
  c.I = pick({1, 3, 15, 16, 17, 40});
  c.H = pick({1, 2, 7, 8, 15, 16, 17, 33, 64, 70, 80});
  c.directions = static_cast<int>(pick({1, 2}));
  c.projected =
      cells::traits(c.cell).has_c() && c.vectors() == 0 && c.H > 1 && generator() % 3 == 0;
  c.P = c.projected ? 1 + static_cast<int64_t>(generator() % (c.H - 1)) : c.H;
  c.biases = generator() % 4 != 0;
  c.initial = generator() % 2 != 0;
  c.packed = generator() % 2 != 0;
  c.threads = static_cast<int>(pick({1, 2, 3, 4}));
  c.counts.assign(c.T, c.B);
  if (c.packed) {
    for (int64_t t = 1; t < c.T; ++t) {
      c.counts[t] = 1 + static_cast<int64_t>(generator() % c.counts[t - 1]);
    }
  }
  c.rows = 0;
  for (int64_t count : c.counts) {
    c.offsets.push_back(c.rows);
    c.rows += count;
  }
  return c;
}

Tensors random_tensors(const Config& c) {
  const int64_t D = c.directions, GH = c.gates() * c.H;
  Tensors t;
  const double spread = 0.5;
  t.x = random_values(c.rows * c.I, 1);
  t.h0 = random_values(D * c.B * c.P, c.initial ? 1 : 0);
  t.c0 = random_values(D * c.B * c.H, c.initial ? 1 : 0);
  for (int d = 0; d < D; ++d) {
    t.w_ih[d] = random_values(GH * c.I, spread / std::sqrt(static_cast<double>(c.I)));
    t.w_hh[d] = random_values(GH * c.P, spread / std::sqrt(static_cast<double>(c.P)));
    if (c.biases) t.b_ih[d] = random_values(GH, spread);
    if (c.biases) t.b_hh[d] = random_values(GH, spread);
    if (c.projected) t.w_hr[d] = random_values(c.P * c.H, spread);
  }
  t.d_output = random_values(c.rows * D * c.P, 1);
  t.d_h_n = random_values(D * c.B * c.P, 1);
  t.d_c_n = random_values(D * c.B * c.H, 1);
  return t;
}

}  // namespace

int main(int argc, char** argv) {
  const int layers = argc > 1 ? std::atoi(argv[1]) : 60;
  int runs = 0;
  for (const std::string& target : available_targets()) {
    set_target(target);
    for (int i = 0; i < layers; ++i) {
      const Config c = random_config();
      Tensors t = random_tensors(c);
      reference(c, t);
      const std::string where = target + " " + cells::traits(c.cell).name +
                                " T=" + std::to_string(c.T) + " B=" + std::to_string(c.B) +
                                " I=" + std::to_string(c.I) + " H=" + std::to_string(c.H) +
                                " P=" + std::to_string(c.P) + " D=" + std::to_string(c.directions) +
                                (c.packed ? " packed" : "") + (c.biases ? " bias" : "") +
                                (c.initial ? " hx" : "") + " threads=" + std::to_string(c.threads);
      // A build may leave dtypes out; their tables are empty then.
      if (quantized_kernels().forward && c.vectors() == 0) {
        run_quantized(c, t, where);
        ++runs;
      }
      if (target == "avx512_vnni") continue;  // all else is avx512's
      const auto run = [&](auto zero, const char* dtype) {
        using S = decltype(zero);
        if (!kernels(Info<S>::dtype).forward) return;
        if (c.vectors() == 0) run_kernels<S>(c, t, where + " " + dtype);
        if (c.vectors() == 0) run_tangents<S>(c, t, where + " " + dtype);
        run_inside<S>(c, where + " " + dtype);
        run_dropped<S>(c, where + " " + dtype);
        ++runs;
      };
      run(float{}, "float");
      run(double{}, "double");
      run(BFloat16{}, "bfloat16");
      run(Half{}, "half");
    }
  }
  std::printf("%d layers run, %d failures\n", runs, failures);
  return failures == 0 && runs > 0 ? 0 : 1;
}
