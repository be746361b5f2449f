// Options inside the recurrence: values against plain scalar loops, gradients, tangents and second
// derivatives against difference quotients of those loops in random directions; in
// kernels_main.cpp, which includes this.
#pragma once

struct InsideConfig {
  Config c;
  Norm norm;
  bool scaled, random;
  double zoneout_c, zoneout_h, dropout;

  bool has_c() const { return cells::traits(c.cell).has_c(); }
  bool both() const { return norm == Norm::kRecurrent; }
  bool norms_c() const { return both() && has_c(); }
};

// What a layer reads that can be moved, of all directions. A norm of both products at once has no
// b_ih and no gain_ih.
struct InsideTensors {
  static constexpr int kMovable = 12;
  Values x, h0, c0, w_ih, w_hh, b_ih, b_hh, gain_ih, gain_hh, cell_gain, cell_bias, w_ch;
  Values h_scale;

  Values& at(int i) {
    Values* const each[kMovable] = {&x,    &h0,      &c0,      &w_ih,      &w_hh,      &b_ih,
                                    &b_hh, &gain_ih, &gain_hh, &cell_gain, &cell_bias, &w_ch};
    return *each[i];
  }
};
constexpr const char* kMovableNames[] = {"x",       "h0",        "c0",        "w_ih",
                                         "w_hh",    "b_ih",      "b_hh",      "gain_ih",
                                         "gain_hh", "cell_gain", "cell_bias", "w_ch"};

struct InsideResults {
  Values output, h_n, c_n, cells;  // cells [D, N, H]
};

constexpr uint64_t kInsideSeed = 0x9876543210ABCDEFu;
constexpr uint32_t kInsideStream = 8;
constexpr int64_t kInsideFirst = 100, kInsideStep = -1;
constexpr double kInsideEps = 1e-3;  // large: rows of one value have no variance of their own

// Philox 4x32-10 for one unit, as its authors write it.
uint32_t random_word(uint32_t stream, int64_t t, int64_t b, int64_t j) {
  const int64_t lane = j % 64 % 16, word = j % 64 / 16;
  uint32_t x[4] = {static_cast<uint32_t>(j / 64 * 16 + lane), static_cast<uint32_t>(b),
                   static_cast<uint32_t>(t), stream};
  uint32_t key[2] = {static_cast<uint32_t>(kInsideSeed), static_cast<uint32_t>(kInsideSeed >> 32)};
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
  for (double& v : x) v = (v - mean) / std::sqrt(variance + kInsideEps);
}

// The vectors of unit j of a cell that has some.
template <class Cell>
struct Own {
  Number v[cells::kOwn<Cell>];
};
template <class Cell>
Own<Cell> own_of(const InsideConfig& e, const InsideTensors& t, int64_t d, int64_t j) {
  Own<Cell> own;
  for (int k = 0; k < Cell::kVectors; ++k) {
    own.v[k] = {t.w_ch[(d * Cell::kVectors + k) * e.c.H + j]};
  }
  return own;
}

template <class Cell>
InsideResults inside_reference_of(const InsideConfig& e, const InsideTensors& t) {
  constexpr int K = Cell::kColumns;
  constexpr bool kHasC = Cell::kStates > 1;
  const Config& c = e.c;
  const int64_t H = c.H, D = c.directions, GH = c.gates() * H, N = c.rows;
  const bool joint = e.norm == Norm::kJoint;
  InsideResults r{Values(N * D * H), t.h0, t.c0, Values(D * N * H)};
  for (int64_t d = 0; d < D; ++d) {
    for (int64_t s = 0; s < c.T; ++s) {
      const int64_t now = d == 1 ? c.T - 1 - s : s;
      for (int64_t b = 0; b < c.counts[now]; ++b) {
        const int64_t row = c.offsets[now] + b;
        double* h = &r.h_n[(d * c.B + b) * H];
        double* state = &r.c_n[(d * c.B + b) * H];
        Values scaled(h, h + H), x(GH, 0), v(GH, 0);
        for (int64_t j = 0; j < H && e.scaled; ++j) scaled[j] *= t.h_scale[(d * c.B + b) * H + j];
        multiply(&t.w_ih[d * GH * c.I], &t.x[row * c.I], GH, c.I, x.data());
        multiply(&t.w_hh[d * GH * H], scaled.data(), GH, H, v.data());
        const auto affine = [&](Values& y, const Values& gain) {
          normalise_row(y);
          for (int64_t k = 0; k < GH; ++k) y[k] *= gain[d * GH + k];
        };
        if (joint) {
          for (int64_t k = 0; k < GH; ++k) v[k] += x[k], x[k] = 0;
        }
        if (e.both()) affine(x, t.gain_ih);
        if (e.norm != Norm::kNone) affine(v, t.gain_hh);
        for (int64_t k = 0; k < GH && (c.biases || joint); ++k) v[k] += t.b_hh[d * GH + k];
        for (int64_t k = 0; k < GH && c.biases && !joint; ++k) x[k] += t.b_ih[d * GH + k];
        double factor[128], z_c[128], z_h[128];
        for (int64_t j = 0; j < H; ++j) {
          const uint32_t stream = kInsideStream + static_cast<uint32_t>(2 * d);
          factor[j] = 1;
          z_c[j] = e.zoneout_c;
          z_h[j] = e.zoneout_h;
          if (!e.random) continue;
          const auto below = [](double rate) { return static_cast<uint32_t>(rate * 65536 + 0.5); };
          const int64_t step = kInsideFirst + kInsideStep * now;
          const uint32_t word = random_word(stream, step, b, j);
          z_c[j] = (word & 0xffffu) < below(e.zoneout_c) ? 1 : 0;
          z_h[j] = (word >> 16) < below(e.zoneout_h) ? 1 : 0;
          const bool dropped = (random_word(stream + 1, step, b, j) >> 16) < below(e.dropout);
          factor[j] = dropped ? 0 : 1 / (1 - e.dropout);
        }
        Values fresh_h(H), fresh(H);
        std::vector<std::array<Number, K>> kept(H);
        for (int64_t j = 0; j < H; ++j) {
          Number a[K] = {}, before[Cell::kStates], after[Cell::kStates] = {};
          for (int k = 0; k < Cell::kProducts; ++k) {
            a[k].v += x[k * H + j];
            a[cells::recurrent_column<Cell>(k)].v += v[k * H + j];
          }
          before[0] = {h[j]};
          if constexpr (kHasC) before[1] = {state[j]};
          if constexpr (Cell::kVectors > 0) Cell::enter(own_of<Cell>(e, t, d, j).v, before, a);
          Cell::activate(a);
          if constexpr (Cell::kCandidate >= 0) a[Cell::kCandidate].v *= factor[j];
          Cell::update(a, before, after);
          fresh_h[j] = after[0].v;
          if constexpr (kHasC) fresh[j] = after[1].v;
          std::copy(a, a + K, kept[j].begin());
        }
        if constexpr (kHasC) {
          Values y = fresh;
          if (e.norms_c()) normalise_row(y);
          for (int64_t j = 0; j < H; ++j) {
            if (e.norms_c()) y[j] *= t.cell_gain[d * H + j];
            if (e.norms_c() && c.biases) y[j] += t.cell_bias[d * H + j];
            Number a[K], states[2] = {{NAN}, {y[j]}};
            std::copy(kept[j].begin(), kept[j].end(), a);
            if constexpr (Cell::kVectors > 0) Cell::finish(own_of<Cell>(e, t, d, j).v, states, a);
            Cell::emit(a, states);
            fresh_h[j] = states[0].v;
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

InsideResults inside_reference(const InsideConfig& e, const InsideTensors& t) {
  return cells::All::visit(e.c.cell,
                           [&](auto cell) { return inside_reference_of<decltype(cell)>(e, t); });
}

double inner(const Values& a, const Values& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

// The loss whose gradients at the results are `weights`, at t moved along u and w.
double loss_at(const InsideConfig& e, InsideTensors t, const InsideResults& weights,
               const InsideTensors& u, double by, const InsideTensors* w = nullptr,
               double by_w = 0) {
  for (int i = 0; i < InsideTensors::kMovable; ++i) {
    const Values& direction = const_cast<InsideTensors&>(u).at(i);
    for (size_t j = 0; j < direction.size(); ++j) t.at(i)[j] += by * direction[j];
    if (!w) continue;
    const Values& other = const_cast<InsideTensors*>(w)->at(i);
    for (size_t j = 0; j < other.size(); ++j) t.at(i)[j] += by_w * other[j];
  }
  const InsideResults r = inside_reference(e, t);
  return inner(weights.output, r.output) + inner(weights.h_n, r.h_n) +
         (e.has_c() ? inner(weights.c_n, r.c_n) + inner(weights.cells, r.cells) : 0);
}

void expect_slope(double slope, double quotient, double limit, const std::string& where,
                  const char* what) {
  if (std::fabs(slope - quotient) <= limit) return;
  std::printf("FAILED %s: slope along %s is %g, expected %g\n", where.c_str(), what, slope,
              quotient);
  ++failures;
}

template <class S>
void run_inside(const Config& config, const std::string& name) {
  if (config.projected) return;
  const auto chance = [](double rate) { return generator() % 2 != 0 ? rate : 0; };
  InsideConfig e{config, static_cast<Norm>(generator() % 3), chance(1) > 0, chance(1) > 0, 0, 0, 0};
  if (e.has_c()) e.zoneout_c = chance(0.25);
  e.zoneout_h = chance(0.5);
  const Config& c = e.c;
  if (c.saves_gates()) e.dropout = chance(0.375);
  const int64_t D = c.directions, N = c.rows, H = c.H, GH = c.gates() * H, BH = D * c.B * H;
  const bool has_c = e.has_c(), both = e.both(), joint = e.norm == Norm::kJoint;
  const bool b_ih = c.biases && !joint, b_hh = c.biases || joint;
  const bool moves[InsideTensors::kMovable] = {
      true,          c.initial,   c.initial && has_c,      true,           true, b_ih, b_hh, both,
      both || joint, e.norms_c(), e.norms_c() && c.biases, c.vectors() > 0};
  const std::string where = name + " inside norm=" + std::to_string(static_cast<int>(e.norm)) +
                            (e.random ? " random" : "") + (e.scaled ? " scaled" : "");
  const int64_t sizes[InsideTensors::kMovable] = {N * c.I,    BH,     BH,     D * GH * c.I,
                                                  D * GH * H, D * GH, D * GH, D * GH,
                                                  D * GH,     D * H,  D * H,  c.vectors() * D * H};
  const double root_i = 1 / std::sqrt(static_cast<double>(c.I)),
               root_h = 0.5 / std::sqrt(static_cast<double>(H));
  const double spreads[InsideTensors::kMovable] = {1,   1, 1, root_i, root_h, 0.5,
                                                   0.5, 1, 1, 1,      0.5,    0.5};
  InsideTensors t, u, w;  // a layer, and two directions
  for (int i = 0; i < InsideTensors::kMovable; ++i) {
    t.at(i) = random_values(sizes[i], moves[i] ? spreads[i] : 0);
    u.at(i) = random_values(sizes[i], moves[i] ? spreads[i] : 0);
    w.at(i) = random_values(sizes[i], moves[i] ? spreads[i] : 0);
  }
  t.h_scale = random_values(BH, 1);
  const InsideResults expected = inside_reference(e, t);

  Buffers<S> memory;
  using ComputeType = Compute<S>;
  Buffers<ComputeType> compute;
  const Kernels& k = kernels(Info<S>::dtype);
  LayerShape shape{
      c.cell,
      Info<S>::dtype,
      {c.T, c.B, N, c.packed ? c.counts.data() : nullptr, c.packed ? c.offsets.data() : nullptr},
      c.I,
      H,
      H,
      false,
      c.directions};
  Inside inside{};
  inside.any = true;
  inside.norm = e.norm;
  inside.eps = kInsideEps;
  inside.zoneout_c = e.zoneout_c;
  inside.zoneout_h = e.zoneout_h;
  inside.dropout = e.dropout;
  inside.random = e.random;
  inside.seed = kInsideSeed;
  inside.stream = kInsideStream;
  inside.first_step = kInsideFirst;
  inside.step = kInsideStep;
  inside.h_scale = e.scaled ? memory.in(t.h_scale) : nullptr;
  // Of one direction; with_weights: of all, else of all but w_ih and w_hh.
  const auto fill = [&](InsideTensors& of, Weights(&weights)[2]) {
    for (int64_t d = 0; d < D; ++d) {
      const auto part = [&](int i) -> const void* {
        if (!moves[i]) return nullptr;
        const Values& all = of.at(i);
        const int64_t each = static_cast<int64_t>(all.size()) / D;
        return memory.in(Values(all.begin() + d * each, all.begin() + (d + 1) * each));
      };
      weights[d] = {part(3), part(4), part(5), part(6),  nullptr,
                    part(7), part(8), part(9), part(10), part(11)};
    }
  };
  Weights weights[2] = {}, t_weights[2] = {};
  fill(t, weights);
  fill(u, t_weights);
  const int64_t parts = inside.parts(), saved = c.columns();
  S *output = memory.out(N * D * H), *h_n = memory.out(BH), *c_n = memory.out(BH);
  S *gates = memory.out(D * N * saved * H), *hidden = memory.out(D * N * H),
    *cells = memory.out(D * N * H), *normed = memory.out(D * N * parts * GH);
  ComputeType* rstd = compute.out(D * N * parts);
  const void* x = memory.in(t.x);
  const void* h0 = c.initial ? memory.in(t.h0) : nullptr;
  const void* c0 = c.initial && has_c ? memory.in(t.c0) : nullptr;
  for (const bool save : {false, true}) {
    ForwardParams f{};
    f.shape = shape;
    f.inside = inside;
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
      f.gates = gates;
      f.hidden = hidden;
      f.cells = has_c ? cells : nullptr;
      f.normed = parts > 0 ? normed : nullptr;
      f.rstd = parts > 0 ? rstd : nullptr;
    }
    launch(f, k.forward_workspace, k.forward, c.threads);
    compare("output", output, expected.output, where);
    compare("h_n", h_n, expected.h_n, where);
    if (has_c) compare("c_n", c_n, expected.c_n, where);
    if (has_c && save) compare("cells", cells, expected.cells, where);
  }

  const InsideResults loss{random_values(N * D * H, 1), random_values(BH, 1),
                           random_values(BH, has_c ? 1 : 0),
                           random_values(D * N * H, has_c && e.random ? 1 : 0)};
  VjpParams v{};
  BackwardParams& b = v.backward;
  b.shape = shape;
  b.inside = inside;
  std::copy(weights, weights + 2, b.weights);
  b.d_output = memory.in(loss.output);
  b.d_h_n = memory.in(loss.h_n);
  b.d_c_n = has_c ? memory.in(loss.c_n) : nullptr;
  b.d_cells = has_c && e.random ? memory.in(loss.cells) : nullptr;
  b.h0 = h0;
  b.c0 = c0;
  b.gates = gates;
  b.hidden = has_c ? nullptr : hidden;
  b.cells = has_c ? cells : nullptr;
  b.normed = parts > 0 ? normed : nullptr;
  b.rstd = parts > 0 ? rstd : nullptr;
  S *d_h0 = memory.out(BH), *d_c0 = memory.out(BH), *d_x = memory.out(N * c.I);
  b.d_h0 = d_h0;
  b.d_c0 = has_c ? d_c0 : nullptr;
  ProductParams& p = v.products;
  p.shape = shape;
  p.shape.hidden_size = GH;
  p.apart = both ? GH : joint ? 0 : (c.columns() - c.gates()) * H;
  std::copy(weights, weights + 2, p.weights);
  p.input = x;
  p.hidden = hidden;
  p.h0 = h0;
  p.h_scale = inside.h_scale;
  p.d_input = d_x;
  // Of each direction, in the order of InsideTensors.
  S* found[2][InsideTensors::kMovable] = {};
  for (int64_t d = 0; d < D; ++d) {
    for (int i = 3; i < InsideTensors::kMovable; ++i) found[d][i] = memory.out(sizes[i] / D);
    S** const r = found[d];
    const auto wanted = [&](int i, bool here) { return moves[i] && here ? r[i] : nullptr; };
    p.gradients[d] = {r[3], r[4], wanted(5, parts == 0), wanted(6, parts == 0)};
    b.inside_gradients[d] = {wanted(5, parts > 0), wanted(6, parts > 0), wanted(7, true),
                             wanted(8, true),      wanted(9, true),      wanted(10, true),
                             wanted(11, true)};
  }
  v.backward_threads = 1 + static_cast<int>(generator() % static_cast<unsigned>(c.threads));
  v.chunk_rows = pick({1, 10, 40, 300});
  launch(v, k.vjp_workspace, k.vjp, c.threads);
  // Each argument by itself, so that none hides behind a larger one. A quotient across a kink of
  // relu has no slope to compare with.
  const bool smooth = c.cell != cells::kKind<cells::RnnRelu>;
  constexpr double kStep = 1e-5;
  for (int i = 0; i < InsideTensors::kMovable && smooth; ++i) {
    if (!moves[i]) continue;
    InsideTensors only;
    only.at(i) = random_values(sizes[i], 1);
    double slope = 0, size = 1;
    for (int64_t j = 0; j < sizes[i]; ++j) {
      const int64_t each = sizes[i] / D;
      const S* const whole = i == 0 ? d_x : i == 1 ? d_h0 : d_c0;
      const double gradient = read(i < 3 ? whole[j] : found[j / each][i][j % each]);
      slope += gradient * only.at(i)[j];
      size += std::fabs(gradient * only.at(i)[j]);
    }
    const double quotient =
        (loss_at(e, t, loss, only, kStep) - loss_at(e, t, loss, only, -kStep)) / (2 * kStep);
    expect_slope(slope, quotient, std::fmax(4 * Info<S>::tolerance, 1e-6) * size, where,
                 kMovableNames[i]);
  }

  // Tangents along u.
  TangentParams tp{};
  tp.shape = shape;
  tp.inside = inside;
  std::copy(weights, weights + 2, tp.weights);
  std::copy(t_weights, t_weights + 2, tp.t_weights);
  tp.t_input = memory.in(u.x);
  tp.t_h0 = c.initial ? memory.in(u.h0) : nullptr;
  tp.t_c0 = c.initial && has_c ? memory.in(u.c0) : nullptr;
  tp.input = x;
  tp.h0 = h0;
  tp.c0 = c0;
  tp.gates = gates;
  tp.hidden = hidden;
  tp.cells = has_c ? cells : nullptr;
  tp.normed = b.normed;
  tp.rstd = b.rstd;
  S *t_hidden = memory.out(D * N * H), *t_gates = memory.out(D * N * saved * H),
    *t_cells = memory.out(D * N * H), *t_h_n = memory.out(BH), *t_c_n = memory.out(BH),
    *t_normed = memory.out(D * N * parts * GH);
  ComputeType* t_rstd = compute.out(D * N * parts);
  tp.t_hidden = t_hidden;
  tp.t_gates = t_gates;
  tp.t_cells = has_c ? t_cells : nullptr;
  tp.t_h_n = t_h_n;
  tp.t_c_n = has_c ? t_c_n : nullptr;
  tp.t_normed = parts > 0 ? t_normed : nullptr;
  tp.t_rstd = parts > 0 ? t_rstd : nullptr;
  launch(tp, k.tangent_workspace, k.tangent, c.threads);
  if (smooth) {
    const double quotient =
        (loss_at(e, t, loss, u, kStep) - loss_at(e, t, loss, u, -kStep)) / (2 * kStep);
    double slope = 0, size = 1;
    const auto add = [&](const Values& weight, const S* tangent, auto place) {
      for (size_t j = 0; j < weight.size(); ++j) {
        const double term = weight[j] * read(tangent[place(static_cast<int64_t>(j))]);
        slope += term;
        size += std::fabs(term);
      }
    };
    const auto same = [](int64_t j) { return j; };
    add(loss.output, t_hidden, [&](int64_t j) {  // [N, D*H] as [D, N, H]
      return (j / H % D * N + j / (D * H)) * H + j % H;
    });
    add(loss.h_n, t_h_n, same);
    if (has_c) add(loss.c_n, t_c_n, same);
    if (has_c) add(loss.cells, t_cells, same);
    expect_slope(slope, quotient, std::fmax(8 * Info<S>::tolerance, 1e-6) * size, where, "all");
  }

  // The recurrence alone, with what cells received, and its derivative along u: of the gradients of
  // states, gains and biases along w.
  const int64_t columns = GH + p.apart;
  S *d_gates = memory.out(D * N * columns), *d_cell_h = memory.out(D * N * H),
    *d_cell_c = memory.out(D * N * H);
  b.d_gates = d_gates;
  b.d_cell_h = d_cell_h;
  b.d_cell_c = has_c ? d_cell_c : nullptr;
  launch(b, k.backward_workspace, k.backward, c.threads);
  Values through(D * N * H, 0);
  for (int64_t n = 0; n < D * N; ++n) {
    Values d_u(GH);
    for (int64_t g = 0; g < GH; ++g) {
      const bool apart = g >= GH - p.apart;
      d_u[g] = read(d_gates[n * columns + g + (apart ? p.apart : 0)]);
    }
    multiply_transposed(&u.w_hh[n / N * GH * H], d_u.data(), GH, H, &through[n * H]);
  }
  S* const rounded = memory.out(through.size());
  for (size_t i = 0; i < through.size(); ++i) round_to(through[i], rounded + i);
  BackwardDirection direction{};
  direction.d_cell_h = d_cell_h;
  direction.d_cell_c = b.d_cell_c;
  direction.t_gates = t_gates;
  direction.t_hidden = has_c ? nullptr : t_hidden;
  direction.t_cells = tp.t_cells;
  direction.t_h0 = tp.t_h0;
  direction.t_c0 = tp.t_c0;
  direction.through_w_hh = rounded;
  std::copy(t_weights, t_weights + 2, direction.t_weights);
  direction.t_normed = tp.t_normed;
  direction.t_rstd = tp.t_rstd;
  b.direction = &direction;
  b.d_output = b.d_h_n = b.d_c_n = b.d_cells = nullptr;
  b.d_cell_h = b.d_cell_c = nullptr;
  launch(b, k.backward_workspace, k.backward, c.threads);
  if (!smooth) return;
  InsideTensors along = w;
  double slope = 0, size = 1;
  for (int i = 0; i < InsideTensors::kMovable; ++i) {
    const bool here = moves[i] && (i == 1 || i == 2 || i > 6 || (i > 4 && parts > 0));
    if (!here) along.at(i).assign(along.at(i).size(), 0);
    for (int64_t j = 0; here && j < sizes[i]; ++j) {
      const int64_t each = sizes[i] / D;
      const double term = along.at(i)[j] * read(i == 1   ? d_h0[j]
                                                : i == 2 ? d_c0[j]
                                                         : found[j / each][i][j % each]);
      slope += term;
      size += std::fabs(term);
    }
  }
  constexpr double kWide = 3e-5;
  const auto at = [&](double by, double by_w) {
    return loss_at(e, t, loss, u, by * kWide, &along, by_w * kWide);
  };
  const double quotient = (at(1, 1) - at(1, -1) - at(-1, 1) + at(-1, -1)) / (4 * kWide * kWide);
  // Terms of many steps cancel, more than their sizes at the end tell.
  const double limit = std::fmax(20 * Info<S>::tolerance, 2e-5) * (size + std::fabs(quotient) + 10);
  expect_slope(slope, quotient, limit, where, "two directions");
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
  p.seed = kInsideSeed;
  p.stream = kStream;
  p.rate = kRate;
  launch(p, k.drop_workspace, k.drop, c.threads);
  compare("dropped", to, expected, name);
}
