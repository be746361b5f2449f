// Cells by the names that operators take.
#pragma once
#include <c10/util/Exception.h>

#include <string>
#include <string_view>

#include "cells/list.h"

namespace fastrnn::host {

inline std::string cell_names() {
  std::string names;
  for (const cells::Traits& cell : cells::All::kTraits) {
    names += (names.empty() ? "" : ", ") + std::string(cell.name);
  }
  return names;
}

inline CellKind cell_kind(const char* op, std::string_view name) {
  for (int i = 0; i < cells::All::kCount; ++i) {
    if (name == cells::All::kTraits[i].name) return static_cast<CellKind>(i);
  }
  TORCH_CHECK(false, op, ": expected cell to be one of ", cell_names(), ", got ",
              std::string(name));
}

}  // namespace fastrnn::host
