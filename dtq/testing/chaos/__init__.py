"""Break running queues on purpose, and check that they keep what the README promises.

    dtq chaos memory:     simulation.py   nodes, store and workers in one process, on a simulated clock:
                                          thousands of schedules a minute, each made from its seed
    dtq chaos STORE_URL   harness.py      real processes that are killed and frozen while they work
           both -->       invariants.py   what must hold afterwards, as pure functions of what was recorded

Faults come in through arguments that a queue has anyway (the store, the pool, the clock, the disk), so a queue in
production pays nothing for them. No module of the queue imports this package.
"""
