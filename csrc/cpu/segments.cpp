// Padded rows as sequences of their own: where the state is reset, and where a
// sequence of the batch ends, a new one begins. `segments` says which they are, as
// packed data (sorted by length); `gather_rows` moves rows there and back.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cstring>

#include "cpu/memory.h"
#include "cpu/team.h"

namespace fastrnn::cpu {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

struct Segment {
  int64_t begin, length, b;
};

// Every segment of the batch, in the order of their ends. One that holds no row is none.
// resets: bytes, for a bool tensor may view memory in which true is another byte than 1.
std::vector<Segment> split(const uint8_t* resets, const int64_t* lengths, int64_t T, int64_t B) {
  std::vector<Segment> segments;
  std::vector<int64_t> begins(static_cast<size_t>(B), 0);
  const auto length_of = [&](int64_t b) { return lengths ? lengths[b] : T; };
  for (int64_t t = 1; resets && t < T; ++t) {
    const uint8_t* row = resets + t * B;
    if (std::all_of(row, row + B, [](uint8_t reset) { return reset == 0; })) continue;
    for (int64_t b = 0; b < B; ++b) {
      if (!row[b] || t >= length_of(b)) continue;
      int64_t& begin = begins[static_cast<size_t>(b)];
      segments.push_back({begin, t - begin, b});
      begin = t;
    }
  }
  for (int64_t b = 0; b < B; ++b) {
    const int64_t begin = begins[static_cast<size_t>(b)];
    if (length_of(b) > begin) segments.push_back({begin, length_of(b) - begin, b});
  }
  return segments;
}

Tensor filled(at::IntArrayRef size, int64_t value) {
  Tensor t = at::empty(size, at::kLong);
  std::fill_n(t.mutable_data_ptr<int64_t>(), t.numel(), value);
  return t;
}

using Results = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Results segments(const OptionalTensor& resets, const OptionalTensor& lengths, c10::SymInt seq_len,
                 c10::SymInt batch) {
  const int64_t T = seq_len.expect_int(), B = batch.expect_int();
  TORCH_CHECK(T > 0 && B >= 0, "segments: expected at least one step, got ", T);
  TORCH_CHECK(B == 0 || T <= INT64_MAX / 16 / B, "segments: expected fewer rows than ", T, " * ",
              B);
  TORCH_CHECK(!resets || (resets->device().is_cpu() && resets->scalar_type() == at::kBool &&
                          resets->sizes() == at::IntArrayRef({T, B})),
              "segments: expected resets as bool (", T, ", ", B, ") on cpu");
  TORCH_CHECK(!lengths || (lengths->device().is_cpu() && lengths->scalar_type() == at::kLong &&
                           lengths->sizes() == at::IntArrayRef({B})),
              "segments: expected lengths as int64 (", B, ") on cpu");
  const Tensor mask = resets ? resets->contiguous() : Tensor();
  const Tensor counts = lengths ? lengths->contiguous() : Tensor();
  const uint8_t* at_resets = resets ? static_cast<const uint8_t*>(mask.const_data_ptr()) : nullptr;
  const int64_t* at_lengths = lengths ? counts.const_data_ptr<int64_t>() : nullptr;
  for (int64_t b = 0; lengths && b < B; ++b) {
    TORCH_CHECK(at_lengths[b] >= 0 && at_lengths[b] <= T,
                "segments: expected lengths from 0 to seq_len = ", T, ", got ", at_lengths[b],
                " at index ", b);
  }
  std::vector<Segment> all = split(at_resets, at_lengths, T, B);
  // No row at all: a row of zeros that nobody reads, for a layer needs a step.
  const bool empty = all.empty();
  const int64_t S = empty ? 1 : static_cast<int64_t>(all.size());

  // Sorted by length, the longest first: `next` is where those of a length go.
  int64_t longest = 1;
  for (const Segment& s : all) longest = std::max(longest, s.length);
  Tensor batch_sizes = filled({longest}, empty ? 1 : 0);
  int64_t* sizes = batch_sizes.mutable_data_ptr<int64_t>();
  for (const Segment& s : all) ++sizes[s.length - 1];
  for (int64_t t = longest - 2; t >= 0; --t) sizes[t] += sizes[t + 1];
  std::vector<int64_t> next(static_cast<size_t>(longest)), offsets(static_cast<size_t>(longest));
  int64_t N = 0;
  for (int64_t t = 0; t < longest; ++t) {
    next[static_cast<size_t>(t)] = t + 1 < longest ? sizes[t + 1] : 0;
    offsets[static_cast<size_t>(t)] = N;
    N += sizes[t];
  }
  Tensor rows = filled({1, N}, -1), places = filled({1, T * B}, -1);
  Tensor owners = filled({S}, 0), starts = filled({2, S}, -1), started = filled({2, B}, -1);
  Tensor ends = filled({2, B}, -1), ended = filled({2, S}, -1);
  int64_t *row = rows.mutable_data_ptr<int64_t>(), *place = places.mutable_data_ptr<int64_t>();
  int64_t *owner = owners.mutable_data_ptr<int64_t>(), *start = starts.mutable_data_ptr<int64_t>(),
          *begun = started.mutable_data_ptr<int64_t>(), *end = ends.mutable_data_ptr<int64_t>(),
          *done = ended.mutable_data_ptr<int64_t>();
  for (const Segment& s : all) {
    const int64_t k = next[static_cast<size_t>(s.length - 1)]++, b = s.b;
    owner[k] = b;
    for (int64_t i = 0; i < s.length; ++i) {
      const int64_t n = offsets[static_cast<size_t>(i)] + k, padded = (s.begin + i) * B + b;
      row[n] = padded;
      place[padded] = n;
    }
    const auto pair = [](int64_t* to, int64_t i, int64_t* from, int64_t j) {
      to[i] = j;
      from[j] = i;
    };
    // Forward, a sequence starts in its first segment and ends in its last; in reverse, it starts
    // in the last and ends in the first.
    if (s.begin == 0) {
      if (!at_resets || !at_resets[b]) pair(start, k, begun, b);
      pair(end + B, b, done + S, k);
    }
    if (s.begin + s.length == (at_lengths ? at_lengths[b] : T)) {
      pair(start + S, k, begun + B, b);
      pair(end, b, done, k);
    }
  }
  return {batch_sizes, rows, places, owners, starts, started, ends, ended};
}

Tensor gathered(const Tensor& input, const Tensor& index) {
  TORCH_CHECK(input.device().is_cpu() && input.dim() == 3 && index.device().is_cpu() &&
                  index.dim() == 2 && index.scalar_type() == at::kLong && index.size(0) > 0 &&
                  input.size(0) % index.size(0) == 0,
              "gather_rows: expected input [X, R, C] and index int64 [Y, M] on cpu, Y a divisor of "
              "X, got ",
              input.sizes(), " and ", index.sizes(), " ", index.scalar_type());
  const Tensor from_rows = input.contiguous(), of = index.contiguous();
  const int64_t R = input.size(1), C = input.size(2), M = index.size(1);
  Tensor result = at::empty({input.size(0), M, C}, input.options());
  if (result.numel() == 0) return result;
  const size_t bytes = static_cast<size_t>(C) * input.element_size();
  const char* from = static_cast<const char*>(from_rows.const_data_ptr());
  char* to = static_cast<char*>(result.mutable_data_ptr());
  advise_huge_pages(to, result.nbytes());
  const int64_t* at = of.const_data_ptr<int64_t>();
  const int64_t indices = index.numel(), rows = input.size(0) * M;
  const int64_t largest = *std::max_element(at, at + indices);
  TORCH_CHECK(largest < R, "gather_rows: expected indices below ", R, ", got ", largest);
  // A thread must have 64 KiB to move.
  const int64_t worth = static_cast<int64_t>(result.nbytes() / 65536);
  const int64_t available = at::in_parallel_region() ? 1 : at::get_num_threads();
  const int threads = static_cast<int>(std::clamp<int64_t>(worth, 1, available));
  run_team(threads, [&](const Worker& worker) {
    const int64_t end = rows * (worker.thread + 1) / worker.threads;
    for (int64_t i = rows * worker.thread / worker.threads; i < end; ++i) {
      const int64_t source = at[i % indices];
      char* target = to + static_cast<size_t>(i) * bytes;
      if (source < 0) {
        std::memset(target, 0, bytes);
      } else {
        std::memcpy(target, from + static_cast<size_t>(i / M * R + source) * bytes, bytes);
      }
    }
  });
  return result;
}

std::vector<Tensor> gather_rows(at::TensorList inputs, const Tensor& index) {
  std::vector<Tensor> results;
  for (const Tensor& input : inputs) results.push_back(gathered(input, index));
  return results;
}

}  // namespace

TORCH_LIBRARY_IMPL(fastrnn, CPU, m) {
  m.impl("segments", segments);
  m.impl("gather_rows", gather_rows);
}

}  // namespace fastrnn::cpu
