# SPDX-License-Identifier: Apache-2.0
"""``make bench``: every benchmark in a process of its own, one after the other.

``python -m benchmarks NAME ...`` runs some, ``NAME --option ...`` one with its own options. Each
writes benchmarks/results/<name>.json.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
NOT_BENCHMARKS = {
    "__init__",
    "__main__",
    "record",
    "eager_reference",
    "peers",
    "saved_map",
    "object_plan",
    "office_again",
    "gpu_commands",
    "gpu_network",
    "gpu",
    "export_size",
    "fleet",
}
"""The last three are run by themselves: a GPU (`make gpu`), half an hour, a server are needed."""


def main(arguments: list[str]) -> int:
    """Run the named benchmarks, all by default; exit code 1 if one failed."""
    named = next((i for i, each in enumerate(arguments) if each.startswith("-")), len(arguments))
    names, options = arguments[:named], arguments[named:]
    known = sorted(path.stem for path in HERE.glob("*.py") if path.stem not in NOT_BENCHMARKS)
    wrong = [name for name in names if name not in known]
    if wrong:
        print(f"no benchmark {', '.join(wrong)}; there are {', '.join(known)}", file=sys.stderr)
        return 2
    if options and len(names) != 1:
        print(f"{' '.join(options)}: options are those of one benchmark; name it", file=sys.stderr)
        return 2
    failed = []
    for name in names or known:
        print(f"== {name}", flush=True)
        command = [sys.executable, "-m", f"benchmarks.{name}", *options]
        if subprocess.run(command, check=False).returncode:
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
