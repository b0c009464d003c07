# SPDX-License-Identifier: Apache-2.0
"""Locate a thing as a language agent does: the node's tools over MCP, started as a child process.

pip install "mcp>=2"; python3 examples/locate_with_mcp.py chair
"""

from __future__ import annotations

import asyncio
import os
import sys

COMMAND = [sys.executable, "-m", "g2vlm_ros.ros.client.agent_tools"]


async def locate(thing: str) -> int:
    """Prints the tools, then where the thing is."""
    from mcp import ClientSession, StdioServerParameters
    from mcp.client.stdio import stdio_client

    # mcp hands over PATH and HOME only; ROS needs its own variables (ROS_DOMAIN_ID, PYTHONPATH).
    server = StdioServerParameters(command=COMMAND[0], args=COMMAND[1:], env=dict(os.environ))
    async with stdio_client(server) as streams, ClientSession(*streams) as session:
        await session.initialize()
        tools = await session.list_tools()
        print("tools:", ", ".join(tool.name for tool in tools.tools))
        result = await session.call_tool("locate", {"thing": thing})
        for part in result.content:
            print(getattr(part, "text", part))
    return 0


def main(arguments: list[str] | None = None) -> int:
    words = sys.argv[1:] if arguments is None else arguments
    try:
        return asyncio.run(locate(" ".join(words)))
    except ImportError:
        print('the package mcp is missing: pip install "mcp>=2"', file=sys.stderr)
        return 2


if __name__ == "__main__":
    raise SystemExit(main())
