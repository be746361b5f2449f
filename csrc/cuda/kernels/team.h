// What regimes cluster and grid share: a team of blocks holds w_hh, block number r of it
// the weights of units [r * kUnits, (r + 1) * kUnits). In every step each block
// multiplies the whole operand (h forward, the gradients of all gates backward)
// with its own weights, computes its units, and gives their part of the next
// operand to the team (kernels/exchange.h).
//
// An operand is of kTeamRows batch rows (a row tile), in words as in
// kernels/product.h, ordered [chunk][row][16 words]: what a warp reads at once is
// consecutive. The reduction is split between the warps; their parts of the sums
// meet in shared memory, and a thread adds up those of its pair: one unit and row
// of the row tile. A row tile's state stays in shared memory, each value with the
// thread that owns its pair.
#pragma once
#include "cuda/kernels/product.h"

namespace fastrnn::cuda {
namespace {

// What both number formats have: thread_index() / 32 is the warp, g = lane / 4, l = lane % 4; a
// thread holds weights of rows g and g + 8 of every tile, and words 4l .. 4l + 3 of every chunk
// of its warp, in two halves of 16 bytes.
template <int kTiles, int kChunks, int kResident>
struct TeamWeights {
  static constexpr int kHalves = 2;

  static FASTRNN_DEVICE int warp() { return thread_index() / 32; }
  static FASTRNN_DEVICE int group() { return thread_index() % 32 / 4; }
  static FASTRNN_DEVICE int lane_of_quad() { return thread_index() % 4; }
  static FASTRNN_DEVICE int packed_index(int chunk, int tile, int half) {
    return ((chunk * kTiles + tile) * kHalves + half) * kTeamThreads + thread_index();
  }
  // Where this lane's words of a row are in an operand.
  static FASTRNN_DEVICE int operand_index(int chunk, int row) {
    return ((warp() * kChunks + chunk) * kTeamRows + row) * 4 + lane_of_quad();
  }
  // The first of this lane's words in a chunk of its warp, in the order of k.
  static FASTRNN_DEVICE int first_word(int chunk) {
    return (warp() * kChunks + chunk) * kChunkWords + 4 * lane_of_quad();
  }

  // As MatrixProduct::load.
  FASTRNN_DEVICE void load(Words* spare, const Words* packed) {
    FASTRNN_UNROLL
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      FASTRNN_UNROLL
      for (int tile = 0; tile < kTiles; ++tile) {
        FASTRNN_UNROLL
        for (int half = 0; half < kHalves; ++half) {
          const Words words = packed[packed_index(chunk, tile, half)];
          if (chunk < kResident) {
            FASTRNN_UNROLL
            for (int q = 0; q < 4; ++q) resident[tile][chunk][4 * half + q] = words.w[q];
          } else {
            spare[packed_index(chunk - kResident, tile, half)] = words;
          }
        }
      }
    }
  }

  uint32_t resident[kTiles][kResident][8];
};

// On tensor cores. sums[tile][i] is of row sum_row(i) of the tile and batch row sum_column(i).
template <Numeric kNumeric, int kTiles, int kChunks, int kResident>
class TeamMatrixProduct {
 public:
  using Weights = TeamWeights<kTiles, kChunks, kResident>;
  using Storage = typename NumericTraits<kNumeric>::Storage;
  // Few tiles make few independent sums, as in MatrixProduct.
  static constexpr int kSplit = kTiles == 1 ? 4 : kTiles == 2 ? 2 : 1;
  // Chunks that are asked for at once: the next ones come while these are multiplied.
  static constexpr int kBatch = kChunks < 4 ? kChunks : 4;

  static FASTRNN_DEVICE int sum_row(int i) { return Weights::group() + 8 * (i / 2); }
  static FASTRNN_DEVICE int sum_column(int i) { return 2 * Weights::lane_of_quad() + i % 2; }

  // get(row, k): a weight of the tile.
  template <class Get>
  static FASTRNN_DEVICE Words pack(int chunk, int half, Get get) {
    const int word = Weights::first_word(chunk) + 2 * half;
    Words words;
    FASTRNN_UNROLL
    for (int q = 0; q < 4; ++q) {
      const int row = Weights::group() + 8 * (q % 2);
      words.w[q] = operand_word<kNumeric>(word + q / 2, [&](int k) { return get(row, k); });
    }
    return words;
  }

  FASTRNN_DEVICE void load(Words* spare, const Words* packed) { weights_.load(spare, packed); }

  // read(index): 16 bytes of the operand. All lanes of a warp call.
  template <class Read>
  FASTRNN_DEVICE void multiply(const Words* spare, Read read, float (&sums)[kTiles][4]) const {
    converge_warp();
    float part[kSplit][kTiles][4] = {};
    Words b[2][kBatch];
    const auto ask = [&](int first) {
      FASTRNN_UNROLL
      for (int i = 0; i < kBatch; ++i) {
        if (first + i < kResident) {
          b[first / kBatch % 2][i] = read(Weights::operand_index(first + i, Weights::group()));
        }
      }
    };
    ask(0);
    FASTRNN_UNROLL
    for (int first = 0; first < kResident; first += kBatch) {
      ask(first + kBatch);
      FASTRNN_UNROLL
      for (int i = 0; i < kBatch; ++i) {
        const int chunk = first + i;
        if (chunk >= kResident) continue;
        const Words& own = b[first / kBatch % 2][i];
        FASTRNN_UNROLL
        for (int half = 0; half < 2; ++half) {
          FASTRNN_UNROLL
          for (int tile = 0; tile < kTiles; ++tile) {
            matrix_multiply(Storage{}, part[(2 * chunk + half) % kSplit][tile],
                            &weights_.resident[tile][chunk][4 * half], own.w[2 * half],
                            own.w[2 * half + 1]);
          }
        }
      }
    }
    // Not unrolled: the compiler would read ahead into registers that it does not have.
    FASTRNN_ROLL
    for (int first = kResident; first < kChunks; first += kBatch) {
      FASTRNN_UNROLL
      for (int i = 0; i < kBatch; ++i) {
        if (first + i < kChunks) {
          b[0][i] = read(Weights::operand_index(first + i, Weights::group()));
        }
      }
      FASTRNN_UNROLL
      for (int i = 0; i < kBatch; ++i) {
        if (first + i >= kChunks) continue;
        FASTRNN_UNROLL
        for (int half = 0; half < 2; ++half) {
          FASTRNN_UNROLL
          for (int tile = 0; tile < kTiles; ++tile) {
            const Words a = spare[Weights::packed_index(first + i - kResident, tile, half)];
            matrix_multiply(Storage{}, part[(2 * i + half) % kSplit][tile], a.w,
                            b[0][i].w[2 * half], b[0][i].w[2 * half + 1]);
          }
        }
      }
    }
    FASTRNN_UNROLL
    for (int tile = 0; tile < kTiles; ++tile) {
      FASTRNN_UNROLL
      for (int i = 0; i < 4; ++i) {
        float sum = part[0][tile][i];
        FASTRNN_UNROLL
        for (int s = 1; s < kSplit; ++s) sum += part[s][tile][i];
        sums[tile][i] = sum;
      }
    }
  }

 private:
  Weights weights_;
};

// In strict fp32 on the FMA pipes: a lane has its words of k for all batch rows, 4 at a time; the
// lanes of a quad then exchange their parts.
template <int kTiles, int kChunks, int kResident>
class TeamFmaProduct {
 public:
  using Weights = TeamWeights<kTiles, kChunks, kResident>;

  static FASTRNN_DEVICE int sum_row(int i) { return Weights::group() + 8 * (i / 2); }
  static FASTRNN_DEVICE int sum_column(int i) { return Weights::lane_of_quad() + 4 * (i % 2); }

  template <class Get>
  static FASTRNN_DEVICE Words pack(int chunk, int half, Get get) {
    Words words;
    FASTRNN_UNROLL
    for (int q = 0; q < 4; ++q) {
      words.w[q] = bits_of(get(Weights::group() + 8 * half, Weights::first_word(chunk) + q));
    }
    return words;
  }

  FASTRNN_DEVICE void load(Words* spare, const Words* packed) { weights_.load(spare, packed); }

  template <class Read>
  FASTRNN_DEVICE void multiply(const Words* spare, Read read, float (&sums)[kTiles][4]) const {
    converge_warp();
    // Not unrolled, and loads do not move up across converge_warp() below: else the compiler begins
    // with all loads, into registers that it does not have.
    FASTRNN_ROLL
    for (int rows = 0; rows < 2; ++rows) {
      float part[kTiles][2][4] = {};
      FASTRNN_UNROLL
      for (int chunk = 0; chunk < kResident; ++chunk) {
        if (chunk % 2 == 0) converge_warp();
        Words h[4];
        ask(read, chunk, rows, h);
        FASTRNN_UNROLL
        for (int tile = 0; tile < kTiles; ++tile) {
          FASTRNN_UNROLL
          for (int half = 0; half < 2; ++half) {
            accumulate(&weights_.resident[tile][chunk][4 * half], h, part[tile][half]);
          }
        }
      }
      FASTRNN_ROLL
      for (int chunk = kResident; chunk < kChunks; ++chunk) {
        Words h[4];
        ask(read, chunk, rows, h);
        FASTRNN_UNROLL
        for (int tile = 0; tile < kTiles; ++tile) {
          FASTRNN_UNROLL
          for (int half = 0; half < 2; ++half) {
            const Words w = spare[Weights::packed_index(chunk - kResident, tile, half)];
            accumulate(w.w, h, part[tile][half]);
          }
        }
      }
      FASTRNN_UNROLL
      for (int tile = 0; tile < kTiles; ++tile) {
        FASTRNN_UNROLL
        for (int half = 0; half < 2; ++half) {
          const float sum = sum_of_quad(part[tile][half]);
          if (rows == 0) {
            sums[tile][2 * half] = sum;
          } else {
            sums[tile][2 * half + 1] = sum;
          }
        }
      }
    }
  }

 private:
  template <class Read>
  static FASTRNN_DEVICE void ask(Read read, int chunk, int rows, Words (&h)[4]) {
    FASTRNN_UNROLL
    for (int i = 0; i < 4; ++i) h[i] = read(Weights::operand_index(chunk, 4 * rows + i));
  }
  static FASTRNN_DEVICE void accumulate(const uint32_t* w, const Words (&h)[4], float (&part)[4]) {
    FASTRNN_UNROLL
    for (int q = 0; q < 4; ++q) {
      FASTRNN_UNROLL
      for (int i = 0; i < 4; ++i) {
        part[i] = fused(float_of(w[q]), float_of(h[i].w[q]), part[i]);
      }
    }
  }

  Weights weights_;
};

// Everything that one compiled kernel of a team is made from.
template <class CellType, Pass kPassType, Numeric kNumericType, int kHiddenSize, bool kClusterType>
struct TeamConfig {
  using Cell = CellType;
  using T = typename NumericTraits<kNumericType>::Storage;
  static constexpr Pass kPass = kPassType;
  static constexpr Numeric kNumeric = kNumericType;
  static constexpr bool kIsForward = kPass == Pass::kForward, kCluster = kClusterType;
  static constexpr int kHidden = kHiddenSize;
  static constexpr TeamTile kTile = team_tile(Cell::kProducts, kPass, kNumeric, kHidden);
  static constexpr int kUnits = kTile.units, kTiles = kTile.tiles;
  static constexpr int kPackedBlocks = kTile.chunks * kTiles * 2;

  template <bool kFma, class = void>
  struct Select {
    using type = TeamMatrixProduct<kNumeric, kTiles, kTile.chunks, kTile.resident>;
  };
  template <class Unused>
  struct Select<true, Unused> {
    using type = TeamFmaProduct<kTiles, kTile.chunks, kTile.resident>;
  };
  using Product = typename Select<kNumeric == Numeric::kFloat>::type;

  // What a block gives to its team, in pieces of 16 bytes of one row.
  static constexpr int kPublishedGates = kIsForward ? 1 : Cell::kProducts;
  static constexpr int kPiecesOfRow = kTile.published / 4;
  static constexpr int kPieces = kPublishedGates * kTeamRows * kPiecesOfRow;
  static constexpr int kOperandWords = kTile.words * kTeamRows / 4;  // of 16 bytes

  // A row tile that the block works on; in a cluster its operands lie here, two, so that a block
  // that has gone ahead writes the next one.
  static constexpr int kStates = kIsForward ? 1 : 2;
  struct PlainRowTile {
    float state[kStates][kUnits * kTeamRows];
    int epoch;  // how many operands the team has published
    int unused[3];
  };
  struct ClusterRowTile : PlainRowTile {
    Words operand[2][kOperandWords];
    Arrivals arrivals[2];
  };
  template <bool kOfCluster, class = void>
  struct SelectRowTile {
    using type = PlainRowTile;
  };
  template <class Unused>
  struct SelectRowTile<true, Unused> {
    using type = ClusterRowTile;
  };
  using RowTile = typename SelectRowTile<kCluster>::type;

  // The block's shared memory; row tiles follow. The banks of a lane's 4 sums, of batch rows 2
  // apart and of neighbouring rows of the tile, differ: kSumStride is 4 or 20 modulo 32.
  static constexpr int kSumStride = 16 * kTiles + 4;
  static constexpr int kSpareWords = (kTile.chunks - kTile.resident) * kTiles * 2 * kTeamThreads;
  struct Shared {
    float sums[kTeamWarps][kTeamRows][kSumStride];
    Words stage[kPieces];
    Words spare[kSpareWords == 0 ? 1 : kSpareWords];
    FASTRNN_DEVICE RowTile& row_tile(int i) { return reinterpret_cast<RowTile*>(this + 1)[i]; }
  };
  static_assert(sizeof(Shared) % 16 == 0 && sizeof(RowTile) % 16 == 0, "read in 16 bytes");
  static_assert(kUnits * kTeamRows <= kTeamThreads, "a thread has at most one pair");
};

// As single_pack_kernel: blockIdx.x is the block of the team, then its chunk, tile and half.
template <class Config>
FASTRNN_KERNEL(kTeamThreads)
team_pack_kernel(const SinglePack p) {
  using T = typename Config::T;
  using Product = typename Config::Product;
  const int place = static_cast<int>(block_x()) % Config::kPackedBlocks;
  const int rank = static_cast<int>(block_x()) / Config::kPackedBlocks;
  const int blocks = static_cast<int>(blocks_x()) / Config::kPackedBlocks;
  const int half = place % 2, tile = place / 2 % Config::kTiles;
  const int chunk = place / 2 / Config::kTiles;
  const int64_t H = p.hidden_size;
  const void* const w_hh = block_y() == 0 ? p.w_hh[0] : p.w_hh[1];
  Words* const packed =
      static_cast<Words*>(p.packed) +
      (static_cast<int64_t>(block_y()) * blocks + rank) * Config::kPackedBlocks * kTeamThreads;
  packed[Product::Weights::packed_index(chunk, tile, half)] =
      Product::pack(chunk, half, [&](int r, int k) {
        const int own = tile * 16 + r;
        const int gate = Config::kIsForward ? own / Config::kUnits : k / Config::kHidden;
        const int j = rank * Config::kUnits + own % Config::kUnits, from = k % Config::kHidden;
        const int64_t row = gate * H + (Config::kIsForward ? j : from);
        const int64_t column = Config::kIsForward ? from : j;
        return j < H && from < H ? load<T>(w_hh, row * H + column) : 0.0f;
      });
}

// A thread's pair: neighbouring threads have neighbouring units. Threads beyond have none.
template <class Config>
struct TeamPair {
  static FASTRNN_DEVICE int unit() { return thread_index() % Config::kUnits; }
  static FASTRNN_DEVICE int row() { return thread_index() / Config::kUnits; }
  static FASTRNN_DEVICE bool exists() { return row() < kTeamRows; }
};

// Every warp leaves its part of the sums for the threads that own the pairs; a barrier stands
// between this and pair_sums.
template <class Config>
FASTRNN_DEVICE void leave_sums(typename Config::Shared& shared,
                               const float (&sums)[Config::kTiles][4]) {
  using Product = typename Config::Product;
  FASTRNN_UNROLL
  for (int tile = 0; tile < Config::kTiles; ++tile) {
    FASTRNN_UNROLL
    for (int i = 0; i < 4; ++i) {
      shared.sums[thread_index() / 32][Product::sum_column(i)][16 * tile + Product::sum_row(i)] =
          sums[tile][i];
    }
  }
}

// Sums of this thread's pair, kCount of them kUnits apart, in the order of the warps.
template <class Config, int kCount>
FASTRNN_DEVICE void pair_sums(const typename Config::Shared& shared, float (&sums)[kCount]) {
  using Pair = TeamPair<Config>;
  FASTRNN_UNROLL
  for (int g = 0; g < kCount; ++g) {
    sums[g] = 0;
    FASTRNN_UNROLL
    for (int warp = 0; warp < kTeamWarps; ++warp) {
      sums[g] += shared.sums[warp][Pair::row()][g * Config::kUnits + Pair::unit()];
    }
  }
}

// Leaves what this thread's pair adds to the next operand, for publish() of the exchange; a
// barrier stands between.
template <class Config>
FASTRNN_DEVICE void stage(typename Config::Shared& shared, int gate, float x) {
  using Pair = TeamPair<Config>;
  Words* const row = &shared.stage[(gate * kTeamRows + Pair::row()) * Config::kPiecesOfRow];
  store_operand<Config::kNumeric>(reinterpret_cast<uint32_t*>(row), Pair::unit(), x);
}

}  // namespace
}  // namespace fastrnn::cuda
