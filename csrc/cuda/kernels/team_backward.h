// Regimes cluster and grid backward. Teams, rows and pairs are those of the forward kernel;
// steps are taken in the opposite order. A step of a row tile: the block asks for
// what forward saved, waits for the team's gate gradients of the step before,
// multiplies: that is what its own units' d_h receives; barrier; a thread computes
// its pair's gate gradients and leaves them; barrier; they go to the team, then to
// memory. A row that took part in the step before and in none any more has its
// gradients of the initial states by then, so the walk has one step more than the
// layer.
#pragma once
#include "cuda/kernels/team_forward.h"

namespace fastrnn::cuda {
namespace {

template <class Config>
FASTRNN_KERNEL_OF_SM(kTeamThreads)
team_backward_kernel(const TeamBackward params) {
  if (Config::kCluster && !has_clusters()) {
    trap();  // capacity() keeps it from being launched: an empty kernel would leave garbage
    return;
  }
  using Cell = typename Config::Cell;
  using T = typename Config::T;
  using Pair = TeamPair<Config>;
  constexpr int G = Cell::kProducts, K = Cell::kColumns, kLoads = cuda::kLoads<Cell>;
  const SingleBackward& p = params.layer;
  auto& shared = shared_memory<typename Config::Shared>();
  const TeamPlace place(params.team);
  const int d = block_y(), row_tiles = params.team.row_tiles;
  const int H = static_cast<int>(p.hidden_size), D = p.directions;
  const int64_t B = p.steps.batch, N = p.steps.rows;

  typename Config::Product product;
  product.load(shared.spare, static_cast<const Words*>(p.packed) +
                                 (static_cast<int64_t>(d) * params.team.blocks + place.rank) *
                                     Config::kPackedBlocks * kTeamThreads);

  const int j = place.rank * Config::kUnits + Pair::unit(), r = Pair::row();
  const bool own = Pair::exists() && j < H;
  // What a step saved, and the state before the first one.
  const T* const saved = static_cast<const T*>(kHasC<Cell> ? p.cells : p.hidden);
  const void* const initial = kHasC<Cell> ? p.c0 : p.h0;

  Exchange<Config> exchange(shared, params.team, place.rank, place.number);
  for (int i = 0; i < row_tiles; ++i) {
    const int64_t first = place.first_row + i * kTeamRows;
    auto& row_tile = shared.row_tile(i);
    if (thread_index() == 0) row_tile.epoch = 0;
    if (!Pair::exists()) continue;
    const bool active = own && first + r < B;
    const int64_t at = (d * B + first + r) * H + j;
    row_tile.state[0][thread_index()] = active ? load<T>(p.d_h_n, at) : 0.0f;
    row_tile.state[1][thread_index()] = kHasC<Cell> && active ? load<T>(p.d_c_n, at) : 0.0f;
  }
  exchange.begin();

  Walk<1> walk(p.steps, d == 0);
  int64_t count = 0;
  for (bool more = true; more;) {
    // Beyond the last step its counts are zero.
    more = !walk.done();
    const int64_t before = count, offset = walk.offset(0);
    count = walk.count(0);
    for (int i = 0; i < row_tiles; ++i) {
      const int64_t first = place.first_row + i * kTeamRows;
      if (first >= count && first >= before) break;
      auto& row_tile = shared.row_tile(i);
      const bool active = own && first + r < count, was_active = own && first + r < before;
      const int64_t row = d * N + offset + first + r, at = (d * B + first + r) * H + j;
      const bool parted = active && walk.parted(first + r);  // from the step before it
      float in[kLoads] = {}, d_output = 0;
      if (active) {
        if constexpr (!Cell::kKeepsH) {
          FASTRNN_UNROLL
          for (int k = 0; k < K; ++k) in[k] = load<T>(p.gates, (row * K + k) * H + j);
        }
        if constexpr (kReadsPrevious<Cell>) {
          // The step that came before in the forward pass is the walk's next one.
          if (parted) {
            in[kLoads - 1] = p.steps.to_initial ? load<T>(initial, at) : 0.0f;
          } else {
            in[kLoads - 1] = first + r < walk.count(1)
                                 ? widen(saved[(d * N + walk.offset(1) + first + r) * H + j])
                                 : load<T>(initial, at);
          }
        }
        if constexpr (kReadsCurrent<Cell>) in[kCurrent<Cell>] = widen(saved[row * H + j]);
        d_output = load<T>(p.d_output, ((offset + first + r) * D + d) * H + j);
      }
      const int epoch = row_tile.epoch;
      if (epoch > 0) {
        exchange.await(i, epoch);
        float sums[Config::kTiles][4];
        product.multiply(shared.spare, exchange.reader(i, epoch), sums);
        leave_sums<Config>(shared, sums);
      }
      block_barrier();
      float d_gates[K] = {};
      if (Pair::exists()) {
        float d_h = row_tile.state[0][thread_index()], d_c = row_tile.state[1][thread_index()];
        if (was_active) {
          float received[1];
          pair_sums<Config>(shared, received);
          d_h += received[0];
        }
        if (active) {
          d_h += d_output;
          step_backward<Cell, float>(in, d_h, d_c, d_gates);
          if (parted) forget<Cell>(p, at, d_h, d_c);
          row_tile.state[0][thread_index()] = d_h;
          row_tile.state[1][thread_index()] = d_c;
        } else if (was_active) {
          store<T>(p.d_h0, at, d_h + load<float>(p.reset_d_h, at));
          if constexpr (kHasC<Cell>) store<T>(p.d_c0, at, d_c + load<float>(p.reset_d_c, at));
        }
        FASTRNN_UNROLL
        for (int g = 0; g < G; ++g) {
          stage<Config>(shared, g, parted ? 0.0f : d_gates[cells::recurrent_column<Cell>(g)]);
        }
      }
      if (thread_index() == 0) row_tile.epoch = epoch + 1;
      block_barrier();
      if (first < count) {
        exchange.publish(i, epoch + 1, static_cast<int>(min_of(count - first, kTeamRows)), false);
      }
      if (!active) continue;
      FASTRNN_UNROLL
      for (int g = 0; g < K; ++g) {
        static_cast<T*>(p.d_gates)[(row * K + g) * H + j] = narrowed<T>(d_gates[g]);
      }
    }
    if (more) walk.next();
  }
  exchange.end();
}

}  // namespace
}  // namespace fastrnn::cuda
