#include "cuda/kernels/team_table.h"

namespace fastrnn::cuda {

const TeamTable kTeamLstmHalf = team_table_of<cells::Lstm, Numeric::kHalf>();

}  // namespace fastrnn::cuda
