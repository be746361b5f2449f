// Tile sizes and thresholds of the CUDA engine, as data: the plan and the
// kernels both read them here, so that neither can assume what the other does not.
#pragma once
#include <cstddef>

namespace fastrnn::cuda {

enum class Pass { kForward, kBackward };

// What the recurrent product of regime S multiplies with. kFloat is strict
// fp32 on the FMA pipes; the others are tensor-core operands.
enum class Numeric { kFloat, kTf32, kBFloat16, kHalf };

// Hidden sizes that S is compiled for; any smaller one is padded up to the next.
// 128 is where 16-bit LSTM weights (128 KB) fill half a register file.
inline constexpr int kSingleHidden[] = {32, 64, 128};

// S with this many rounds of blocks over the device is no longer better than P,
// whose step takes about 8 us whatever the batch up to there (estimate; to be
// measured).
inline constexpr int kSingleMaxRounds = 8;

// Threads of a pointwise block; no kernel of regime P shares data between them.
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

}  // namespace fastrnn::cuda
