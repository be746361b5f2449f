#include "cuda/kernels/team_table.h"

namespace fastrnn::cuda {

const TeamTable kTeamLstmBFloat16 = team_table_of<cells::Lstm, Numeric::kBFloat16>();

}  // namespace fastrnn::cuda
