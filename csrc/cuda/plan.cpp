#include "cuda/plan.h"

#include <algorithm>
#include <cstdlib>
#include <stdexcept>

#include "cells/list.h"
#include "cuda/step_costs.h"

namespace fastrnn::cuda {
namespace {

int gates_of(CellKind cell) { return cells::traits(cell).products; }

int64_t divided_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

Numeric numeric_of(const Problem& problem) {
  switch (problem.dtype) {
    case DType::kBFloat16:
      return Numeric::kBFloat16;
    case DType::kHalf:
      return Numeric::kHalf;
    default:
      return problem.tf32 ? Numeric::kTf32 : Numeric::kFloat;
  }
}

// Why a regime does not run a problem: because it cannot, or because another one is faster.
struct Verdict {
  std::string impossible, unwanted;
  bool accepts() const { return impossible.empty() && unwanted.empty(); }
};

// What keeps every regime but steps from a problem.
std::string only_by_steps(const Problem& problem, const DeviceLimits& limits) {
  if (problem.dtype == DType::kDouble) return "float64";
  if (problem.projected) return "projection";
  if (static_cast<int>(problem.cell) >= kPersistentCells) return "cell";
  if (limits.capability < 80) return "compute capability below 8.0";
  return "";
}

// The compiled size that hidden_size is padded to, or 0 where it is larger than all.
template <size_t kCount>
int padded_size(const int (&sizes)[kCount], int64_t hidden_size) {
  for (const int size : sizes) {
    if (hidden_size <= size) return size;
  }
  return 0;
}

std::string too_much_memory(size_t bytes, const DeviceLimits& limits) {
  return "needs " + std::to_string(bytes) + " bytes of shared memory, a block has " +
         std::to_string(limits.shared_bytes);
}

Verdict fit_single(const Problem& problem, const DeviceLimits& limits, Plan& plan) {
  const int hidden = padded_size(kSingleHidden, problem.hidden_size);
  if (hidden == 0) {
    return {"hidden_size above " + std::to_string(kSingleHidden[std::size(kSingleHidden) - 1]), ""};
  }
  const Numeric numeric = numeric_of(problem);
  const SingleTile tile = single_tile(gates_of(problem.cell), problem.pass, numeric, hidden);
  if (tile.shared_bytes > limits.shared_bytes) {
    return {too_much_memory(tile.shared_bytes, limits), ""};
  }
  plan.numeric = numeric;
  plan.hidden = hidden;
  plan.rows = tile.rows;
  plan.threads = tile.threads;
  plan.replicas = divided_up(problem.batch, tile.rows);
  plan.shared_bytes = tile.shared_bytes;
  const int64_t rounds = divided_up(plan.replicas * problem.directions, limits.multiprocessors);
  if (rounds > kSingleMaxRounds) {
    return {"", "the batch takes " + std::to_string(rounds) + " rounds over the device"};
  }
  return {};
}

// Regime cluster or grid. Row tiles are spread over as many teams as the device holds.
Verdict fit_team(const Problem& problem, DeviceLimits limits, bool cluster, Plan& plan) {
  const int hidden = padded_size(kTeamHidden, problem.hidden_size);
  if (hidden == 0) {
    return {"hidden_size above " + std::to_string(kTeamHidden[std::size(kTeamHidden) - 1]), ""};
  }
  const int gates = gates_of(problem.cell);
  const Numeric numeric = numeric_of(problem);
  const TeamTile tile = team_tile(gates, problem.pass, numeric, hidden);
  const TeamMemory memory = team_memory(gates, problem.pass, numeric, hidden, cluster);
  const int64_t row_tiles = std::max<int64_t>(divided_up(problem.batch, kTeamRows), 1);
  const int blocks = team_blocks(tile, static_cast<int>(problem.hidden_size), cluster);
  if (memory.block + memory.row_tile > limits.shared_bytes) {
    return {too_much_memory(memory.block + memory.row_tile, limits), ""};
  }
  // At once on the device, for each direction. Clusters may queue, a cooperative grid may not.
  int64_t resident = 0;
  if (cluster) {
    if (hidden > kTeamHidden[cluster_columns(numeric) - 1]) {
      return {"hidden_size above " + std::to_string(kTeamHidden[cluster_columns(numeric) - 1]), ""};
    }
    if (clusters_of(limits, blocks) < 1) {
      return {"the device holds no cluster of " + std::to_string(blocks) + " blocks", ""};
    }
    resident = std::max<int64_t>(clusters_of(limits, blocks) / problem.directions, 1);
  } else {
    resident = limits.cooperative_blocks / blocks / problem.directions;
    if (resident < 1) {
      return {"needs " + std::to_string(blocks * problem.directions) +
                  " blocks at once, the device holds " + std::to_string(limits.cooperative_blocks),
              ""};
    }
  }
  int64_t tiles = divided_up(row_tiles, std::min(row_tiles, resident));
  const int64_t most = static_cast<int64_t>((limits.shared_bytes - memory.block) / memory.row_tile);
  if (tiles > most && !cluster) {
    return {too_much_memory(memory.block + static_cast<size_t>(tiles) * memory.row_tile, limits),
            ""};
  }
  tiles = std::min(tiles, most);
  plan.numeric = numeric;
  plan.hidden = hidden;
  plan.threads = kTeamThreads;
  plan.blocks = blocks;
  plan.row_tiles = static_cast<int>(tiles);
  plan.rows = plan.row_tiles * kTeamRows;
  plan.replicas = divided_up(row_tiles, tiles);
  plan.shared_bytes = memory.block + static_cast<size_t>(tiles) * memory.row_tile;
  const StepCosts& costs = step_costs(gates, problem.pass, numeric, hidden);
  const RegimeCost& own = cluster ? costs.cluster : costs.grid;
  const int64_t rounds = cluster ? divided_up(plan.replicas, resident) : 1;
  plan.step_us = static_cast<double>(rounds) * (own.base_us + own.row_tile_us * plan.row_tiles);
  plan.start_us = own.start_us;
  if (problem.hidden_size <= kSingleHidden[std::size(kSingleHidden) - 1]) {
    return {"", "hidden_size is for single"};
  }
  const RegimeCost& steps = costs.steps;
  const double by_steps =
      problem.directions * (steps.base_us + steps.row_tile_us * static_cast<double>(row_tiles));
  const auto total = [&](double start, double step) {
    return start + static_cast<double>(problem.seq_len) * step;
  };
  const double ours = total(plan.start_us, plan.step_us), theirs = total(steps.start_us, by_steps);
  if (ours > theirs) {
    return {"", std::to_string(static_cast<int64_t>(ours)) + " us against " +
                    std::to_string(static_cast<int64_t>(theirs)) + " by steps"};
  }
  return {};
}

}  // namespace

Plan make_plan(const Problem& problem, const DeviceLimits& limits, std::optional<Regime> forced) {
  const std::string only = only_by_steps(problem, limits);
  constexpr Regime kOthers[] = {Regime::kSingle, Regime::kCluster, Regime::kGrid};
  Plan plans[3]{};
  Verdict verdicts[3];
  for (size_t i = 0; i < 3; ++i) {
    plans[i].regime = kOthers[i];
    verdicts[i].impossible = only;
    if (!only.empty()) continue;
    verdicts[i] = i == 0 ? fit_single(problem, limits, plans[i])
                         : fit_team(problem, limits, kOthers[i] == Regime::kCluster, plans[i]);
  }
  if (forced && *forced != Regime::kSteps) {
    const size_t i = static_cast<size_t>(std::find(kOthers, kOthers + 3, *forced) - kOthers);
    if (!verdicts[i].impossible.empty()) {
      throw std::invalid_argument(std::string("FASTRNN_CUDA_REGIME=") + name_of(*forced) +
                                  " is impossible here: " + verdicts[i].impossible);
    }
    return plans[i];
  }
  if (!forced) {
    if (verdicts[0].accepts()) return plans[0];
    const bool cluster = verdicts[1].accepts(), grid = verdicts[2].accepts();
    const auto time = [&](const Plan& plan) {
      return plan.start_us + static_cast<double>(problem.seq_len) * plan.step_us;
    };
    if (cluster && grid) return time(plans[1]) <= time(plans[2]) ? plans[1] : plans[2];
    if (cluster || grid) return plans[cluster ? 1 : 2];
  }
  Plan steps{};
  steps.regime = Regime::kSteps;
  steps.reason = forced ? "FASTRNN_CUDA_REGIME=steps" : only;
  for (size_t i = 0; i < 3 && steps.reason.empty(); ++i) {
    // Of single up to its largest size, of teams beyond.
    if ((i == 0) != (problem.hidden_size <= kSingleHidden[std::size(kSingleHidden) - 1])) continue;
    const auto said = [](const Verdict& v) { return v.impossible + v.unwanted; };
    steps.reason = i == 0 ? said(verdicts[0])
                          : "cluster: " + said(verdicts[1]) + "; grid: " + said(verdicts[2]);
  }
  return steps;
}

std::optional<Regime> forced_regime() {
  const char* value = std::getenv("FASTRNN_CUDA_REGIME");
  if (value == nullptr || *value == '\0') return std::nullopt;
  const std::string text(value);
  for (const Regime regime : {Regime::kSteps, Regime::kSingle, Regime::kCluster, Regime::kGrid}) {
    if (text == name_of(regime)) return regime;
  }
  throw std::invalid_argument(
      "FASTRNN_CUDA_REGIME: expected steps, single, cluster, grid or nothing, got \"" + text +
      "\"");
}

bool cooperative_ruled_out() {
  const char* value = std::getenv("FASTRNN_CUDA_COOPERATIVE");
  return value != nullptr && std::string(value) == "0";
}

int64_t& clusters_of(DeviceLimits& limits, int blocks) {
  return limits.clusters[blocks > kPortableCluster];
}

const char* name_of(Regime regime) {
  static const char* const kNames[] = {"steps", "single", "cluster", "grid"};
  return kNames[static_cast<int>(regime)];
}

const std::vector<KnownDevice>& known_devices() {
  // Clusters: what 132 multiprocessors hold, seven or eight of 16 as their groups are cut. Of the
  // last two nobody has measured it.
  static const std::vector<KnownDevice> devices = {
      {"A100 (sm_80)", {80, 108, 163 * 1024, 108, {0, 0}}},
      {"A40 (sm_86)", {86, 84, 99 * 1024, 84, {0, 0}}},
      {"L40S (sm_89)", {89, 142, 99 * 1024, 142, {0, 0}}},
      {"H200 (sm_90)", {90, 132, 227 * 1024, 132, {16, 7}}},
      {"B200 (sm_100)", {100, 148, 227 * 1024, 148, {18, 8}}},
      {"RTX 5090 (sm_120)", {120, 170, 99 * 1024, 170, {21, 0}}},
  };
  return devices;
}

std::string describe(const Plan& plan) {
  if (plan.regime == Regime::kSteps) return "steps (" + plan.reason + ")";
  static const char* const kNames[] = {"fp32", "tf32", "bf16", "fp16"};  // in the order of Numeric
  const std::string begin = std::string(name_of(plan.regime)) + " " +
                            kNames[static_cast<int>(plan.numeric)] + " padded to " +
                            std::to_string(plan.hidden) + ", " + std::to_string(plan.replicas);
  const std::string end = std::to_string(plan.rows) + " rows and " + std::to_string(plan.threads) +
                          " threads, " + std::to_string(plan.shared_bytes) + " bytes shared";
  if (plan.regime == Regime::kSingle) return begin + " blocks of " + end;
  return begin + " teams of " + std::to_string(plan.blocks) + " blocks, " + end;
}

}  // namespace fastrnn::cuda
