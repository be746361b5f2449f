// Regimes cluster and grid forward. A team of blocks (kernels/team.h) owns kTeamRows *
// row_tiles batch rows of one direction (blockIdx.y) and runs through all of their
// steps. A step of a row tile: the block asks for its input product, waits for the
// team's h of the step before, multiplies; barrier; a thread computes its pair and
// leaves h; barrier; h goes to the team, then to memory. Blocks of a team meet
// only in the exchange, teams never.
//
// Rows that have not begun (reverse direction of packed data) have their initial
// h in both slots; rows that have ended, and units of padding, are multiplied and
// ignored. Row tiles beyond the batch take no part.
#pragma once
#include "cuda/kernels/exchange.h"
#include "cuda/kernels/walk.h"

namespace fastrnn::cuda {
namespace {

// Where a block stands in its team.
struct TeamPlace {
  int rank;        // of the block in its team
  int64_t number;  // of the team, over directions and batch
  int64_t first_row;
  FASTRNN_DEVICE explicit TeamPlace(const Team& team)
      : rank(static_cast<int>(block_x() % team.blocks)) {
    const int64_t teams = blocks_x() / team.blocks, own = block_x() / team.blocks;
    number = block_y() * teams + own;
    first_row = own * team.row_tiles * kTeamRows;
  }
};

template <class Config>
FASTRNN_KERNEL_OF_SM(kTeamThreads)
team_forward_kernel(const TeamForward params) {
  if (Config::kCluster && !has_clusters()) {
    trap();  // capacity() keeps it from being launched: an empty kernel would leave garbage
    return;
  }
  using Cell = typename Config::Cell;
  using T = typename Config::T;
  using Pair = TeamPair<Config>;
  constexpr int G = Cell::kProducts, K = Cell::kColumns;
  const SingleForward& p = params.layer;
  auto& shared = shared_memory<typename Config::Shared>();
  const TeamPlace place(params.team);
  const int d = block_y(), row_tiles = params.team.row_tiles;
  const int H = static_cast<int>(p.hidden_size), D = p.directions;
  const int64_t B = p.steps.batch, N = p.steps.rows;
  const void* const b_ih = d == 0 ? p.b_ih[0] : p.b_ih[1];
  const void* const b_hh = d == 0 ? p.b_hh[0] : p.b_hh[1];

  typename Config::Product product;
  product.load(shared.spare, static_cast<const Words*>(p.packed) +
                                 (static_cast<int64_t>(d) * params.team.blocks + place.rank) *
                                     Config::kPackedBlocks * kTeamThreads);

  const int j = place.rank * Config::kUnits + Pair::unit(), r = Pair::row();
  const bool own = Pair::exists() && j < H;
  float bias[K];
  column_biases<Cell>(
      bias, [&](int g) { return own ? load<T>(b_ih, g * H + j) : 0.0f; },
      [&](int g) { return own ? load<T>(b_hh, g * H + j) : 0.0f; });

  Exchange<Config> exchange(shared, params.team, place.rank, place.number);
  for (int i = thread_index(); i < row_tiles; i += kTeamThreads) {
    shared.row_tile(i).epoch = p.h0 == nullptr ? 0 : 1;
  }
  exchange.begin();
  for (int i = 0; i < row_tiles; ++i) {
    const int64_t first = place.first_row + i * kTeamRows;
    if (first >= B) break;
    const bool active = own && first + r < B;
    const int64_t at = (d * B + first + r) * H + j;
    const float h = active ? load<T>(p.h0, at) : 0.0f;
    if (Pair::exists()) {
      shared.row_tile(i).state[0][thread_index()] =
          kHasC<Cell> ? (active ? load<T>(p.c0, at) : 0.0f) : h;
      stage<Config>(shared, 0, h);
    }
    if (p.h0 == nullptr) continue;
    block_barrier();
    exchange.publish(i, 1, static_cast<int>(min_of(B - first, kTeamRows)), true);
    block_barrier();
  }

  for (Walk<1> walk(p.steps, d == 1); !walk.done(); walk.next()) {
    const int64_t count = walk.count(0), offset = walk.offset(0);
    for (int i = 0; i < row_tiles; ++i) {
      const int64_t first = place.first_row + i * kTeamRows;
      if (first >= count) break;
      auto& row_tile = shared.row_tile(i);
      const bool active = own && first + r < count;
      // The row's place in a step; all tensors have the row's units side by side.
      const int64_t row = d * N + offset + first + r;
      T input[G];
      FASTRNN_UNROLL
      for (int g = 0; g < G; ++g) {
        input[g] = active ? static_cast<const T*>(p.input_product)[(row * G + g) * H + j] : T{};
      }
      const int epoch = row_tile.epoch;
      if (epoch > 0) {
        exchange.await(i, epoch);
        float sums[Config::kTiles][4];
        product.multiply(shared.spare, exchange.reader(i, epoch), sums);
        leave_sums<Config>(shared, sums);
      }
      block_barrier();
      float h = 0, state = 0, columns[K];
      if (Pair::exists()) {
        if (active) {
          float recurrent[G] = {};
          if (epoch > 0) pair_sums<Config>(shared, recurrent);
          FASTRNN_UNROLL
          for (int k = 0; k < K; ++k) {
            columns[k] = bias[k];
            if (k < G) columns[k] += widen(input[k < G ? k : 0]);
          }
          state = row_tile.state[0][thread_index()];
          h = step_forward<Cell, float>(columns, recurrent, state);
        }
        float next_h = h, next_state = state;
        if (active && walk.parted(first + r)) {
          const int64_t at = (d * B + first + r) * H + j;
          next_h = p.steps.to_initial ? load<T>(p.h0, at) : 0.0f;
          next_state = !kHasC<Cell> ? next_h : p.steps.to_initial ? load<T>(p.c0, at) : 0.0f;
        }
        if (active) row_tile.state[0][thread_index()] = next_state;
        // Units of padding stay zero even where the row has infinities: 0 * inf is NaN.
        stage<Config>(shared, 0, next_h);
      }
      if (thread_index() == 0) row_tile.epoch = epoch + 1;
      block_barrier();
      exchange.publish(i, epoch + 1, static_cast<int>(min_of(count - first, kTeamRows)), false);
      // The team does not wait for what follows.
      if (!active) continue;
      static_cast<T*>(p.output)[((offset + first + r) * D + d) * H + j] = narrowed<T>(h);
      store<T>(p.hidden, row * H + j, h);
      if constexpr (kHasC<Cell>) store<T>(p.cells, row * H + j, state);
      if constexpr (!Cell::kKeepsH) {
        FASTRNN_UNROLL
        for (int k = 0; k < K; ++k) store<T>(p.gates, (row * K + k) * H + j, columns[k]);
      }
      if (first + r >= walk.count(1)) {  // the row's last step
        const int64_t at = (d * B + first + r) * H + j;
        store<T>(p.h_n, at, h);
        if constexpr (kHasC<Cell>) store<T>(p.c_n, at, state);
      }
    }
  }
  exchange.end();
}

}  // namespace
}  // namespace fastrnn::cuda
