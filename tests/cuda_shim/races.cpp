// Regime S's kernels under ThreadSanitizer (make sanitize): every cell, number format and pass,
// blocks that are full and that are not, both directions, padded and packed. The shim tells
// ThreadSanitizer of barriers and of nothing else, so two threads that touch the same word of
// shared or global memory without a barrier between them are a report. Of the results this asks
// only that all are written and finite; tests/test_cuda_shim.py looks at their values.
//
// It first runs a kernel with a race in it, in a process of its own, which must be found.
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

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

bool race_is_found(bool barrier) {
  const pid_t child = fork();
  if (child == 0) {
    if (!barrier) std::fclose(stderr);  // its report is expected
    std::vector<int> target(64);
    launch(neighbour_kernel, {1, 1, 64, 256}, Stream{}, Racy{target.data(), barrier});
    std::exit(0);
  }
  int status = 0;
  waitpid(child, &status, 0);
  return !WIFEXITED(status) || WEXITSTATUS(status) != 0;
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

void run(CellKind cell, Numeric numeric, int64_t H, bool packed) {
  const int gates = cell == CellKind::kLstm ? 4 : cell == CellKind::kGru ? 3 : 1;
  const int64_t D = 2, S = cell == CellKind::kLstm || cell == CellKind::kGru ? 4 : 1;
  const std::vector<int64_t> counts = {11, 11, 3}, offsets = {0, 11, 22};
  const int64_t B = 11, T = 3, N = packed ? 25 : 33;
  const Steps steps{T, B, N, packed ? counts.data() : nullptr, packed ? offsets.data() : nullptr};
  size_t column = 0;
  while (kSingleHidden[column] < H) ++column;
  const int padded = kSingleHidden[column];

  Buffer w_hh[2] = {buffer(numeric, gates * H * H, true), buffer(numeric, gates * H * H, true)};
  Buffer bias = buffer(numeric, gates * H, true);
  Buffer input_product = buffer(numeric, D * N * gates * H, true);
  Buffer h0 = buffer(numeric, D * B * H, true), c0 = buffer(numeric, D * B * H, true);
  Buffer output = buffer(numeric, N * D * H, false), h_n = buffer(numeric, D * B * H, false);
  Buffer c_n = buffer(numeric, D * B * H, false), saved = buffer(numeric, D * N * S * H, false);
  Buffer hidden = buffer(numeric, D * N * H, false), cells = buffer(numeric, D * N * H, false);
  const SingleKernels& kernels = single_kernels(cell, numeric);
  const auto launch_or_exit = [](const char* error) {
    if (error == nullptr) return;
    std::printf("%s\n", error);
    std::exit(1);
  };
  const auto packed_of = [&](Pass pass) {
    const SingleTile tile = single_tile(gates, pass, numeric, padded);
    return std::vector<Words>(static_cast<size_t>(D) * tile.packed_bytes / sizeof(Words));
  };

  std::vector<Words> weights = packed_of(Pass::kForward);
  SinglePack pack{H, {w_hh[0].data(), w_hh[1].data()}, weights.data()};
  SingleForward f{};
  f.cell = cell;
  f.steps = steps;
  f.hidden_size = H;
  f.directions = static_cast<int>(D);
  f.packed = weights.data();
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
  launch_or_exit(kernels.forward[column](pack, f, Stream{}));
  expect_written("output", numeric, output, N * D * H);
  expect_written("h_n", numeric, h_n, D * B * H);
  expect_written("hidden", numeric, hidden, D * N * H);

  Buffer d_gates = buffer(numeric, D * N * S * H, false), d_h0 = buffer(numeric, D * B * H, false);
  Buffer d_c0 = buffer(numeric, D * B * H, false), d_output = buffer(numeric, N * D * H, true);
  weights = packed_of(Pass::kBackward);
  pack.packed = weights.data();
  SingleBackward b{};
  b.cell = cell;
  b.steps = steps;
  b.hidden_size = H;
  b.directions = static_cast<int>(D);
  b.packed = weights.data();
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
  launch_or_exit(kernels.backward[column](pack, b, Stream{}));
  expect_written("d_gates", numeric, d_gates, D * N * S * H);
  expect_written("d_h0", numeric, d_h0, D * B * H);
}

}  // namespace

int main() {
  if (race_is_found(true)) {
    std::printf("cuda shim: a race is reported where there is a barrier\n");
    return 1;
  }
  if (!race_is_found(false)) {
    std::printf("cuda shim: a missing barrier goes unnoticed\n");
    return 1;
  }
  int cases = 0;
  for (const CellKind cell : {CellKind::kLstm, CellKind::kGru, CellKind::kRnnTanh}) {
    for (const Numeric numeric :
         {Numeric::kFloat, Numeric::kTf32, Numeric::kBFloat16, Numeric::kHalf}) {
      for (const bool packed : {false, true}) {
        if (!packed && cell != CellKind::kLstm) continue;
        run(cell, numeric, 19, packed);
        ++cases;
      }
    }
  }
  run(CellKind::kLstm, Numeric::kBFloat16, 64, true);
  run(CellKind::kGru, Numeric::kFloat, 40, true);
  std::printf("cuda shim: %d cases without a race\n", cases + 2);
  return 0;
}
