// Padded or ragged rows as sequences of their own: where the state is reset, and where a
// sequence of the batch ends, a new one begins. `segments` says which they are, as
// packed data (sorted by length); `gather_rows` moves rows there and back.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cstring>

#include "cpu/team.h"
#include "cpu/tensors.h"

namespace fastrnn::cpu {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

struct Segment {
  int64_t begin, length, b;
};

// Where the rows of a batch of B sequences are: padded to T steps, or one sequence behind the
// other.
struct Rows {
  int64_t T, B;
  const int64_t* lengths;     // of padded ones, or null: T
  const int64_t* cu_seqlens;  // of ragged ones, or null
  int64_t length(int64_t b) const {
    if (cu_seqlens) return cu_seqlens[b + 1] - cu_seqlens[b];
    return lengths ? lengths[b] : T;
  }
  int64_t at(int64_t b, int64_t t) const { return cu_seqlens ? cu_seqlens[b] + t : t * B + b; }
  int64_t count() const { return cu_seqlens ? T : T * B; }
};

// Calls visit(i) for each byte in [begin, end) that is not zero. Most are: they go by in words.
template <class Visit>
void each_nonzero(const uint8_t* bytes, int64_t begin, int64_t end, const Visit& visit) {
  constexpr int64_t kWord = sizeof(uint64_t);
  for (int64_t i = begin; i < end; i += kWord) {
    uint64_t word = 1;
    if (i + kWord <= end) std::memcpy(&word, bytes + i, kWord);
    if (word == 0) continue;
    for (int64_t j = i; j < std::min(i + kWord, end); ++j) {
      if (bytes[j]) visit(j);
    }
  }
}

// Every segment of the batch, in the order of their ends. One that holds no row is none.
// resets: bytes, for a bool tensor may view memory in which true is another byte than 1.
std::vector<Segment> split(const uint8_t* resets, const Rows& rows) {
  const int64_t B = rows.B;
  std::vector<Segment> segments;
  segments.reserve(static_cast<size_t>(B));
  std::vector<int64_t> begins(static_cast<size_t>(B), 0);
  const auto begin_at = [&](int64_t b, int64_t t) {
    int64_t& begin = begins[static_cast<size_t>(b)];
    segments.push_back({begin, t - begin, b});
    begin = t;
  };
  if (resets && rows.cu_seqlens) {
    for (int64_t b = 0; b < B; ++b) {
      const int64_t first = rows.at(b, 0);
      each_nonzero(resets, first + 1, first + rows.length(b),
                   [&](int64_t i) { begin_at(b, i - first); });
    }
  } else if (resets) {
    each_nonzero(resets, B, rows.count(), [&](int64_t i) {
      const int64_t t = i / B, b = i % B;
      if (t < rows.length(b)) begin_at(b, t);
    });
  }
  for (int64_t b = 0; b < B; ++b) {
    const int64_t begin = begins[static_cast<size_t>(b)];
    if (rows.length(b) > begin) segments.push_back({begin, rows.length(b) - begin, b});
  }
  return segments;
}

Tensor indices(at::IntArrayRef size) { return at::empty(size, at::kLong); }

int64_t* filled(Tensor& t) {
  int64_t* data = t.mutable_data_ptr<int64_t>();
  std::fill_n(data, t.numel(), -1);
  return data;
}

using Results = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Results segments(const OptionalTensor& resets, const OptionalTensor& lengths, c10::SymInt seq_len,
                 c10::SymInt batch, int64_t directions, bool none_if_whole,
                 const OptionalTensor& cu_seqlens) {
  const int64_t T = seq_len.expect_int(), B = batch.expect_int(), D = directions;
  TORCH_CHECK((T > 0 && B >= 0) || (T == 0 && cu_seqlens),
              "fastrnn: expected at least one step, got ", T);
  TORCH_CHECK(B == 0 || T <= INT64_MAX / 16 / B, "fastrnn: expected fewer rows than ", T, " * ", B);
  TORCH_CHECK(D == 1 || D == 2, "fastrnn: expected one direction or two, got ", D);
  const at::DimVector size = cu_seqlens ? at::DimVector{T} : at::DimVector{T, B};
  TORCH_CHECK(!resets || (resets->device().is_cpu() && resets->scalar_type() == at::kBool &&
                          resets->sizes() == size),
              "fastrnn: expected resets as bool ", size, " on cpu");
  TORCH_CHECK(!lengths || (lengths->device().is_cpu() && lengths->scalar_type() == at::kLong &&
                           lengths->sizes() == at::IntArrayRef({B})),
              "fastrnn: expected lengths as int64 (", B, ") on cpu");
  TORCH_CHECK(!cu_seqlens || (!lengths && cu_seqlens->device().is_cpu() &&
                              cu_seqlens->scalar_type() == at::kLong &&
                              cu_seqlens->sizes() == at::IntArrayRef({B + 1})),
              "fastrnn: expected cu_seqlens as int64 (", B + 1, ") on cpu, and no lengths with it");
  const Tensor borders = cu_seqlens ? cu_seqlens->contiguous() : Tensor();
  const Tensor mask = resets ? resets->contiguous() : Tensor();
  const Tensor counts = lengths ? lengths->contiguous() : Tensor();
  const uint8_t* at_resets = resets ? static_cast<const uint8_t*>(mask.const_data_ptr()) : nullptr;
  const int64_t* at_lengths = lengths ? counts.const_data_ptr<int64_t>() : nullptr;
  for (int64_t b = 0; lengths && b < B; ++b) {
    TORCH_CHECK(at_lengths[b] >= 0 && at_lengths[b] <= T,
                "fastrnn: expected lengths from 0 to seq_len = ", T, ", got ", at_lengths[b],
                " at index ", b);
  }
  const Rows given{T, B, at_lengths, cu_seqlens ? borders.const_data_ptr<int64_t>() : nullptr};
  if (cu_seqlens) {
    const int64_t* at = given.cu_seqlens;
    TORCH_CHECK(at[0] == 0 && at[B] == T && std::is_sorted(at, at + B + 1),
                "fastrnn: expected cu_seqlens from 0 to the number of rows, ", T,
                ", none below the one before, got from ", at[0], " to ", at[B]);
  }
  std::vector<Segment> all = split(at_resets, given);
  // No row at all: a row of zeros that nobody reads, for a layer needs a step.
  const bool empty = all.empty();
  const int64_t S = empty ? 1 : static_cast<int64_t>(all.size());

  // Sorted by length, the longest first: `next` is where those of a length go.
  int64_t longest = 1, N = 0;
  for (const Segment& s : all) {
    longest = std::max(longest, s.length);
    N += s.length;
  }
  if (none_if_whole && S == B && N == given.count()) {
    const bool starts_anew = at_resets && std::any_of(at_resets, at_resets + B,
                                                      [](uint8_t reset) { return reset != 0; });
    const auto none = [] { return indices({0}); };
    Tensor starts = starts_anew ? indices({D, S}) : none();
    return {none(), none(), none(), none(), starts, none(), none(), none()};
  }
  if (empty) N = 1;
  Tensor batch_sizes = indices({longest});
  int64_t* sizes = batch_sizes.mutable_data_ptr<int64_t>();
  std::fill_n(sizes, longest, empty ? 1 : 0);
  for (const Segment& s : all) ++sizes[s.length - 1];
  for (int64_t t = longest - 2; t >= 0; --t) sizes[t] += sizes[t + 1];
  std::vector<int64_t> next(static_cast<size_t>(longest)), offsets(static_cast<size_t>(longest));
  int64_t offset = 0;
  for (int64_t t = 0; t < longest; ++t) {
    next[static_cast<size_t>(t)] = t + 1 < longest ? sizes[t + 1] : 0;
    offsets[static_cast<size_t>(t)] = offset;
    offset += sizes[t];
  }
  Tensor rows = indices({1, N}), owners = indices({S});
  Tensor places = cu_seqlens ? indices({1, T}) : indices({1, T, B});
  Tensor starts = indices({D, S}), started = indices({D, B});
  Tensor ends = indices({D, B}), ended = indices({D, S});
  int64_t *row = rows.mutable_data_ptr<int64_t>(), *place = places.mutable_data_ptr<int64_t>(),
          *owner = owners.mutable_data_ptr<int64_t>(), *start = filled(starts),
          *begun = filled(started), *end = filled(ends), *done = filled(ended);
  if (empty) {
    row[0] = -1;
    owner[0] = 0;
  }
  if (empty || N < given.count()) filled(places);  // else each has a row
  for (const Segment& s : all) {
    const int64_t k = next[static_cast<size_t>(s.length - 1)]++, b = s.b;
    owner[k] = b;
    for (int64_t i = 0; i < s.length; ++i) {
      const int64_t n = offsets[static_cast<size_t>(i)] + k, from = given.at(b, s.begin + i);
      row[n] = from;
      place[from] = n;
    }
    const auto pair = [](int64_t* to, int64_t i, int64_t* from, int64_t j) {
      to[i] = j;
      from[j] = i;
    };
    // Forward, a sequence starts in its first segment and ends in its last; in reverse, it starts
    // in the last and ends in the first.
    const bool first = s.begin == 0, last = s.begin + s.length == given.length(b);
    if (first && !(at_resets && at_resets[given.at(b, 0)])) pair(start, k, begun, b);
    if (last) pair(end, b, done, k);
    if (D == 2 && last) pair(start + S, k, begun + B, b);
    if (D == 2 && first) pair(end + B, b, done + S, k);
  }
  return {batch_sizes, rows, places, owners, starts, started, ends, ended};
}

// Rows of few bytes are copied in vectors, the last of which may overlap the one before: a call of
// memcpy takes as long as they do.
inline void copy_row(char* to, const char* from, size_t bytes) {
  constexpr size_t kVector = 16, kMost = 256;
  if (bytes < kVector || bytes > kMost) {
    std::memcpy(to, from, bytes);
    return;
  }
  for (size_t i = 0; i + kVector < bytes; i += kVector) std::memcpy(to + i, from + i, kVector);
  std::memcpy(to + bytes - kVector, from + bytes - kVector, kVector);
}

// Rows come from anywhere, which no hardware foresees: they are asked for this many rows ahead.
constexpr int64_t kAhead = 8;

inline void prefetch_row(const char* group, int64_t row, size_t bytes) {
  constexpr size_t kLine = 64, kMost = 512;  // what follows in a longer row is foreseen
  if (row < 0) return;
  const char* from = group + static_cast<size_t>(row) * bytes;
  for (size_t i = 0; i < std::min(bytes, kMost); i += kLine) __builtin_prefetch(from + i);
}

// The rows of input [X, R, C], or [R, C], that index [Y, *M] names: [X, *M, C], or [*M, C].
Tensor gathered(const Tensor& input, const Tensor& index) {
  const bool grouped = input.dim() == 3;
  TORCH_CHECK(input.device().is_cpu() && (grouped || input.dim() == 2) && index.device().is_cpu() &&
                  index.dim() >= 2 && index.scalar_type() == at::kLong && index.size(0) > 0 &&
                  (grouped ? input.size(0) % index.size(0) == 0 : index.size(0) == 1),
              "gather_rows: expected input [X, R, C] or [R, C] and index int64 [Y, ...] on cpu, Y "
              "a divisor of X or 1, got ",
              input.sizes(), " and ", index.sizes(), " ", index.scalar_type());
  const Tensor from_rows = input.contiguous(), of = index.contiguous();
  const int64_t X = grouped ? input.size(0) : 1, R = input.size(-2), C = input.size(-1);
  const int64_t Y = index.size(0), M = index.numel() / Y;
  at::DimVector size(input.sizes().begin(), input.sizes().begin() + (grouped ? 1 : 0));
  size.append(index.sizes().begin() + 1, index.sizes().end());
  size.push_back(C);
  Tensor result = empty(size, input.options());
  if (result.numel() == 0) return result;
  const size_t bytes = static_cast<size_t>(C) * input.element_size();
  const char* from = static_cast<const char*>(from_rows.const_data_ptr());
  char* to = static_cast<char*>(result.mutable_data_ptr());
  const int64_t* at = of.const_data_ptr<int64_t>();
  int64_t largest = -1;
  for (int64_t i = 0; i < Y * M; ++i) largest = std::max(largest, at[i]);
  TORCH_CHECK(largest < R, "gather_rows: expected indices below ", R, ", got ", largest);
  const int64_t rows = X * M;
  // A thread must have 64 KiB to move.
  const int64_t worth = static_cast<int64_t>(result.nbytes() / 65536);
  const int64_t available = at::in_parallel_region() ? 1 : at::get_num_threads();
  const int threads = static_cast<int>(std::clamp<int64_t>(worth, 1, available));
  run_team(threads, [&](const Worker& worker) {
    const int64_t begin = rows * worker.thread / worker.threads;
    const int64_t end = rows * (worker.thread + 1) / worker.threads;
    char* target = to + static_cast<size_t>(begin) * bytes;
    for (int64_t i = begin; i < end;) {
      const int64_t x = i / M, first = i - x * M, last = std::min(M, first + end - i);
      const int64_t* sources = at + x % Y * M;
      const char* group = from + static_cast<size_t>(x * R) * bytes;
      for (int64_t m = first; m < last; ++m, target += bytes) {
        if (m + kAhead < last) prefetch_row(group, sources[m + kAhead], bytes);
        if (sources[m] < 0) {
          std::memset(target, 0, bytes);
        } else {
          copy_row(target, group + static_cast<size_t>(sources[m]) * bytes, bytes);
        }
      }
      i += last - first;
    }
  });
  return result;
}

std::vector<Tensor> gather_rows(at::TensorList inputs, at::TensorList indices) {
  TORCH_CHECK(inputs.size() == indices.size(), "gather_rows: expected an index for each of ",
              inputs.size(), " inputs, got ", indices.size());
  std::vector<Tensor> results;
  results.reserve(inputs.size());
  for (size_t i = 0; i < inputs.size(); ++i) results.push_back(gathered(inputs[i], indices[i]));
  return results;
}

}  // namespace

TORCH_LIBRARY_IMPL(fastrnn, CPU, m) {
  m.impl("segments", segments);
  m.impl("gather_rows", gather_rows);
}

}  // namespace fastrnn::cpu
