// Cells by the names that operators take.
#pragma once
#include <c10/util/Exception.h>

#include <optional>
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

inline std::optional<CellKind> find_cell(std::string_view name) {
  for (int i = 0; i < cells::All::kCount; ++i) {
    if (name == cells::All::kTraits[i].name) return static_cast<CellKind>(i);
  }
  return std::nullopt;
}

inline CellKind cell_kind(const char* op, std::string_view name) {
  const std::optional<CellKind> kind = find_cell(name);
  TORCH_CHECK(kind, op, ": expected cell to be one of ", cell_names(), ", got ", std::string(name));
  return *kind;
}

}  // namespace fastrnn::host
