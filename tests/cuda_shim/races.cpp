// The kernels of regimes single, cluster and grid under ThreadSanitizer (make sanitize): every
// cell, number format and pass, blocks and teams that are full and that are not, both directions,
// padded and packed. The shim tells ThreadSanitizer of barriers and of what orders blocks, and of
// nothing else, so two threads that touch the same word of shared or global memory without that
// between them are a report. Of the results this asks only that all are written and finite;
// tests/cuda/test_cuda_shim.py looks at their values.
//
// It first runs kernels with a race in them, and one whose blocks wait for a block that is not
// there, each in a process of its own; that must be found.
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <type_traits>
#include <vector>

#include "cells/list.h"
#include "cuda/launchers.h"
#include "cuda/primitives.h"

namespace {

using namespace fastrnn;
using namespace fastrnn::cuda;

struct Racy {
  int* target;
  bool barrier;
};

// Every thread reads what its neighbour wrote.
void neighbour_kernel(const Racy p) {
  int* const shared = &shared_memory<int>();
  shared[thread_index()] = thread_index();
  if (p.barrier) block_barrier();
  p.target[thread_index()] = shared[(thread_index() + 1) % block_threads()];
}

struct Handover {
  int* value;
  uint32_t* counter;
  bool wait;
  uint32_t* note;
};

// Block 0 reads what the other ones write.
void handover_kernel(const Handover p) {
  if (block_x() > 0) {
    p.value[block_x()] = 1;
    add_and_release(p.counter);
  } else {
    if (p.wait) await_count(p.counter, static_cast<uint32_t>(blocks_x() - 1), {p.note, 1});
    int sum = 0;
    for (int64_t i = 1; i < blocks_x(); ++i) sum += p.value[i];
    p.value[0] = sum;
  }
}

struct Neighbours {
  bool wait;
};

// Each block of a cluster reads what the other one wrote into its shared memory.
void cluster_kernel(const Neighbours p) {
  struct Shared {
    Words word;
    Arrivals arrivals;
    int unused[2];
  };
  Shared& shared = shared_memory<Shared>();
  const int other = static_cast<int>(1 - block_x());
  prepare(&shared.arrivals, 1);
  cluster_barrier();
  store_at(&shared.word, other, Words{{1, 2, 3, 4}});
  arrive_at(&shared.arrivals, other);
  if (p.wait) await_phase(&shared.arrivals, 0, {});
  if (shared.word.w[0] == 5) std::abort();
  cluster_barrier();
}

// As the kernels of clusters begin.
void no_clusters_kernel(const Neighbours) {
  if (!has_clusters()) trap();
}

// Whether a launch ends its process by a report, or fails.
template <class Params>
bool is_found(bool expected, void (*kernel)(Params), const Grid& grid, const Params& params) {
  const pid_t child = fork();
  if (child == 0) {
    if (expected) std::fclose(stderr);
    std::exit(launch(kernel, grid, Stream{}, params) == nullptr ? 0 : 1);
  }
  int status = 0;
  waitpid(child, &status, 0);
  return !WIFEXITED(status) || WEXITSTATUS(status) != 0;
}

// Null, or what this program would not notice, or would invent.
const char* blind_spot() {
  std::vector<int> target(64);
  uint32_t counter = 0, note = 0;
  const Grid block{1, 1, 64, 256}, cluster{2, 1, 1, 256, 2};
  const Grid together{4, 1, 1, 0, 1, true}, apart{4, 1, 1, 0};
  if (is_found(false, neighbour_kernel, block, Racy{target.data(), true})) {
    return "a race is reported where there is a barrier";
  }
  if (!is_found(true, neighbour_kernel, block, Racy{target.data(), false})) {
    return "a missing barrier goes unnoticed";
  }
  if (is_found(false, handover_kernel, together, Handover{target.data(), &counter, true, &note})) {
    return "a race is reported where a block has waited for others";
  }
  if (!is_found(true, handover_kernel, together, Handover{target.data(), &counter, false, &note})) {
    return "a block that does not wait for others goes unnoticed";
  }
  if (!is_found(true, handover_kernel, apart, Handover{target.data(), &counter, true, &note})) {
    return "a launch that had to be cooperative goes unnoticed";
  }
  if (is_found(false, cluster_kernel, cluster, Neighbours{true})) {
    return "a race is reported where a block has waited for its cluster";
  }
  if (!is_found(true, cluster_kernel, cluster, Neighbours{false})) {
    return "a block that does not wait for its cluster goes unnoticed";
  }
  setenv("FASTRNN_SHIM_PTX", "80", 1);
  const bool is_empty_found = is_found(true, no_clusters_kernel, cluster, Neighbours{});
  unsetenv("FASTRNN_SHIM_PTX");
  return is_empty_found ? nullptr : "a kernel without a body goes unnoticed";
}

std::mt19937 generator(1);

// Random values in the storage of a number format, with NaN behind them.
struct Buffer {
  std::vector<uint32_t> words;
  void* data() { return words.data(); }
};

Buffer buffer(Numeric numeric, int64_t size, bool random) {
  const bool wide = numeric == Numeric::kFloat || numeric == Numeric::kTf32;
  Buffer b;
  b.words.assign(static_cast<size_t>(wide ? size : (size + 1) / 2), 0xffffffffu);
  if (!random) return b;
  std::uniform_real_distribution<float> uniform(-0.5f, 0.5f);
  for (int64_t i = 0; i < size; ++i) {
    const float x = uniform(generator);
    if (wide) {
      reinterpret_cast<float*>(b.words.data())[i] = x;
    } else if (numeric == Numeric::kBFloat16) {
      narrow(x, reinterpret_cast<BFloat16*>(b.words.data())[i]);
    } else {
      narrow(x, reinterpret_cast<Half*>(b.words.data())[i]);
    }
  }
  return b;
}

float element(Numeric numeric, const Buffer& b, int64_t i) {
  if (numeric == Numeric::kBFloat16) {
    return widen(reinterpret_cast<const BFloat16*>(b.words.data())[i]);
  }
  if (numeric == Numeric::kHalf) return widen(reinterpret_cast<const Half*>(b.words.data())[i]);
  return reinterpret_cast<const float*>(b.words.data())[i];
}

void expect_written(const char* what, Numeric numeric, const Buffer& b, int64_t size) {
  for (int64_t i = 0; i < size; ++i) {
    if (!std::isfinite(element(numeric, b, i))) {
      std::printf("%s: element %lld of %lld is not written\n", what, static_cast<long long>(i),
                  static_cast<long long>(size));
      std::exit(1);
    }
  }
}

enum class Kind { kSingle, kCluster, kGrid };

// Runs one pass of a layer; p lacks only the weights.
template <class Params, class TeamParams>
const char* run_pass(Kind kind, CellKind cell, Pass pass, Numeric numeric, Buffer (&w_hh)[2],
                     Params& p) {
  const int gates = cells::traits(cell).products;
  const int64_t H = p.hidden_size, D = p.directions;
  const bool single = kind == Kind::kSingle, cluster = kind == Kind::kCluster;
  size_t column = 0;
  while ((single ? kSingleHidden[column] : kTeamHidden[column]) < H) ++column;
  const TeamTile tile = team_tile(gates, pass, numeric, kTeamHidden[column]);
  const int blocks = team_blocks(tile, static_cast<int>(H), cluster);
  const size_t bytes = single
                           ? single_tile(gates, pass, numeric, kSingleHidden[column]).packed_bytes
                           : tile.packed_bytes * static_cast<size_t>(blocks);
  std::vector<Words> weights(static_cast<size_t>(D) * bytes / sizeof(Words));
  const SinglePack pack{H, {w_hh[0].data(), w_hh[1].data()}, weights.data()};
  p.packed = weights.data();
  if constexpr (std::is_same_v<Params, SingleForward>) {
    if (single) return single_kernels(cell, numeric).forward[column](pack, p, Stream{});
  } else {
    if (single) return single_kernels(cell, numeric).backward[column](pack, p, Stream{});
  }
  // One team a direction, so that it has several row tiles.
  const int row_tiles = static_cast<int>((p.steps.batch + kTeamRows - 1) / kTeamRows);
  const TeamMemory memory = team_memory(gates, pass, numeric, kTeamHidden[column], cluster);
  const TeamSize size{blocks, 1, static_cast<int>(D),
                      memory.block + static_cast<size_t>(row_tiles) * memory.row_tile};
  std::vector<uint32_t> arrived(static_cast<size_t>(D * row_tiles * kCounterStride));
  std::vector<Words> exchange(static_cast<size_t>(D * row_tiles * 2 * kTeamRows * tile.words / 4));
  uint32_t note = 0;
  const TeamParams team{p, {blocks, row_tiles, exchange.data(), arrived.data(), &note}};
  const TeamTable& table = team_table(cell, numeric);
  const TeamKernels& kernels = cluster ? table.clusters[column] : table.grids[column];
  if constexpr (std::is_same_v<Params, SingleForward>) {
    return kernels.forward(pack, team, size, Stream{});
  } else {
    return kernels.backward(pack, team, size, Stream{});
  }
}

void run(Kind kind, CellKind cell, Numeric numeric, int64_t H, bool packed) {
  const int gates = cells::traits(cell).products;
  const int64_t D = 2, S = cells::traits(cell).columns;
  const std::vector<int64_t> counts = {11, 11, 3}, offsets = {0, 11, 22};
  const int64_t B = 11, T = 3, N = packed ? 25 : 33;
  const Steps steps{T, B, N, packed ? counts.data() : nullptr, packed ? offsets.data() : nullptr};

  Buffer w_hh[2] = {buffer(numeric, gates * H * H, true), buffer(numeric, gates * H * H, true)};
  Buffer bias = buffer(numeric, gates * H, true);
  Buffer input_product = buffer(numeric, D * N * gates * H, true);
  Buffer h0 = buffer(numeric, D * B * H, true), c0 = buffer(numeric, D * B * H, true);
  Buffer output = buffer(numeric, N * D * H, false), h_n = buffer(numeric, D * B * H, false);
  Buffer c_n = buffer(numeric, D * B * H, false), saved = buffer(numeric, D * N * S * H, false);
  Buffer hidden = buffer(numeric, D * N * H, false), cells = buffer(numeric, D * N * H, false);
  const auto launch_or_exit = [](const char* error) {
    if (error == nullptr) return;
    std::printf("%s\n", error);
    std::exit(1);
  };

  SingleForward f{};
  f.steps = steps;
  f.hidden_size = H;
  f.directions = static_cast<int>(D);
  f.b_ih[0] = f.b_ih[1] = f.b_hh[0] = f.b_hh[1] = bias.data();
  f.input_product = input_product.data();
  f.h0 = h0.data();
  f.c0 = c0.data();
  f.output = output.data();
  f.h_n = h_n.data();
  f.c_n = c_n.data();
  f.gates = saved.data();
  f.hidden = hidden.data();
  f.cells = cells.data();
  launch_or_exit(
      run_pass<SingleForward, TeamForward>(kind, cell, Pass::kForward, numeric, w_hh, f));
  expect_written("output", numeric, output, N * D * H);
  expect_written("h_n", numeric, h_n, D * B * H);
  expect_written("hidden", numeric, hidden, D * N * H);

  Buffer d_gates = buffer(numeric, D * N * S * H, false), d_h0 = buffer(numeric, D * B * H, false);
  Buffer d_c0 = buffer(numeric, D * B * H, false), d_output = buffer(numeric, N * D * H, true);
  SingleBackward b{};
  b.steps = steps;
  b.hidden_size = H;
  b.directions = static_cast<int>(D);
  b.d_output = d_output.data();
  b.d_h_n = h0.data();
  b.d_c_n = c0.data();
  b.h0 = h0.data();
  b.c0 = c0.data();
  b.gates = saved.data();
  b.hidden = hidden.data();
  b.cells = cells.data();
  b.d_gates = d_gates.data();
  b.d_h0 = d_h0.data();
  b.d_c0 = d_c0.data();
  launch_or_exit(
      run_pass<SingleBackward, TeamBackward>(kind, cell, Pass::kBackward, numeric, w_hh, b));
  expect_written("d_gates", numeric, d_gates, D * N * S * H);
  expect_written("d_h0", numeric, d_h0, D * B * H);
}

}  // namespace

int main() {
  const char* const blind = blind_spot();
  if (blind != nullptr) {
    std::printf("cuda shim: %s\n", blind);
    return 1;
  }
  int cases = 0;
  for (const CellKind cell :
       {cells::kKind<cells::Lstm>, cells::kKind<cells::Gru>, cells::kKind<cells::RnnTanh>}) {
    for (const Numeric numeric :
         {Numeric::kFloat, Numeric::kTf32, Numeric::kBFloat16, Numeric::kHalf}) {
      for (const bool packed : {false, true}) {
        if (!packed && cell != cells::kKind<cells::Lstm>) continue;
        run(Kind::kSingle, cell, numeric, 19, packed);
        ++cases;
      }
      for (const Kind kind : {Kind::kCluster, Kind::kGrid}) {
        run(kind, cell, numeric, 40, true);
        ++cases;
      }
    }
  }
  run(Kind::kSingle, cells::kKind<cells::Lstm>, Numeric::kBFloat16, 64, true);
  run(Kind::kSingle, cells::kKind<cells::Gru>, Numeric::kFloat, 40, true);
  run(Kind::kCluster, cells::kKind<cells::Lstm>, Numeric::kBFloat16, 80, false);
  run(Kind::kGrid, cells::kKind<cells::Gru>, Numeric::kTf32, 80, false);
  std::printf("cuda shim: %d cases without a race\n", cases + 4);
  return 0;
}
