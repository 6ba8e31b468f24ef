"""The address of a page that a notebook serves: on this machine, or behind the hub that runs the notebook.

browser --> hub --> Jupyter server --jupyter-server-proxy--> 127.0.0.1:port        on Binder and other hubs
browser -----------------------------------------------> 127.0.0.1:port        on your own machine
"""

from __future__ import annotations

import os


def url(port: int) -> str:
    """Return the address at which the reader's browser reaches a server on this port of 127.0.0.1. Behind a hub it is
    relative to the hub's host, and the page must use relative links. Raise ValueError if the port is not allowed."""
    if isinstance(port, bool) or not isinstance(port, int) or not 1 <= port <= 65535:
        raise ValueError(f"port is {port!r}; allowed: a whole number from 1 to 65,535")
    hub = os.environ.get("JUPYTERHUB_SERVICE_PREFIX")
    return f"{hub.rstrip('/')}/proxy/{port}/" if hub else f"http://127.0.0.1:{port}/"
