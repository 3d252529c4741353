"""Talks to a QMP socket through qemu.qmp, the library under QEMU's own tools.

    session.py SOCKET COMMAND...      COMMAND is a JSON array [name, arguments], or ["wait", EVENT]

Prints one line of JSON for each command: {"return": ...}, {"error": {"class", "desc"}} or {"event": ...}.
"""

import asyncio
import json
import sys

from qemu.qmp import EventListener, ExecuteError, QMPClient


async def main(path, commands):
    client = QMPClient("session")
    listener = EventListener()
    client.register_listener(listener)
    await client.connect(path)
    for name, argument in commands:
        if name == "wait":
            event = await listener.get()
            while event["event"] != argument:
                event = await listener.get()
            answer = {"event": event["event"], "data": event.get("data")}
        else:
            try:
                answer = {"return": await client.execute(name, argument)}
            except ExecuteError as error:
                answer = {"error": {"class": error.error_class, "desc": str(error)}}
        print(json.dumps(answer), flush=True)
    await client.disconnect()


asyncio.run(asyncio.wait_for(main(sys.argv[1], [json.loads(text) for text in sys.argv[2:]]), 30))
