# SPDX-License-Identifier: Apache-2.0
"""Makes engines of the network and checks every backend against reference values."""
