# SPDX-License-Identifier: Apache-2.0
"""Runs the network on a device, behind the one Protocol of `stages`."""
