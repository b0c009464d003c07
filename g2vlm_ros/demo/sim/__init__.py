# SPDX-License-Identifier: Apache-2.0
"""A simulated home: procedural rooms and furniture, a robot's walk, a camera, questions."""
