// The cells, and the shape of the tiles that their products come in.
#pragma once
#include "cells/list.h"
#include "cpu/kernels/config.h"

namespace fastrnn::cpu {
namespace {

// Vectors of units in a panel block, each with all of its G products; rows of its tiles.
template <int G>
constexpr int kUnitVectors = kWideVectors >= 2 * G ? kWideVectors / G : 1;
template <int G>
constexpr int kUnitRows = kTileRows[G * kUnitVectors<G> - 1];

// Saved columns of a unit besides its states.
template <class Cell>
constexpr int kSaved = Cell::kKeepsH ? 0 : Cell::kColumns;

}  // namespace
}  // namespace fastrnn::cpu
