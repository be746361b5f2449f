// How the blocks of a team give each other an operand, and wait for it: through
// the L2 cache (regime grid) or through the shared memory of a cluster (regime cluster).
//
// For each row tile there are two slots. Epoch e is the e-th operand that the team
// publishes; it is in slot e % 2. A block reads epoch e in full before it
// publishes e + 1, and waits for all of e + 1 before it publishes e + 2 over e:
// hence nobody still reads what it overwrites. Epoch 0 is what the slots hold at
// first, zeros, and is never waited for.
#pragma once
#include "cuda/kernels/team.h"

namespace fastrnn::cuda {
namespace {

// Where piece number i of a block's part goes in an operand (16-byte words), and its batch row.
template <class Config>
struct Piece {
  static FASTRNN_DEVICE int row(int i) { return i / Config::kPiecesOfRow % kTeamRows; }
  static FASTRNN_DEVICE int index(int i, int rank) {
    constexpr int kPerWord = Config::kUnits / Config::kTile.published;
    const int gate = i / Config::kPiecesOfRow / kTeamRows;
    const int word = (gate * Config::kHidden + rank * Config::kUnits) / kPerWord +
                     4 * (i % Config::kPiecesOfRow);
    return (word / kChunkWords * kTeamRows + row(i)) * 4 + word % kChunkWords / 4;
  }
};

// Regime grid. Slots and counters lie in device memory and are zero at first. All blocks of a team
// are resident, which a cooperative launch sees to. A counter grows by one for every block and
// epoch.
template <class Config>
class GridExchange {
 public:
  FASTRNN_DEVICE GridExchange(typename Config::Shared& shared, const Team& team, int rank,
                              int64_t number)
      : shared_(shared), team_(team), rank_(rank) {
    slots_ =
        static_cast<Words*>(team.exchange) + number * team.row_tiles * 2 * Config::kOperandWords;
    arrived_ = static_cast<uint32_t*>(team.arrived) + number * team.row_tiles * kCounterStride;
  }

  FASTRNN_DEVICE void begin() { block_barrier(); }
  FASTRNN_DEVICE void end() {}

  FASTRNN_DEVICE void await(int row_tile, int epoch) const {
    if (thread_index() % 32 == 0) {
      await_count(arrived_ + row_tile * kCounterStride,
                  static_cast<uint32_t>(team_.blocks) * static_cast<uint32_t>(epoch),
                  {team_.note, wait_code(false, Config::kIsForward)});
    }
    warp_barrier();
  }

  // A reader of the operand of an epoch, for multiply().
  FASTRNN_DEVICE auto reader(int row_tile, int epoch) const {
    const Words* const slot = slot_of(row_tile, epoch);
    return [slot](int index) { return load_exchanged(slot + index); };
  }

  // The block's staged part, rows below `rows`, becomes that of an epoch; `both`: in both slots.
  // One warp is enough for it, so that no block barrier stands before the counter.
  FASTRNN_DEVICE void publish(int row_tile, int epoch, int rows, bool both) {
    if (thread_index() >= 32) return;
    for (int i = thread_index(); i < Config::kPieces; i += 32) {
      if (Piece<Config>::row(i) >= rows) continue;
      const int index = Piece<Config>::index(i, rank_);
      store_exchanged(slot_of(row_tile, epoch) + index, shared_.stage[i]);
      if (both) store_exchanged(slot_of(row_tile, epoch + 1) + index, shared_.stage[i]);
    }
    warp_barrier();
    if (thread_index() == 0) add_and_release(arrived_ + row_tile * kCounterStride);
  }

 private:
  FASTRNN_DEVICE Words* slot_of(int row_tile, int epoch) const {
    return slots_ + static_cast<int64_t>(2 * row_tile + epoch % 2) * Config::kOperandWords;
  }

  typename Config::Shared& shared_;
  const Team& team_;
  int rank_;
  Words* slots_;
  uint32_t* arrived_;
};

// Regime cluster. The team is a cluster, scheduled as a whole; slots and arrivals of every block
// lie in its own shared memory, and the others write to them. Each slot has arrivals of its own:
// those of epoch e + 2 may come before all of e + 1, and must not count for it.
template <class Config>
class ClusterExchange {
 public:
  FASTRNN_DEVICE ClusterExchange(typename Config::Shared& shared, const Team& team, int rank,
                                 int64_t)
      : shared_(shared), team_(team), rank_(rank) {}

  // Nobody writes to a block before it has begun,
  FASTRNN_DEVICE void begin() {
    for (int i = 0; i < team_.row_tiles; ++i) {
      auto& row_tile = shared_.row_tile(i);
      for (int k = thread_index(); k < Config::kOperandWords; k += kTeamThreads) {
        row_tile.operand[0][k] = row_tile.operand[1][k] = Words{};
      }
      if (thread_index() < 2) prepare(&row_tile.arrivals[thread_index()], team_.blocks);
    }
    cluster_barrier();
  }
  // nor after it has ended.
  FASTRNN_DEVICE void end() { cluster_barrier(); }

  FASTRNN_DEVICE void await(int row_tile, int epoch) const {
    if (epoch > 0) {
      await_phase(&shared_.row_tile(row_tile).arrivals[epoch % 2], (epoch - 1) / 2 % 2,
                  {team_.note, wait_code(true, Config::kIsForward)});
    }
  }

  FASTRNN_DEVICE auto reader(int row_tile, int epoch) const {
    const Words* const slot = shared_.row_tile(row_tile).operand[epoch % 2];
    return [slot](int index) { return slot[index]; };
  }

  // A warp serves every kTeamWarps-th block of the cluster.
  FASTRNN_DEVICE void publish(int row_tile, int epoch, int rows, bool both) {
    auto& own = shared_.row_tile(row_tile);
    for (int peer = thread_index() / 32; peer < team_.blocks; peer += kTeamWarps) {
      for (int i = thread_index() % 32; i < Config::kPieces; i += 32) {
        if (Piece<Config>::row(i) >= rows) continue;
        const int index = Piece<Config>::index(i, rank_);
        store_at(&own.operand[epoch % 2][index], peer, shared_.stage[i]);
        if (both) store_at(&own.operand[(epoch + 1) % 2][index], peer, shared_.stage[i]);
      }
      warp_barrier();
      if (thread_index() % 32 == 0) arrive_at(&own.arrivals[epoch % 2], peer);
    }
  }

 private:
  typename Config::Shared& shared_;
  const Team& team_;
  int rank_;
};

template <class Config, bool kCluster>
struct SelectExchange {
  using type = GridExchange<Config>;
};
template <class Config>
struct SelectExchange<Config, true> {
  using type = ClusterExchange<Config>;
};
template <class Config>
using Exchange = typename SelectExchange<Config, Config::kCluster>::type;

}  // namespace
}  // namespace fastrnn::cuda
