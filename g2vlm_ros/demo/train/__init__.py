# SPDX-License-Identifier: Apache-2.0
"""Training of the demo checkpoint on the simulated home, from scratch, on a CPU or a GPU."""
