// Attention's kernels for float32.
#include "attention_queue.h"
#include "attention_run.cuh"

namespace artent::attention {
ARTENT_INSTANTIATE_ATTENTION(float)
}  // namespace artent::attention
