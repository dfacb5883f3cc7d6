// Attention's kernels for float64.
#include "attention_queue.h"
#include "attention_run.cuh"

namespace artent::attention {
ARTENT_INSTANTIATE_ATTENTION(double)
}  // namespace artent::attention
