#include "cuda/kernels/team_table.h"

namespace fastrnn::cuda {

const TeamTable kTeamRnnHalf = team_table_of<Rnn, Numeric::kHalf>();

}  // namespace fastrnn::cuda
