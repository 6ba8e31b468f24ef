"""Where a browser finds a page that a notebook serves: on this machine, or behind the hub that the notebook runs on.

browser --> hub --> Jupyter server --jupyter-server-proxy--> 127.0.0.1:port        on Binder and other hubs
browser -----------------------------------------------> 127.0.0.1:port        on your own machine
"""

from __future__ import annotations

import os


def url(port: int) -> str:
    """The address of what listens on this port of 127.0.0.1, for the browser that shows the notebook. Behind a hub it
    is relative to the hub's host, and the page there has to do with relative links."""
    if isinstance(port, bool) or not isinstance(port, int) or not 1 <= port <= 65535:
        raise ValueError(f"port is {port!r}; allowed: a whole number from 1 to 65,535")
    hub = os.environ.get("JUPYTERHUB_SERVICE_PREFIX")
    return f"{hub.rstrip('/')}/proxy/{port}/" if hub else f"http://127.0.0.1:{port}/"
