# SPDX-License-Identifier: Apache-2.0
"""Arithmetic over a window's million points, in C++ (*.cpp), and its doors for numpy.

`build` compiles the sources, `library` finds and loads what was compiled. One module per subject
(`packing`, `cells`, `voxels`, ...) has a function per kernel, `checks` looks at every array
before a kernel gets its address. The numpy versions of the kernels are their oracles in the tests.
"""
