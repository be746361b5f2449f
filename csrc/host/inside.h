// What options put inside the recurrence, as operators are told of it.
#pragma once
#include <ATen/core/Tensor.h>

#include <optional>

#include "layer_shape.h"

namespace fastrnn::host {

inline uint64_t seed_of(const char* op, const at::Tensor& seed) {
  TORCH_CHECK(seed.device().is_cpu() && seed.scalar_type() == at::kLong && seed.numel() == 1, op,
              ": expected seed as one int64 on cpu, got ", seed.sizes(), " ", seed.scalar_type());
  return static_cast<uint64_t>(*seed.const_data_ptr<int64_t>());
}

// Not empty lists, which AOTInductor turns into None.
using OptionalDoubles = std::optional<at::ArrayRef<double>>;

// The last arguments of an operator; csrc/ops.cpp says what they are.
struct InsideArguments {
  c10::string_view norm = "none";
  double eps = 0;
  OptionalDoubles rates = {};
  at::OptionalIntArrayRef counter = {};
  std::optional<at::Tensor> seed = {}, h_scale = {};

  // h_scale: checked later, when sizes are known.
  Inside read(const char* op) const {
    Inside o{};
    const bool both = norm == "recurrent", joint = norm == "joint";
    TORCH_CHECK(norm == "none" || both || joint, op,
                ": expected norm none, recurrent or joint, got ", norm);
    o.any = counter.has_value();
    if (!o.any) {
      TORCH_CHECK(!both && !joint && !rates && !seed && !h_scale, op,
                  ": expected counter with options inside the recurrence, got None");
      return o;
    }
    TORCH_CHECK(counter->size() == 3 && (*counter)[0] >= 0, op,
                ": expected counter of a stream >= 0, the first step and a step, got ", *counter);
    TORCH_CHECK(!(both || joint) || eps > 0, op, ": expected eps > 0, got ", eps);
    TORCH_CHECK(rates && rates->size() == 3, op,
                ": expected rates of zoneout of c, zoneout of h and dropout, got ",
                rates ? rates->size() : 0);
    for (const double rate : *rates) {
      TORCH_CHECK(rate >= 0 && rate < 1, op, ": expected rates in [0, 1), got ", rate);
    }
    o.norm = both ? Norm::kRecurrent : joint ? Norm::kJoint : Norm::kNone;
    o.eps = eps;
    o.zoneout_c = (*rates)[0];
    o.zoneout_h = (*rates)[1];
    o.dropout = (*rates)[2];
    o.random = seed.has_value();
    if (seed) o.seed = seed_of(op, *seed);
    o.stream = static_cast<uint32_t>((*counter)[0]);
    o.first_step = (*counter)[1];
    o.step = (*counter)[2];
    return o;
  }
};

}  // namespace fastrnn::host
