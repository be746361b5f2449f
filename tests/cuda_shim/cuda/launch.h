// csrc/cuda/launch.h for the shim: a launch runs to its end. How much of the device is free, the
// environment can say.
#pragma once
#include <cstdio>
#include <cstdlib>

#include "fibers.h"

namespace fastrnn::cuda {

struct Stream {};

struct Grid {
  int64_t x;
  int y;
  int threads;
  size_t shared_bytes;
  int cluster = 1;
  bool cooperative = false;
};

inline constexpr char kDoesNotFit[] = "the grid does not fit on the device";

// What the device has room for: an H200's blocks and clusters, or numbers of FASTRNN_SHIM_ROOM,
// "blocks, clusters of 8, clusters of 16, blocks that a launch then finds".
struct Room {
  int64_t blocks = 132, clusters[2] = {16, 7}, found = 132;
};
inline Room room() {
  Room r;
  const char* const text = std::getenv("FASTRNN_SHIM_ROOM");
  long long v[4];
  if (text != nullptr && std::sscanf(text, "%lld,%lld,%lld,%lld", v, v + 1, v + 2, v + 3) == 4) {
    r = {v[0], {v[1], v[2]}, v[3]};
  }
  return r;
}

// FASTRNN_SHIM_APART: blocks of a cooperative grid run one after the other, so that the first one
// waits in vain.
template <class Params>
const char* launch(void (*kernel)(Params), const Grid& grid, Stream, const Params& params) {
  if (grid.cooperative && grid.x * grid.y > room().found) return kDoesNotFit;
  const bool together = grid.cooperative && std::getenv("FASTRNN_SHIM_APART") == nullptr;
  return shim::run_grid({grid.x, grid.y, grid.threads, grid.shared_bytes, grid.cluster, together},
                        [&] { kernel(params); });
}

template <class Params>
int64_t capacity(void (*)(Params), const Grid& grid) {
  if (grid.cluster > 1 && shim::ptx_version() < 90) return 0;
  return grid.cluster > 1 ? room().clusters[grid.cluster > 8] : room().blocks;
}

}  // namespace fastrnn::cuda
