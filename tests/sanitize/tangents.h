// The tangent kernel and the backward kernel on dual numbers, against difference
// quotients of the reference in kernels_main.cpp, which includes this in its middle.
#pragma once

struct Direction {
  Values x, h0, c0, w_ih[2], w_hh[2], b_ih[2], b_hh[2], w_hr[2];
};

Direction random_direction(const Config& c, const Tensors& t) {
  Direction u;
  u.x = random_values(static_cast<int64_t>(t.x.size()), 1);
  u.h0 = random_values(static_cast<int64_t>(t.h0.size()), c.initial ? 1 : 0);
  u.c0 = random_values(static_cast<int64_t>(t.c0.size()), c.initial ? 1 : 0);
  for (int d = 0; d < c.directions; ++d) {
    u.w_ih[d] = random_values(static_cast<int64_t>(t.w_ih[d].size()), 0.1);
    u.w_hh[d] = random_values(static_cast<int64_t>(t.w_hh[d].size()), 0.1);
    u.b_ih[d] = random_values(static_cast<int64_t>(t.b_ih[d].size()), 1);
    u.b_hh[d] = random_values(static_cast<int64_t>(t.b_hh[d].size()), 1);
    u.w_hr[d] = random_values(static_cast<int64_t>(t.w_hr[d].size()), 0.5);
  }
  return u;
}

Tensors moved(const Config& c, Tensors t, const Direction& u, double by) {
  const auto add = [by](Values& to, const Values& direction) {
    for (size_t i = 0; i < to.size(); ++i) to[i] += by * direction[i];
  };
  add(t.x, u.x);
  add(t.h0, u.h0);
  add(t.c0, u.c0);
  for (int d = 0; d < c.directions; ++d) {
    add(t.w_ih[d], u.w_ih[d]);
    add(t.w_hh[d], u.w_hh[d]);
    add(t.b_ih[d], u.b_ih[d]);
    add(t.b_hh[d], u.b_hh[d]);
    add(t.w_hr[d], u.w_hr[d]);
  }
  reference(c, t);
  return t;
}

Values quotient(const Values& after, const Values& before, double step) {
  Values q(after.size());
  for (size_t i = 0; i < q.size(); ++i) q[i] = (after[i] - before[i]) / (2 * step);
  return q;
}

// What the caller of the kernels makes by products over all steps.
struct Brought {
  Values t_input, t_recurrent, t_projected, through_w_hh, through_w_hr;
};

Brought bring(const Config& c, const Tensors& t, const Direction& u) {
  const int64_t H = c.H, P = c.P, N = c.rows, GH = c.gates() * H, KH = c.columns() * H;
  Brought b;
  b.t_input.assign(c.directions * N * GH, 0);
  b.t_recurrent.assign(c.directions * N * GH, 0);
  b.t_projected.assign(c.directions * N * P, 0);
  b.through_w_hh.assign(c.directions * N * P, 0);
  b.through_w_hr.assign(c.directions * N * H, 0);
  const auto time = [&](int64_t d, int64_t s) { return d == 1 ? c.T - 1 - s : s; };
  for (int64_t d = 0; d < c.directions; ++d) {
    for (int64_t s = c.T - 1; s >= 0; --s) {
      const int64_t now = time(d, s), earlier = s > 0 ? time(d, s - 1) : -1;
      for (int64_t row = c.offsets[now]; row < c.offsets[now] + c.counts[now]; ++row) {
        const int64_t k = row - c.offsets[now], n = d * N + row;
        const bool has = earlier >= 0 && k < c.counts[earlier];
        const double* h_prev =
            has ? &t.hidden[(d * N + c.offsets[earlier] + k) * P] : &t.h0[(d * c.B + k) * P];
        multiply(t.w_ih[d].data(), &u.x[row * c.I], GH, c.I, &b.t_input[n * GH]);
        multiply(u.w_ih[d].data(), &t.x[row * c.I], GH, c.I, &b.t_input[n * GH]);
        multiply(u.w_hh[d].data(), h_prev, GH, P, &b.t_recurrent[n * GH]);
        for (int64_t i = 0; c.biases && i < GH; ++i) {
          b.t_input[n * GH + i] += u.b_ih[d][i];
          b.t_recurrent[n * GH + i] += u.b_hh[d][i];
        }
        // The last recurrent product may have a column of its own.
        const double* d_g = &t.d_gates[n * KH];
        Values d_rec(d_g, d_g + GH);
        std::copy(d_g + KH - H, d_g + KH, d_rec.end() - H);
        multiply_transposed(u.w_hh[d].data(), d_rec.data(), GH, P, &b.through_w_hh[n * P]);
        if (!c.projected) continue;
        Values m(H);
        for (int64_t j = 0; j < H; ++j) {
          m[j] = t.gates[(n + 1) * KH - H + j] * std::tanh(t.cells[n * H + j]);
        }
        multiply(u.w_hr[d].data(), m.data(), P, H, &b.t_projected[n * P]);
        multiply_transposed(u.w_hr[d].data(), &t.d_hidden[n * P], P, H, &b.through_w_hr[n * H]);
      }
    }
  }
  return b;
}

template <class S>
void run_tangents(const Config& c, const Tensors& t, const std::string& where) {
  const Kernels& k = kernels(Info<S>::dtype);
  const int64_t D = c.directions, N = c.rows, H = c.H, P = c.P, K = c.columns();
  const bool has_c = cells::traits(c.cell).has_c(), gated = c.saves_gates();
  const Direction u = random_direction(c, t);
  constexpr double kStep = 1e-5;
  const Tensors after = moved(c, t, u, kStep), before = moved(c, t, u, -kStep);
  const Brought brought = bring(c, t, u);
  Buffers<S> memory;
  // Values of the reference, rounded: inputs of every kernel here.
  const auto in = [&](const Values& v) -> const void* {
    S* p = memory.out(v.size());
    for (size_t i = 0; i < v.size(); ++i) round_to(v[i], p + i);
    return p;
  };
  LayerShape shape{
      c.cell,
      Info<S>::dtype,
      {c.T, c.B, N, c.packed ? c.counts.data() : nullptr, c.packed ? c.offsets.data() : nullptr},
      c.I,
      H,
      P,
      c.projected,
      c.directions};
  Weights weights[2] = {}, t_weights[2] = {};
  for (int d = 0; d < c.directions; ++d) {
    weights[d].w_ih = in(t.w_ih[d]);
    weights[d].w_hh = in(t.w_hh[d]);
    t_weights[d].w_ih = in(u.w_ih[d]);
    t_weights[d].w_hh = in(u.w_hh[d]);
    if (c.biases) t_weights[d].b_ih = in(u.b_ih[d]);
    if (c.biases) t_weights[d].b_hh = in(u.b_hh[d]);
    if (c.projected) weights[d].w_hr = in(t.w_hr[d]);
  }
  const void* h0 = c.initial ? in(t.h0) : nullptr;
  const void* c0 = c.initial && has_c ? in(t.c0) : nullptr;
  const void* gates = gated ? in(t.gates) : nullptr;
  const void* all_hidden = in(t.hidden);
  const void* hidden = has_c ? nullptr : all_hidden;
  const void* cells = has_c ? in(t.cells) : nullptr;
  const auto check = [&](const char* what, const S* got, const Values& a, const Values& b) {
    // A difference quotient is exact to about 1e-9, and none is taken across a kink.
    if (c.cell == cells::kKind<cells::RnnRelu>) return;
    compare(what, got, quotient(a, b, kStep), where, 4 * std::fmax(Info<S>::tolerance, 1e-7));
  };

  TangentParams p{};
  p.shape = shape;
  std::copy(weights, weights + 2, p.weights);
  p.through_w_hr = c.projected ? in(brought.t_projected) : nullptr;
  p.t_h0 = c.initial ? in(u.h0) : nullptr;
  p.t_c0 = c.initial && has_c ? in(u.c0) : nullptr;
  p.h0 = h0;
  p.c0 = c0;
  p.gates = gates;
  p.hidden = hidden;
  p.cells = cells;
  S *t_hidden = memory.out(D * N * P), *t_gates = memory.out(D * N * K * H),
    *t_cells = memory.out(D * N * H), *t_h_n = memory.out(D * c.B * P),
    *t_c_n = memory.out(D * c.B * H);
  p.t_hidden = t_hidden;
  p.t_gates = gated ? t_gates : nullptr;
  p.t_cells = has_c ? t_cells : nullptr;
  p.t_h_n = t_h_n;
  p.t_c_n = has_c ? t_c_n : nullptr;
  // The products made by the kernel, then by the caller.
  for (const bool inside : {true, false}) {
    if (inside) {
      p.t_input = in(u.x);
      p.input = in(t.x);
      p.hidden = all_hidden;
      std::copy(t_weights, t_weights + 2, p.t_weights);
    } else {
      p.t_input = p.input = nullptr;
      p.hidden = hidden;
      p.t_weights[0] = p.t_weights[1] = {};
      p.through_w_ih = in(brought.t_input);
      p.through_w_hh = in(brought.t_recurrent);
    }
    launch(p, k.tangent_workspace, k.tangent, c.threads);
    check("t_hidden", t_hidden, after.hidden, before.hidden);
    check("t_h_n", t_h_n, after.h_n, before.h_n);
    if (gated) check("t_gates", t_gates, after.gates, before.gates);
    if (has_c) check("t_cells", t_cells, after.cells, before.cells);
    if (has_c) check("t_c_n", t_c_n, after.c_n, before.c_n);
  }

  BackwardParams b{};
  b.shape = shape;
  std::copy(weights, weights + 2, b.weights);
  b.d_output = in(t.d_output);
  b.d_h_n = in(t.d_h_n);
  b.d_c_n = has_c ? in(t.d_c_n) : nullptr;
  b.h0 = h0;
  b.c0 = c0;
  b.gates = gates;
  b.hidden = hidden;
  b.cells = cells;
  S *d_gates = memory.out(D * N * K * H), *d_h0 = memory.out(D * c.B * P),
    *d_c0 = memory.out(D * c.B * H), *d_hidden = memory.out(D * N * P);
  S *d_cell_h = memory.out(D * N * H), *d_cell_c = memory.out(D * N * H);
  b.d_gates = d_gates;
  b.d_h0 = d_h0;
  b.d_c0 = has_c ? d_c0 : nullptr;
  b.d_hidden = c.projected ? d_hidden : nullptr;
  b.d_cell_h = d_cell_h;
  b.d_cell_c = has_c ? d_cell_c : nullptr;
  launch(b, k.backward_workspace, k.backward, c.threads);
  compare("d_cell_h", d_cell_h, t.d_cell_h, where, 4 * Info<S>::tolerance);
  if (has_c) compare("d_cell_c", d_cell_c, t.d_cell_c, where, 4 * Info<S>::tolerance);

  // Gradients that come in do not move here; those of the result are zero, or null.
  BackwardDirection direction{};
  direction.d_cell_h = d_cell_h;
  direction.d_cell_c = has_c ? d_cell_c : nullptr;
  direction.t_gates = gated ? t_gates : nullptr;
  direction.t_hidden = has_c ? nullptr : t_hidden;
  direction.t_cells = has_c ? t_cells : nullptr;
  direction.t_h0 = p.t_h0;
  direction.t_c0 = p.t_c0;
  direction.through_w_hh = in(brought.through_w_hh);
  direction.through_w_hr = c.projected ? in(brought.through_w_hr) : nullptr;
  b.direction = &direction;
  b.d_output = b.d_h_n = b.d_c_n = nullptr;
  b.d_cell_h = b.d_cell_c = nullptr;
  launch(b, k.backward_workspace, k.backward, c.threads);
  check("t_d_gates", d_gates, after.d_gates, before.d_gates);
  check("t_d_h0", d_h0, after.d_h0, before.d_h0);
  if (has_c) check("t_d_c0", d_c0, after.d_c0, before.d_c0);
  if (c.projected) check("t_d_hidden", d_hidden, after.d_hidden, before.d_hidden);
}
