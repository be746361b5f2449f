// The recurrent product of the single regime: a block's weights, loaded once and kept in
// registers (and, what does not fit, in shared memory in the order in which it is
// read), times an operand in shared memory that changes every step.
//
// The operand is [rows][k] in words (two 16-bit values, or a float), the weights
// [unit][k] of one or more tiles. A thread ends with kPairs sums for each tile,
// of unit(i) and row(i): the same pairs in every kernel, so that a cell's
// equations run on registers. kPairs / kUnits neighbouring pairs share a unit.
//
// Words of k are taken in chunks of 16. Lane l of the 4 that share a row reads the
// 16 bytes at words 4l..4l+3 of a chunk: which of them is which k of a matrix
// instruction does not matter as long as weights and operand agree.
#pragma once
#include "cuda/kernels/value.h"
#include "cuda/params.h"
#include "cuda/tiles.h"

namespace fastrnn::cuda {
namespace {

// The type in memory and the arithmetic of a number format.
template <Numeric>
struct NumericTraits;
template <>
struct NumericTraits<Numeric::kFloat> {
  using Storage = float;
};
template <>
struct NumericTraits<Numeric::kTf32> {
  using Storage = float;
};
template <>
struct NumericTraits<Numeric::kBFloat16> {
  using Storage = BFloat16;
};
template <>
struct NumericTraits<Numeric::kHalf> {
  using Storage = Half;
};

// One operand word from the value at each of its k.
template <Numeric kNumeric, class Get>
FASTRNN_DEVICE uint32_t operand_word(int word, Get get) {
  using T = typename NumericTraits<kNumeric>::Storage;
  if constexpr (sizeof(T) == 2) {
    return uint32_t{narrowed<T>(get(2 * word)).bits} | uint32_t{narrowed<T>(get(2 * word + 1)).bits}
                                                           << 16;
  } else if constexpr (kNumeric == Numeric::kTf32) {
    return tf32_of(get(word));
  } else {
    return bits_of(get(word));
  }
}

// Element k of a row of the operand.
template <Numeric kNumeric>
FASTRNN_DEVICE void store_operand(uint32_t* row, int k, float x) {
  using T = typename NumericTraits<kNumeric>::Storage;
  if constexpr (sizeof(T) == 2) {
    reinterpret_cast<T*>(row)[k] = narrowed<T>(x);
  } else {
    row[k] = operand_word<kNumeric>(0, [x](int) { return x; });
  }
}

// The 4 lanes of a quad have a part of the sums of 4 rows each; a lane gets that of its own row.
// Two exchanges: with the lane 2 away of the rows of its half, with the next lane of its row.
FASTRNN_DEVICE float sum_of_quad(const float (&part)[4]) {
  const int l = thread_index() % 4;
  const bool upper = l >= 2, odd = l % 2 == 1;
  const float first = (upper ? part[2] : part[0]) + shuffle_xor(upper ? part[0] : part[2], 2);
  const float second = (upper ? part[3] : part[1]) + shuffle_xor(upper ? part[1] : part[3], 2);
  return (odd ? second : first) + shuffle_xor(odd ? first : second, 1);
}

// On tensor cores: a warp owns 16 units, the weights are the 16-row side of the matrix
// instruction, 8 batch rows its narrow side. With g = lane / 4 and l = lane % 4 a thread's pairs
// are units g, g, g + 8, g + 8 and rows 2l, 2l + 1, 2l, 2l + 1.
template <Numeric kNumeric, int kThreads, int kTiles, int kChunks, int kResident, int kStride>
class MatrixProduct {
 public:
  static constexpr int kPairs = 4, kUnits = 2, kHalves = 2;
  // Few tiles make few independent sums: these many more hide the instruction's latency.
  static constexpr int kSplit = kTiles == 1 ? 4 : 1;

  static FASTRNN_DEVICE int unit(int pair) {
    return thread_index() / 32 * 16 + group() + 8 * (pair / 2);
  }
  static FASTRNN_DEVICE int row(int pair) { return 2 * lane_of_row() + pair % 2; }
  static FASTRNN_DEVICE int packed_index(int chunk, int tile, int half) {
    return ((chunk * kTiles + tile) * kHalves + half) * kThreads + thread_index();
  }

  // What this thread multiplies for one half of a chunk: get(unit, k) is a weight of the tile.
  template <class Get>
  static FASTRNN_DEVICE Words pack(int chunk, int half, Get get) {
    const int word = chunk * kChunkWords + 4 * lane_of_row() + 2 * half;
    Words words;
    FASTRNN_UNROLL
    for (int q = 0; q < 4; ++q) {
      const int own = unit(q % 2 * 2);
      words.w[q] = operand_word<kNumeric>(word + q / 2, [&](int k) { return get(own, k); });
    }
    return words;
  }

  // packed: of one direction, in the order of packed_index. spare: where chunks beyond kResident
  // go; a thread reads only what it wrote itself, so no barrier is needed.
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
            for (int q = 0; q < 4; ++q) weights_[tile][chunk][4 * half + q] = words.w[q];
          } else {
            spare[packed_index(chunk - kResident, tile, half)] = words;
          }
        }
      }
    }
  }

  // sums[tile][pair] = the product. All lanes of a warp call.
  FASTRNN_DEVICE void multiply(const Words* spare, const uint32_t* operand,
                               float (&sums)[kTiles][kPairs]) const {
    converge_warp();
    float part[kSplit][kTiles][kPairs] = {};
    const uint32_t* const own = operand + group() * kStride + 4 * lane_of_row();
    FASTRNN_UNROLL
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      const Words b = *reinterpret_cast<const Words*>(own + chunk * kChunkWords);
      FASTRNN_UNROLL
      for (int half = 0; half < 2; ++half) {
        FASTRNN_UNROLL
        for (int tile = 0; tile < kTiles; ++tile) {
          float (&target)[kPairs] = part[(2 * chunk + half) % kSplit][tile];
          if (chunk < kResident) {
            matrix_multiply(Storage{}, target, &weights_[tile][chunk][4 * half], b.w[2 * half],
                            b.w[2 * half + 1]);
          } else {
            const Words a = spare[packed_index(chunk - kResident, tile, half)];
            matrix_multiply(Storage{}, target, a.w, b.w[2 * half], b.w[2 * half + 1]);
          }
        }
      }
    }
    FASTRNN_UNROLL
    for (int tile = 0; tile < kTiles; ++tile) {
      FASTRNN_UNROLL
      for (int pair = 0; pair < kPairs; ++pair) {
        float sum = part[0][tile][pair];
        FASTRNN_UNROLL
        for (int s = 1; s < kSplit; ++s) sum += part[s][tile][pair];
        sums[tile][pair] = sum;
      }
    }
  }

 private:
  using Storage = typename NumericTraits<kNumeric>::Storage;

  static FASTRNN_DEVICE int group() { return thread_index() % 32 / 4; }
  static FASTRNN_DEVICE int lane_of_row() { return thread_index() % 4; }
  uint32_t weights_[kTiles][kResident][8];
};

// In strict fp32 on the FMA pipes: a quad of lanes owns a unit, each lane a quarter of k for 4
// rows; an exchange inside the quad leaves every lane with the sums of one row.
template <int kThreads, int kTiles, int kChunks, int kResident, int kStride>
class FmaProduct {
 public:
  static constexpr int kPairs = 1, kUnits = 1, kHalves = 1;
  static constexpr int kRows = 4;

  static FASTRNN_DEVICE int unit(int) { return thread_index() / 4; }
  static FASTRNN_DEVICE int row(int) { return thread_index() % 4; }

  static FASTRNN_DEVICE int packed_index(int chunk, int tile, int) {
    return (chunk * kTiles + tile) * kThreads + thread_index();
  }

  template <class Get>
  static FASTRNN_DEVICE Words pack(int chunk, int, Get get) {
    Words words;
    FASTRNN_UNROLL
    for (int q = 0; q < 4; ++q) {
      words.w[q] = bits_of(get(unit(0), chunk * kChunkWords + 4 * (thread_index() % 4) + q));
    }
    return words;
  }

  FASTRNN_DEVICE void load(Words* spare, const Words* packed) {
    FASTRNN_UNROLL
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      FASTRNN_UNROLL
      for (int tile = 0; tile < kTiles; ++tile) {
        const Words words = packed[packed_index(chunk, tile, 0)];
        if (chunk < kResident) {
          FASTRNN_UNROLL
          for (int q = 0; q < 4; ++q) weights_[tile][chunk][q] = float_of(words.w[q]);
        } else {
          spare[packed_index(chunk - kResident, tile, 0)] = words;
        }
      }
    }
  }

  FASTRNN_DEVICE void multiply(const Words* spare, const uint32_t* operand,
                               float (&sums)[kTiles][kPairs]) const {
    converge_warp();
    float part[kTiles][kRows] = {};
    const uint32_t* const own = operand + 4 * (thread_index() % 4);
    FASTRNN_UNROLL
    for (int chunk = 0; chunk < kResident; ++chunk) {
      float w[kTiles][4];
      FASTRNN_UNROLL
      for (int tile = 0; tile < kTiles; ++tile) {
        FASTRNN_UNROLL
        for (int q = 0; q < 4; ++q) w[tile][q] = weights_[tile][chunk][q];
      }
      accumulate(own + chunk * kChunkWords, w, part);
    }
    // Not unrolled: the compiler would read ahead into registers that it does not have.
    FASTRNN_ROLL
    for (int chunk = kResident; chunk < kChunks; ++chunk) {
      float w[kTiles][4];
      FASTRNN_UNROLL
      for (int tile = 0; tile < kTiles; ++tile) {
        const Words words = spare[packed_index(chunk - kResident, tile, 0)];
        FASTRNN_UNROLL
        for (int q = 0; q < 4; ++q) w[tile][q] = float_of(words.w[q]);
      }
      accumulate(own + chunk * kChunkWords, w, part);
    }
    FASTRNN_UNROLL
    for (int tile = 0; tile < kTiles; ++tile) sums[tile][0] = sum_of_quad(part[tile]);
  }

 private:
  // h: the rows' words of this lane's quarter of a chunk.
  static FASTRNN_DEVICE void accumulate(const uint32_t* h, const float (&w)[kTiles][4],
                                        float (&part)[kTiles][kRows]) {
    FASTRNN_UNROLL
    for (int row = 0; row < kRows; ++row) {
      const Words words = *reinterpret_cast<const Words*>(h + row * kStride);
      FASTRNN_UNROLL
      for (int q = 0; q < 4; ++q) {
        FASTRNN_UNROLL
        for (int tile = 0; tile < kTiles; ++tile) {
          part[tile][row] = fused(w[tile][q], float_of(words.w[q]), part[tile][row]);
        }
      }
    }
  }

  float weights_[kTiles][kResident][4];
};

// Everything that one compiled kernel of the single regime is made from.
template <class CellType, Pass kPass, Numeric kNumericType, int kHiddenSize>
struct SingleConfig {
  using Cell = CellType;
  using T = typename NumericTraits<kNumericType>::Storage;
  static constexpr Numeric kNumeric = kNumericType;
  static constexpr bool kIsForward = kPass == Pass::kForward;
  static constexpr int kHidden = kHiddenSize;
  static constexpr SingleTile kTile =
      single_tile(Cell::kProducts, kPass, kNumericType, kHiddenSize);
  static constexpr int kRows = kTile.rows, kThreads = kTile.threads, kStride = kTile.stride;
  static constexpr int kTiles = kTile.tiles;

  template <bool kFma, class = void>
  struct Select {
    using type =
        MatrixProduct<kNumericType, kThreads, kTiles, kTile.chunks, kTile.resident, kStride>;
  };
  template <class Unused>
  struct Select<true, Unused> {
    using type = FmaProduct<kThreads, kTiles, kTile.chunks, kTile.resident, kStride>;
  };
  using Product = typename Select<kNumericType == Numeric::kFloat>::type;
  static constexpr int kPairs = Product::kPairs;
  // With 512 threads registers are scarce, and a step is long against a load: counts are not read
  // a step earlier than needed, and biases anew in every step.
  static constexpr bool kScarce = kThreads > 256;
  static constexpr int kLookahead = kScarce ? 0 : 1;
  static constexpr int kPackedBlocks = kTile.chunks * kTiles * Product::kHalves;

  // The block's shared memory. Two operands: a step reads one and writes the other, so that one
  // barrier a step is enough.
  static constexpr int kSpareWords = static_cast<int>(kTile.weight_bytes / sizeof(Words));
  template <int kSpare, class = void>
  struct Memory {
    uint32_t operand[2][kRows * kStride];
    Words spare_[kSpare];
    FASTRNN_DEVICE Words* spare() { return spare_; }
  };
  template <class Unused>
  struct Memory<0, Unused> {
    uint32_t operand[2][kRows * kStride];
    FASTRNN_DEVICE Words* spare() { return nullptr; }
  };
  using Shared = Memory<kSpareWords>;
  static_assert(sizeof(Shared) == kTile.shared_bytes, "the plan counts on it");
  static_assert(kStride % 4 == 0 && (kRows * kStride) % 4 == 0, "operands are read in 16 bytes");
};

// Brings the weights of a direction (blockIdx.y) into the order in which its kernel reads them,
// rounded as the product wants them, zero for units of padding. A block writes one half of one
// chunk of one tile (blockIdx.x), every thread the 16 bytes of its own number.
template <class Config>
FASTRNN_KERNEL(Config::kThreads)
single_pack_kernel(const SinglePack p) {
  using T = typename Config::T;
  using Product = typename Config::Product;
  const int place = static_cast<int>(block_x()), half = place % Product::kHalves;
  const int tile = place / Product::kHalves % Config::kTiles;
  const int chunk = place / Product::kHalves / Config::kTiles;
  const int64_t H = p.hidden_size;
  const void* const w_hh = block_y() == 0 ? p.w_hh[0] : p.w_hh[1];
  Words* const packed = static_cast<Words*>(p.packed) +
                        static_cast<int64_t>(block_y()) * Config::kPackedBlocks * Config::kThreads;
  packed[Product::packed_index(chunk, tile, half)] = Product::pack(chunk, half, [&](int j, int k) {
    // Forward, the product is over h for a gate of unit j; backward, over all gates.
    const int gate = Config::kIsForward ? tile : k / Config::kHidden;
    const int from = k % Config::kHidden;
    const int64_t row = gate * H + (Config::kIsForward ? j : from);
    const int64_t column = Config::kIsForward ? from : j;
    return j < H && from < H ? load<T>(w_hh, row * H + column) : 0.0f;
  });
}

}  // namespace
}  // namespace fastrnn::cuda
