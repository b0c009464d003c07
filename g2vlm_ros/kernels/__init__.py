# SPDX-License-Identifier: Apache-2.0
"""Arithmetic over a window's million points, in C++ (*.cpp), and its door for numpy (`api`).

`build` compiles the sources, `library` finds and loads what was compiled, `api` checks every array
before a kernel sees its address. The numpy versions of the kernels are their oracles in the tests.
"""
