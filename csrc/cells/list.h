// The one list of cells. Kernels, host code and Python read it; a cell's number is its place.
#pragma once
#include <type_traits>

#include "cells/gru.h"
#include "cells/lstm.h"
#include "cells/lstm_coupled.h"
#include "cells/lstm_peephole.h"
#include "cells/rnn.h"
#include "layer_shape.h"

namespace fastrnn::cells {

// What host code needs to know of a cell; the contract in cell.h says what each is.
struct Traits {
  const char* name;
  int products, columns, states, vectors;
  bool carries_h, keeps_h;

  constexpr bool has_c() const { return states > 1; }
  constexpr bool apart() const { return columns > products; }
  // Columns that are saved besides the states.
  constexpr int saved() const { return keeps_h ? 0 : columns; }
};

template <class... Each>
struct List {
  static constexpr int kCount = sizeof...(Each);
  static constexpr int kMostProducts = 4;  // of any cell; tiles are made for them
  static constexpr Traits kTraits[kCount] = {{Each::kName, Each::kProducts, Each::kColumns,
                                              Each::kStates, Each::kVectors, Each::kCarriesH,
                                              Each::kKeepsH}...};

  // f(Cell{}) of the cell of this kind.
  template <class F>
  static auto visit(CellKind kind, F&& f) {
    return visit_from<0, F, Each...>(static_cast<int>(kind), f);
  }

  // Whether there is a cell with so many products; with one of h's apart.
  static constexpr bool any(int products) {
    for (const Traits& cell : kTraits) {
      if (cell.products == products) return true;
    }
    return false;
  }
  static constexpr bool any_apart(int products) {
    for (const Traits& cell : kTraits) {
      if (cell.products == products && cell.apart()) return true;
    }
    return false;
  }

  template <class Cell>
  static constexpr CellKind kind() {
    constexpr bool kIs[] = {std::is_same_v<Cell, Each>...};
    int place = 0;
    while (!kIs[place]) ++place;
    return static_cast<CellKind>(place);
  }

 private:
  template <int kFirst, class F, class Cell, class... Others>
  static auto visit_from(int kind, F& f) {
    if constexpr (sizeof...(Others) > 0) {
      if (kind != kFirst) return visit_from<kFirst + 1, F, Others...>(kind, f);
    }
    return f(Cell{});
  }
};

using All = List<Lstm, Gru, RnnTanh, RnnRelu, LstmCoupled, LstmPeephole>;

// What kernels take for granted: whoever adds another kind of cell has to teach them first.
constexpr bool are_known_kinds() {
  for (const Traits& cell : All::kTraits) {
    const bool fits_tiles = cell.products >= 1 && cell.products <= All::kMostProducts;
    const bool fits_columns = cell.columns == cell.products || cell.columns == cell.products + 1;
    const bool fits_states = cell.states == 1 || (cell.states == 2 && !cell.carries_h);
    const bool fits_saved = !cell.keeps_h || (cell.columns == 1 && cell.states == 1);
    const bool fits_vectors = cell.vectors == 0 || (cell.has_c() && !cell.apart());
    if (!fits_tiles || !fits_columns || !fits_states || !fits_saved || !fits_vectors) return false;
  }
  return true;
}
static_assert(are_known_kinds(), "a cell that the kernels cannot run; see are_known_kinds");

// The number of a cell.
template <class Cell>
inline constexpr CellKind kKind = All::kind<Cell>();

constexpr const Traits& traits(CellKind kind) { return All::kTraits[static_cast<int>(kind)]; }

}  // namespace fastrnn::cells
