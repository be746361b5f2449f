// Tile sizes and thresholds of the CUDA engine, as data: the plan and the
// kernels both read them here, so that neither can assume what the other does not.
#pragma once
#include <cstddef>

namespace fastrnn::cuda {

enum class Pass { kForward, kBackward };

// What the recurrent product of the single regime multiplies with. kFloat is strict
// fp32 on the FMA pipes; the others are tensor-core operands.
enum class Numeric { kFloat, kTf32, kBFloat16, kHalf };

// The cells that regimes single, cluster and grid are compiled for: the first of cells/list.h.
inline constexpr int kPersistentCells = 4;

// Hidden sizes that the single regime is compiled for; any smaller one is padded up to the next.
// 128 is where 16-bit LSTM weights (128 KB) fill half a register file.
inline constexpr int kSingleHidden[] = {32, 64, 128};

// Single with this many rounds of blocks over the device is no longer better than steps,
// whose step takes about 8 us whatever the batch up to there (estimate; to be
// measured).
inline constexpr int kSingleMaxRounds = 8;

// Threads of a pointwise block; no kernel of the steps regime shares data between them.
inline constexpr int kPointwiseThreads = 256;

// Hidden states or gate gradients move from shared memory in chunks of 16 words
// a row: 16 bytes for each of the 4 lanes that share the row, which is the
// operand of two matrix instructions.
inline constexpr int kChunkWords = 16;

struct SingleTile {
  int rows;             // batch rows of a block
  int threads;          // of a block
  int tiles;            // products a thread accumulates side by side: gates forward, 1 backward
  int chunks;           // of the reduction
  int resident;         // chunks whose weights stay in registers; the rest is in shared memory
  int weight_words;     // that a thread holds for one chunk of one tile
  int stride;           // words of a row of the operand in shared memory
  size_t packed_bytes;  // all weights, in the order in which a block reads them
  size_t weight_bytes, operand_bytes, shared_bytes;  // those in shared memory, two operands, both
};

constexpr SingleTile single_tile(int gates, Pass pass, Numeric numeric, int hidden) {
  const bool ffma = numeric == Numeric::kFloat;
  const int per_word = numeric == Numeric::kBFloat16 || numeric == Numeric::kHalf ? 2 : 1;
  const int words = (pass == Pass::kForward ? 1 : gates) * hidden / per_word;
  SingleTile t{};
  // The narrow side of the matrix instruction is 8 wide; without one, a quad of
  // lanes shares a unit's reduction and ends with a row each.
  t.rows = ffma ? 4 : 8;
  t.threads = ffma ? 4 * hidden : 2 * hidden;
  t.tiles = pass == Pass::kForward ? gates : 1;
  t.chunks = words / kChunkWords;
  t.weight_words = ffma ? 4 : 8;
  // 512 threads leave 128 registers each, 256 threads 255: about half for weights, and not so many
  // that the compiler spills (make cuda-check).
  const int budget = t.threads <= 256 ? 128 : pass == Pass::kForward ? 60 : 56;
  const int most = budget / (t.weight_words * t.tiles);
  t.resident = t.chunks < most ? t.chunks : most;
  // 16 modulo 32 banks: the 8 lanes of two neighbouring rows read 32 different banks.
  t.stride = words % 32 == 16 ? words : words + 16;
  t.packed_bytes = sizeof(int) * static_cast<size_t>(t.weight_words) *
                   static_cast<size_t>(t.chunks * t.tiles * t.threads);
  t.weight_bytes = sizeof(int) * static_cast<size_t>(t.weight_words) *
                   static_cast<size_t>((t.chunks - t.resident) * t.tiles * t.threads);
  t.operand_bytes = sizeof(int) * 2 * static_cast<size_t>(t.rows * t.stride);
  t.shared_bytes = t.weight_bytes + t.operand_bytes;
  return t;
}

// -- Regimes cluster and grid: a team of blocks keeps w_hh on chip ----------------

// Hidden sizes that teams are compiled for; any smaller one is padded up to the next.
inline constexpr int kTeamHidden[] = {256, 512, 768, 1024};

// A team works on this many batch rows at once, the narrow side of the matrix instruction. Each
// such row tile is a chain of steps of its own, so that while the h of one tile is under way to
// the other blocks, a block computes the next one.
inline constexpr int kTeamRows = 8;

// 8 warps of up to 255 registers have the whole register file, so one block fills an SM. They
// split the reduction between them: no word of the operand is read twice in a block.
inline constexpr int kTeamWarps = 8;
inline constexpr int kTeamThreads = 32 * kTeamWarps;

// The largest cluster there is on sm_90, which a kernel has to ask for, and the portable one.
inline constexpr int kLargestCluster = 16, kPortableCluster = 8;

// A block that waits for its team asks this often, then it ends the kernel: a device that hangs
// helps nobody. One poll takes from 10 ns (shared memory) to 1 us (the L2 cache, with all blocks
// asking), so a wait ends after 0.7 s to 70 s. A step takes microseconds; whatever stops one block
// for longer, a debugger or another process's turn, stops those that wait for it too.
inline constexpr int kMostPolls = 1 << 26, kTryNanoseconds = 1000;

struct TeamTile {
  int units;            // hidden units of a block: it computes all their gates, or all of their d_h
  int tiles;            // of 16 rows each, that these products take
  int chunks;           // of the reduction, of each warp
  int resident;         // chunks whose weights stay in registers; the rest is in shared memory
  int words;            // of the reduction, all warps together
  int published;        // words of a row that a block gives to its team, for each gate
  size_t packed_bytes;  // a block's weights, in the order in which it reads them
};

constexpr TeamTile team_tile(int gates, Pass pass, Numeric numeric, int hidden) {
  const bool forward = pass == Pass::kForward;
  const int per_word = numeric == Numeric::kBFloat16 || numeric == Numeric::kHalf ? 2 : 1;
  TeamTile t{};
  // 32 units make smaller teams, which wait less; their weights must fit the registers, and in
  // strict fp32 so must accumulators for 4 rows of every tile.
  t.units = numeric != Numeric::kFloat && hidden * 2 <= 512 * per_word ? 32 : 16;
  t.tiles = (forward ? gates : 1) * t.units / 16;
  t.words = (forward ? 1 : gates) * hidden / per_word;
  t.chunks = t.words / (kChunkWords * kTeamWarps);
  // 8 registers a chunk of a tile: half of a thread's 255 hold weights, fewer where accumulators,
  // or weights on their way from shared memory, need more.
  const int budget = numeric == Numeric::kFloat              ? (forward ? 64 : 48)
                     : numeric == Numeric::kTf32 && !forward ? 96
                     : !forward && t.tiles == 1              ? 104
                                                             : 128;
  const int most = budget / (8 * t.tiles);
  t.resident = t.chunks < most ? t.chunks : most;
  t.published = t.units / per_word;
  t.packed_bytes = sizeof(int) * 8 * static_cast<size_t>(t.chunks * t.tiles * kTeamThreads);
  return t;
}

// Blocks of a team for a hidden size that may be below the compiled one.
constexpr int team_blocks(const TeamTile& tile, int hidden_size, bool cluster) {
  const int blocks = (hidden_size + tile.units - 1) / tile.units;
  int rounded = 1;
  while (rounded < blocks) rounded *= 2;
  return cluster ? rounded : blocks;
}

// Compiled sizes (the first ones) whose full teams a cluster can hold.
constexpr int cluster_columns(Numeric numeric) {
  int columns = 0;
  for (const int hidden : kTeamHidden) {
    const TeamTile tile = team_tile(1, Pass::kForward, numeric, hidden);
    columns += team_blocks(tile, hidden, true) <= kLargestCluster;
  }
  return columns;
}

// Shared memory of a block, and what each of its row tiles takes besides.
struct TeamMemory {
  size_t block, row_tile;
};

constexpr TeamMemory team_memory(int gates, Pass pass, Numeric numeric, int hidden, bool cluster) {
  const TeamTile t = team_tile(gates, pass, numeric, hidden);
  const bool forward = pass == Pass::kForward;
  const auto words = [](int count) { return sizeof(int) * static_cast<size_t>(count); };
  const int spare = (t.chunks - t.resident) * t.tiles * 8 * kTeamThreads;
  TeamMemory memory{};
  memory.block = words(kTeamWarps * kTeamRows * (16 * t.tiles + 4)) +
                 words((forward ? 1 : gates) * kTeamRows * t.published) +
                 words(spare == 0 ? 4 : spare);
  memory.row_tile = words((forward ? 1 : 2) * t.units * kTeamRows + 4) +
                    (cluster ? words(2 * t.words * kTeamRows + 4) : 0);
  return memory;
}

}  // namespace fastrnn::cuda
