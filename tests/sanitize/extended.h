// The extended recurrence: values against plain scalar loops, gradients against difference
// quotients of those loops in a random direction; in kernels_main.cpp, which includes this.
#pragma once

struct ExtendedConfig {
  Config c;
  Norm norm;
  bool bias, cell_norm, scaled, random;
  double zoneout_c, zoneout_h, dropout;
};

// What the recurrence reads that can be moved, in the order that the kernels' gradients have.
struct ExtendedTensors {
  Values gates_x, h0, c0, w_hh, gain_x, bias_x, bias, gain, cell_gain, cell_bias, h_scale;
  Values* movable[10] = {&gates_x, &h0,   &c0,   &w_hh,      &gain_x,
                         &bias_x,  &bias, &gain, &cell_gain, &cell_bias};
  ExtendedTensors() = default;
  ExtendedTensors(const ExtendedTensors& o)
      : gates_x(o.gates_x),
        h0(o.h0),
        c0(o.c0),
        w_hh(o.w_hh),
        gain_x(o.gain_x),
        bias_x(o.bias_x),
        bias(o.bias),
        gain(o.gain),
        cell_gain(o.cell_gain),
        cell_bias(o.cell_bias),
        h_scale(o.h_scale) {}
};

struct ExtendedResults {
  Values output, h_n, c_n, cells;  // cells [D, N, H]
};

constexpr uint64_t kExtendedSeed = 0x9876543210ABCDEFu;
constexpr int64_t kExtendedLayer = 2;
constexpr double kExtendedEps = 1e-3;  // large: rows of one value have no variance of their own

// Philox 4x32-10 for one unit, as its authors write it.
uint32_t random_word(uint32_t stream, int64_t t, int64_t b, int64_t j) {
  const int64_t lane = j % 64 % 16, word = j % 64 / 16;
  uint32_t x[4] = {static_cast<uint32_t>(j / 64 * 16 + lane), static_cast<uint32_t>(b),
                   static_cast<uint32_t>(t), stream};
  uint32_t key[2] = {static_cast<uint32_t>(kExtendedSeed),
                     static_cast<uint32_t>(kExtendedSeed >> 32)};
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53u} * x[0], c = uint64_t{0xCD9E8D57u} * x[2];
    const uint32_t y[4] = {static_cast<uint32_t>(c >> 32) ^ x[1] ^ key[0], static_cast<uint32_t>(c),
                           static_cast<uint32_t>(a >> 32) ^ x[3] ^ key[1],
                           static_cast<uint32_t>(a)};
    std::copy(y, y + 4, x);
    key[0] += 0x9E3779B9u;
    key[1] += 0xBB67AE85u;
  }
  return x[word];
}

void normalise_row(Values& x) {
  double mean = 0, variance = 0;
  for (double v : x) mean += v / static_cast<double>(x.size());
  for (double v : x) variance += (v - mean) * (v - mean) / static_cast<double>(x.size());
  for (double& v : x) v = (v - mean) / std::sqrt(variance + kExtendedEps);
}

ExtendedResults extended_reference(const ExtendedConfig& e, const ExtendedTensors& t) {
  const Config& c = e.c;
  const int64_t H = c.H, D = c.directions, GH = c.gates() * H, N = c.rows;
  const bool lstm = c.cell == cells::kKind<cells::Lstm>, gru = c.cell == cells::kKind<cells::Gru>;
  ExtendedResults r{Values(N * D * H), t.h0, t.c0, Values(D * N * H)};
  for (int64_t d = 0; d < D; ++d) {
    for (int64_t s = 0; s < c.T; ++s) {
      const int64_t now = d == 1 ? c.T - 1 - s : s;
      for (int64_t b = 0; b < c.counts[now]; ++b) {
        const int64_t row = c.offsets[now] + b;
        double* h = &r.h_n[(d * c.B + b) * H];
        double* state = &r.c_n[(d * c.B + b) * H];
        Values scaled(h, h + H), v(GH, 0), fresh(H), o(H);
        for (int64_t j = 0; j < H && e.scaled; ++j) scaled[j] *= t.h_scale[(d * c.B + b) * H + j];
        Values x(&t.gates_x[(d * N + row) * GH], &t.gates_x[(d * N + row) * GH] + GH);
        multiply(&t.w_hh[d * GH * H], scaled.data(), GH, H, v.data());
        if (e.norm == Norm::kRecurrent) {
          normalise_row(x);
          for (int64_t k = 0; k < GH; ++k) {
            x[k] = x[k] * t.gain_x[d * GH + k] + (e.bias ? t.bias_x[d * GH + k] : 0);
          }
        }
        if (e.norm == Norm::kJoint) {
          for (int64_t k = 0; k < GH; ++k) v[k] += x[k], x[k] = 0;
        }
        if (e.norm != Norm::kNone) {
          normalise_row(v);
          for (int64_t k = 0; k < GH; ++k) v[k] *= t.gain[d * GH + k];
        }
        for (int64_t k = 0; k < GH && e.bias; ++k) v[k] += t.bias[d * GH + k];
        double factor[128], z_c[128], z_h[128];
        for (int64_t j = 0; j < H; ++j) {
          const uint32_t stream = static_cast<uint32_t>(4 * kExtendedLayer + 2 * d);
          factor[j] = 1;
          z_c[j] = e.zoneout_c;
          z_h[j] = e.zoneout_h;
          if (!e.random) continue;
          const auto below = [](double rate) { return static_cast<uint32_t>(rate * 65536 + 0.5); };
          const uint32_t word = random_word(stream, now, b, j);
          z_c[j] = (word & 0xffffu) < below(e.zoneout_c) ? 1 : 0;
          z_h[j] = (word >> 16) < below(e.zoneout_h) ? 1 : 0;
          const bool dropped = (random_word(stream + 1, now, b, j) >> 16) < below(e.dropout);
          factor[j] = dropped ? 0 : 1 / (1 - e.dropout);
        }
        Values fresh_h(H);
        for (int64_t j = 0; j < H; ++j) {
          const auto gate = [&](int64_t g) { return x[g * H + j] + v[g * H + j]; };
          if (lstm) {
            fresh[j] =
                sigmoid(gate(1)) * state[j] + sigmoid(gate(0)) * factor[j] * std::tanh(gate(2));
            o[j] = sigmoid(gate(3));
          } else if (gru) {
            const double z = sigmoid(gate(1));
            const double n = std::tanh(x[2 * H + j] + sigmoid(gate(0)) * v[2 * H + j]) * factor[j];
            fresh_h[j] = (1 - z) * n + z * h[j];
          } else {
            const double a = gate(0);
            fresh_h[j] = c.cell == cells::kKind<cells::RnnTanh> ? std::tanh(a) : a > 0 ? a : 0;
          }
        }
        if (lstm) {
          Values y = fresh;
          if (e.cell_norm) normalise_row(y);
          for (int64_t j = 0; j < H; ++j) {
            if (e.cell_norm) y[j] = y[j] * t.cell_gain[d * H + j] + t.cell_bias[d * H + j];
            fresh_h[j] = o[j] * std::tanh(y[j]);
            state[j] = z_c[j] * state[j] + (1 - z_c[j]) * fresh[j];
            r.cells[(d * N + row) * H + j] = state[j];
          }
        }
        for (int64_t j = 0; j < H; ++j) {
          h[j] = z_h[j] * h[j] + (1 - z_h[j]) * fresh_h[j];
          r.output[(row * D + d) * H + j] = h[j];
        }
      }
    }
  }
  return r;
}

double inner(const Values& a, const Values& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

template <class S>
void run_extended(const Config& config, const std::string& name) {
  if (config.projected) return;
  ExtendedConfig e{config,
                   static_cast<Norm>(generator() % 3),
                   generator() % 2 != 0,
                   config.cell == cells::kKind<cells::Lstm> && generator() % 2 != 0,
                   generator() % 2 != 0,
                   generator() % 2 != 0,
                   config.cell == cells::kKind<cells::Lstm> && generator() % 2 != 0 ? 0.25 : 0,
                   generator() % 2 != 0 ? 0.5 : 0,
                   generator() % 2 != 0 ? 0.375 : 0};
  if (config.cell == cells::kKind<cells::RnnTanh> || config.cell == cells::kKind<cells::RnnRelu>)
    e.dropout = 0;
  const Config& c = e.c;
  const int64_t D = c.directions, N = c.rows, H = c.H, GH = c.gates() * H, BH = D * c.B * H;
  const bool lstm = c.cell == cells::kKind<cells::Lstm>, gru = c.cell == cells::kKind<cells::Gru>;
  const bool norms = e.norm != Norm::kNone, norms_x = e.norm == Norm::kRecurrent;
  const std::string where = name + " extended norm=" + std::to_string(static_cast<int>(e.norm)) +
                            (e.random ? " random" : "") + (e.cell_norm ? " cell" : "") +
                            (e.scaled ? " scaled" : "");
  ExtendedTensors t;
  t.gates_x = random_values(D * N * GH, 1);
  t.h0 = random_values(BH, c.initial ? 1 : 0);
  t.c0 = random_values(BH, c.initial ? 1 : 0);
  t.w_hh = random_values(D * GH * H, 0.5 / std::sqrt(static_cast<double>(H)));
  t.gain_x = random_values(D * GH, 1);
  t.bias_x = random_values(D * GH, e.bias ? 0.5 : 0);
  t.bias = random_values(D * GH, e.bias ? 0.5 : 0);
  t.gain = random_values(D * GH, 1);
  t.cell_gain = random_values(D * H, 1);
  t.cell_bias = random_values(D * H, 0.5);
  t.h_scale = random_values(BH, 1);
  const ExtendedResults expected = extended_reference(e, t);

  Buffers<S> memory;
  using ComputeType = Compute<S>;
  Buffers<ComputeType> compute;
  const Kernels& k = kernels(Info<S>::dtype);
  LayerShape shape{
      c.cell,
      Info<S>::dtype,
      {c.T, c.B, N, c.packed ? c.counts.data() : nullptr, c.packed ? c.offsets.data() : nullptr},
      1,
      H,
      H,
      false,
      c.directions};
  ExtendedOptions options{};
  options.norm = e.norm;
  options.w_hh = memory.in(t.w_hh);
  options.gain_x = norms_x ? memory.in(t.gain_x) : nullptr;
  options.bias_x = norms_x && e.bias ? memory.in(t.bias_x) : nullptr;
  options.bias = e.bias ? memory.in(t.bias) : nullptr;
  options.gain = norms ? memory.in(t.gain) : nullptr;
  options.cell_gain = e.cell_norm ? memory.in(t.cell_gain) : nullptr;
  options.cell_bias = e.cell_norm ? memory.in(t.cell_bias) : nullptr;
  options.h_scale = e.scaled ? memory.in(t.h_scale) : nullptr;
  options.eps = kExtendedEps;
  options.random = e.random;
  options.seed = kExtendedSeed;
  options.layer = kExtendedLayer;
  options.zoneout_c = e.zoneout_c;
  options.zoneout_h = e.zoneout_h;
  options.dropout = e.dropout;

  const int64_t saved = lstm || gru ? 4 : 1;
  S *output = memory.out(N * D * H), *h_n = memory.out(BH), *c_n = memory.out(BH);
  S *gates = memory.out(D * N * saved * H), *hidden = memory.out(D * N * H),
    *cells = memory.out(D * N * H), *normed = memory.out(D * N * GH);
  ComputeType *rstd = compute.out(D * N), *moments_x = compute.out(2 * D * N);
  const void* gates_x = memory.in(t.gates_x);
  const void* h0 = c.initial ? memory.in(t.h0) : nullptr;
  const void* c0 = c.initial && lstm ? memory.in(t.c0) : nullptr;
  for (const bool save : {false, true}) {
    ExtendedForwardParams f{};
    f.shape = shape;
    f.options = options;
    f.gates_x = gates_x;
    f.h0 = h0;
    f.c0 = c0;
    f.output = output;
    f.h_n = h_n;
    f.c_n = lstm ? c_n : nullptr;
    if (save) {
      f.gates = gates;
      f.hidden = hidden;
      f.cells = lstm ? cells : nullptr;
      f.normed = norms ? normed : nullptr;
      f.rstd = norms ? rstd : nullptr;
      f.moments_x = norms_x ? moments_x : nullptr;
    }
    launch(f, k.extended_forward_workspace, k.extended_forward, c.threads);
    compare("output", output, expected.output, where);
    compare("h_n", h_n, expected.h_n, where);
    if (lstm) compare("c_n", c_n, expected.c_n, where);
    if (lstm && save) compare("cells", cells, expected.cells, where);
  }

  const ExtendedResults loss{random_values(N * D * H, 1), random_values(BH, 1),
                             random_values(BH, lstm ? 1 : 0),
                             random_values(D * N * H, lstm && e.random ? 1 : 0)};
  ExtendedBackwardParams b{};
  b.shape = shape;
  b.options = options;
  b.d_output = memory.in(loss.output);
  b.d_h_n = memory.in(loss.h_n);
  b.d_c_n = lstm ? memory.in(loss.c_n) : nullptr;
  b.d_cells = lstm && e.random ? memory.in(loss.cells) : nullptr;
  b.h0 = h0;
  b.c0 = c0;
  b.gates = gates;
  b.hidden = gru ? hidden : nullptr;
  b.cells = lstm ? cells : nullptr;
  b.normed = norms ? normed : nullptr;
  b.rstd = norms ? rstd : nullptr;
  b.gates_x = norms_x ? gates_x : nullptr;
  b.moments_x = norms_x ? moments_x : nullptr;
  const bool apart = e.norm == Norm::kRecurrent || (gru && !norms);
  S *d_gates = memory.out(D * N * GH), *d_product = memory.out(D * N * GH);
  S *d_h0 = memory.out(BH), *d_c0 = memory.out(BH), *d_bias = memory.out(D * GH);
  S *d_gain_x = memory.out(D * GH), *d_bias_x = memory.out(D * GH);
  S *d_gain = memory.out(D * GH), *d_cell_gain = memory.out(D * H),
    *d_cell_bias = memory.out(D * H);
  b.d_gates = d_gates;
  b.d_product = apart ? d_product : nullptr;
  b.d_h0 = d_h0;
  b.d_c0 = lstm ? d_c0 : nullptr;
  b.d_gain_x = norms_x ? d_gain_x : nullptr;
  b.d_bias_x = norms_x && e.bias ? d_bias_x : nullptr;
  b.d_bias = e.bias ? d_bias : nullptr;
  b.d_gain = norms ? d_gain : nullptr;
  b.d_cell_gain = e.cell_norm ? d_cell_gain : nullptr;
  b.d_cell_bias = e.cell_norm ? d_cell_bias : nullptr;
  launch(b, k.extended_backward_workspace, k.extended_backward, c.threads);

  // The product's gradient times h gives that of w_hh.
  const S* product = apart ? d_product : d_gates;
  Values d_w_hh(D * GH * H, 0);
  for (int64_t d = 0; d < D; ++d) {
    for (int64_t s = 0; s < c.T; ++s) {
      const int64_t now = d == 1 ? c.T - 1 - s : s, before = d == 1 ? now + 1 : now - 1;
      for (int64_t row = 0; row < c.counts[now]; ++row) {
        const bool has = s > 0 && row < c.counts[before];
        for (int64_t i = 0; i < H; ++i) {
          const int64_t at = (d * c.B + row) * H + i;
          double h = t.h0[at];
          if (has) h = expected.output[((c.offsets[before] + row) * D + d) * H + i];
          if (e.scaled) h *= t.h_scale[at];
          for (int64_t g = 0; g < GH; ++g) {
            const int64_t n = d * N + c.offsets[now] + row;
            d_w_hh[(d * GH + g) * H + i] += read(product[n * GH + g]) * h;
          }
        }
      }
    }
  }
  // Each argument by itself, so that none hides behind a larger one. A quotient across a kink of
  // relu has no slope to compare with.
  if (c.cell == cells::kKind<cells::RnnRelu>) return;
  const bool moves[10] = {
      true,   c.initial, c.initial && lstm, true,       norms_x, norms_x && e.bias,
      e.bias, norms,     e.cell_norm,       e.cell_norm};
  const S* results[10] = {d_gates,  d_h0,   d_c0,   nullptr,     d_gain_x,
                          d_bias_x, d_bias, d_gain, d_cell_gain, d_cell_bias};
  const char* names[10] = {"gates_x", "h0",   "c0",   "w_hh",      "gain_x",
                           "bias_x",  "bias", "gain", "cell_gain", "cell_bias"};
  constexpr double kStep = 1e-5;
  for (int i = 0; i < 10; ++i) {
    if (!moves[i]) continue;
    ExtendedTensors after = t, before = t;
    const Values u = random_values(static_cast<int64_t>(t.movable[i]->size()), 1);
    double slope = 0, size = 1;
    for (size_t j = 0; j < u.size(); ++j) {
      (*after.movable[i])[j] += kStep * u[j];
      (*before.movable[i])[j] -= kStep * u[j];
      const double gradient = results[i] ? read(results[i][j]) : d_w_hh[j];
      slope += gradient * u[j];
      size += std::fabs(gradient * u[j]);
    }
    const ExtendedResults high = extended_reference(e, after), low = extended_reference(e, before);
    const double quotient = (inner(loss.output, high.output) - inner(loss.output, low.output) +
                             inner(loss.h_n, high.h_n) - inner(loss.h_n, low.h_n) +
                             (lstm ? inner(loss.c_n, high.c_n) - inner(loss.c_n, low.c_n) : 0) +
                             inner(loss.cells, high.cells) - inner(loss.cells, low.cells)) /
                            (2 * kStep);
    const double limit = std::fmax(4 * Info<S>::tolerance, 1e-6) * size;
    if (!(std::fabs(slope - quotient) <= limit)) {
      std::printf("FAILED %s: slope along %s is %g, expected %g\n", where.c_str(), names[i], slope,
                  quotient);
      ++failures;
    }
  }
}

// Dropped weights: every element as the words of its row and column say.
template <class S>
void run_dropped(const Config& c, const std::string& name) {
  constexpr uint32_t kStream = 6;
  constexpr double kRate = 0.375;
  const int64_t rows = c.gates() * c.H, columns = c.P, half = (columns + 127) / 128 * 64;
  const Values weights = random_values(rows * columns, 1);
  Values expected(weights);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t j = 0; j < columns; ++j) {
      const uint32_t word = random_word(kStream, -1, r, j % half);
      const bool drops = (j < half ? word & 0xffffu : word >> 16) < kRate * 65536;
      expected[r * columns + j] *= drops ? 0 : 1 / (1 - kRate);
    }
  }
  Buffers<S> memory;
  const Kernels& k = kernels(Info<S>::dtype);
  DropParams p{};
  p.dtype = Info<S>::dtype;
  p.rows = rows;
  p.columns = columns;
  p.from = memory.in(weights);
  S* to = memory.out(rows * columns);
  p.to = to;
  p.seed = kExtendedSeed;
  p.stream = kStream;
  p.rate = kRate;
  launch(p, k.drop_workspace, k.drop, c.threads);
  compare("dropped", to, expected, name);
}
