"""An application whose inspector has commands of its own."""

from __future__ import annotations

import asyncio
from typing import Any

from sanic import Sanic
from sanic.worker.inspector import Inspector

from .journal import record
from .steering import steerable


class Custom(Inspector):  # type: ignore[misc, unused-ignore]
    def echo(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return {"args": list(args), "kwargs": kwargs}

    async def later(self, value: str = "") -> str:
        """Take a detour through another thread, so that the command really is asynchronous."""
        return await asyncio.get_running_loop().run_in_executor(None, f"later {value}".strip)

    def running(self) -> bool:
        """Whether a stop cannot be lost any more."""
        return bool(self.app.state.is_running)

    def parent(self) -> str:
        """The module of the class that the application would import as the stock one."""
        return Inspector.__module__


app: Sanic[Any, Any] = Sanic("inspected", inspector=True, inspector_class=Custom)
steerable(app)
record(app)
