"""What all tests share."""

from __future__ import annotations

import torch

# Tests run many tiny operations, often several processes at once: a pool of threads that spin for
# work would take the time from those that have some.
torch.set_num_threads(1)
