"""The store for several machines, on Redis or Valkey: one Lua script for each operation.

May import: stores.
Read first: store.py, then lua/claim.lua.
"""

from dtq.stores.redis.store import RedisStore as RedisStore
