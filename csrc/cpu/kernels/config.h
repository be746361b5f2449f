// Tile sizes and thresholds, each with its reason. None of them changes a
// result except kDirectRows and kDirectBatch, which depend on shapes alone.
#pragma once
#include <cstdint>

namespace fastrnn::cpu {
namespace {

// Register tiles: rows of a batch by vectors of accumulators, plus one row of weights and one
// broadcast value, must fit the register file (32 on AVX-512, 16 elsewhere).
constexpr bool kManyRegisters = kVectorRegisters >= 32;

// Rows of a tile by its vectors, from 1 on.
constexpr int kTileRows[] = {6, 6, kManyRegisters ? 8 : 4, kManyRegisters ? 6 : 3};
// Vectors of a tile where any number would do.
constexpr int kWideVectors = kManyRegisters ? 4 : 2;
constexpr int kWideRows = kTileRows[kWideVectors - 1];

// Rows whose columns wait for their cell at a time: it is called seldom, and they stay in L1.
constexpr int kCellRows = 24;

// Below this many rows in all, packing a weight costs more than it saves: each
// packed element is read and written once, each direct one read once a row.
constexpr int64_t kDirectRows = 8;

// Up to this batch, recurrent weights beyond kDirectBytes are read where they
// lie: a step is bound by that read, and packing would add several.
constexpr int64_t kDirectBatch = 1;
constexpr int64_t kDirectBytes = int64_t{1} << 21;

// The input product of a chunk of steps stays in a core's L2 (1 MiB and more on
// today's servers, 512 KiB on Zen 3) beside a panel of weights.
constexpr int64_t kChunkBytes = 256 << 10;

// Where the products of all steps of a thread take no more than this, the chunk is the whole
// sequence and a block of w_ih is packed just before its only use: packed weights then stay in L2,
// while those of H = 1024 (16 MiB), written and read back, would push w_hh out of L3.
constexpr int64_t kLateBytes = 1 << 20;

// With this many rows a step and a w_ih of at most kFusedBytes, the input
// product runs in the same tile as the recurrent one and is never stored.
constexpr int64_t kFusedRows = 4;
// With kFusedRowsLarge rows a thread any w_ih does: its panels come from L3 at a few
// GB/s then, while stored products would push the panels out of L2.
constexpr int64_t kFusedBytes = 512 << 10;
constexpr int64_t kFusedRowsLarge = 32;

// Long reductions run in blocks of this many terms, so that a panel
// (kReduction * kWideVectors vectors) stays in L2 while rows pass over it.
constexpr int64_t kReduction = 1024;

// Rows that the products over all steps take at a time, and columns of d_gates:
// the copied columns (112 KiB) and the panel of one block beside them (64 KiB)
// stay in L2 while every tile passes over them; the sums are read and written
// once a block of rows.
constexpr int64_t kProductRows = 256;
constexpr int64_t kProductColumns = 96;

// Terms of a product that an accumulator adds up before it starts anew, and rows of a bias's
// gradient: short enough for errors below torch.nn's, long enough that the pause hardly
// shows (24 stores and loads in 1,536 multiply-adds).
constexpr int64_t kSumTerms = 64;
// The same of the input's product where it has no more columns than kFewColumns: libraries divide
// such sums along k into as many parts as a vector has lanes.
constexpr int64_t kFewColumns = 16;
constexpr int64_t kFewTerms = 8;
constexpr int64_t kSumRows = 16;

// Threads share a step's batch rows rather than its units when each gets at
// least kSplitRows rows: no barrier is needed then. Weights beyond kSplitBytes
// want kSplitRowsLarge, since every thread streams all of them.
constexpr int64_t kSplitRows = 4;
constexpr int64_t kSplitRowsLarge = 64;
constexpr int64_t kSplitBytes = int64_t{1} << 21;

}  // namespace
}  // namespace fastrnn::cpu
