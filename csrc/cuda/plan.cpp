#include "cuda/plan.h"

#include <cstdlib>
#include <stdexcept>

namespace fastrnn::cuda {
namespace {

int gates_of(CellKind cell) { return cell == CellKind::kLstm ? 4 : cell == CellKind::kGru ? 3 : 1; }

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

// Fills in the tiles of S and returns why S cannot run at all, or nothing.
std::string fit_single(const Problem& problem, const DeviceLimits& limits, Plan& plan) {
  if (problem.dtype == DType::kDouble) return "float64";
  if (problem.projected) return "projection";
  if (limits.capability < 80) return "compute capability below 8.0";
  int hidden = 0;
  for (const int size : kSingleHidden) {
    if (hidden == 0 && problem.hidden_size <= size) hidden = size;
  }
  if (hidden == 0) {
    return "hidden_size above " + std::to_string(kSingleHidden[std::size(kSingleHidden) - 1]);
  }
  const Numeric numeric = numeric_of(problem);
  const SingleTile tile = single_tile(gates_of(problem.cell), problem.pass, numeric, hidden);
  if (tile.shared_bytes > limits.shared_bytes) {
    return "needs " + std::to_string(tile.shared_bytes) + " bytes of shared memory, a block has " +
           std::to_string(limits.shared_bytes);
  }
  plan.numeric = numeric;
  plan.hidden = hidden;
  plan.rows = tile.rows;
  plan.threads = tile.threads;
  plan.replicas = (problem.batch + tile.rows - 1) / tile.rows;
  plan.shared_bytes = tile.shared_bytes;
  return "";
}

}  // namespace

Plan make_plan(const Problem& problem, const DeviceLimits& limits, std::optional<Regime> forced) {
  Plan plan{};
  const std::string impossible = fit_single(problem, limits, plan);
  std::string unwanted;
  if (impossible.empty()) {
    const int64_t blocks = plan.replicas * problem.directions;
    const int64_t rounds = (blocks + limits.multiprocessors - 1) / limits.multiprocessors;
    if (rounds > kSingleMaxRounds) {
      unwanted = "the batch takes " + std::to_string(rounds) + " rounds over the device";
    }
  }
  if (forced == Regime::kSingle && !impossible.empty()) {
    throw std::invalid_argument("FASTRNN_CUDA_REGIME=S is impossible here: " + impossible);
  }
  const bool single = forced ? *forced == Regime::kSingle : impossible.empty() && unwanted.empty();
  if (single) {
    plan.regime = Regime::kSingle;
    return plan;
  }
  Plan steps{};
  steps.regime = Regime::kSteps;
  steps.reason = forced ? "FASTRNN_CUDA_REGIME=P" : impossible.empty() ? unwanted : impossible;
  return steps;
}

std::optional<Regime> forced_regime() {
  const char* value = std::getenv("FASTRNN_CUDA_REGIME");
  if (value == nullptr || *value == '\0') return std::nullopt;
  const std::string text(value);
  if (text == "P") return Regime::kSteps;
  if (text == "S") return Regime::kSingle;
  throw std::invalid_argument("FASTRNN_CUDA_REGIME: expected P, S or nothing, got \"" + text +
                              "\"");
}

const std::vector<KnownDevice>& known_devices() {
  static const std::vector<KnownDevice> devices = {
      {"A100 (sm_80)", {80, 108, 163 * 1024}},
      {"A40 (sm_86)", {86, 84, 99 * 1024}},
      {"L40S (sm_89)", {89, 142, 99 * 1024}},
      {"H200 (sm_90)", {90, 132, 227 * 1024}},
  };
  return devices;
}

std::string describe(const Plan& plan) {
  if (plan.regime == Regime::kSteps) return "P (" + plan.reason + ")";
  static const char* const kNames[] = {"fp32", "tf32", "bf16", "fp16"};  // in the order of Numeric
  return std::string("S ") + kNames[static_cast<int>(plan.numeric)] + " padded to " +
         std::to_string(plan.hidden) + ", " + std::to_string(plan.replicas) + " blocks of " +
         std::to_string(plan.rows) + " rows and " + std::to_string(plan.threads) + " threads, " +
         std::to_string(plan.shared_bytes) + " bytes shared";
}

}  // namespace fastrnn::cuda
