"""Drives an MCP server on stdio with the protocol's own Python SDK, as an agent's program would.

    client.py COMMAND ARGUMENT...

reads one JSON array a line, `[method, arguments]`, and answers each with a line of JSON. Methods are "list", and the names
of tools. What a tool answers is checked against the output schema that the server gave, refusals too.

This client would approve whatever it is asked: "asked" counts how often it was.
"""

import asyncio
import json
import os
import sys

import jsonschema
from mcp import ClientSession, types
from mcp.client.stdio import StdioServerParameters, stdio_client

asked = 0


async def approve(_context, _params):
    global asked
    asked += 1
    return types.ElicitResult(action="accept", content={"approve": True})


async def say_yes(_context, _params):
    global asked
    asked += 1
    text = types.TextContent(type="text", text="approved")
    return types.CreateMessageResult(role="assistant", content=text, model="none")


async def answer(session, schemas, method, arguments):
    if method == "list":
        listed = await session.list_tools()
        for tool in listed.tools:
            jsonschema.Draft202012Validator.check_schema(tool.input_schema)
            jsonschema.Draft202012Validator.check_schema(tool.output_schema)
            schemas[tool.name] = tool.output_schema
        return listed.model_dump(mode="json", by_alias=True, exclude_none=True)
    try:
        result = await session.call_tool(method, arguments)
    except Exception as error:  # what the protocol calls an error: the agent would see no more than this
        return {"protocol_error": str(error)}
    jsonschema.validate(result.structured_content, schemas[method])
    return result.model_dump(mode="json", by_alias=True, exclude_none=False)


async def main():
    # As it is: the SDK would hand on a few variables of its own choice otherwise.
    server = StdioServerParameters(command=sys.argv[1], args=sys.argv[2:], env=dict(os.environ))
    async with (
        stdio_client(server) as (read, write),
        ClientSession(
            read, write, elicitation_callback=approve, sampling_callback=say_yes
        ) as session,
    ):
        hello = await session.initialize()
        schemas = {}
        print(json.dumps(hello.model_dump(mode="json", by_alias=True, exclude_none=True)), flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            method, arguments = json.loads(line)
            got = await answer(session, schemas, method, arguments)
            print(json.dumps({"got": got, "asked": asked}), flush=True)


asyncio.run(main())
