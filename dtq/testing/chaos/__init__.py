"""Chaos: breaks running queues on purpose, and looks whether they keep what the README promises.

    dtq chaos memory:     simulation.py   nodes, store and workers in one process, under a clock that is made up:
                                          thousands of schedules a minute, each from its seed
    dtq chaos STORE_URL   harness.py      real processes, which are killed and frozen while they work
           both -->       promises.py     what must hold then, as pure functions of what was seen

Nothing of this is in the way of a queue at work: faults come in through the seams that the queue has anyhow (the store,
the pool, the clock, the disk are arguments), and none of its modules is imported by the queue.
"""
