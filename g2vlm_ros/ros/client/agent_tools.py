# SPDX-License-Identifier: Apache-2.0
"""The robot's eyes as tools of a language agent: JSON schemas, calls, and an MCP server.

    python -m g2vlm_ros.ros.client.agent_tools --print openai      # or anthropic: the schemas
    python -m g2vlm_ros.ros.client.agent_tools                     # MCP server on stdio (needs
    the package mcp)

The schema of `ask` is generated from SpatialQuery.srv. A user's text is passed as data.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable
from typing import Any

from g2vlm_ros.query.map_object import ObjectState
from g2vlm_ros.query.question_plan import AnswerType
from g2vlm_ros.ros.client.ask import code_name
from g2vlm_ros.ros.client.client import SpatialClient, UnreachableError
from g2vlm_ros.ros.start_errors import StartError
from g2vlm_ros.srv import FindObjects, SpatialQuery

_SIMPLE = {
    "string": "string",
    "boolean": "boolean",
    "float": "number",
    "double": "number",
    "uint8": "integer",
    "uint16": "integer",
    "uint32": "integer",
    "uint64": "integer",
}
_NOT_FOR_AGENTS = frozenset(("stamp", "examples", "regions"))
"""Fields that an agent without images in its hands cannot fill."""
_WHAT = {
    "ask": "Ask a question about what the robot's cameras see now. Distances, sizes, directions, "
    "positions and gaps are measured in 3D. Says so, with a code, when it does not know.",
    "locate": "Where a thing is: position in metres with its covariance.",
    "measure": "A length in metres: a distance, a size or a gap, asked for in words.",
    "look": "Describe what the cameras see now.",
    "find": "Where things were seen so far, also those that are in no view now: place, state "
    "(PRESENT, UNCERTAIN, GONE, MOVED), room and how long ago. Without a name: all things.",
}


def fields() -> dict[str, dict[str, Any]]:
    """JSON Schema of the fields of a SpatialQuery request that an agent may set."""
    request = SpatialQuery.Request()
    schema = {}
    for name, kind in SpatialQuery.Request.get_fields_and_field_types().items():
        if name in _NOT_FOR_AGENTS:
            continue
        if kind.startswith("sequence<"):
            schema[name] = {"type": "array", "items": {"type": _SIMPLE[kind[9:-1]]}}
        else:
            schema[name] = {"type": _SIMPLE[kind], "default": getattr(request, name)}
    schema["question"] = {"type": "string", "minLength": 1, "maxLength": 512}
    schema["answer_kind"] = {"type": "string", "enum": [kind.name for kind in AnswerType]}
    schema["reference"] = {"type": "string", "enum": ["VIEWER", "OBJECT", "WORLD"]}
    return schema


def schemas() -> list[dict[str, Any]]:
    """Name, description and parameters (JSON Schema) of every tool."""
    everything = fields()
    common = {name: everything[name] for name in ("target_frame", "max_wait_s")}
    thing = {"type": "string", "minLength": 1, "maxLength": 400}
    schema = {
        "ask": (everything, ["question"]),
        "locate": ({"thing": thing, **common}, ["thing"]),
        "measure": ({"question": everything["question"], **common}, ["question"]),
        "look": (common, []),
        "find": (
            {name: {"type": "string", "maxLength": 400} for name in ("name", "room")},
            [],
        ),
    }
    return [
        {
            "name": name,
            "description": _WHAT[name],
            "parameters": {
                "type": "object",
                "properties": properties,
                "required": required,
                "additionalProperties": False,
            },
        }
        for name, (properties, required) in schema.items()
    ]


def openai_style() -> list[dict[str, Any]]:
    """The schemas as OpenAI's function tools."""
    return [{"type": "function", "function": schema} for schema in schemas()]


def anthropic_style() -> list[dict[str, Any]]:
    """The schemas as Anthropic's tools."""
    return [
        {"name": s["name"], "description": s["description"], "input_schema": s["parameters"]}
        for s in schemas()
    ]


def call(robot: Any, tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Run a tool; the answer as a JSON object. ValueError names an unknown tool or argument."""
    fields = _checked(tool, arguments)
    if tool == "find":
        name, room = fields.get("name", ""), fields.get("room", "")
        return found_as_json(robot.find(name, room=room, with_gone=True))
    if tool == "ask":
        answer = robot.ask(fields.pop("question"), **fields)
    elif tool == "locate":
        answer = robot.locate(fields.pop("thing"), **fields)
    elif tool == "measure":
        answer = robot.ask(fields.pop("question"), answer_kind=int(AnswerType.NUMBER), **fields)
    else:
        answer = robot.ask("What do you see?", answer_kind=int(AnswerType.TEXT), **fields)
    return as_json(answer)


def _checked(tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments by name, enumerations as numbers; ValueError names the first that is wrong.

    Types of the others are checked by `client.fields`, where the message is made.
    """
    offered = {schema["name"]: schema["parameters"] for schema in schemas()}
    if tool not in offered:
        raise ValueError(f"no tool '{tool}'; there are {', '.join(offered)}")
    properties, required = offered[tool]["properties"], offered[tool]["required"]
    unknown = sorted(set(arguments) - set(properties))
    if unknown:
        raise ValueError(
            f"{tool} has no argument {', '.join(unknown)}; it has {', '.join(properties)}"
        )
    missing = [name for name in required if name not in arguments]
    if missing:
        raise ValueError(f"{tool} needs {', '.join(missing)}")
    fields = dict(arguments)
    for name, names in (("answer_kind", AnswerType.__members__), ("reference", _REFERENCES)):
        if name in fields:
            if not isinstance(fields[name], str) or fields[name] not in names:
                raise ValueError(
                    f"{name} is {fields[name]!r}; it must be one of {', '.join(names)}"
                )
            fields[name] = int(names[fields[name]])
    for name in ("thing", "name"):
        if name in fields and not isinstance(fields[name], str):
            raise ValueError(f"{name} is {fields[name]!r}; it must be text")
    return fields


_REFERENCES = {"VIEWER": 0, "OBJECT": 1, "WORLD": 2}


def as_json(answer: SpatialQuery.Response) -> dict[str, Any]:
    """What a language agent can use of an answer."""
    if not answer.success:
        return _refused(answer)
    kind = AnswerType(answer.answer_kind)
    fields: dict[str, Any] = {"success": True, "answer": answer.answer, "kind": kind.name}
    if kind == AnswerType.YES_NO:
        fields["yes"] = answer.yes_no
    if not math.isnan(answer.number):
        fields["number"], fields["unit"] = answer.number, answer.unit
    if kind in (AnswerType.POINT, AnswerType.POSE):
        fields["frame"] = answer.pose.header.frame_id
        fields["position_m"] = _position(answer.pose)
    fields["objects"] = [
        {"label": o.label, "position_m": _position(o.pose)} for o in answer.objects
    ]
    fields["measured"] = answer.measured
    if answer.remembered:
        fields["remembered"] = True
    fields["confidence"] = None if answer.confidence < 0 else round(answer.confidence, 3)
    fields["age_s"] = round(answer.age_s, 2)
    fields["reasoning"] = list(answer.reasoning)
    return fields


def found_as_json(answer: FindObjects.Response) -> dict[str, Any]:
    """What a language agent can use of remembered things."""
    if not answer.success:
        return _refused(answer)
    now_s = answer.header.stamp.sec + answer.header.stamp.nanosec * 1e-9
    objects = []
    for each in answer.objects:
        p = each.pose.position
        objects.append(
            {
                "label": each.name or each.label,
                "position_m": [round(value, 3) for value in (p.x, p.y, p.z)],
                "state": ObjectState(each.state).name,
                "room": each.room_name or (f"room {each.room}" if each.room else ""),
                "look_from_m": [
                    round(each.seen_from.position.x, 3),
                    round(each.seen_from.position.y, 3),
                ],
                "seen_s_ago": round(now_s - each.last_seen.sec - each.last_seen.nanosec * 1e-9, 1),
            }
        )
    return {"success": True, "frame": answer.header.frame_id, "objects": objects}


def _refused(answer: Any) -> dict[str, Any]:
    return {"success": False, "error": code_name(answer.error_code), "remedy": answer.error_msg}


def _position(stamped: Any) -> list[float]:
    p = stamped.pose.position
    return [round(value, 3) for value in (p.x, p.y, p.z)]


def serve(node: str) -> int:
    """An MCP server on stdio; exit code 2 where the package mcp (2 or later) is not installed."""
    try:
        import anyio
        from mcp.server.stdio import stdio_server
    except ImportError as error:
        print(
            f"the MCP server needs the package mcp ({error}); pip install 'mcp>=2'",
            file=sys.stderr,
        )
        return 2
    with SpatialClient(node) as robot:
        server = mcp_server(answered(robot))

        async def run() -> None:
            async with stdio_server() as (reader, writer):
                await server.run(reader, writer, server.create_initialization_options())

        anyio.run(run)
    return 0


def mcp_server(run: Callable[[str, dict[str, Any]], dict[str, Any]]) -> Any:
    """The MCP server that offers the tools and hands calls to `run(tool, arguments)`."""
    import anyio
    from mcp import types
    from mcp.server.lowlevel import Server

    async def list_tools(context: Any, params: Any) -> Any:
        offered = [
            types.Tool(name=s["name"], description=s["description"], input_schema=s["parameters"])
            for s in schemas()
        ]
        return types.ListToolsResult(tools=offered)

    async def call_tool(context: Any, params: Any) -> Any:
        result = await anyio.to_thread.run_sync(run, params.name, params.arguments)
        text = types.TextContent(type="text", text=json.dumps(result))
        return types.CallToolResult(content=[text], is_error=not result["success"])

    return Server("g2vlm_ros", on_list_tools=list_tools, on_call_tool=call_tool)


def answered(robot: Any) -> Callable[[str, dict[str, Any]], dict[str, Any]]:
    """`call` that says what went wrong as a result: an agent reads it and goes on."""

    def run(tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
        try:
            return call(robot, tool, arguments or {})
        except (ValueError, UnreachableError) as error:
            return {"success": False, "error": type(error).__name__, "remedy": str(error)}

    return run


def main(arguments: list[str] | None = None) -> int:
    """Print schemas, or serve."""
    parser = argparse.ArgumentParser(prog="tools", description=__doc__.split("\n")[0])
    parser.add_argument("--print", choices=("openai", "anthropic"), dest="style")
    parser.add_argument("--node", default="/perception")
    options = parser.parse_args(arguments)
    if options.style:
        print(
            json.dumps(
                {"openai": openai_style, "anthropic": anthropic_style}[options.style](), indent=1
            )
        )
        return 0
    try:
        return serve(options.node)
    except (StartError, UnreachableError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    raise SystemExit(main())
